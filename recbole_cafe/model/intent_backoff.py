"""IntentBackoff: next-item probabilities from counts, backed off from items to intents.

No gradient, no random number: two sparse tables of counts, made in seconds. What follows an item is counted; where an
item has been seen too seldom to say, what follows its intent decides, and popularity inside that intent. The parts are
those of n-gram language models: back-off (Katz, IEEE TASSP 1987), absolute discounting with interpolation (Ney, Essen,
Kneser, Computer Speech and Language 1994; Kneser, Ney, ICASSP 1995), a coarser model as the prior of a finer one
(MacKay, Peto, Natural Language Engineering 1995), classes as the coarser level (Brown et al., Computational Linguistics
1992). Nearest to it is TGH (Han et al., arXiv:2605.07125), which takes items a few transitions from the last ones and
orders them by the likeness of their texts; here the counts themselves order. CaFe (Li et al., SIGIR 2022) has the idea,
items through intents, for networks.

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

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.model.counts import (
    CountSettings,
    IntentCountSettings,
    Lookup,
    newest_first,
    repeat_rate,
    spread,
    with_repeats,
)
from recbole_cafe.model.net import Net, Reading
from recbole_cafe.model.reasons import Reasons, of_counts
from recbole_cafe.ranking.factored import FactoredCatalogue
from recbole_cafe.ranking.query import Query, required
from recbole_cafe.ranking.spread import Spread

TINY = 1e-300


class IntentBackoffNet(Net):
    """The probabilities of the module's docstring.

    Args:
        data: what the data know.
        counts: how transitions between items are counted and looked up.
        intent_counts: the same for intents.
        use_intents: False for one intent that all items have.
        popularity_exponent: alpha.
    """

    learns = False
    gives_probabilities = True
    counts_transitions = True
    needs_intents = True
    item2intent: Tensor
    seen: Tensor
    within: Tensor
    intent_share: Tensor
    rho: Tensor

    def __init__(
        self,
        *,
        data: DataFacts,
        counts: CountSettings,
        intent_counts: IntentCountSettings,
        use_intents: bool,
        popularity_exponent: float,
    ) -> None:
        super().__init__()
        n_items, item2intent, n_intents = data.n_items, data.item2intent, data.n_intents
        if not use_intents:  # one intent that all items have
            item2intent, n_intents = (torch.arange(n_items) > 0).long(), 2
        self.scores_intents = use_intents
        self.n_items, self.n_intents, self.counts = n_items, n_intents, counts
        self.intent_counts, self.max_seq_length = intent_counts, data.max_seq_length
        self.popularity_exponent = popularity_exponent
        users, items = (ids.cpu() for ids in data.train_pairs)
        self.items = counts.table(users, items, n_items)
        self.intents = intent_counts.table(users, item2intent[items], n_intents + 1) if use_intents else None
        seen = torch.bincount(items, minlength=n_items).double()  # [V] n(v)
        intent = torch.bincount(item2intent, weights=seen, minlength=n_intents + 1) + 1
        intent[torch.bincount(item2intent[1:], minlength=n_intents + 1) == 0] = 0  # padding, and those that no item has
        self.register_buffer("item2intent", item2intent, persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("within", self._within())  # [V] P(v | c_v)
        self.register_buffer("intent_share", intent / intent.sum())  # [C + 1] P(c)
        rho = repeat_rate(users.numpy(), items.numpy(), data.max_seq_length)
        self.register_buffer("rho", torch.tensor(rho, dtype=torch.float64))
        # RecBole's trainer wants something to optimise, as RecBole's own models without gradients have it
        self.nothing = nn.Parameter(torch.zeros(1))

    def _within(self) -> Tensor:
        """P(v | c_v) with the present alpha and kappa. Returns [V]."""
        weight = (self.seen + self.counts.popularity_prior) ** self.popularity_exponent
        weight[0] = 0
        inside = torch.bincount(self.item2intent, weights=weight, minlength=self.n_intents + 1)  # [C + 1]
        return weight / inside.clamp(min=1e-300)[self.item2intent]

    @property
    def intent_lookup(self) -> Lookup:
        """How the intents of a history are looked up."""
        return self.intent_counts.lookup(self.max_seq_length)

    def loss(self, batch: Batch) -> Tensor:  # noqa: ARG002
        """0: the counts are there since the model was built."""
        return 0.0 * self.nothing.sum()

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:  # noqa: ARG002
        """What the histories say.

        The overrides are the items with evidence of their own and those of the history; `terms`, [B, C + 1] float64,
        are what an intent contributes to any other of its items: (1) is (terms P(v | c) + extra) factor.
        """
        return self.asked(self.read(history))

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Those of (1), (2) and P(v | c). beta and D are in the counts already: they would have to be made anew."""
        values: dict[str, tuple[float, ...]] = {
            "popularity_exponent": (-1.0, -0.5, 0.0, 0.3, 0.6, 1.0), "popularity_prior": (0.3, 1.0, 3.0, 10.0),
            "prior": (3.0, 10.0, 30.0, 100.0, 300.0), "history_decay": (0.3, 0.5, 0.7, 0.85),
        }  # fmt: skip
        if self.intents is not None:
            values |= {"intent_prior": (1.0, 3.0, 10.0, 30.0), "intent_history_decay": (0.1, 0.3, 0.5, 0.7, 0.85)}
        return values

    def rank_with(self, settings: Mapping[str, float]) -> None:
        """See :meth:`Net.rank_with`."""
        super().rank_with(settings)
        self.popularity_exponent = settings.get("popularity_exponent", self.popularity_exponent)
        self.within.copy_(self._within())

    def read(self, history: Tensor, user: Tensor | None = None) -> Reading:  # noqa: ARG002
        """The histories."""
        return Reading(newest_first(history))

    def asked(self, reading: Reading) -> Query:
        """(1) with the present settings."""
        newest, lookup = reading.newest, self.counts.lookup
        evidence = reading.evidence(self.items, lookup, self.n_items)
        mass, rest = self.items.masses(newest, lookup)
        terms = self._intent_probability(newest) * (rest / mass)[:, None]
        plain = terms[evidence.row, self.item2intent[evidence.item]] * self.within[evidence.item]
        rho = self.rho if self.counts.repeats == "observed" else None
        extra = evidence.value / mass[evidence.row]
        overrides, others = with_repeats(evidence, plain, extra, rho, n_rows=len(newest), n_items=self.n_items)
        return Query(terms=terms * others[:, None], overrides=overrides)

    def spread(self, reading: Reading) -> Spread:
        """(1) of every item; see :meth:`Net.spread`."""
        newest, lookup = reading.newest, self.counts.lookup
        evidence = reading.evidence(self.items, lookup, self.n_items)
        mass, rest = (x.float() for x in self.items.masses(newest, lookup))
        terms = self._intent_probability(newest).float().T  # [C + 1, B]
        plain = terms.index_select(0, self.item2intent).mul_(self.within.float()[:, None])
        weight = evidence.value.float() * (1 / rest).index_select(0, evidence.row)
        rho = self.rho if self.counts.repeats == "observed" else None
        return spread(plain, evidence, evidence.of(plain), weight, rest / mass, rho)

    def intent_probabilities(self, history: Tensor) -> Tensor:
        """(2) after the histories. history: [B, L]. Returns [B, C + 1] float64, 0 for padding."""
        return self._intent_probability(newest_first(history))

    def _intent_probability(self, newest: Tensor) -> Tensor:
        """(2). Returns [B, C + 1]; without intents 1 for the one that all items have."""
        if self.intents is None:
            return self.intent_share.expand(len(newest), -1)
        sources = self.item2intent[newest]
        evidence = self.intents.evidence(sources, self.intent_lookup)
        mass, rest = self.intents.masses(sources, self.intent_lookup)
        return (evidence + rest[:, None] * self.intent_share) / mass[:, None]

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:
        """P(v | h) of every item, [B, V], or of given candidates, [B, K], in float64; see :meth:`Net.scores`.

        A candidate with a foreign intent has the term of that intent and its own P(v | c).
        """
        terms, overrides = required(query.terms, "terms"), required(query.overrides, "overrides")
        if items is None:
            score = terms[:, self.item2intent] * self.within
            at = (overrides.row, overrides.item)
            score[at] = (score[at] + overrides.extra) * overrides.factor
            return score
        row = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        extra, factor = overrides.of(row, items)
        intent = self.item2intent[items] if intents is None else intents
        return (terms.gather(1, intent) * self.within[items] + extra) * factor

    def reasons(self, history: Tensor, query: Query, row: Tensor, item: Tensor) -> Reasons:
        """The terms of (1), each times what (3) makes of it; see :meth:`Net.reasons`."""
        newest, overrides = newest_first(history), required(query.overrides, "overrides")
        extra, factor = overrides.of(row, item)
        intent, inside = self.item2intent[item], self.within[item]
        probability = self._intent_probability(newest)[row, intent]
        through = required(query.terms, "terms")[row, intent] * factor
        return replace(
            of_counts(self.counts, self.items, newest, row, item, extra * factor, n_items=self.n_items),
            weight=through / probability.clamp(min=TINY), intent_probability=probability, share_in_intent=inside,
            popularity_share=inside,
        )  # fmt: skip

    def similar(self, item: int) -> tuple[Tensor, Tensor]:
        """Counts over the geometric mean of both items' counts: c*(u, v) / sqrt(N(u) N(v)); see :meth:`Net.similar`.

        An item after which less was counted than it was counted itself, such as one that is always the last, has
        N(v) = c*(u, v): it occurred so often.
        """
        _, other, count = self.items.of(torch.tensor([item]))
        return other, count / (self.items.total[item] * self.items.total[other].maximum(count)).sqrt()

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> FactoredCatalogue:
        """The items as :mod:`recbole_cafe.ranking.factored` ranks them."""
        return FactoredCatalogue(self.within, self.item2intent, self.n_intents, prepared=ranked)
