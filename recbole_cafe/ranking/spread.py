"""Scores of all items at once, where the same histories are ranked many times under other settings.

Most items score what the model says to all, the few hundred that a history has evidence for score something of their
own. The first does not change with every setting, so it is kept; only the second is made anew. Scores are float32 and
hold up to a factor of each row, which no rank depends on. B rows, V items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_cafe.ranking.ranks import Ranks, ScoreError, pairs, rank_of_target


@dataclass(frozen=True)
class Spread:
    """Scores of some rows, each up to a factor of its own.

    Attributes:
        plain: [V, B] float32, at least 0; row 0 is padding.
        row: [E] in order, and
        item: [E], sorted by row, then item, each once: the items that score otherwise,
        common: [E] float32, what these score in `plain`,
        value: [E] float32, and what instead of it.
        size: [B] how many these are of each row.
    """

    plain: Tensor
    row: Tensor
    item: Tensor
    common: Tensor
    value: Tensor
    size: Tensor

    def __post_init__(self) -> None:
        if bool(self.plain.sum().isnan()) or bool(self.value.sum().isnan()):
            raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")

    def _listed(self, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Where items stand among those that score otherwise, and whether they do. row, item: of one shape."""
        if not len(self.row):
            return torch.zeros_like(row), torch.zeros_like(row, dtype=torch.bool)
        keys, key = self.row * len(self.plain) + self.item, row * len(self.plain) + item
        at = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        return at, keys[at] == key

    def of(self, row: Tensor, item: Tensor) -> Tensor:
        """Scores of some items. row, item: of one shape, which is that of the result."""
        return self._scores(row, item, *self._listed(row, item))

    def _scores(self, row: Tensor, item: Tensor, at: Tensor, listed: Tensor) -> Tensor:
        """:meth:`of`, with what :meth:`_listed` says."""
        plain = self.plain[item, row]
        return torch.where(listed, self.value[at], plain) if len(self.value) else plain

    def rank_among(self, items: Tensor) -> Ranks:
        """Where the first of some candidates stands among them. items: [B, 1 + N], 0 for none."""
        row = torch.arange(len(items), device=items.device)
        return rank_of_target(self.of(row[:, None].expand_as(items), items), torch.zeros_like(row), items > 0)

    def rank(self, target: Tensor, excluded: Sequence[Tensor] | None) -> Ranks:
        """Where each row's target stands among all items.

        Args:
            target: [B].
            excluded: items that are no candidates, one tensor per row, each once, with or without the target, which
                stays a candidate; None for none.
        """
        plain, row, n_items = self.plain, torch.arange(len(target), device=target.device), len(self.plain)
        out_row, out = row, target  # what is no rival, the targets first
        if excluded is not None:
            of_row, gone = pairs(excluded, target.device)
            rival = (gone != target[of_row]) & (gone > 0)
            out_row, out = torch.cat((row, of_row[rival])), torch.cat((target, gone[rival]))
        at, listed = self._listed(out_row, out)
        own = self._scores(row, target, at[: len(row)], listed[: len(row)])
        rivals = torch.ones_like(self.value)
        rivals[at[listed]] = 0
        bar = own.index_select(0, self.row)
        flag, one = torch.empty_like(plain[1:]), plain.new_ones(1, n_items - 1)
        counts = []
        for compare in (torch.gt, torch.eq):
            # a product with ones: some times faster than a sum of flags, exact as far as float32 counts (2^24 items)
            every = (one @ compare(plain[1:], own, out=flag))[0].long()
            change = compare(self.value, bar).to(plain.dtype) * rivals - compare(self.common, bar).to(plain.dtype)
            every += torch.segment_reduce(change, "sum", lengths=self.size, initial=0).long()
            others = ~listed
            hit = compare(plain[out[others], out_row[others]], own[out_row[others]]).long()
            counts.append(every.index_add_(0, out_row[others], -hit).cpu())
        n_candidates = n_items - torch.bincount(out_row, minlength=len(target))
        above, tied = counts
        return Ranks(above, tied, n_candidates.cpu())
