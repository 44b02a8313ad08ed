"""The real positions of a padded batch.

In sparse data most of a [B, L] batch is padding. Everything but attention works on the N real positions alone, [N, D];
attention, whose cost is quadratic, takes rows of similar length together, so that short rows are not padded to the
longest of the batch.
"""

from functools import cached_property

import torch
from torch import Tensor

from recbole_cafe.layers.draws import Keys, current

SHORTEST = 8  # rows up to this length are taken together; then up to twice that, and so on


def left_padded(rows: Tensor, length: int) -> Tensor:
    """Rows with their padding moved to the left, so that the newest item always stands at the end.

    Args:
        rows: [B, W] ids padded on the right with 0, W at most L.
        length: L.

    Returns:
        [B, L].
    """
    n = (rows > 0).sum(1, keepdim=True)
    at = torch.arange(length, device=rows.device) - (length - n)  # [B, L] where each id comes from
    return rows.gather(1, at.clamp(min=0)).where(at >= 0, 0)


class Packing:
    """Where the real positions of a batch are.

    Args:
        real: [B, L] bool, True for the first positions of each row (padding on the right).

    Attributes:
        length: [B].
        row: [N] of each real position, row after row.
        position: [N] of each real position in its row.
    """

    def __init__(self, real: Tensor) -> None:
        self._width, self._draws = real.shape[1], current()
        self.length = real.sum(1)
        self.row, self.position = real.nonzero(as_tuple=True)
        self._end = self.length.cumsum(0)

    @cached_property
    def keys(self) -> Keys | None:
        """[N] of the positions' random numbers, if the rows are those of a training step."""
        if self._draws is None or len(self._draws.rows) != len(self.length):
            return None
        return self._draws.for_positions(self.row, self.position)

    def pack(self, padded: Tensor) -> Tensor:
        """[B, L, ...] to [N, ...]."""
        return padded[self.row, self.position]

    def last(self, packed: Tensor) -> Tensor:
        """The last real position of each row: [N, ...] to [B, ...]. No row may be empty."""
        return packed[self._end - 1]

    @cached_property
    def from_end(self) -> Tensor:
        """[N] how many real positions of its row come after each: 0 for the last."""
        return self.length[self.row] - 1 - self.position

    @cached_property
    def groups(self) -> list[Tensor]:
        """Rows of similar length: [b, l] indices into the N positions.

        Where a row ends before l, its last position is repeated. The earlier positions of a causal reader do not see
        the repeats, any other reader masks them by `real_of_groups`, and what comes out at them is not taken back.

        A program that is exported (ONNX) has one group, padded to the width of the batch: it may not branch on lengths.
        """
        if torch.compiler.is_compiling():
            start, end = (self._end - self.length)[:, None], self._end[:, None]
            return [torch.minimum(start + torch.arange(self._width, device=start.device), end - 1)]
        groups = []
        lengths = self.length.tolist()
        size, longest = SHORTEST, max(lengths, default=0)
        shorter = 0
        while shorter < longest:
            rows = [i for i, n in enumerate(lengths) if shorter < n <= size]
            if rows:
                at = torch.tensor(rows, device=self.length.device)
                steps = torch.arange(max(lengths[i] for i in rows), device=at.device)
                start, end = (self._end - self.length)[at], self._end[at]
                groups.append(torch.minimum(start[:, None] + steps, end[:, None] - 1))
            shorter, size = size, 2 * size
        return groups

    @cached_property
    def real_of_groups(self) -> list[Tensor]:
        """Which places of each group are no repeats: [b, l] bool, for readers that are not causal."""
        length = [self.length[self.row[group[:, 0]]] for group in self.groups]
        return [
            torch.arange(group.shape[1], device=group.device) < n[:, None]
            for group, n in zip(self.groups, length, strict=True)
        ]

    @cached_property
    def back(self) -> Tensor:
        """[N] where each position stands in the groups laid end to end."""
        back = torch.empty_like(self.row)
        offset = 0
        for group, own in zip(self.groups, self.real_of_groups, strict=True):
            place = torch.arange(offset, offset + group.numel(), device=back.device).view_as(group)
            back[group[own]] = place[own]
            offset += group.numel()
        return back
