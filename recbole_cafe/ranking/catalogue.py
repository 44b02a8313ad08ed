"""Exact ranking over the whole catalogue: streamed in blocks, or pruned by intent.

B states, V items, D hidden size, C intents. An item v of intent c scores f(x, t_c): x = state . table[v], t_c the
state's term for c, f increasing in both (recbole_cafe.layers.scoring). Comparing an item with a given score y
therefore means comparing x with the threshold f^-1(y; t_c), one number per state and intent, without f for every item.

"Exact" means: as if every score were computed in float64. Products are taken in float32; where one comes closer to a
threshold than its rounding error can be, that item alone is compared again in float64. So the result does not depend on
block sizes, on the order of visits or on what was pruned, and equal items tie exactly. (So products must be no coarser
than float32: :func:`recbole_cafe.ranking.precision.full_float32`.)

Pruning: the items of an intent lie within a radius of their centre, so x lies within |state| radius of state . centre.
Intents whose best case does not reach the threshold are skipped, those whose worst case passes it are counted whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from recbole_cafe.layers.scoring import joint_score
from recbole_cafe.ranking.blocks import CELLS, EIGHT, columns, counts, items_at_once, places
from recbole_cafe.ranking.precision import full_float32
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks, ScoreError, best, check_parts, pairs

BLOCK = 2**22  # scores held at a time: 16 MB of float32
EPSILON = 2.0**-24  # half the distance of 1 to the next float32

# What work costs on one core of a server of 2023, in nanoseconds; only their ratios matter, and only for speed
MULTIPLY = 0.025  # of a product's multiplications, each
COMPARE = 1.5  # an item with its thresholds, for one state, in a block
SELECT = 5.0  # the same for an intent's items and the states that visit it
READ = 0.05  # a number of the table in its own order
GATHER = 0.25  # a number of the table by item
VISIT = 100_000.0  # an intent: some thirty calls
FEW = 5_000_000.0  # the intents of one state, some hundreds of calls
SCORE = 15.0  # a score and its part in finding the largest
SPARE = 16  # of the largest scores in float32 so many more are compared in float64


@dataclass
class Counters:
    """How much work a search did.

    Attributes:
        pairs: state-item products taken.
        possible: B x V.
    """

    pairs: int = 0
    possible: int = 0

    @property
    def share(self) -> float:
        """Share of the products of a dense ranking that were taken."""
        return self.pairs / max(self.possible, 1)


@dataclass
class Catalogue:
    """The items of a model, grouped by intent. The table is used in place, never copied.

    Args:
        table: [V, D] float32, row 0 is padding.
        item2intent: [V], 0 for padding, C for items without intent.
        joint: see :mod:`recbole_cafe.layers.scoring`.
        n_intents: C, padding included.
        counters: where work is counted.
        prepared: :meth:`parts` of a catalogue with the same table and intents, which are then not made again.

    Raises:
        DataError: `prepared` is of another catalogue.
    """

    table: Tensor
    item2intent: Tensor
    joint: str
    n_intents: int
    counters: Counters = field(default_factory=Counters)
    prepared: InitVar[Mapping[str, Tensor] | None] = None

    def __post_init__(self, prepared: Mapping[str, Tensor] | None) -> None:
        if prepared is None:
            self._prepare()
        else:
            n_groups, (V, dim) = self.n_intents + 1, self.table.shape
            shapes = {
                "items": (V - 1,), "size": (n_groups,), "centre": (n_groups, dim), "radius": (n_groups,),
                "norm": (n_groups,),
            }  # fmt: skip
            check_parts(prepared, shapes)
            self.items, self.size, self.centre = prepared["items"], prepared["size"], prepared["centre"]
            self.radius, self.norm = prepared["radius"], prepared["norm"]
        self.start = torch.cumsum(self.size, 0) - self.size
        self.n_occupied = int((self.size > 0).sum())
        self.longest = float(self.norm.max())

    def parts(self) -> dict[str, Tensor]:
        """What has been made of table and intents, to be stored beside them and given back as `prepared`."""
        return {name: getattr(self, name) for name in ("items", "size", "centre", "radius", "norm")}

    def _prepare(self) -> None:
        n_groups = self.n_intents + 1
        group = self.item2intent.clone()
        self.items = torch.argsort(group[1:], stable=True) + 1  # item ids by intent, padding left out
        self.size = torch.bincount(group[1:], minlength=n_groups)
        dim = self.table.shape[1]
        centre = torch.zeros(n_groups, dim, dtype=torch.float32, device=self.table.device)
        square = torch.zeros(n_groups, device=self.table.device)
        self.norm = torch.zeros(n_groups, device=self.table.device)
        steps = max(1, BLOCK // dim)
        for ids in self.items.split(steps):
            centre.index_add_(0, group[ids], self.table.index_select(0, ids))
        centre /= self.size.clamp(min=1)[:, None]
        for ids in self.items.split(steps):
            rows, of = self.table.index_select(0, ids), group[ids]
            square.scatter_reduce_(0, of, (rows - centre[of]).square().sum(1), "amax")
            self.norm.scatter_reduce_(0, of, rows.norm(dim=1), "amax")
        self.centre = centre
        self.radius = square.sqrt() * (1 + 8 * dim * EPSILON)

    @classmethod
    def of_items(cls, table: Tensor, prepared: Mapping[str, Tensor] | None = None) -> Catalogue:
        """The items of a model that scores without intents: all in one group. table: [V, D] and `prepared` as above."""
        group = torch.ones(len(table), dtype=torch.long, device=table.device)
        group[0] = 0
        return cls(table, group, "item", 2, prepared=prepared)

    @property
    def n_items(self) -> int:
        """V, padding included."""
        return len(self.table)

    # Scores in float64 ------------------------------------------------------------------------------------------------

    def score64(self, state: Tensor, terms: Tensor | None, item: Tensor) -> Tensor:
        """The score that decides. state: [P, D], terms: [P] of the items' intents or None, item: [P]. Returns [P]."""
        logit = (state.double() * self.table.index_select(0, item).double()).sum(1)
        return joint_score(logit, None if terms is None else terms.double(), self.joint)

    def scores_of(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """:meth:`score64` of items in rows of a query. row, item: [P]. Returns [P]."""
        state, terms = _parts(query)
        return self.score64(state[row], None if terms is None else terms[row, self.item2intent[item]], item)

    def between(self, score: Tensor, term: Tensor | None) -> tuple[Tensor, Tensor]:
        """Between which x an item may have the given score, seen in float64.

        Below the first its score certainly is lower, above the second certainly higher. They differ by the rounding
        of f: ln sigmoid(x) is flat for large x, where a range of x has one and the same score.

        Args:
            score: float64.
            term: the intent's, of a shape that broadcasts with it; None for ``item``.

        Returns:
            float64 each; +inf where no x is certainly enough, -inf where every x may be.
        """
        if term is None or self.joint == "item":
            return score, score
        term = term.double()
        need = score - term
        rounding = 8 * torch.finfo(torch.float64).eps * (score.abs() + term.abs())
        rounding = rounding.nan_to_num(posinf=0.0)  # an infinite score: every or no x
        return self._inverse(need - rounding, reached=True), self._inverse(need + rounding, reached=False)

    def thresholds(self, score: Tensor, terms: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`between` for every intent. score: [B], terms: [B, C + 1] or None. Returns [B, C + 1] each."""
        low, high = self.between(score[:, None], terms)
        shape = (len(score), self.n_intents + 1)
        return low.expand(shape), high.expand(shape)

    def _inverse(self, need: Tensor, *, reached: bool) -> Tensor:
        """x with f(x; 0) = need. reached: whether ln sigmoid(x) is 0 for x above 690, as float64 has it, or never."""
        if self.joint == "sum":
            return need
        # ln sigmoid(x) = need, x = -ln(exp(-need) - 1); for need below -30 that is need itself
        x = torch.where(need < -30, need, -torch.log(torch.expm1(-need.clamp(max=-1e-300))))
        return torch.where(need > 0 if reached else need >= 0, torch.inf, x)

    def slack(self, state: Tensor) -> Tensor:
        """[B, C + 1] float64: no float32 product of a state with an item of an intent is further off than this."""
        dim = self.table.shape[1]
        length: Tensor = state.double().norm(dim=1)
        return 2 * (dim + 4) * EPSILON * length[:, None] * self.norm.double()

    # Rank of the target -----------------------------------------------------------------------------------------------

    @full_float32()
    def rank(self, query: Query, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip
        """Where each state's target stands among all items.

        Args:
            query: `vector` [B, D] and, unless all items are one group, `terms` [B, C + 1] are read.
            target: [B].
            excluded: items that are no candidates, one tensor per state (the target among them stays one).
            at_most: a target with this many items above it is not looked at further; its `above` is then at least
                `at_most`, not exact. None for exact ranks.

        Raises:
            ScoreError: NaN in states or scores.
        """
        own = self.scores_of(query, torch.arange(len(target), device=target.device), target)
        return self.rank_given(query, target, own, excluded=excluded, at_most=at_most)

    @full_float32()
    def rank_given(self, query: Query, target: Tensor, own: Tensor, *, excluded: Sequence[Tensor] | None = None,
                   at_most: int | None = None) -> Ranks:  # fmt: skip
        """:meth:`rank` of targets whose scores are known.

        Args:
            query: see :meth:`rank`.
            target: [B], 0 for one that is no item of this catalogue.
            own: [B] float64, their scores.
            excluded: see :meth:`rank`.
            at_most: see :meth:`rank`.
        """
        state, terms = _parts(query)
        B = len(state)
        _refuse_nan(own, state, terms)
        threshold, slack = self.thresholds(own, terms), self.slack(state)
        above = torch.zeros(B, dtype=torch.long, device=state.device)
        tied = torch.zeros_like(above)
        left_out = [] if excluded is None else [t[t != own_item] for t, own_item in zip(excluded, target, strict=True)]
        for i, items in enumerate(left_out):
            if len(items):  # they will be counted below; take them out of the count beforehand
                term = None if terms is None else terms[i, self.item2intent[items]]
                score = self.score64(state[i].expand(len(items), -1), term, items)
                above[i] -= (score > own[i]).sum()
                tied[i] -= (score == own[i]).sum()
        limit = None if at_most is None else torch.full_like(above, at_most)
        self._count(state, terms, target, own, threshold, slack, above, tied, limit)
        n_candidates = torch.full_like(above, len(self.items))
        for i, items in enumerate(left_out):
            n_candidates[i] -= len(items)
        return Ranks(above.cpu(), tied.cpu(), n_candidates.cpu(), at_most)

    @full_float32()
    def count(self, state: Tensor, terms: Tensor | None, own: Tensor, above: Tensor, tied: Tensor,
              limit: Tensor | None, logits: Tensor | None = None) -> None:  # fmt: skip
        """Add to above and tied, [B], how many of all items score above, and the same as, a given number.

        Args:
            state: [B, D].
            terms: [B, C + 1] or None.
            own: [B] float64, the number.
            above: [B], changed in place.
            tied: [B], changed in place.
            limit: [B] counts that are enough, or None.
            logits: [V, B'] products in float32 where they have been taken already, see :class:`Query`.
        """
        nobody = torch.full_like(above, -1)
        threshold, slack = self.thresholds(own, terms), self.slack(state)
        self._count(state, terms, nobody, own, threshold, slack, above, tied, limit, logits)

    def _count(self, state: Tensor, terms: Tensor | None, target: Tensor, own: Tensor, threshold: tuple[Tensor, Tensor],
               slack: Tensor, above: Tensor, tied: Tensor, limit: Tensor | None,
               logits: Tensor | None = None) -> None:  # fmt: skip
        """Add to above and tied, [B], the items of every intent, visiting those that can hold some."""
        self.counters.possible += len(state) * len(self.items)
        dense = self._dense_cost(len(state))
        if logits is not None or dense <= VISIT * self.n_occupied:
            self._count_all(state, terms, target, own, threshold, slack, above, tied, logits)
            return
        middle = (state @ self.centre.T).double()  # [B, C + 1]
        # the centre's own product is rounded too, and its norm is no larger than the largest item's
        reach = state.double().norm(dim=1)[:, None] * self.radius.double() + 2 * slack
        occupied = self.size > 0
        low, high = threshold
        whole = (middle - reach > high) & occupied
        open_ = (middle + reach >= low) & occupied & ~whole  # [B, C + 1]: to be visited
        if limit is None and dense <= self._pruned_cost(open_):
            self._count_all(state, terms, target, own, threshold, slack, above, tied, None)
            return
        above += (whole * self.size).sum(1)
        if limit is None:
            self._visit(open_.nonzero(), state, terms, target, own, threshold, slack, above, tied)
            return
        # The most promising intents first, in rounds of doubling size; who has enough above is done.
        promise = (middle + reach - low).masked_fill(~open_, -torch.inf)
        order = promise.argsort(dim=1, descending=True)
        n_open = open_.sum(1)
        done, width = 0, 4
        while bool((active := (above < limit) & (n_open > done)).any()):
            row = active.nonzero()[:, 0]
            chosen = order[row, done : done + width]  # [R, width]
            pairs = torch.stack((row[:, None].expand_as(chosen), chosen), dim=-1).reshape(-1, 2)
            pairs = pairs[open_[pairs[:, 0], pairs[:, 1]]]
            self._visit(pairs, state, terms, target, own, threshold, slack, above, tied)
            done, width = done + width, 2 * width

    def _dense_cost(self, n_rows: int) -> float:
        """Nanoseconds of visiting every item for so many states, one block of the table after the other."""
        dim = self.table.shape[1]
        return len(self.items) * (MULTIPLY * dim * n_rows + COMPARE * n_rows + READ * dim)

    def _pruned_cost(self, open_: Tensor) -> float:
        """Nanoseconds of visiting the items of these pairs of a state and an intent. open_: [B, C + 1]."""
        dim = self.table.shape[1]
        visited = open_.any(0)
        pairs = float((open_.sum(0) * self.size).sum())
        return (
            VISIT * float(visited.sum())
            + pairs * (MULTIPLY * dim + SELECT)
            + float(self.size[visited].sum()) * GATHER * dim
        )

    def _count_all(self, state: Tensor, terms: Tensor | None, target: Tensor, own: Tensor,
                   threshold: tuple[Tensor, Tensor], slack: Tensor, above: Tensor, tied: Tensor,
                   logits: Tensor | None) -> None:  # fmt: skip
        """Count every item, by blocks of the table in its own order."""
        B, V = len(state), len(self.table)
        self.counters.pairs += B * (V - 1)
        low, high = (columns(bound, torch.inf) for bound in outwards(*threshold, slack))  # [C + 1, B']
        step = items_at_once(low.shape[1])
        step = (V - 1 + (V - 2) // step) // ((V - 2) // step + 1) if V > 1 else 1  # of one size
        shape = (step, low.shape[1])
        state_columns = None if logits is not None else columns(state)
        product = state.new_empty(shape)
        reaches, passes = (torch.empty(shape, dtype=torch.bool, device=state.device) for _ in range(2))
        total = torch.zeros(low.shape[1], dtype=torch.long, device=state.device)
        rows, items = [], []
        for first in range(1, V, step):
            last = min(first + step, V)
            n, intent = last - first, self.item2intent[first:last]
            if logits is not None:
                x = logits[first:last]
            else:
                assert state_columns is not None
                x = torch.mm(self.table[first:last], state_columns, out=product[:n])
            torch.gt(x, high.index_select(0, intent), out=passes[:n])
            torch.ge(x, low.index_select(0, intent), out=reaches[:n])
            total += counts(passes[:n])
            place, row = places(reaches[:n] ^ passes[:n])
            rows.append(row)
            items.append(place + first)
        above += total[:B]
        row, item = torch.cat(rows), torch.cat(items)
        other = item != target[row]
        row, item = row[other], item[other]
        score = self.score64(state[row], None if terms is None else terms[row, self.item2intent[item]], item)
        above.index_add_(0, row, (score > own[row]).long())
        tied.index_add_(0, row, (score == own[row]).long())

    def _visit(self, pairs: Tensor, state: Tensor, terms: Tensor | None, target: Tensor, own: Tensor,
               threshold: tuple[Tensor, Tensor], slack: Tensor, above: Tensor, tied: Tensor) -> None:  # fmt: skip
        """Count the items of (state, intent) pairs. pairs: [P, 2]."""
        if not len(pairs):
            return
        pairs = pairs[torch.argsort(pairs[:, 1], stable=True)]
        intents, count = torch.unique_consecutive(pairs[:, 1], return_counts=True)
        for intent, rows in zip(intents.tolist(), pairs[:, 0].split(count.tolist()), strict=True):
            first, size = int(self.start[intent]), int(self.size[intent])
            who = state[rows]
            at_least, at_most = (t[rows, intent][:, None] for t in threshold)
            low, high = outwards(at_least, at_most, slack[rows, intent][:, None])
            step = max(1, BLOCK // max(len(rows), self.table.shape[1]))
            for ids in self.items[first : first + size].split(step):
                product = who @ self.table.index_select(0, ids).T  # [R, n]
                self.counters.pairs += product.numel()
                above.index_add_(0, rows, (product > high).sum(1))
                near = ((product >= low) & (product <= high)).nonzero()
                if len(near):
                    r, item = rows[near[:, 0]], ids[near[:, 1]]
                    other = item != target[r]
                    r, item = r[other], item[other]
                    score = self.score64(state[r], None if terms is None else terms[r, intent], item)
                    above.index_add_(0, r, (score > own[r]).long())
                    tied.index_add_(0, r, (score == own[r]).long())

    # Best items -------------------------------------------------------------------------------------------------------

    @full_float32()
    def top(self, query: Query, k: int,
            excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The k best items of each state, best first; equal scores by item id.

        Args:
            query: as :meth:`rank`.
            k: how many.
            excluded: items to leave out, one tensor per state.

        Returns:
            items [B, k] (0 where there are fewer) and their scores [B, k] in float64 (-inf there).
        """
        state, terms = _parts(query)
        B, device = len(state), state.device
        self.counters.possible += B * len(self.items)
        nothing = torch.empty(0, dtype=torch.long, device=device)
        gone = (nothing, nothing) if excluded is None else pairs(excluded, device)
        search = FEW * B if B < EIGHT else VISIT * self.n_occupied
        if self._dense_cost(B) + SCORE * B * len(self.items) <= search:
            return self._top_of_all(state, terms, k, gone)
        return self._top_by_intent(state, terms, k, gone)

    def _top_of_all(
        self, state: Tensor, terms: Tensor | None, k: int, gone: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The best by all scores in float32, decided in float64. gone: rows and items that are left out."""
        B, V, device = len(state), self.n_items, state.device
        self.counters.pairs += B * (V - 1)
        items = torch.zeros(B, k, dtype=torch.long, device=device)
        scores = torch.full((B, k), -torch.inf, dtype=torch.float64, device=device)
        n = min(k, V - 1)
        size = state.double().norm(dim=1) * self.longest
        wide = 2 * (self.table.shape[1] + 4) * EPSILON * size
        size = size + 1
        if terms is not None:
            size = size + terms.nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
        wide = 2 * (wide + 16 * EPSILON * size)[:, None]  # of two scores
        step = max(1, BLOCK // V)
        for first in range(0, B, step):
            rows = slice(first, min(first + step, B))
            own = None if terms is None else terms[rows]
            product = state[rows] @ self.table.T
            about = joint_score(product, None if own is None else own.index_select(1, self.item2intent), self.joint)
            about[:, 0] = -torch.inf
            if len(gone[0]):
                mine = (gone[0] >= first) & (gone[0] < rows.stop)
                about[gone[0][mine] - first, gone[1][mine]] = -torch.inf
            most = about.topk(min(n + SPARE, V - 1), dim=1)
            bar = most.values[:, n - 1 : n].double() - wide[rows]
            if bool(bar.isnan().any()):
                raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
            candidate = most.indices.sort(dim=1).values  # equal scores by id
            if most.values.shape[1] < V - 1 and bool(((most.values[:, -1:] >= bar) & (bar > -torch.inf)).any()):
                low, _ = outwards(bar, bar, torch.zeros_like(bar))
                r, item = ((about >= low) & (about > -torch.inf)).nonzero(as_tuple=True)
                score = self._score_pairs(state[rows], own, r, item)
                items[rows], scores[rows] = best(r, item, score, len(bar), k)
                continue
            there = about.gather(1, candidate) > -torch.inf
            r = torch.arange(len(bar), device=device)[:, None].expand_as(candidate).reshape(-1)
            score = self._score_pairs(state[rows], own, r, candidate.reshape(-1)).view(candidate.shape)
            score = score.masked_fill(~there, -torch.inf)
            order = score.sort(dim=1, descending=True, stable=True)
            found = candidate.gather(1, order.indices[:, :n])
            scores[rows, :n] = order.values[:, :n]
            items[rows, :n] = found.masked_fill(order.values[:, :n] == -torch.inf, 0)
        return items, scores

    def _score_pairs(self, state: Tensor, terms: Tensor | None, row: Tensor, item: Tensor) -> Tensor:
        """:meth:`score64` of rows and items, [P] each. state: [B, D], terms: [B, C + 1]."""
        return self.score64(state[row], None if terms is None else terms[row, self.item2intent[item]], item)

    def _top_by_intent(
        self, state: Tensor, terms: Tensor | None, k: int, gone: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The best by intents, those with the best best case first. gone: rows and items that are left out."""
        B = len(state)
        slack = self.slack(state)
        reach = state.double().norm(dim=1)[:, None] * self.radius.double() + 2 * slack
        middle = (state @ self.centre.T).double()
        groups = terms.double() if terms is not None else None
        best_case = joint_score(middle + reach, groups, self.joint).masked_fill(self.size == 0, -torch.inf)
        order = best_case.argsort(dim=1, descending=True)
        ranked_best = best_case.gather(1, order)
        items = torch.zeros(B, k, dtype=torch.long, device=state.device)
        scores = torch.full((B, k), -torch.inf, dtype=torch.float64, device=state.device)
        n_gone = torch.bincount(gone[0], minlength=B)
        gone_keys = gone[0] * self.n_items + gone[1]
        done, width = 0, 1
        while done < self.n_occupied:
            # an intent whose best case is below the k-th best so far cannot add anything
            open_ = ranked_best[:, done : done + width] >= scores[:, -1:]
            if not bool(open_.any()):
                break
            row, column = (open_ & (ranked_best[:, done : done + width] > -torch.inf)).nonzero(as_tuple=True)
            visit = self._visit_one if B < EIGHT else self._visit_many
            near = visit(row, order[row, done + column], state, terms, slack, scores[:, -1], k, n_gone)
            self._keep_best(near, gone_keys, state, terms, items, scores)
            done, width = done + width, 4 * width
        return items, scores

    def _bar(self, score: Tensor, term: Tensor | None, slack: Tensor) -> Tensor:
        """float32 products below it certainly score less. score: [P] float64; term, slack: [P] of an intent."""
        return outwards(*self.between(score, term), slack)[0]

    def _visit_many(self, rows: Tensor, intents: Tensor, state: Tensor, terms: Tensor | None, slack: Tensor,
                    least: Tensor, k: int, n_gone: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Items of (state, intent) pairs that may be among the best, one intent after the other.

        Args:
            rows: [P].
            intents: [P].
            state: [B, D].
            terms: [B, C + 1] or None.
            slack: [B, C + 1].
            least: [B] the k-th best score so far.
            k: how many are wanted.
            n_gone: [B] how many items are left out.

        Returns:
            their rows and items.
        """
        near_row, near_item = [], []
        order = torch.argsort(intents, stable=True)
        rows, intents = rows[order], intents[order]
        term = None if terms is None else terms[rows, intents]
        width = slack[rows, intents]
        bar = self._bar(least[rows], term, width)
        present, count = torch.unique_consecutive(intents, return_counts=True)
        n_best = k + int(n_gone.max())
        done = 0
        for intent, n in zip(present.tolist(), count.tolist(), strict=True):
            first, size = int(self.start[intent]), int(self.size[intent])
            mine = slice(done, done + n)
            done += n
            who, own_bar = rows[mine], bar[mine]
            these = columns(state.index_select(0, who))
            full = torch.full((these.shape[1],), torch.inf, device=state.device)
            full[:n] = own_bar
            for ids in self.items[first : first + size].split(items_at_once(these.shape[1])):
                product = self.table.index_select(0, ids) @ these  # [n, R']
                self.counters.pairs += len(ids) * n
                if len(ids) > n_best and bool((own_bar == -torch.inf).any()):
                    # Of one intent only the k best that are wanted can be among the k best, or what scores the same
                    kth = product[:, :n].T.topk(n_best, dim=1).values[:, -1].double() - width[mine]
                    own_term = None if term is None else term[mine]
                    score = joint_score(kth, None if own_term is None else own_term.double(), self.joint)
                    full[:n] = torch.maximum(own_bar, self._bar(score, own_term, width[mine]))
                at, column = places(product >= full)
                near_row.append(who[column])
                near_item.append(ids[at])
        return torch.cat(near_row), torch.cat(near_item)

    def _visit_one(self, rows: Tensor, intents: Tensor, state: Tensor, terms: Tensor | None, slack: Tensor,
                   least: Tensor, k: int, n_gone: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The same, all intents of a state at once: for few states."""
        near_row, near_item = [], []
        for row in torch.unique(rows).tolist():
            of = intents[rows == row]
            own_term = None if terms is None else terms[row, of]
            width = slack[row, of]
            bar = self._bar(least[row].expand(len(of)), own_term, width)
            size = self.size[of]
            end = torch.cumsum(size, 0)
            which = torch.repeat_interleave(size)
            ids = self.items[torch.arange(len(which), device=which.device) + (self.start[of] - end + size)[which]]
            self.counters.pairs += len(ids)
            chunks = ids.split(max(1, CELLS // 2 // self.table.shape[1]))
            product = torch.cat([self.table.index_select(0, some) @ state[row] for some in chunks])
            n_best = k + int(n_gone[row])
            near = product >= bar[which]
            if len(ids) > n_best and float(least[row]) == -torch.inf:
                lowest = product.double() - width[which]
                lowest = joint_score(lowest, None if own_term is None else own_term.double()[which], self.joint)
                kth = lowest.topk(n_best).values[-1]
                near = product >= self._bar(kth.expand(len(of)), own_term, width)[which]
            at = near.nonzero()[:, 0]
            near_row.append(torch.full_like(at, row))
            near_item.append(ids[at])
        return torch.cat(near_row), torch.cat(near_item)

    def _keep_best(self, near: tuple[Tensor, Tensor], gone: Tensor, state: Tensor, terms: Tensor | None, items: Tensor,
                   scores: Tensor) -> None:  # fmt: skip
        """Merge rows and items into the best lists, in place. gone: row V + item of what is left out."""
        row, item = near
        if len(gone):
            kept = ~torch.isin(row * self.n_items + item, gone)
            row, item = row[kept], item[kept]
        if not len(row):
            return
        score = self._score_pairs(state, terms, row, item)
        held = (items > 0).nonzero()
        row = torch.cat((held[:, 0], row))
        item = torch.cat((items[held[:, 0], held[:, 1]], item))
        score = torch.cat((scores[held[:, 0], held[:, 1]], score))
        items[:], scores[:] = best(row, item, score, len(items), items.shape[1])


def _parts(query: Query) -> tuple[Tensor, Tensor | None]:
    """What a query for this catalogue holds.

    Raises:
        TypeError: it is one for another catalogue.
    """
    if query.vector is None:
        raise TypeError("a Catalogue reads the vector of a query")
    return query.vector, query.terms


def _refuse_nan(own: Tensor, state: Tensor, terms: Tensor | None) -> None:
    """Raise ScoreError for a number that cannot be compared."""
    if bool(own.isnan().any()) or bool(state.isnan().any()) or (terms is not None and bool(terms.isnan().any())):
        raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")


def outwards(low: Tensor, high: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """low - slack and high + slack in float32, rounded away from each other."""
    low, high = (low - slack).float(), (high + slack).float()
    return torch.nextafter(low, low.new_tensor(-torch.inf)), torch.nextafter(high, high.new_tensor(torch.inf))


@full_float32()
def rank_streamed(catalogue: Catalogue, query: Query, target: Tensor) -> Ranks:
    """Exact ranks by blocks of the table in its own order, nothing pruned.

    For catalogues without useful intents, and to check the pruned search with. Arguments and result are those of
    :meth:`Catalogue.rank`.
    """
    state, terms = _parts(query)
    own = catalogue.scores_of(query, torch.arange(len(target), device=target.device), target)
    _refuse_nan(own, state, terms)
    threshold, slack = catalogue.thresholds(own, terms), catalogue.slack(state)
    low, high = outwards(*threshold, slack)
    above = torch.zeros(len(state), dtype=torch.long, device=state.device)
    tied = torch.zeros_like(above)
    n = len(catalogue.table)
    step = max(1, BLOCK // len(state))
    for first in range(1, n, step):
        block = slice(first, min(first + step, n))
        intent = catalogue.item2intent[block]
        product = state @ catalogue.table[block].T
        upper = high[:, intent]
        above += (product > upper).sum(1)
        near = ((product >= low[:, intent]) & (product <= upper)).nonzero()
        r, item = near[:, 0], near[:, 1] + first
        other = item != target[r]
        r, item = r[other], item[other]
        term = None if terms is None else terms[r, catalogue.item2intent[item]]
        score = catalogue.score64(state[r], term, item)
        above.index_add_(0, r, (score > own[r]).long())
        tied.index_add_(0, r, (score == own[r]).long())
    return Ranks(above.cpu(), tied.cpu(), torch.full_like(above, n - 1).cpu())
