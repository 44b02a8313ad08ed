"""The real positions of a padded batch.

In sparse data most of a [B, L] batch is padding. Everything but attention works on the N real positions alone, [N, D];
attention, whose cost is quadratic, has two ways not to pad short rows to the longest of the batch. Either it takes rows
of similar length together (`Packing.groups`), which any kernel of attention can read. Or it lays rows end to end,
several in a line (`Packing.lines`), with a mask between them: fewer and larger operations, where each group would cost
a training step hundreds of small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from recbole_cafe.layers.draws import Keys, current

SHORTEST = 8  # rows up to this length are taken together; then up to twice that, and so on
WIDEST = 64  # rows up to this length share lines; then up to twice that, and so on


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

    @cached_property
    def lines(self) -> Lines:
        """Rows laid end to end; see :class:`Lines`."""
        lengths = self.length.tolist()
        longest, shorter, size = max(lengths, default=0), 0, WIDEST
        start = [0] * len(lengths)  # of each row, among the places of all lines
        shapes, n_places = [], 0
        while shorter < longest:
            rows = [i for i, own in enumerate(lengths) if shorter < own <= size]
            if rows:
                width = max(lengths[i] for i in rows)
                lines = share_lines([lengths[i] for i in rows], width)
                for line in lines:
                    begin = n_places
                    for row in line:
                        start[rows[row]] = begin
                        begin += lengths[rows[row]]
                    n_places += width
                shapes.append((len(lines), width))
            shorter, size = size, 2 * size
        place = torch.tensor(start, device=self.row.device)[self.row] + self.position  # [N]
        position, owner = (self.row.new_full((n_places,), -1) for _ in range(2))
        position[place], owner[place] = torch.arange(len(place), device=place.device), self.row
        blocks = [n * width for n, width in shapes]
        return Lines(
            [at.view(shape) for at, shape in zip(position.split(blocks), shapes, strict=True)],
            [own.view(shape) for own, shape in zip(owner.split(blocks), shapes, strict=True)],
        )


class Lines:
    """Several rows in each line, as many as it has room for, in blocks of n lines that are W wide.

    Args:
        position: of each block [n, W], which of the N positions stands at each place; -1 where none does.
        row: of each block [n, W], to which row it belongs; -1 where none does.

    Attributes:
        position: as given.
        same: of each block [n, W, W], whether two places belong to one row. Empty places are a row of their own.
    """

    def __init__(self, position: Sequence[Tensor], row: Sequence[Tensor]) -> None:
        self.position = position
        self.same = [own[:, :, None] == own[:, None, :] for own in row]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def lay(self, packed: Tensor, n_heads: int) -> list[Tensor]:
        """Lay a tensor out, each head by itself.

        Args:
            packed: [N, D].
            n_heads: M, which divides D.

        Returns:
            of each block [n, M, W, D / M]. What stands at empty places is arbitrary: nobody may read it.
        """
        heads = packed.view(len(packed) * n_heads, -1)
        laid: Tensor = _Lay.apply(heads, *self._indices(n_heads))  # type: ignore[no-untyped-call]
        shapes = [(len(at), n_heads, at.shape[1], heads.shape[1]) for at in self.position]
        if len(shapes) == 1:
            return [laid.view(shapes[0])]
        blocks = laid.split([n_heads * at.numel() for at in self.position])
        return [block.view(shape) for block, shape in zip(blocks, shapes, strict=True)]

    def take_up(self, blocks: Sequence[Tensor]) -> Tensor:
        """A block each [n, M, W, d] to [N, M d]."""
        n_heads, d = blocks[0].shape[1], blocks[0].shape[3]
        laid = torch.cat([block.view(-1, d) for block in blocks]) if len(blocks) > 1 else blocks[0].view(-1, d)
        taken: Tensor = _TakeUp.apply(laid, self._indices(n_heads)[1])  # type: ignore[no-untyped-call]
        return taken.view(-1, n_heads * d)

    def _indices(self, n_heads: int) -> tuple[Tensor, Tensor]:
        """[S] which of the N M vectors stands at each place, any at an empty one; [N M] where each stands."""
        if n_heads not in self._known:
            head = torch.arange(n_heads, device=self.position[0].device)[:, None]
            at = [(position[:, None] * n_heads).expand(-1, n_heads, -1) for position in self.position]  # [n, M, W]
            vectors = torch.cat([torch.where(vector >= 0, vector + head, -1).flatten() for vector in at])
            full = (vectors >= 0).nonzero()[:, 0]
            places = torch.empty_like(full)
            places[vectors[full]] = full
            self._known[n_heads] = vectors.clamp(min=0), places
        return self._known[n_heads]


def share_lines(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Put rows into lines: in each the longest that still fits, then the longest that fits beside it, and so on.

    Args:
        lengths: of the rows, 1..width.
        width: of a line.

    Returns:
        for each line the rows in it.
    """
    waiting: dict[int, list[int]] = {n: [] for n in sorted(set(lengths), reverse=True)}
    for row, n in enumerate(lengths):
        waiting[n].append(row)
    lines = []
    while waiting:
        line, room = [], width
        for n in list(waiting):
            while n <= room and waiting[n]:
                line.append(waiting[n].pop())
                room -= n
            if not waiting[n]:
                del waiting[n]
        lines.append(line)
    return lines


class _Lay(torch.autograd.Function):
    """Vectors to places, [F, d] to [S, d].

    A vector stands at one place, so its gradient is read there; autograd's own would be a sum, vector by vector.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, vectors: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return packed.index_select(0, vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _TakeUp(torch.autograd.Function):
    """Places to vectors, [S, d] to [F, d]. Empty places get no gradient."""

    @staticmethod
    def forward(ctx: Any, laid: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = laid.shape
        return laid.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, places, grad), None
