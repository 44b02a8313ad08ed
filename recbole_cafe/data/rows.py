"""Rows of a sequence data set that are positions in its flat interactions and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

ROW = "_row"  # column of inter_feat: index of the row's target in the flat arrays; never part of a batch


class TargetRows(Interaction):
    """An Interaction whose columns are gathered when asked for.

    A row takes 4 bytes instead of 36, and a split or a sort moves nothing else.

    Args:
        flat: the interactions in (user, time) order, one tensor [P] per column.
        user_start: [P] where the user of each interaction starts.
        length_field: column of history lengths.
        max_length: their bound.
        row: [R] int32, position of each row's target.
    """

    def __init__(self, flat: Interaction, user_start: Tensor, length_field: str, max_length: int, row: Tensor) -> None:
        names = dict.fromkeys([*flat, length_field, ROW])
        self.interaction = _Gathered(flat, user_start, length_field, max_length, row, names)
        self.length = len(row)

    def __getitem__(self, index: Any) -> Any:
        """A column by its name; else the chosen rows, as a plain Interaction."""
        if isinstance(index, str):
            return self.interaction[index]
        return self.gather(index)

    def gather(self, index: Any, elsewhere: Callable[[Tensor], Tensor] | None = None) -> Interaction:
        """The chosen rows as a plain Interaction.

        Args:
            index: which rows.
            elsewhere: from their positions [b] to those to take instead.
        """
        chosen = self.interaction.take(_as_index(index))
        if elsewhere is not None:
            chosen.row = elsewhere(chosen.row.long()).to(torch.int32)
        return Interaction({name: chosen[name] for name in chosen})

    def take(self, index: np.ndarray | Tensor) -> TargetRows:
        """The chosen rows, still as positions."""
        chosen = object.__new__(TargetRows)
        chosen.interaction = self.interaction.take(_as_index(index))
        chosen.length = len(chosen.interaction.row)
        return chosen

    def _reindex(self, index: Any) -> None:
        self.interaction = self.interaction.take(_as_index(index))


class _Gathered(MutableMapping):
    """The columns of :class:`TargetRows`. One that is set from outside is kept as it is."""

    def __init__(self, flat: Interaction, user_start: Tensor, length_field: str, max_length: int, row: Tensor,
                 own: dict[str, Tensor | None]) -> None:  # fmt: skip
        self.flat, self.user_start, self.length_field, self.max_length = flat, user_start, length_field, max_length
        self.row = row
        self._own = own  # name -> what was set; None: to be gathered

    def take(self, index: Any) -> _Gathered:
        own = {name: None if value is None else value[index] for name, value in self._own.items()}
        return _Gathered(self.flat, self.user_start, self.length_field, self.max_length, self.row[index], own)

    def __getitem__(self, name: str) -> Tensor:
        if (value := self._own[name]) is not None:
            return value
        if name == ROW:
            return self.row.long()
        if name == self.length_field:
            return (self.row - self.user_start[self.row]).clamp(max=self.max_length).long()
        return wide(self.flat[name][self.row])

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, name: object) -> bool:
        return name in self._own  # the inherited one gathers the column to find out


def narrow(column: Tensor) -> Tensor:
    """Ids as they are kept, int32; other columns as they are."""
    return column.to(torch.int32) if column.dtype == torch.int64 and column.dim() == 1 else column


def wide(column: Tensor) -> Tensor:
    """Ids as RecBole's models and loaders expect them, int64."""
    return column.long() if column.dtype == torch.int32 else column


def select(feat: Interaction, index: np.ndarray) -> Interaction:
    """Rows of an Interaction by an index array (RecBole turns the array into a Python list first)."""
    if isinstance(feat, TargetRows):
        return feat.take(index)
    at = torch.from_numpy(np.ascontiguousarray(index))
    return Interaction({name: column[at] for name, column in feat.interaction.items()})


def _as_index(index: Any) -> Any:
    if isinstance(index, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(index))
    return list(index) if isinstance(index, (range, tuple)) else index
