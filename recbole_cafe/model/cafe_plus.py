"""CaFePlus: coarse to fine, normalised at both levels, and a memory of counts beside the networks.

Our own model, from CaFe (Li et al., SIGIR 2022, arXiv:2204.01839) and IntentBackoff
(recbole_cafe.model.intent_backoff). What each lacks the other has: one uniform negative teaches CaFe little about rare
items, and its score is no probability; counts know rare transitions and generalise by one fixed rule. Here the
factorisation that CaFe's Eq. 10 names is normalised, and what has followed an item is remembered.

h is a history, v an item, c_v its intent, R and R^c the states of CaFe's towers (Eq. 7), E and E^c their tables, n(v)
the training interactions with v; e(v), mu and E (the number) as in IntentBackoff's counts of items.

    P(v | h) = (e~(v) + (mu + E - sum e) Q(v | h)) / (mu + E),   Q(v | h) = P(c_v | h) P(v | c_v, h)                (1)
    P(c | h) = softmax_c(R^c . E^c_c + b_c)                                                                         (2)
    P(v | c, h) = softmax over the items of c of n(v) / (n(v) + eta) R . E_v + alpha ln(n(v) + kappa)               (3)

or, where items are few and frequent enough for a softmax over all of them in training (`softmax`),

    Q(v | h) = softmax over all items of R . (E_v + E^c_c) + b_c + alpha ln(n(v) + kappa)                           (4)

which has (3) with eta = 0 inside, and for P(c | h) its own sum over the items of c.

(1) is IntentBackoff's, with networks for what it backs off to. These have a word in the evidence as well: e~(v) is
e(v) Q(v | h)^tau, scaled to keep its sum; tau is `evidence_exponent`, and with 0 the counts are as they are.

*Rare items.* A vector learnt from one interaction says little: (3) trusts it n(v) / (n(v) + eta), and an item never
seen is what its intent is. A ranking has an eta of its own (`rank_shrinkage`): a vector fits the interactions it was
learnt from better than those to come, the more so the fewer they are.

*Training* minimises -ln Q(v | h), and with (2) and (3) lambda times -ln P(c_v | h) besides, which keeps Eq. 9's second
half. The memory has no part in it: trained on the likelihood of the mixture (1), networks learn what the counts leave
over, and with frequent items that is too little to rank by (docs/cafe_plus.md). In (3), n(v) is without the interaction
that is to be predicted, and the softmax takes all items of a small intent and a sample of a large one, weighted to
stand for the rest, so that a step costs what the batch touches, not the catalogue. What ranks are the means of the
weights over the epochs (`average_from` in the model's YAML): one epoch's fit the few interactions of a rare item too
closely.

*alpha.* Training has alpha = 1, so that E does not have to learn popularity; a ranking may use another one
(`popularity_exponent`), as logQ corrections do (Bengio, Senecal, IEEE TNN 2008; Yi et al., RecSys 2019). With (3),
only the order inside an intent depends on it. Where candidates are drawn by popularity, as in pop100, the best order is
that of P(v | h) divided by popularity, alpha = 0 or below, and where all items compete it is alpha = 1: see
docs/cafe_plus.md.

*Repeats* are those of IntentBackoff (3). B rows, L positions of which N are real, D hidden size, V items, C intents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.draws import current
from recbole_cafe.layers.losses import linear_ce_loss
from recbole_cafe.model.cafe import Towers
from recbole_cafe.model.counts import (
    CountSettings,
    Evidence,
    newest_first,
    repeat_rate,
    spread,
    with_repeats,
)
from recbole_cafe.model.net import Reading, parts_of
from recbole_cafe.model.reasons import Reasons, of_counts
from recbole_cafe.model.settings import EncoderSettings, LocalSettings
from recbole_cafe.ranking.blocks import EIGHT, columns, items_at_once
from recbole_cafe.ranking.catalogue import EPSILON
from recbole_cafe.ranking.memory import MemoryCatalogue
from recbole_cafe.ranking.precision import full_float32
from recbole_cafe.ranking.query import Query, required
from recbole_cafe.ranking.spread import Spread

LOGITS = 2**24  # logits kept with a query, at most: 64 MB
HELD = 2**22  # logits held at a time: 16 MB
SAFE = 60.0  # exponents up to it can be summed as they are, in float32
TINY = 1e-30
SOFTMAXES = ("auto", "levels", "items")
FEW = 50_000  # items that a training step can take all of
OFTEN = 5.0  # interactions of an item with which its vector learns from a softmax over all items


def trust(seen: Tensor, shrinkage: float) -> Tensor:
    """n / (n + eta), 1 for eta = 0."""
    return seen / (seen + shrinkage) if shrinkage else torch.ones_like(seen)


def reweighted(value: Tensor, log_weight: Tensor, row: Tensor, *, n_rows: int) -> Tensor:
    """Values times exp(log_weight), scaled to keep the sum of each row.

    Args:
        value: [E], at least 0.
        log_weight: [E].
        row: [E] in 0..B-1, in order.
        n_rows: B.

    Returns:
        [E].
    """
    log_weight = log_weight.masked_fill(value <= 0, -torch.inf)  # what has no value sets no scale
    largest = log_weight.new_full((n_rows,), -torch.inf).scatter_reduce(0, row, log_weight, "amax")
    largest = largest.where(largest > -torch.inf, 0.0)
    weighted = value * (log_weight - largest.index_select(0, row)).exp_()
    size = torch.bincount(row, minlength=n_rows)
    before, after = (torch.segment_reduce(x, "sum", lengths=size, initial=0) for x in (value, weighted))
    return weighted.mul_((before / after.clamp(min=TINY)).index_select(0, row))


class IntentItems(nn.Module):
    """The items by intent, with their popularity.

    Args:
        item2intent: [V].
        n_groups: C + 1.
        seen: [V] n(v).
    """

    order: Tensor
    size: Tensor
    start: Tensor
    intent: Tensor
    seen: Tensor

    def __init__(self, item2intent: Tensor, n_groups: int, seen: Tensor) -> None:
        super().__init__()
        order = torch.argsort(item2intent[1:], stable=True) + 1
        size = torch.bincount(item2intent[1:], minlength=n_groups)
        for name, value in {"order": order, "size": size, "start": torch.cumsum(size, 0) - size}.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("intent", item2intent, persistent=False)
        self.register_buffer("seen", seen)

    def some(self, intent: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Items of given intents, for sums over all of them.

        Args:
            intent: [U], none without items.
            n: most items of one sum.

        Returns:
            [U, n] items, and [U, n] how many each stands for: 1 in an intent of up to n items, all of which are given,
            0 beyond them, and (size / n) in a larger one, from which n are drawn uniformly.
        """
        size = self.size[intent][:, None]
        step = torch.arange(n, device=intent.device).expand(len(intent), n)
        draws = current()
        if draws is None:
            share = torch.rand(len(intent), n, dtype=torch.float64, device=intent.device)
        else:
            share = draws.for_step(intent).uniform(n)
        drawn = torch.minimum((share * size).long(), size - 1)
        weight = torch.where(size <= n, (step < size).float(), size / n)
        step = torch.where(size <= n, torch.minimum(step, size - 1), drawn)
        return self.order[self.start[intent][:, None] + step], weight

    def log_sums(self, logits: Callable[[slice], Tensor], n_columns: int) -> Tensor:
        """ln of the sum of exp(logit) over the items of each intent.

        Args:
            logits: gives [n, B'] of n items; padding is not asked for.
            n_columns: B'.

        Returns:
            [B', C + 1], 0 where an intent has no items.
        """
        step = items_at_once(n_columns)
        blocks = [slice(first, min(first + step, len(self.intent))) for first in range(1, len(self.intent), step)]
        total, safe = self.seen.new_zeros(len(self.size), n_columns), True
        for block in blocks:
            logit = logits(block)
            low, high = logit.aminmax()
            safe = safe and bool((low >= -SAFE) & (high <= SAFE))
            total.index_add_(0, self.intent[block], logit.exp())
        log_sum = total.log()
        if not safe:  # exp may overflow or vanish: once more, relative to the largest of each intent
            log_sum.fill_(-torch.inf)
            for block in blocks:
                logit = logits(block)
                intent = self.intent[block, None].expand_as(logit)
                largest = log_sum.scatter_reduce(0, intent, logit, "amax")
                shift = torch.where(largest == -torch.inf, 0.0, largest)
                total = (log_sum - shift).exp().scatter_add(0, intent, (logit - shift.gather(0, intent)).exp())
                log_sum = torch.where(largest == -torch.inf, largest, total.log() + shift)
        return log_sum.where(self.size[:, None] > 0, 0.0).T


