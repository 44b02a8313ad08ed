"""Exact ranking of scores that are a product of vectors and an intent's term, but for a few items of each row.

B rows, V items, D width, C intents. An item v of intent c scores ``exp(vector[b] . table[v] + terms[b, c] -
log_norm[b, c])`` in row b, a probability, and the items a row lists as exceptions score (that + extra) factor. The
first are counted by their logarithms, pruned by intent (recbole_cafe.ranking.catalogue); then each exception is taken
out as what it was counted and put in as what it is. All that decides is compared in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.factored import Exceptions, pairs
from recbole_cafe.ranking.ranks import Ranks, ScoreError, best


@dataclass(frozen=True)
class Remembered:
    """What a batch of histories says. vector: [B, D]. log_norm: [B, C + 1]. exceptions: of the rows."""

    vector: Tensor
    log_norm: Tensor
    exceptions: Exceptions


class MemoryCatalogue:
    """The items of a model whose states are :class:`Remembered`.

    Args:
        table: [V, D] float32, row 0 is padding. item2intent: [V], 0 for padding, C for items without intent.
        n_intents: C, padding included.
    """

    def __init__(self, table: Tensor, item2intent: Tensor, n_intents: int) -> None:
        self.plain = Catalogue(table, item2intent, "sum", n_intents)

    @property
    def n_items(self) -> int:
        """V, padding included."""
        return self.plain.n_items

    def plain_score(self, state: Remembered, terms: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """ln of the score as if no item were an exception. row, item: [P]. Returns [P] float64."""
        intent = self.plain.item2intent[item]
        return self.plain.score64(state.vector[row], terms[row, intent], item)

    def score(self, state: Remembered, terms: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """ln of the score that decides; as :meth:`plain_score`."""
        plain = self.plain_score(state, terms, row, item)
        extra, factor = state.exceptions.of(row, item)
        special = (extra != 0) | (factor != 1)  # exp and ln are not exactly inverse
        return torch.where(special, ((plain.exp() + extra) * factor).log(), plain)

    def rank(self, state: Remembered, terms: Tensor, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip
        """Where each row's target stands among all items.

        Args:
            state: of the rows. terms: [B, C + 1]. target: [B].
            excluded: items that are no candidates, each once, one tensor per row (the target among them stays one).
            at_most: as :meth:`Catalogue.rank`.

        Raises:
            ScoreError: NaN in vectors, terms or exceptions.
        """
        found = state.exceptions
        terms = terms - state.log_norm
        if any(bool(x.isnan().any()) for x in (state.vector, terms, found.extra, found.factor)):
            raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
        everyone = torch.arange(len(target), device=target.device)
        own = self.score(state, terms, everyone, target)
        above, tied = torch.zeros_like(target), torch.zeros_like(target)
        taken_out = torch.bincount(found.row, minlength=len(target)) + 1
        if excluded is not None:
            of_row, gone = pairs(excluded, target.device)
            taken_out += torch.bincount(of_row, minlength=len(target))
        limit = None if at_most is None else at_most + taken_out
        self.plain.count(state.vector, terms, own, above, tied, limit)

        def count(row: Tensor, score: Tensor, sign: int) -> None:
            above.index_add_(0, row, sign * (score > own[row]).long())
            tied.index_add_(0, row, sign * (score == own[row]).long())

        count(everyone, self.plain_score(state, terms, everyone, target), -1)
        other = found.item != target[found.row]
        row, item = found.row[other], found.item[other]
        count(row, self.plain_score(state, terms, row, item), -1)
        count(row, self.score(state, terms, row, item), 1)
        n_candidates = torch.full_like(target, self.n_items - 1)
        if excluded is not None:
            other = (gone != target[of_row]) & (gone > 0)
            row, item = of_row[other], gone[other]
            count(row, self.score(state, terms, row, item), -1)
            n_candidates -= torch.bincount(row, minlength=len(target))
        if at_most is not None:  # what a row that was not counted to its end lacks may have been taken out all the same
            above, tied = above.clamp(min=0), tied.clamp(min=0)
        return Ranks(above.cpu(), tied.cpu(), n_candidates.cpu(), at_most)

    def top(self, state: Remembered, terms: Tensor, k: int,
            excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The k best items of each row, best first; equal scores by item id.

        Args:
            state, terms: as :meth:`rank`. excluded: items not wanted, one tensor per row.

        Returns:
            items [B, k] (0 where there are fewer) and ln of their scores [B, k] in float64 (-inf there).
        """
        B, V, device, found = len(terms), self.n_items, terms.device, state.exceptions
        terms = terms - state.log_norm
        gone = [torch.zeros(0, dtype=torch.long, device=device)] * B if excluded is None else excluded
        special = found.item.split(torch.bincount(found.row, minlength=B).tolist())
        aside = [torch.unique(torch.cat(both)) for both in zip(special, gone, strict=True)]
        items, scores = self.plain.top(state.vector, terms, k, aside)
        of_row, item = pairs(gone, device)
        wanted = ~torch.isin(found.row * V + found.item, of_row * V + item)
        row, item = found.row[wanted], found.item[wanted]
        held = items > 0
        return best(
            torch.cat((held.nonzero()[:, 0], row)),
            torch.cat((items[held], item)),
            torch.cat((scores[held], self.score(state, terms, row, item))),
            B, k,
        )  # fmt: skip
