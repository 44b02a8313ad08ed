"""IntentBackoff: next-item probabilities from counts, backed off from items to intents.

No gradient, no random number: two sparse tables of counts, made in seconds. What follows an item is counted; where an
item has been seen too seldom to say, what follows its intent decides, and popularity inside that intent. The parts are
those of n-gram language models: back-off (Katz, IEEE TASSP 1987), absolute discounting with interpolation (Ney, Essen,
Kneser, Computer Speech and Language 1994; Kneser, Ney, ICASSP 1995), a coarser model as the prior of a finer one
(MacKay, Peto, Natural Language Engineering 1995), classes as the coarser level (Brown et al., Computational Linguistics
1992). CaFe (Li et al., SIGIR 2022) has the idea, items through intents, for networks.

u, v items, c intents, c_v the intent of v, h = (u_1, u_2, ...) a history with the **newest** item first.

*Counts.* s(u, v) = sum over w = 1..W of delta^(w-1) times how often v came w places after u in a training sequence;
c(u, v) = s(u, v) + beta s(v, u), so that what came before u counts as well. Each entry is discounted,
c*(u, v) = c(u, v) - D min(c(u, v), 1), 0 <= D <= 1. N(u) and N*(u) are the sums over v.

*Evidence* of a history, with weights a_i = gamma^(i-1):

    e(v) = sum_i a_i c*(u_i, v),    E = sum_i a_i N(u_i)

*Items*, with mu > 0 the weight of the coarser level:

    P(v | h) = (e(v) + (mu + E - sum_v e(v)) P(c_v | h) P(v | c_v)) / (mu + E)                                     (1)

So a source counts as much as has been seen of it: counts are pooled, not averaged over sources after normalising each.
What the discounts took off goes to the coarser level.

*Intents*: the same formula over the intents of the same sequences, with settings of its own (primed) and beta' = 0:

    P(c | h) = (e'(c) + (mu' + E' - sum_c e'(c)) P(c)) / (mu' + E')                                                (2)

P(c) is proportional to n(c) + 1 over the intents that have items, n(c) the training interactions with items of c.

*Inside an intent*: P(v | c) is proportional to (n(v) + kappa)^alpha over the items of c. Items without an intent are
in one group, which is treated as one more intent.

``use_intents: False`` is the same with one intent that all items have: counts of items backed off to popularity.

*Repeats* (`repeats: observed`). Items of a history tend to follow each other, a user's own steps being among the
counts; whether users take an item again, the data say. rho = (R + 1) / (T + 2), where T training interactions have a
history and R of them are with an item among the L before. With P(h) the sum of (1) over the items of the history,

    P'(v | h) = rho P(v | h) / P(h)  for v in h,    (1 - rho) P(v | h) / (1 - P(h))  otherwise.                    (3)

(1), (2) and (3) sum to one over the catalogue. B rows in the batch, L positions, V items, C intents.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_cafe.model.base import NetRecommender
from recbole_cafe.ranking.factored import Exceptions, FactoredCatalogue

REPEATS = ("observed", "free")


class Successors(nn.Module):
    """c* of every pair of ids, by source, with N and N* of each source. In the state dict.

    Args:
        users: [P]. ids: [P] in 1..n-1, both in the order of users, then time.
        n: number of ids, padding included.
        window: W. window_decay: delta. backward: beta. discount: D.
        most: keep so many successors of a source, those seen most, equal ones by id; what the others had counts as
            taken off. 0 for all.
    """

    def __init__(self, users: Tensor, ids: Tensor, *, n: int, window: int, window_decay: float, backward: float,
                 discount: float, most: int) -> None:  # fmt: skip
        super().__init__()
        counts = transitions(
            users.numpy(), ids.numpy(), n=n, window=window, window_decay=window_decay, backward=backward
        )
        total = torch.from_numpy(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())
        if most:
            counts = _largest(counts, most)
        left = counts.data - discount * np.minimum(counts.data, 1.0)
        source = np.repeat(np.arange(n), np.diff(counts.indptr))
        keep = left > 0
        value = torch.from_numpy(left[keep].astype(np.float32))
        size = np.bincount(source[keep], minlength=n)
        self.register_buffer("start", torch.from_numpy(np.cumsum(np.r_[0, size])))  # [n + 1]
        self.register_buffer("successor", torch.from_numpy(counts.indices[keep].astype(np.int32)))  # [T]
        self.register_buffer("count", value)  # [T] c*
        self.register_buffer("total", total)  # [n] N
        self.register_buffer("kept", self._sums(torch.from_numpy(source[keep]), value, n))  # [n] N*

    @staticmethod
    def _sums(source: Tensor, value: Tensor, n: int) -> Tensor:
        return torch.bincount(source, weights=value.double(), minlength=n)  # of what is stored, so that (1) sums to one

    def of(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All successors of some sources. source: [S] ids.

        Returns:
            which of the sources, successor, c*, one each per pair: [P] long, [P] long, [P] float64.
        """
        first, size = self.start[source], self.start[source + 1] - self.start[source]
        which = torch.arange(len(source), device=source.device).repeat_interleave(size)
        within = torch.arange(len(which), device=source.device) - (torch.cumsum(size, 0) - size)[which]
        at = first[which] + within
        return which, self.successor[at].long(), self.count[at].double()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Tables of another train split have another size."""
        for name in ("successor", "count"):
            if (stored := state_dict.get(prefix + name)) is not None:
                old = getattr(self, name)
                setattr(self, name, torch.empty(stored.shape, dtype=old.dtype, device=old.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def transitions(users: np.ndarray, ids: np.ndarray, *, n: int, window: int, window_decay: float,
                backward: float) -> sparse.csr_matrix:  # fmt: skip
    """c(u, v): [n, n], columns of a row sorted. users, ids: [P], in the order of users, then time."""
    counts = sparse.csr_matrix((n, n))
    for w in range(1, window + 1):
        same = users[w:] == users[:-w]
        if not same.any():
            break
        pairs = (ids[:-w][same], ids[w:][same])
        weight = np.full(len(pairs[0]), window_decay ** (w - 1))
        counts = counts + sparse.coo_matrix((weight, pairs), shape=(n, n)).tocsr()
    if backward:
        counts = counts + backward * counts.T.tocsr()
    counts.sort_indices()
    return counts


def _largest(counts: sparse.csr_matrix, most: int) -> sparse.csr_matrix:
    """The `most` largest entries of each row, equal ones by column."""
    size = np.diff(counts.indptr)
    if size.max(initial=0) <= most:
        return counts
    row = np.repeat(np.arange(len(size)), size)
    order = np.lexsort((counts.indices, -counts.data, row))
    place = np.arange(len(row)) - counts.indptr[row]
    kept = np.sort(order[place < most])
    start = np.r_[0, np.cumsum(np.minimum(size, most))]
    return sparse.csr_matrix((counts.data[kept], counts.indices[kept], start), shape=counts.shape)


def repeat_rate(users: np.ndarray, items: np.ndarray, length: int) -> float:
    """rho: how often an item is one of the `length` before it, add-one smoothed. [P], by users, then time."""
    position = np.arange(len(users))
    order = np.lexsort((position, items, users))
    u, v, p = users[order], items[order], position[order]
    again = (u[1:] == u[:-1]) & (v[1:] == v[:-1]) & (p[1:] - p[:-1] <= length)
    with_history = int((users[1:] == users[:-1]).sum())
    return (int(again.sum()) + 1) / (with_history + 2)


class IntentBackoffNet(nn.Module):
    """The probabilities of the module's docstring.

    Args:
        n_items: V, padding included.
        item2intent: [V]; 0 for padding, C for an item without an intent.
        n_intents: C, padding included.
        max_seq_length: L.
        train_pairs: users and items of the training interactions, [P] each, in the order of users, then time.
        The rest: see props/model/IntentBackoff.yaml.

    Raises:
        ValueError: a setting outside of its range.
    """

    def __init__(
        self,
        *,
        n_items: int,
        item2intent: Tensor,
        n_intents: int,
        max_seq_length: int,
        train_pairs: tuple[Tensor, Tensor],
        use_intents: bool,
        window: int,
        window_decay: float,
        backward: float,
        history_length: int,
        history_decay: float,
        discount: float,
        prior: float,
        max_successors: int,
        intent_window: int,
        intent_window_decay: float,
        intent_history_decay: float,
        intent_discount: float,
        intent_prior: float,
        popularity_exponent: float,
        popularity_prior: float,
        repeats: str,
    ) -> None:
        super().__init__()
        _at_least(1, window=window, history_length=history_length, intent_window=intent_window)
        _at_least(0, max_successors=max_successors, popularity_exponent=popularity_exponent)
        _shares(
            window_decay=window_decay, backward=backward, history_decay=history_decay, discount=discount,
            intent_window_decay=intent_window_decay, intent_history_decay=intent_history_decay,
            intent_discount=intent_discount,
        )  # fmt: skip
        for key, value in {"prior": prior, "intent_prior": intent_prior, "popularity_prior": popularity_prior}.items():
            if value <= 0:
                raise ValueError(f"{key}={value} must be above 0: it gives what was never seen a probability")
        if repeats not in REPEATS:
            raise ValueError(f"repeats={repeats!r} is not one of {', '.join(REPEATS)}")
        if not use_intents:  # one intent that all items have
            item2intent, n_intents = (torch.arange(n_items) > 0).long(), 2
        self.scores_intents = use_intents
        self.repeats, self.n_items, self.n_intents = repeats, n_items, n_intents
        self.history_length, self.history_decay, self.prior = history_length, history_decay, prior
        self.intent_history_decay, self.intent_prior = intent_history_decay, intent_prior
        users, items = (ids.cpu() for ids in train_pairs)
        self.items = Successors(
            users, items, n=n_items, window=window, window_decay=window_decay, backward=backward, discount=discount,
            most=max_successors,
        )  # fmt: skip
        self.intents: Successors | None = None
        if use_intents:
            self.intents = Successors(
                users, item2intent[items], n=n_intents + 1, window=intent_window, window_decay=intent_window_decay,
                backward=0.0, discount=intent_discount, most=0,
            )  # fmt: skip
        seen = torch.bincount(items, minlength=n_items).double()  # [V] n(v)
        weight = (seen + popularity_prior) ** popularity_exponent
        weight[0] = 0
        inside = torch.bincount(item2intent, weights=weight, minlength=n_intents + 1)  # [C + 1]
        intent = torch.bincount(item2intent, weights=seen, minlength=n_intents + 1) + 1
        intent[inside == 0] = 0  # padding, and intents that no item has
        self.register_buffer("item2intent", item2intent, persistent=False)
        self.register_buffer("within", weight / inside.clamp(min=1e-300)[item2intent])  # [V] P(v | c_v)
        self.register_buffer("intent_share", intent / intent.sum())  # [C + 1] P(c)
        rho = repeat_rate(users.numpy(), items.numpy(), max_seq_length)
        self.register_buffer("rho", torch.tensor(rho, dtype=torch.float64))
        # RecBole's trainer wants something to optimise, as RecBole's own models without gradients have it
        self.nothing = nn.Parameter(torch.zeros(1))

    def loss(self, _item_seq: Tensor, _target: Tensor, _user: Tensor) -> Tensor:
        """0: the counts are there since the model was built."""
        return 0.0 * self.nothing.sum()

    def last(self, item_seq: Tensor) -> tuple[Exceptions, Tensor]:
        """What the histories say.

        Args:
            item_seq: [B, L], padded on the right.

        Returns:
            the items with evidence of their own and those of the history, and [B, C + 1] float64, what an intent
            contributes to any other of its items: (1) is (terms P(v | c) + extra) factor.
        """
        newest_first = _reversed(item_seq)
        B, V = len(item_seq), self.n_items
        # Item evidence, position by position: within one, no pair of row and item comes twice
        recent = newest_first[:, : self.history_length]
        pairs = [self.items.of(source) for source in recent.unbind(1)]
        in_history = newest_first > 0
        of_row = torch.arange(B, device=item_seq.device)[:, None].expand_as(newest_first)
        own = of_row[in_history] * V + newest_first[in_history]
        key, place = torch.unique(torch.cat([own, *(row * V + v for row, v, _ in pairs)]), return_inverse=True)
        row, item = key // V, key % V
        extra = torch.zeros(len(key), dtype=torch.float64, device=item_seq.device)
        is_old = torch.zeros_like(key, dtype=torch.bool)
        is_old[place[: len(own)]] = True
        done = len(own)
        for i, (_, _, count) in enumerate(pairs):
            extra[place[done : done + len(count)]] += self.history_decay**i * count
            done += len(count)
        seen, rest = self._masses(self.items, recent, self.history_decay, self.prior)
        terms = self._intent_probability(newest_first) * (rest / seen)[:, None]
        extra /= seen[row]
        if self.repeats == "free":
            return Exceptions(row, item, extra, torch.ones_like(extra), V), terms
        # (3): the factor of all other items goes into terms and extra
        probability = terms[row, self.item2intent[item]] * self.within[item] + extra
        old = torch.bincount(row[is_old], weights=probability[is_old], minlength=B)
        others = (1 - self.rho) / (1 - old).clamp(min=1e-12)
        factor = torch.where(is_old, (self.rho / old / others)[row], 1.0)
        return Exceptions(row, item, extra * others[row], factor, V), terms * others[:, None]

    def _intent_probability(self, newest_first: Tensor) -> Tensor:
        """(2). Returns [B, C + 1]; without intents 1 for the one that all items have."""
        if self.intents is None:
            return self.intent_share.expand(len(newest_first), -1)
        intents = self.item2intent[newest_first]
        evidence = self.intent_share.new_zeros(len(intents), self.n_intents + 1)
        for i, source in enumerate(intents.unbind(1)):
            row, intent, count = self.intents.of(source)
            evidence[row, intent] += self.intent_history_decay**i * count
        seen, rest = self._masses(self.intents, intents, self.intent_history_decay, self.intent_prior)
        return (evidence + rest[:, None] * self.intent_share) / seen[:, None]

    @staticmethod
    def _masses(table: Successors, sources: Tensor, decay: float, prior: float) -> tuple[Tensor, Tensor]:
        """mu + E and mu + E - sum e of each row. sources: [B, L] ids, newest first, 0 for none. Returns [B] each."""
        weight = decay ** torch.arange(sources.shape[1], dtype=torch.float64, device=sources.device)
        weight = weight * (sources > 0)
        left_out = table.total - table.kept
        return (weight * table.total[sources]).sum(1) + prior, (weight * left_out[sources]).sum(1) + prior

    def scores(self, state: Exceptions, terms: Tensor, items: Tensor | None = None,
               intents: Tensor | None = None) -> Tensor:  # fmt: skip
        """P(v | h) of every item, or of given candidates, in float64.

        Args:
            state, terms: from :meth:`last`.
            items: [B, K] candidates; None for all V.
            intents: [B, K] intents to score the candidates with, instead of their own (only `authors100` does): the
                term of that intent, with the item's P(v | c) inside its own.

        Returns:
            [B, V] (column 0 is padding) or [B, K].
        """
        if items is None:
            score = terms[:, self.item2intent] * self.within
            at = (state.row, state.item)
            score[at] = (score[at] + state.extra) * state.factor
            return score
        row = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        extra, factor = state.of(row, items)
        intent = self.item2intent[items] if intents is None else intents
        return (terms.gather(1, intent) * self.within[items] + extra) * factor

    def catalogue(self) -> FactoredCatalogue:
        """The items as :mod:`recbole_cafe.ranking.factored` ranks them."""
        return FactoredCatalogue(self.within, self.item2intent, self.n_intents)


def _reversed(item_seq: Tensor) -> Tensor:
    """Rows padded on the right, the newest item first. [B, L]"""
    length = (item_seq > 0).sum(1, keepdim=True)
    at = length - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
    return item_seq.gather(1, at.clamp(min=0)) * (at >= 0)


def _at_least(least: int, **settings: float) -> None:
    for key, value in settings.items():
        if value < least:
            raise ValueError(f"{key}={value} must be at least {least}")


def _shares(**settings: float) -> None:
    for key, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key}={value} must be between 0 and 1")


class IntentBackoff(NetRecommender):
    """IntentBackoff as RecBole sees it."""

    net = IntentBackoffNet
    learns = False
