"""Histories as users give them, and as a net reads them: raw tokens to ids."""

from __future__ import annotations

import bisect
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recbole_cafe.errors import DataError
from recbole_cafe.recommend.bundle import Items

# What a column of a table of interactions may be called; RecBole's names among them
COLUMNS = {"user": ("user", "user_id"), "item": ("item", "item_id"), "time": ("time", "timestamp")}
LOOKED_UP_ONE_BY_ONE = 20_000  # tokens; more are looked up by a hash table of the whole catalogue


class Lookup:
    """Ids of item tokens, from the sorted order that a bundle stores: nothing is built, so a large one opens fast.

    Args:
        items: of the bundle.
    """

    def __init__(self, items: Items) -> None:
        self._token, self._order = items.token, items.order

    def ids(self, tokens: Sequence[str]) -> np.ndarray:
        """The id of each token, 0 for one that is unknown. Returns [n] int64."""
        if len(tokens) > LOOKED_UP_ONE_BY_ONE:
            places = pc.index_in(pa.array(tokens, pa.string()), value_set=self._token)
            return np.asarray(pc.fill_null(places, -1)).astype(np.int64) + 1
        return np.fromiter((self._id(token) for token in tokens), dtype=np.int64, count=len(tokens))

    def _id(self, token: str) -> int:
        def at(place: int) -> bytes:
            return str(self._token[int(self._order[place])].as_py()).encode()

        wanted = token.encode()
        place = bisect.bisect_left(range(len(self._order)), wanted, key=at)
        if place < len(self._order) and at(place) == wanted:
            return int(self._order[place]) + 1
        return 0


@dataclass(frozen=True)
class Histories:
    """B histories as ids, the oldest item first.

    Attributes:
        user: [B] whose they are: the tokens of a table's users, or 0..B-1.
        start: [B + 1] where each begins in `item`.
        item: [P] ids, all known.
        n_unknown: [B] how many tokens of each are no item of the bundle; they are left out of it.
    """

    user: pa.Array
    start: np.ndarray
    item: np.ndarray
    n_unknown: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, which: slice) -> Histories:
        """Some of them."""
        start, n_unknown = self.start[which.start : which.stop + 1], self.n_unknown[which]
        item = self.item[start[0] : start[-1]]
        return Histories(self.user[which.start : which.stop], start - start[0], item, n_unknown)

    def padded(self, rows: np.ndarray, length: int) -> Tensor:
        """The newest items of some histories, none of which is empty.

        Args:
            rows: [R].
            length: L, so many of each.

        Returns:
            [R, up to L], padded on the right with 0.
        """
        end = self.start[rows + 1]
        first = np.maximum(self.start[rows], end - length)
        size = end - first
        step = np.arange(int(size.max(initial=1)))
        inside = step < size[:, None]
        at = np.where(inside, first[:, None] + step, 0)
        return torch.from_numpy(np.where(inside, self.item[at], 0).astype(np.int64))

    def distinct(self, rows: np.ndarray) -> list[Tensor]:
        """The items of some histories, each once."""
        return [torch.from_numpy(np.unique(self.item[self.start[row] : self.start[row + 1]])) for row in rows.tolist()]


def token_of(value: object, where: str) -> str:
    """An item's or intent's token: text, or a whole number as text.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    # reprlib: a value may be nested too deeply for repr
    raise DataError(f"{where}: {reprlib.repr(value)} is a {type(value).__name__}, expected a token (text or a whole "
                    f"number)")  # fmt: skip


def tokens_of(values: object, where: str) -> list[str]:
    """A list of tokens.

    Raises:
        DataError: no list, or one that holds something else.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise DataError(f"{where}: {values!r:.80} is a {type(values).__name__}, expected a list of items")
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = values.to_pylist()
    return [value if type(value) is str else token_of(value, f"{where}[{i}]") for i, value in enumerate(values)]


def read_histories(given: Any, lookup: Lookup) -> Histories:
    """Histories from lists or from a table.

    Args:
        given: a list of lists of item tokens, oldest first; or a table of interactions (pandas, Polars, Arrow, or a
            mapping of columns) with the columns user, item and, unless it is in order, time.
        lookup: of the bundle's items.

    Raises:
        DataError: neither of them, or a cell that is no token or no time.
    """
    if is_table(given):
        return _of_table(as_arrow(given, "histories"), lookup)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(f"histories: {given!r:.80} is a {type(given).__name__}, expected a list of lists of items, or "
                        f"a table with the columns user and item")  # fmt: skip
    lists = [tokens_of(history, f"histories[{i}]") for i, history in enumerate(given)]
    return histories_of(pa.array(np.arange(len(lists))), lists, lookup)