@dataclass(frozen=True, kw_only=True)
class LevelSettings:
    """The two levels of CaFePlus and the memory beside them; see props/model/CaFePlus.yaml.

    Attributes:
        softmax: ``levels`` (2) and (3); ``items`` (4); ``auto``, that where items are few and frequent.
        item_memory: whether transitions between items are counted (1).
        item_net: whether items have vectors in (3).
        intent_loss_weight: lambda.
        n_in_intent: most items of a sum over an intent in training.
        shrinkage: eta in training, of levels.
        rank_shrinkage: eta of a ranking, of levels.
        evidence_exponent: tau.
        popularity_exponent: alpha of a ranking.

    Raises:
        ConfigError: a setting outside of its range.
    """

    softmax: str
    item_memory: bool
    item_net: bool
    intent_loss_weight: float
    n_in_intent: int
    shrinkage: float
    rank_shrinkage: float
    evidence_exponent: float
    popularity_exponent: float

    def __post_init__(self) -> None:
        if self.softmax not in SOFTMAXES:
            raise ConfigError(f"softmax={self.softmax!r} is not one of {', '.join(SOFTMAXES)}")
        if self.n_in_intent < 1:
            raise ConfigError(f"n_in_intent={self.n_in_intent} must be at least 1")
        for key in ("shrinkage", "rank_shrinkage", "evidence_exponent"):
            if (value := vars(self)[key]) < 0:
                raise ConfigError(f"{key}={value} must be at least 0")


