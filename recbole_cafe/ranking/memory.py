"""Exact ranking of scores that are a product of vectors and an intent's term, but for a few items of each row.

B rows, V items, D width, C intents. An item v of intent c scores ``exp(vector[b] . table[v] + terms[b, c] -
log_norm[b, c])`` in row b, a probability, and the items a row overrides score (that + extra) factor. The
first are counted by their logarithms, pruned by intent (recbole_cafe.ranking.catalogue); then each override is taken
out as what it was counted and put in as what it is. All that decides is compared in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query, ScoreOverrides, required
from recbole_cafe.ranking.ranks import Ranks, ScoreError, best, pairs

ROWS = 256  # rows looked at in one go
SPARE = 64  # items asked for beyond those that are wanted
TINY = 1e-290  # scores below it are compared exactly


class MemoryCatalogue:
    """The items of a model whose queries have all four parts of a :class:`recbole_cafe.ranking.query.Query`.

    Args:
        table: [V, D] float32, row 0 is padding.
        item2intent: [V], 0 for padding, C for items without intent.
        n_intents: C, padding included.
        prepared: :meth:`parts` of a catalogue with the same table and intents, which are then not made again.

    Raises:
        DataError: `prepared` is of another catalogue.
    """

    def __init__(
        self, table: Tensor, item2intent: Tensor, n_intents: int, prepared: Mapping[str, Tensor] | None = None
    ) -> None:
        self.plain = Catalogue(table, item2intent, "sum", n_intents, prepared=prepared)

    def parts(self) -> dict[str, Tensor]:
        """As :meth:`Catalogue.parts`."""
        return self.plain.parts()

    @property
    def n_items(self) -> int:
        """V, padding included."""
        return self.plain.n_items

    def scores_of(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """ln of the score that decides. row, item: [P]. Returns [P] float64."""
        vector, terms, overrides = _parts(query)
        return self._overridden(overrides, row, item, self._plain(vector, terms, row, item))

    def _plain(self, vector: Tensor, terms: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """ln of the score as if no item were overridden. terms: less the norms. row, item: [P]. Returns [P] float64."""
        return self.plain.score64(vector[row], terms[row, self.plain.item2intent[item]], item)

    @staticmethod
    def _overridden(overrides: ScoreOverrides, row: Tensor, item: Tensor, plain: Tensor) -> Tensor:
        """ln of the scores that decide, from those as if no item were overridden. row, item, plain: [P]."""
        extra, factor = overrides.of(row, item)
        special = (extra != 0) | (factor != 1)  # exp and ln are not exactly inverse
        return torch.where(special, ((plain.exp() + extra) * factor).log(), plain)

    def rank(self, query: Query, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip
        """Where each row's target stands among all items.

        Args:
            query: all its parts are read.
            target: [B].
            excluded: items that are no candidates, each once, one tensor per row (the target among them stays one).
            at_most: as :meth:`Catalogue.rank`.

        Raises:
            ScoreError: NaN in vectors, terms or overrides.
        """
        _parts(query)
        done, parts = 0, []
        for part in query.split(ROWS):
            rows = slice(done, done + len(required(part.terms, "terms")))
            parts.append(self._rank(part, target[rows], None if excluded is None else excluded[rows], at_most))
            done = rows.stop
        return Ranks.cat(parts)

    def _rank(self, query: Query, target: Tensor, excluded: Sequence[Tensor] | None, at_most: int | None) -> Ranks:
        """:meth:`rank` of rows whose overrides fit a cache."""
        vector, terms, listed = _parts(query)
        if any(_has_nan(x) for x in (vector, terms, listed.extra, listed.factor)):
            raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
        everyone = torch.arange(len(target), device=target.device)
        plain = self._plain(vector, terms, everyone, target)
        own = self._overridden(listed, everyone, target, plain)
        above, tied = torch.zeros_like(target), torch.zeros_like(target)
        taken_out = torch.bincount(listed.row, minlength=len(target)) + 1
        if excluded is not None:
            of_row, gone = pairs(excluded, target.device)
            taken_out += torch.bincount(of_row, minlength=len(target))
        limit = None if at_most is None else at_most + taken_out
        self.plain.count(vector, terms, own, above, tied, limit, query.logits[0] if query.logits else None)

        def count(row: Tensor, score: Tensor, sign: int) -> None:
            above.index_add_(0, row, sign * (score > own[row]).long())
            tied.index_add_(0, row, sign * (score == own[row]).long())

        count(everyone, plain, -1)
        gain, row, item = self._gained(query, target, own)
        above += gain
        plain = self._plain(vector, terms, row, item)
        count(row, plain, -1)
        count(row, self._overridden(listed, row, item, plain), 1)
        n_candidates = torch.full_like(target, self.n_items - 1)
        if excluded is not None:
            other = (gone != target[of_row]) & (gone > 0)
            row, item = of_row[other], gone[other]
            count(row, self._overridden(listed, row, item, self._plain(vector, terms, row, item)), -1)
            n_candidates -= torch.bincount(row, minlength=len(target))
        if at_most is not None:  # what a row that was not counted to its end lacks may have been taken out all the same
            above, tied = above.clamp(min=0), tied.clamp(min=0)
        return Ranks(above.cpu(), tied.cpu(), n_candidates.cpu(), at_most)

    def _gained(self, query: Query, target: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What overrides do to the number of items above each row's target, as far as float32 products can tell.

        Args:
            query: all its parts.
            target: [B], which does not count.
            own: [B] float64, ln of its score.

        Returns:
            [B] how many more are above it, and the rows and items of those that are too close to it, [P] each.
        """
        vector, _, listed = _parts(query)
        row, item, B = listed.row, listed.item, len(target)
        if listed.plain is None or listed.error is None:
            rival = (item != target[row]).nonzero()[:, 0]
            return torch.zeros_like(target), row[rival], item[rival]
        wide = 2 * self.plain.slack(vector).amax(1) + 2 * listed.error + 1e-12
        least, most = (own - wide).exp() - TINY, (own + wide).exp() + TINY
        least, most = least.index_select(0, row), most.index_select(0, row)
        special = (listed.plain + listed.extra).mul_(listed.factor)
        before, after = listed.plain > most, special > most
        unclear = ((listed.plain >= least) ^ before) | ((special >= least) ^ after)
        # the target does not count
        size = torch.bincount(row, minlength=B)
        last = size.cumsum(0)
        at = torch.searchsorted(row * self.n_items + item, torch.arange(B, device=row.device) * self.n_items + target)
        at = at[at < len(row)]
        at = at[item[at] == target[row[at]]]
        skipped = torch.zeros_like(unclear)
        skipped[at] = True
        change = (after.view(torch.int8) - before.view(torch.int8)).masked_fill_(unclear | skipped, 0)
        total = torch.cat((last.new_zeros(1), change.cumsum(0, dtype=torch.long)))
        at = (unclear & ~skipped).nonzero()[:, 0]
        return total[last] - total[last - size], row[at], item[at]

    def top(self, query: Query, k: int,
            excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The k best items of each row, best first; equal scores by item id.

        Args:
            query: as :meth:`rank`.
            k: how many.
            excluded: items to leave out, one tensor per row.

        Returns:
            items [B, k] (0 where there are fewer) and ln of their scores [B, k] in float64 (-inf there).
        """
        parts, done = [], 0
        for part in query.split(ROWS):
            n = len(required(part.terms, "terms"))
            parts.append(self._top(part, k, None if excluded is None else excluded[done : done + n]))
            done += n
        return torch.cat([items for items, _ in parts]), torch.cat([scores for _, scores in parts])

    def _top(self, query: Query, k: int, excluded: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """:meth:`top` of some rows.

        The best by the scores without overrides, more than are wanted; what is overridden or left out goes, what it is
        worth with its override comes. If then the last of them might not be the last, still more are asked for.
        """
        vector, terms, listed = _parts(query)
        B, V, device = len(terms), self.n_items, terms.device
        nothing = [torch.zeros(0, dtype=torch.long, device=device)] * B
        of_row, gone = pairs(nothing if excluded is None else excluded, device)
        gone = of_row * V + gone
        key = listed.row * V + listed.item
        n = min(V - 1, k + SPARE + (int(torch.bincount(gone // V, minlength=B).max()) if len(gone) else 0))
        while True:
            items, scores = self.plain.top(Query(vector, terms), n)
            last = scores[:, -1] if n < V - 1 else torch.full_like(scores[:, -1], -torch.inf)
            row, column = (items > 0).nonzero(as_tuple=True)
            item, score = items[row, column], scores[row, column]
            kept = ~torch.isin(row * V + item, torch.cat((key, gone)))
            row, item, score = row[kept], item[kept], score[kept]
            own_row, own_item = self._promising(query, row, score, k)
            kept = ~torch.isin(own_row * V + own_item, gone)
            own_row, own_item = own_row[kept], own_item[kept]
            own = self._overridden(listed, own_row, own_item, self._plain(vector, terms, own_row, own_item))
            found = best(torch.cat((row, own_row)), torch.cat((item, own_item)), torch.cat((score, own)), B, k)
            if bool((last < found[1][:, -1]).logical_or(last == -torch.inf).all()):
                return found
            n = min(V - 1, 4 * n)

    def _promising(self, query: Query, row: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The rows and items of overrides, less those that cannot be among the k best beside others.

        Args:
            query: all its parts.
            row: [P] in order.
            score: [P] float64 of others, best first in a row.
            k: how many.
        """
        vector, _, listed = _parts(query)
        if listed.plain is None or listed.error is None:
            return listed.row, listed.item
        B = len(vector)
        size = torch.bincount(row, minlength=B)
        kth = (torch.cumsum(size, 0) - size + k - 1).clamp(max=max(len(score) - 1, 0))
        least = score[kth].where(size >= k, -torch.inf) if len(score) else score.new_full((B,), -torch.inf)
        wide = 2 * self.plain.slack(vector).amax(1) + 2 * listed.error + 1e-12
        bar = (least - wide).exp() - TINY
        at = ((listed.plain + listed.extra).mul_(listed.factor) >= bar.index_select(0, listed.row)).nonzero()[:, 0]
        return listed.row[at], listed.item[at]


def _has_nan(x: Tensor) -> bool:
    return bool(x.sum().isnan()) and bool(x.isnan().any())  # a sum is NaN for infinities, too


def _parts(query: Query) -> tuple[Tensor, Tensor, ScoreOverrides]:
    """The vector, the terms less the norms, and the overrides of a query for this catalogue.

    Raises:
        TypeError: it is one for another catalogue.
    """
    if query.vector is None or query.terms is None or query.log_norm is None or query.overrides is None:
        raise TypeError("a MemoryCatalogue reads all the parts of a query")
    return query.vector, query.terms - query.log_norm, query.overrides