def histories_of(user: pa.Array, lists: Sequence[Sequence[str]], lookup: Lookup) -> Histories:
    """Histories from lists of tokens.

    Args:
        user: [B] whose they are.
        lists: B lists, oldest first.
        lookup: of the bundle's items.
    """
    ids = lookup.ids([token for tokens in lists for token in tokens])
    row = np.repeat(np.arange(len(lists)), [len(tokens) for tokens in lists])
    return _known(user, row, ids)


def is_table(given: Any) -> bool:
    """Whether it is a table rather than a list."""
    if isinstance(given, (pa.Array, pa.ChunkedArray)):
        return False
    return isinstance(given, Mapping) or hasattr(given, "columns")  # of Arrow, pandas and Polars


def as_arrow(given: Any, what: str) -> pa.Table:
    """A table of pandas, Polars, Arrow, or a mapping of columns as Arrow.

    Raises:
        DataError: it cannot be read as one.
    """
    try:
        if isinstance(given, pa.Table):
            return given
        if isinstance(given, pa.RecordBatch):
            return pa.Table.from_batches([given])
        if isinstance(given, Mapping):
            return pa.table({str(name): pa.array(list(cells)) for name, cells in given.items()})
        return pa.table(given)  # pandas, or anything that speaks Arrow's interface
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{what}: a {type(given).__name__} that cannot be read as a table ({error})") from error


def column_of(table: pa.Table, name: str, what: str, *, needed: bool = True) -> pa.ChunkedArray | None:
    """A column by any of its names.

    Raises:
        DataError: it is missing though it is needed, or there are two.
    """
    present = [alias for alias in COLUMNS.get(name, (name,)) if alias in table.column_names]
    if len(present) > 1:
        raise DataError(f"{what}: both columns {' and '.join(present)}; expected one")
    if not present:
        if needed:
            raise DataError(f"{what}: no column {' or '.join(COLUMNS.get(name, (name,)))}; there are "
                            f"{', '.join(map(str, table.column_names)) or 'none'}")  # fmt: skip
        return None
    return table[present[0]]


def text_of(column: pa.ChunkedArray, name: str, what: str) -> pa.Array:
    """The tokens of a column of text or whole numbers.

    Raises:
        DataError: another type, or a missing cell; names its row.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if len(column) and not (is_text or pa.types.is_integer(kind)):
        raise DataError(f"{what}: column {name} is of type {kind}, expected tokens (text or whole numbers)")
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{what}: row {row} has no {name}")
    cells = column.cast(kind).cast(pa.string()).combine_chunks()
    return pa.concat_arrays(cells.chunks) if isinstance(cells, pa.ChunkedArray) else cells


def times_of(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Times as float64; dates as seconds since 1970.

    Raises:
        DataError: another type, a missing cell, or one that is not finite; names its row.
    """
    if column.null_count:
        raise DataError(f"{what}: row {pc.index(pc.is_null(column), True).as_py()} has no time")
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = column.cast(pa.timestamp("us", getattr(kind, "tz", None))).cast(pa.int64())
        return np.asarray(micros, dtype=np.float64) / 1e6
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{what}: column time is of type {kind}, expected numbers or dates")
    times = np.asarray(column, dtype=np.float64)
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0])
        raise DataError(f"{what}: row {row} has the time {times[row]}, expected a finite number")
    return times


def _of_table(table: pa.Table, lookup: Lookup) -> Histories:
    what = "histories"
    user = text_of(column_of(table, "user", what), "user", what).dictionary_encode()
    ids = lookup.ids(text_of(column_of(table, "item", what), "item", what).to_pylist())
    row = np.asarray(user.indices, dtype=np.int64)  # users in the order in which they appear
    time = column_of(table, "time", what, needed=False)
    keys = [row] if time is None else [times_of(time, what), row]
    order = np.lexsort(keys)  # stable: equal times stay as they are in the table
    return _known(user.dictionary, row[order], ids[order])


def _known(user: pa.Array, row: np.ndarray, ids: np.ndarray) -> Histories:
    """Histories without what is unknown. row: [P] in order."""
    known = ids > 0
    n = len(user)
    start = np.r_[0, np.cumsum(np.bincount(row[known], minlength=n))]
    return Histories(user, start, ids[known], np.bincount(row[~known], minlength=n))
