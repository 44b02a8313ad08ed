"""Exact ranking of scores that are a product of an intent's and an item's number, but for a few items of each row.

B rows, V items, C intents. An item v of intent c scores ``terms[b, c] * weight[v]`` in row b, and the items a row
overrides score ``(terms[b, c] * weight[v] + extra) * factor``. No number is negative, so that within an intent all
rows rank alike: by weight. What is above a given score is found by a binary search among the intent's distinct weights;
overrides are counted one by one. Nothing of size [B, V] is made, and nothing is approximated: each comparison is that
of the float64 scores a dense ranking compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor

from recbole_cafe.errors import DataError
from recbole_cafe.ranking.query import Query, ScoreOverrides
from recbole_cafe.ranking.ranks import Ranks, ScoreError, best, check_parts, pairs

PAIRS = 2**22  # pairs of a row and an intent, or of a row and an item, looked at in one go


@dataclass
class FactoredCatalogue:
    """The items of a model, by intent and weight.

    Args:
        weight: [V] float64, at least 0; that of padding, item 0, is not read.
        item2intent: [V], 0 for padding, C for items without intent.
        n_intents: C, padding included.
        prepared: :meth:`parts` of a catalogue with the same weights and intents, which are then not made again.

    Raises:
        DataError: `prepared` is of another catalogue.
    """

    weight: Tensor
    item2intent: Tensor
    n_intents: int
    prepared: InitVar[Mapping[str, Tensor] | None] = None

    def __post_init__(self, prepared: Mapping[str, Tensor] | None) -> None:
        n_groups = self.n_intents + 1
        if prepared is None:
            self._prepare()
        else:
            shapes = {"items": (self.n_items - 1,), "size": (n_groups,), "n_levels": (n_groups,), "best": (n_groups,)}
            check_parts(prepared, {**shapes, "level": None, "before": None})
            self.items, self.size, self.n_levels = prepared["items"], prepared["size"], prepared["n_levels"]
            self.best, self.level, self.before = prepared["best"], prepared["level"], prepared["before"]
            n_levels = int(self.n_levels.clamp(min=0).sum())
            if not n_levels == len(self.level) == len(self.before) - 1:
                raise DataError(f"parts of a catalogue: {len(self.level)} levels, its intents have {n_levels}")
        self.start = torch.cumsum(self.size, 0) - self.size
        self.first_level = torch.cumsum(self.n_levels, 0) - self.n_levels

    def parts(self) -> dict[str, Tensor]:
        """What has been made of weights and intents, to be stored beside them and given back as `prepared`."""
        names = ("items", "size", "n_levels", "best", "level", "before")
        return {name: getattr(self, name) for name in names}

    def _prepare(self) -> None:
        device, n_groups = self.weight.device, self.n_intents + 1
        items = torch.arange(1, self.n_items, device=device)
        items = items[torch.argsort(self.weight[items], descending=True, stable=True)]  # equal weights by id
        self.items = items[torch.argsort(self.item2intent[items], stable=True)]  # by intent, best first
        self.size = torch.bincount(self.item2intent[1:], minlength=n_groups)
        # The distinct weights of each intent, the largest first
        weight, intent = self.weight[self.items], self.item2intent[self.items]
        is_new = torch.ones(len(items), dtype=torch.bool, device=device)
        is_new[1:] = (weight[1:] != weight[:-1]) | (intent[1:] != intent[:-1])
        first = is_new.nonzero()[:, 0]
        self.level = weight[first]  # [T]
        self.before = torch.cat((first, first.new_tensor([len(items)])))  # [T + 1] items in front of each level
        self.n_levels = torch.bincount(intent[first], minlength=n_groups)
        first_level = torch.cumsum(self.n_levels, 0) - self.n_levels
        self.best = torch.zeros(n_groups, dtype=torch.float64, device=device)
        occupied = self.size > 0
        self.best[occupied] = self.level[first_level[occupied]]

    @property
    def n_items(self) -> int:
        """V, padding included."""
        return len(self.weight)

    def plain(self, terms: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """Score of items as if they were not overridden. row, item: of one shape. Returns that shape."""
        return terms[row, self.item2intent[item]] * self.weight[item]

    def score(self, overrides: ScoreOverrides, terms: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """The score that decides; as :meth:`plain`."""
        extra, factor = overrides.of(row, item)
        return (self.plain(terms, row, item) + extra) * factor

    def scores_of(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """:meth:`score` of items in rows of a query. row, item: [P]. Returns [P]."""
        overrides, terms = _parts(query)
        return self.score(overrides, terms, row, item)

    def rank(self, query: Query, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip  # noqa: ARG002
        """Where each row's target stands among all items.

        Args:
            query: `terms` [B, C + 1] float64 and `overrides` are read.
            target: [B].
            excluded: items that are no candidates, each once, one tensor per row (the target among them stays one).
            at_most: no use is made of it: ranks are exact in any case.

        Raises:
            ScoreError: NaN in terms or scores.
        """
        state, terms = _parts(query)
        everyone = torch.arange(len(target), device=target.device)
        own = self.score(state, terms, everyone, target)
        if bool(own.isnan().any()) or bool(terms.isnan().any()) or bool(state.extra.isnan().any()):
            raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
        above, tied = torch.zeros_like(target), torch.zeros_like(target)

        def count(row: Tensor, score: Tensor, sign: int) -> None:
            above.index_add_(0, row, sign * (score > own[row]).long())
            tied.index_add_(0, row, sign * (score == own[row]).long())

        for rows in everyone.split(max(1, PAIRS // terms.shape[1])):
            r, c = (terms[rows] * self.best >= own[rows, None]).nonzero(as_tuple=True)
            r = rows[r]
            higher, equal = self._among_levels(terms[r, c], own[r], c)
            above.index_add_(0, r, higher)
            tied.index_add_(0, r, equal)
        # The target has been counted as if it were a competitor and no exception, the overrides as if they were none
        count(everyone, self.plain(terms, everyone, target), -1)
        other = state.item != target[state.row]
        r, item = state.row[other], state.item[other]
        plain = self.plain(terms, r, item)
        count(r, plain, -1)
        count(r, (plain + state.extra[other]) * state.factor[other], 1)
        n_candidates = torch.full_like(target, self.n_items - 1)
        if excluded is not None:
            r, item = pairs(excluded, target.device)
            other = (item != target[r]) & (item > 0)
            r, item = r[other], item[other]
            count(r, self.score(state, terms, r, item), -1)
            n_candidates -= torch.bincount(r, minlength=len(target))
        return Ranks(above.cpu(), tied.cpu(), n_candidates.cpu())

    def _among_levels(self, term: Tensor, own: Tensor, intent: Tensor) -> tuple[Tensor, Tensor]:
        """How many items of an intent score above a score, and how many the same. All [P]."""
        first, last = self.first_level[intent], self.first_level[intent] + self.n_levels[intent]
        higher = self._first(first, last, lambda level: term * level <= own)
        equal = self._first(higher, last, lambda level: term * level < own)
        return self.before[higher] - self.before[first], self.before[equal] - self.before[higher]

    def _first(self, low: Tensor, high: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
        """The first level in low..high-1 for whose weight a condition holds, high if for none.

        The condition has to hold for all levels behind that one, too. A comparison of scores is such a condition: a
        product of floating-point numbers is monotone in each.
        """
        for _ in range(int((high - low).max().item()).bit_length() if len(low) else 0):
            middle = (low + high) // 2
            open_ = low < high
            yes = holds(self.level[middle.clamp(max=len(self.level) - 1)])
            high = torch.where(open_ & yes, middle, high)
            low = torch.where(open_ & ~yes, middle + 1, low)
        return low

    def top(self, query: Query, k: int,
            excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The k best items of each row, best first; equal scores by item id.

        Args:
            query: as :meth:`rank`.
            k: how many.
            excluded: items to leave out, each once, one tensor per row.

        Returns:
            items [B, k] (0 where there are fewer) and their scores [B, k] in float64 (-inf there).
        """
        state, terms = _parts(query)
        B, device = len(terms), terms.device
        items = torch.zeros(B, k, dtype=torch.long, device=device)
        scores = torch.full((B, k), -torch.inf, dtype=torch.float64, device=device)
        gone = torch.cat([b * self.n_items + e for b, e in enumerate(excluded)]) if excluded else items.new_zeros(0)
        overrides = state.row * self.n_items + state.item
        aside = torch.cat((overrides, gone))  # not among those ranked by intent and weight alone
        # An item beyond so many has k better ones: all of them but these score at least what they do without exception
        worse = torch.cat((overrides[state.factor < 1], gone)) // self.n_items
        n = min(k + int(torch.bincount(worse, minlength=1).max()), self.n_items - 1)
        # The best item of each intent, by its id: of equal ones the smaller is the better
        occupied = (self.size > 0).nonzero()[:, 0]
        occupied = occupied[torch.argsort(self.items[self.start[occupied]])]
        width = min(n, len(occupied))
        ahead = torch.arange(n, device=device)
        for rows in torch.arange(B, device=device).split(max(1, PAIRS // max(width * n, len(occupied)))):
            promise = terms[rows][:, occupied] * self.best[occupied]
            intent = occupied[torch.argsort(promise, dim=1, descending=True, stable=True)[:, :width]]  # [R, width]
            place = self.start[intent][..., None] + ahead  # [R, width, n]
            inside = ahead < self.size[intent][..., None]
            item = self.items[place[inside]]
            row = rows[:, None, None].expand_as(place)[inside]
            keep = ~torch.isin(row * self.n_items + item, aside)
            mine = (state.row >= rows[0]) & (state.row <= rows[-1])
            row = torch.cat((row[keep], state.row[mine]))
            item = torch.cat((item[keep], state.item[mine]))
            score = self.score(state, terms, row, item)
            kept = ~torch.isin(row * self.n_items + item, gone)
            row, item, score = row[kept], item[kept], score[kept]
            items[rows], scores[rows] = best(row - rows[0], item, score, len(rows), k)
        return items, scores


def _parts(query: Query) -> tuple[ScoreOverrides, Tensor]:
    """What a query for this catalogue holds.

    Raises:
        TypeError: it is one for another catalogue.
    """
    if query.overrides is None or query.terms is None:
        raise TypeError("a FactoredCatalogue reads the terms and the overrides of a query")
    return query.overrides, query.terms