@dataclass
class Heard(Reading):
    """What histories say to the towers; see :meth:`CaFePlusNet.read`.

    Attributes:
        newest: [B, L] the histories, newest item first.
        vector: [B, D + 1] states of the item tower, 1 behind them; without `item_net` 1 alone.
        terms: [B, C + 1] ln of (2); for (4) R . E^c_c + b_c.
    """

    vector: Tensor
    terms: Tensor


class CaFePlusNet(Towers):
    """The probabilities of the module's docstring.

    Args:
        data: what the data know. Items without an intent are in one group, which is one more intent.
        encoder: blocks of both towers.
        local: the re-weighting of the item tower's attention.
        counts: how transitions are counted and looked up.
        levels: the two levels and the memory.
        sparse_tables: gradients of the item table hold the rows a batch touched.
    """

    gives_probabilities = True
    counts_transitions = True
    scores_intents = True
    occupied: Tensor
    rho: Tensor

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        local: LocalSettings,
        counts: CountSettings,
        levels: LevelSettings,
        sparse_tables: bool,
    ) -> None:
        users, items = (ids.cpu() for ids in data.train_pairs)
        softmax = levels.softmax
        if softmax == "auto":
            suits = data.n_items <= FEW and len(items) >= OFTEN * (data.n_items - 1)
            softmax = "items" if suits else "levels"
        # a softmax over all items touches every row anyway
        super().__init__(data=data, encoder=encoder, local=local, sparse=sparse_tables and softmax == "levels")
        self.n_items, self.counts, self.levels = data.n_items, counts, levels
        self.softmax, self.resolved = softmax, {"softmax": softmax}
        self.kept_vectors: Tensor | None = None  # those of a bundle, which are not made again for each query
        self.items = counts.table(users, items, data.n_items) if levels.item_memory else None
        seen = torch.bincount(items, minlength=data.n_items).float()
        self.inside = IntentItems(self.item2intent, data.n_intents + 1, seen)
        share = torch.bincount(self.item2intent, weights=seen.double(), minlength=data.n_intents + 1) + 1
        share = (share / share.sum()).log().float()
        self.intent_bias = nn.Parameter(share if softmax == "levels" else torch.zeros_like(share))  # [C + 1]
        self.register_buffer("occupied", self.inside.size > 0, persistent=False)
        rho = repeat_rate(users.numpy(), items.numpy(), data.max_seq_length)
        self.register_buffer("rho", torch.tensor(rho, dtype=torch.float64))

    # Training --------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """-ln Q of the next item plus `intent_loss_weight` times -ln (2) of its intent, means over the targets."""
        fused, coarse, packing = self(batch.history)
        item = packing.pack(batch.target)
        has_target = item > 0
        if not has_target.any():
            zero: Tensor = fused.sum() * 0.0  # still part of the graph
            return zero
        assert coarse is not None  # there always is a tower of the intents
        fused, coarse, item = fused[has_target], coarse[has_target], item[has_target]
        if self.softmax == "items":
            return self._loss_of_items(fused if self.levels.item_net else coarse, item)
        log_intent = self._log_intents(coarse).gather(1, self.item2intent[item][:, None])[:, 0]
        return -((1 + self.levels.intent_loss_weight) * log_intent + self._log_inside(fused, item)).mean()

    def _loss_of_items(self, state: Tensor, item: Tensor) -> Tensor:
        """-ln of (4) of the targets, alpha = 1, a mean. state: [N, D], item: [N]."""
        assert self.intent_embedding is not None  # there always is a tower of the intents
        seen, intent = self.inside.seen[1:], self.item2intent[1:]
        weight, bias = self.intent_embedding.weight[intent], self.intent_bias[intent]
        bias = bias + (seen + self.counts.popularity_prior).log()
        if self.levels.item_net:
            weight = weight + self.item_embedding.weight[1:]
        return linear_ce_loss(state, weight, item - 1, bias)

    def _log_inside(self, state: Tensor, item: Tensor) -> Tensor:
        """ln of (3) of the targets, alpha = 1, large intents by a sample. state: [N, D], item: [N]. Returns [N]."""
        intent, which = torch.unique(self.item2intent[item], return_inverse=True)  # [U], [N]
        # [U, K]: one sample for all targets of an intent
        other, weight = self.inside.some(intent, self.levels.n_in_intent)
        # Without its own interaction: else a target has always been seen, and nothing is learnt about what has not
        seen, seen_other = (self.inside.seen[item] - 1).clamp(min=0), self.inside.seen[other]
        logit: Tensor = (seen + self.counts.popularity_prior).log()
        logits = ((seen_other + self.counts.popularity_prior).log() + weight.clamp(min=TINY).log())[which]  # [N, K]
        if self.levels.item_net:
            logit = logit + trust(seen, self.levels.shrinkage) * (state * self.item_embedding(item)).sum(-1)
            vectors = trust(seen_other, self.levels.shrinkage)[..., None] * self.item_embedding(other)
            logits = logits + torch.bmm(vectors[which], state[..., None])[..., 0]
        logits = logits.masked_fill((other[which] == item[:, None]) | (weight[which] == 0), -torch.inf)
        log_sum: Tensor = torch.cat((logit[:, None], logits), 1).logsumexp(1)
        return logit - log_sum

    def _log_intents(self, coarse: Tensor) -> Tensor:
        """ln of (2)'s softmax; for (4) the part of the intents. coarse: [N, D]. Returns [N, C + 1]."""
        assert self.intent_embedding is not None  # there always is a tower of the intents
        logit = coarse @ self.intent_embedding.weight.T + self.intent_bias
        logit = logit.masked_fill(~self.occupied, -torch.inf)
        return logit.log_softmax(1) if self.softmax == "levels" else logit

    def _log_shares(self, terms: Tensor, log_norm: Tensor) -> Tensor:
        """ln P(c | h). terms: of :class:`Heard`, log_norm: ln of the sums of (3), [B, C + 1] each."""
        return terms if self.softmax == "levels" else (terms + log_norm).log_softmax(1)

    # Ranking ---------------------------------------------------------------------------------------------------------

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:  # noqa: ARG002
        """What the histories say.

        `terms` are ln of P(c | h) times the share that (1) leaves to the networks.
        """
        return self.asked(self.read(history))

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Those of (1) and (3). beta and D are in the counts already, so that they would have to be made anew."""
        values: dict[str, tuple[float, ...]] = {"popularity_exponent": (-1.0, -0.5, 0.0, 0.3, 0.6, 1.0)}
        if self.levels.item_net and self.softmax == "levels":
            values["rank_shrinkage"] = (2.5, 10.0, 40.0, 160.0)
        values["popularity_prior"] = (0.3, 1.0, 3.0, 10.0)
        if self.items is not None:
            values |= {"evidence_exponent": (0.0, 0.25, 0.5, 1.0), "prior": (3.0, 10.0, 30.0, 100.0, 300.0),
                       "history_decay": (0.3, 0.5, 0.7, 0.85)}  # fmt: skip
        return values

    def read(self, history: Tensor, user: Tensor | None = None) -> Heard:  # noqa: ARG002
        """The states of both towers."""
        fused, coarse, packing = self(history)
        assert coarse is not None  # there always is a tower of the intents
        fused, coarse = packing.last(fused), packing.last(coarse)
        vector = torch.ones_like(fused[:, :1])
        if self.levels.item_net:
            vector = torch.cat((fused, vector), 1)
        says = fused if self.softmax == "items" and self.levels.item_net else coarse
        return Heard(newest_first(history), vector, self._log_intents(says))

    def asked(self, reading: Heard) -> Query:
        """(1) with the present settings."""
        newest, vector, terms = reading.newest, reading.vector, reading.terms
        lookup, levels = self.counts.lookup, self.levels
        evidence = reading.evidence(self.items, lookup, self.n_items)
        mass = rest = None
        log_share = terms.new_zeros(len(terms), dtype=torch.float64)
        if self.items is not None:
            mass, rest = self.items.masses(newest, self.counts.lookup)
            log_share = (rest / mass).log()
        parts, done = [], 0
        rows = self._rows_at_once(len(vector))
        settings = (levels.popularity_exponent, levels.rank_shrinkage, self.counts.popularity_prior, lookup.decay)
        inside = reading.kept("inside", settings, lambda: self._inside(vector, evidence, rows))
        for some, (log_norm, logit, logits) in zip(evidence.split(rows), inside, strict=True):
            at = slice(done, done + rows)
            of_intents = self._log_shares(terms[at], log_norm) + log_share[at, None].float()
            part = self._said(vector[at], of_intents, some, None if mass is None else mass[at], log_norm, logit)
            parts.append(replace(part, logits=logits))
            done += rows
        return Query.cat(parts)

    def spread(self, reading: Heard) -> Spread:
        """(1) of every item; see :meth:`Net.spread`."""
        levels, lookup = self.levels, self.counts.lookup
        evidence = reading.evidence(self.items, lookup, self.n_items)
        settings = (levels.popularity_exponent, levels.rank_shrinkage, self.counts.popularity_prior)
        net: Tensor = reading.kept("net", settings, lambda: self._net(reading))
        common, weight, share = evidence.of(net), evidence.value.float(), net.new_ones(len(reading.vector))
        if self.items is not None:
            mass, rest = (x.float() for x in self.items.masses(reading.newest, lookup))
            share, size = rest / mass, evidence.size
            scale = 1 / rest  # one is one of `mass`, in units of the share
            if levels.evidence_exponent:  # as `reweighted`, which takes logarithms of any size and is slower
                total = torch.segment_reduce(weight, "sum", lengths=size, initial=0)
                weight = weight * common.pow(levels.evidence_exponent)
                scale = scale * total / torch.segment_reduce(weight, "sum", lengths=size, initial=0).clamp(min=TINY)
            weight = weight * scale.index_select(0, evidence.row)
        return spread(net, evidence, common, weight, share, self.rho if self.counts.repeats == "observed" else None)

    @full_float32()
    def _net(self, reading: Heard) -> Tensor:
        """Q of every item. Returns [V, B]."""
        logits = self._popularity(slice(0, self.n_items))[:, None].repeat(1, len(reading.vector))
        if self.levels.item_net:
            if self.n_items <= FEW:  # they take as much memory as Q, which is kept anyway
                products = reading.kept("products", (), lambda: self._products(reading.vector))
            else:
                products = self._products(reading.vector)
            if self.softmax == "levels":
                logits.addcmul_(products, trust(self.inside.seen, self.levels.rank_shrinkage)[:, None])
            else:
                logits.add_(products)
        intent, inside = self.item2intent, self.inside
        low, high = logits.aminmax()
        if safe := bool((low >= -SAFE) & (high <= SAFE)):  # the exponentials are made once, not twice
            logits.exp_()[0] = 0
            total = logits.new_zeros(len(inside.size), logits.shape[1]).index_add_(0, intent, logits)
            log_norm = total.log_().where(inside.size[:, None] > 0, 0.0).T
        else:
            log_norm = inside.log_sums(lambda block: logits[block], logits.shape[1])
        terms = (self._log_shares(reading.terms, log_norm) - log_norm).T
        if safe:
            return logits.mul_(terms.exp().index_select(0, intent))
        net = logits.add_(terms.index_select(0, intent)).exp_()
        net[0] = 0
        return net

    def _products(self, vector: Tensor) -> Tensor:
        """R . E_v, whatever the settings. vector: [B, D + 1]. Returns [V, B]."""
        return self.item_embedding.weight @ vector[:, :-1].T

    def _said(self, vector: Tensor, terms: Tensor, evidence: Evidence, mass: Tensor | None, log_norm: Tensor,
              logit: Tensor) -> Query:  # fmt: skip
        """(1) of some rows.

        Args:
            vector: [B, D + 1].
            terms: [B, C + 1] ln of P(c | h) times the share that the counts leave.
            evidence: of these rows.
            mass: [B] mu + E, or None without counts.
            log_norm: [B, C + 1].
            logit: [E] the exponents of (3).
        """
        row, n_rows = evidence.row, len(vector)
        base = terms - log_norm
        place = (row * terms.shape[1]).add_(self.item2intent.index_select(0, evidence.item))
        log_plain = base.reshape(-1).index_select(0, place).add_(logit)  # ln of Q times the share of its row
        extra = evidence.value
        if mass is not None:  # the share is one for a row and does not matter to the weights
            log_weight = self.levels.evidence_exponent * log_plain.double()
            extra = reweighted(extra, log_weight, row, n_rows=n_rows).div_(mass.index_select(0, row))
        plain = log_plain.double().exp_()
        rho = self.rho if self.counts.repeats == "observed" else None
        overrides, others = with_repeats(evidence, plain, extra, rho, n_rows=n_rows, n_items=self.n_items)
        # the sums of float32 numbers above and below are each off by half a unit in the last place
        span = [x.where(self.occupied, 0.0).abs().amax(1).double() for x in (terms, log_norm, base)]
        least = torch.zeros_like(span[0]).scatter_reduce(0, row, log_plain.abs().double(), "amax")
        error = 4 * EPSILON * (sum(span) + least + others.log().abs())
        plain.mul_(others.index_select(0, row))
        overrides = replace(overrides, plain=plain, error=error)
        return Query(vector, terms + others.log()[:, None].float(), log_norm, overrides)

    def _rows_at_once(self, n_rows: int) -> int:
        """Rows whose products with all items are held at a time; all of them in a large catalogue, where none are."""
        return n_rows if self.n_items > HELD // 64 else HELD // self.n_items // EIGHT * EIGHT

    @torch.no_grad()
    @full_float32()
    def _inside(
        self, vector: Tensor, evidence: Evidence, n_rows: int
    ) -> list[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
        """The exponents of (3), for some rows after the other.

        Args:
            vector: [B, D + 1].
            evidence: of these rows.
            n_rows: how many at a time.

        Returns:
            for each: ln of the sums of exp over the items of each intent, [R, C + 1]; the exponents of the evidence,
            [E]; and all, [V, R'], if they are few.
        """
        if self.n_items > HELD // 64:
            state = columns(vector)
            log_norm = self.inside.log_sums(lambda block: self._vectors(block) @ state, state.shape[1])[: len(vector)]
            step = max(1, LOGITS // vector.shape[1])
            parts = [
                (vector.index_select(0, row) * self._vectors(item)).sum(1)
                for row, item in zip(evidence.row.split(step), evidence.item.split(step), strict=True)
            ]
            return [(log_norm, torch.cat(parts), ())]
        table, keep = self._vectors(slice(0, self.n_items)), len(vector) * self.n_items <= LOGITS
        result: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []
        for some, said in zip(vector.split(n_rows), evidence.split(n_rows), strict=True):
            state = columns(some)
            logits = state.new_empty(self.n_items, state.shape[1])
            logits[0] = 0

            def taken(block: slice, logits: Tensor = logits, state: Tensor = state) -> Tensor:
                return torch.mm(table[block], state, out=logits[block])

            log_norm = self.inside.log_sums(taken, state.shape[1])[: len(some)]
            place = (said.item * logits.shape[1]).add_(said.row)
            result.append((log_norm, logits.view(-1).index_select(0, place), (logits,) if keep else ()))
        return result

    def encoded(self, history: Tensor) -> dict[str, Tensor]:
        """`vector` [B, D + 1] of (3), the last a 1 (without `item_net` it alone), and `terms` [B, C + 1].

        The terms are ln of (2) or, for (4), what is added to the products of an intent's items. The counts are no part
        of it; see :meth:`Net.encoded`.
        """
        said = self.read(history)
        return {"vector": said.vector, "terms": said.terms}

    def intent_probabilities(self, history: Tensor) -> Tensor:
        """P(c | h). history: [B, L]. Returns [B, C + 1], 0 for padding and for groups without items."""
        said = self.read(history)
        if self.softmax == "levels":
            return said.terms.exp()
        state = columns(said.vector)
        log_norm = self.inside.log_sums(lambda block: self._vectors(block) @ state, state.shape[1])
        return self._log_shares(said.terms, log_norm[: len(history)]).exp()

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:
        """P(v | h) of every item, [B, V], or of given candidates, [B, K]; see :meth:`Net.scores`.

        A candidate with a foreign intent has that intent's P(c | h) and its own P(v | c, h).
        """
        vector, terms = required(query.vector, "vector"), required(query.terms, "terms")
        norm, overrides = required(query.log_norm, "log_norm"), required(query.overrides, "overrides")
        if items is None:
            own = self.item2intent
            logit = vector @ self._vectors(torch.arange(self.n_items, device=own.device)).T
            score = (terms[:, own] + logit - norm[:, own]).exp()
            at = (overrides.row, overrides.item)
            score[at] = ((score[at] + overrides.extra) * overrides.factor).to(score.dtype)
            return score
        own = self.item2intent[items]
        logit = torch.bmm(self._vectors(items), vector[..., None])[..., 0]
        term = terms.gather(1, own if intents is None else intents)
        row = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        extra, factor = overrides.of(row, items)
        return (((term + logit - norm.gather(1, own)).exp() + extra) * factor).to(terms.dtype)

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> MemoryCatalogue:
        """The items as :mod:`recbole_cafe.ranking.memory` ranks them, with the present weights."""
        if ranked is None:
            vectors, prepared = self._vectors(slice(0, self.n_items)).detach(), None
        else:
            vectors, prepared = ranked["vectors"], parts_of(ranked)
            self.kept_vectors = vectors  # the weights stay as they are: what is served is not trained on
        return MemoryCatalogue(vectors, self.item2intent, self.n_intents, prepared)

    def ranked(self) -> dict[str, Tensor]:
        """The vectors [V, D + 1] of :meth:`_vectors`, and the parts of the catalogue."""
        catalogue = self.catalogue()
        return {"vectors": catalogue.plain.table, **catalogue.parts()}

    def reasons(self, history: Tensor, query: Query, row: Tensor, item: Tensor) -> Reasons:
        """The terms of (1), each times what repeats make of it; see :meth:`Net.reasons`."""
        newest, overrides = newest_first(history), required(query.overrides, "overrides")
        extra, factor = overrides.of(row, item)
        vector, terms = required(query.vector, "vector"), required(query.terms, "terms")
        norm, intent = required(query.log_norm, "log_norm"), self.item2intent[item]
        logit = (vector[row].double() * self._vectors(item).double()).sum(1)
        inside = (logit - norm[row, intent]).exp()
        probability = self.intent_probabilities(history)[row, intent].double()
        through = terms[row, intent].double().exp() * factor
        weight = self._popularity(torch.arange(self.n_items, device=item.device)).double().exp()
        weight[0] = 0
        of_intent = torch.bincount(self.item2intent, weights=weight, minlength=self.n_intents + 1)
        return replace(
            of_counts(self.counts, self.items, newest, row, item, extra * factor, n_items=self.n_items),
            weight=through / probability.clamp(min=TINY), intent_probability=probability, share_in_intent=inside,
            popularity_share=weight[item] / of_intent[intent],
        )  # fmt: skip

    def as_given(self, score: Tensor) -> Tensor:
        """P(v | h): the catalogue ranks by its logarithm."""
        return score.exp()

    def _popularity(self, items: Tensor | slice) -> Tensor:
        """alpha ln(n(v) + kappa). [...] to [...]."""
        return self.levels.popularity_exponent * (self.inside.seen[items] + self.counts.popularity_prior).log()

    def _vectors(self, items: Tensor | slice) -> Tensor:
        """What (3) multiplies a state's vector with.

        [...] to [..., D + 1], popularity last; without `item_net` popularity alone, [..., 1].
        """
        if self.kept_vectors is not None:
            return self.kept_vectors[items]
        seen, popularity = self.inside.seen[items], self._popularity(items)[..., None]
        if not self.levels.item_net:
            return popularity
        vectors = self.item_embedding.weight[items]
        if self.softmax == "levels":
            vectors = trust(seen, self.levels.rank_shrinkage)[..., None] * vectors
        return torch.cat((vectors, popularity), -1)
