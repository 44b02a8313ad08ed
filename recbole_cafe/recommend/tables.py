"""Files of histories, interactions and items, read row by row: CSV, JSON lines and Parquet of any size.

A file has one of two shapes: a row for each interaction (user, item and, unless rows are in order, time), the rows of a
user together; or a row for each user (user, items). Memory holds one history at a time, and eight bytes for each user.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recbole_cafe.errors import DataError, did_you_mean
from recbole_cafe.recommend.histories import COLUMNS, token_of, tokens_of

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
ENDINGS = (*SEPARATORS, *JSON_LINES, PARQUET)
ITEMS = ("items", "history")  # what the column of a row that holds a whole history may be called
LONGEST = 1 << 26  # characters of a line
BLOCK = 8192  # rows of Parquet at a time
# What a file that is damaged, or not what its name says, raises while it is read
_UNREADABLE = (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException)


class TableError(DataError):
    """A file of a table that cannot be right; the message names file, row and column, and what was expected."""


def ending_of(path: Path) -> str:
    """The ending that says how a file is written; ``.gz`` behind that of text is allowed where it is read.

    Raises:
        TableError: another ending.
    """
    name = path.name.lower()
    is_packed = name.endswith(".gz")
    ending = Path(name.removesuffix(".gz")).suffix
    if ending not in ENDINGS or (is_packed and ending == PARQUET):
        raise TableError(f"{path}: expected a name that ends in {', '.join(ENDINGS)} (text packed as .gz is read, too)")
    return ending


@dataclass(frozen=True)
class Source:
    """An open file of rows.

    Attributes:
        path: where it is.
        columns: their names.
        rows: given names of columns, yields where each row is, for messages, and its cells: text in CSV, what the file
            says elsewhere.
        position: how many of the file's bytes have been read.
    """

    path: Path
    columns: Sequence[str]
    rows: Callable[[Sequence[str]], Iterator[tuple[str, Sequence[Any]]]]
    position: Callable[[], int]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a file of rows.

    Args:
        path: the file; its name says what it is.

    Yields:
        The source.

    Raises:
        TableError: no such file, or a damaged one. Errors of rows name the line (CSV, JSON lines) or the row (Parquet,
            from 1).
    """
    ending = ending_of(path)
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise TableError(f"{path} cannot be read: {error.strerror}") from error
        try:
            if ending == PARQUET:
                yield _parquet(path, raw)
                return
            unpacked = stack.enter_context(gzip.open(raw)) if path.name.lower().endswith(".gz") else raw
            text = stack.enter_context(io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=""))
            if ending in SEPARATORS:
                yield _csv(path, raw, text, SEPARATORS[ending])
            else:
                yield _json_lines(path, raw, text)
        except _UNREADABLE as error:
            said = " ".join(str(error).split())[:300]
            raise TableError(f"{path}: it cannot be read, is damaged or not what its name says ({said})") from error


def _lines(path: Path, text: IO[str]) -> Iterator[str]:
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise TableError(f"{path}: line {number} is longer than {LONGEST:,} characters")
        yield line


def _csv(path: Path, raw: IO[bytes], text: IO[str], separator: str) -> Source:
    csv.field_size_limit(LONGEST)  # of a field; 131,072 unless told otherwise
    reader = csv.reader(_lines(path, text), delimiter=separator, strict=True)
    columns = next(reader, [])
    if not columns:
        raise TableError(f"{path} is empty, expected names of columns in its first line")

    def rows(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        at = [columns.index(name) for name in names]
        line = reader.line_num + 1  # where a row begins; it may go over several lines
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise TableError(f"{path}: line {line} cannot be read as CSV: {error}") from error
            if cells is None:
                return
            if cells:
                if len(cells) != len(columns):
                    raise TableError(f"{path}: line {line} has {len(cells)} cells, expected {len(columns)}: "
                                    f"{', '.join(columns)!s:.200}")  # fmt: skip
                yield f"line {line}", [cells[i] for i in at]
            line = reader.line_num + 1

    return Source(path, columns, rows, raw.tell)


def _json_lines(path: Path, raw: IO[bytes], text: IO[str]) -> Source:
    lines = enumerate(_lines(path, text), start=1)

    def objects() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TableError(f"{path}: line {number} is not JSON ({error})") from error
            if not isinstance(value, dict):
                raise TableError(f"{path}: line {number} holds a {type(value).__name__}, expected an object such as "
                                '{"user": "a", "items": ["x", "y"]}')  # fmt: skip
            yield f"line {number}", value

    every = objects()
    first = next(every, None)
    columns = list(first[1]) if first else ["user", "items"]

    def rows(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        for place, value in () if first is None else _chain(first, every):
            for name in names:
                if name not in value:
                    raise TableError(f"{path}: {place} has no {name!r}; it has {', '.join(value) or 'nothing'!s:.200}")
            yield place, [value[name] for name in names]

    return Source(path, columns, rows, raw.tell)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _parquet(path: Path, raw: IO[bytes]) -> Source:
    file = pq.ParquetFile(raw)
    size, n_rows, read = os.fstat(raw.fileno()).st_size, file.metadata.num_rows, 0

    def rows(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        nonlocal read
        for batch in file.iter_batches(BLOCK, columns=list(names)):
            cells = [_plain(batch.column(name)) for name in names]
            for number, row in enumerate(zip(*cells, strict=True), start=read + 1):
                yield f"row {number}", row
            read += len(batch)

    return Source(path, file.schema_arrow.names, rows, lambda: size * read // max(1, n_rows))


def _plain(column: pa.Array) -> list[Any]:
    """Cells as Python's values. Nanoseconds, for which pandas would be needed, as microseconds."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    cells: list[Any] = column.to_pylist()
    return cells


# Histories ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """One history.

    Attributes:
        user: token.
        items: tokens, oldest first.
        place: where it begins in the file.
    """

    user: str
    items: list[str]
    place: str


def histories_in(source: Source) -> Iterator[History]:
    """The histories of a file, in its order.

    Args:
        source: from :func:`opened`.

    Raises:
        TableError: columns of neither shape; a cell that cannot be right; a user whose rows do not stand together.
    """
    shape, users = shape_of(source.path, source.columns), _Users(source.path)
    yield from users.once(_of_rows(source, shape) if shape.items else _of_interactions(source, shape))


@dataclass(frozen=True)
class Shape:
    """Which columns a file of histories has.

    Attributes:
        user: of the user.
        item: of the item; None if a row holds a whole history.
        items: of the whole history; None if a row is an interaction.
        time: of the time; None if rows are in order.
    """

    user: str
    item: str | None
    items: str | None
    time: str | None


def shape_of(path: Path, columns: Sequence[str]) -> Shape:
    """Which of its columns are which.

    Raises:
        TableError: columns of neither shape, or two that mean the same.
    """
    user = column_in(path, columns, COLUMNS["user"])
    items, item = _column_or_none(path, columns, ITEMS), _column_or_none(path, columns, COLUMNS["item"])
    if (items is None) == (item is None):
        found = "both of them" if items else f"neither; there are {', '.join(columns)!s:.200}"
        raise TableError(f"{path}: expected a column item (a row for each interaction) or a column items (a row for "
                         f"each user), found {found}")  # fmt: skip
    return Shape(user, item, items, None if items else _column_or_none(path, columns, COLUMNS["time"]))


def _column_or_none(path: Path, columns: Sequence[str], names: Sequence[str]) -> str | None:
    present = [name for name in names if name in columns]
    if len(present) > 1 or len(set(columns)) < len(columns):
        raise TableError(f"{path}: of the columns {', '.join(columns)!s:.200} two mean the same")
    return present[0] if present else None


def column_in(path: Path, columns: Sequence[str], names: Sequence[str]) -> str:
    """The column that has one of some names.

    Raises:
        TableError: there is none, or two.
    """
    found = _column_or_none(path, columns, names)
    if found is None:
        hint = did_you_mean(names[0], columns)
        raise TableError(f"{path}: no column {' or '.join(names)}; there are {', '.join(columns)!s:.200}{hint}")
    return found


def _of_rows(source: Source, shape: Shape) -> Iterator[History]:
    assert shape.items is not None
    for place, (who, listed) in source.rows([shape.user, shape.items]):
        user = token_in(who, f"{source.path}: {place}, column {shape.user}")
        yield History(user, split_items(listed, f"{source.path}: {place}, column {shape.items}"), place)


def _of_interactions(source: Source, shape: Shape) -> Iterator[History]:
    assert shape.item is not None
    names = [shape.user, shape.item] if shape.time is None else [shape.user, shape.item, shape.time]
    user, began, items, times = "", "", list[str](), list[float]()
    for place, cells in source.rows(names):
        where = f"{source.path}: {place}, column "
        of = token_in(cells[0], where + shape.user)
        if of != user:
            if user:
                yield History(user, in_time(items, times), began)
            user, began, items, times = of, place, [], []
        items.append(token_in(cells[1], where + shape.item))
        if shape.time is not None:
            times.append(seconds_of(cells[2], where + shape.time))
    if user:
        yield History(user, in_time(items, times), began)


def in_time(items: list[str], times: Sequence[float]) -> list[str]:
    """Items by time, equal ones as they are; as they are without times."""
    return [items[i] for i in sorted(range(len(items)), key=times.__getitem__)] if times else items


def split_items(listed: Any, where: str) -> list[str]:
    """The items of a cell: a list, or text with spaces between them.

    Raises:
        TableError: something else.
    """
    if isinstance(listed, str):
        return [token for token in listed.split(" ") if token]
    try:
        tokens = tokens_of(listed, where)
    except DataError as error:
        raise TableError(str(error)) from error
    if "" in tokens:
        raise TableError(f"{where}: an item without a name, expected tokens")
    return tokens


def token_in(cell: Any, where: str) -> str:
    """The token of a cell.

    Raises:
        TableError: it is empty, or something else.
    """
    if type(cell) is str and cell:
        return cell
    if cell is None or cell == "":
        raise TableError(f"{where} is empty, expected a token")
    try:
        return token_of(cell, where)
    except DataError as error:
        raise TableError(str(error)) from error


def seconds_of(cell: Any, where: str) -> float:
    """The time of a cell: a number, or a date as seconds since 1970; one without a time zone is taken as UTC.

    Raises:
        TableError: something else.
    """
    value = cell
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        zone = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        return zone.timestamp()
    if isinstance(value, datetime.date):
        return float(value.toordinal() - datetime.date(1970, 1, 1).toordinal()) * 86_400
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise TableError(f"{where}: {cell!r:.80}, expected a finite number or a date such as 2024-05-31T12:00:00")


class _Users:
    """Which users there were, in eight bytes each: sorted runs of digests, merged when there are two of a size."""

    def __init__(self, path: Path) -> None:
        self._path, self._runs = path, list[np.ndarray]()

    def once(self, histories: Iterator[History]) -> Iterator[History]:
        """The same histories.

        Raises:
            TableError: a user comes again after another.
        """
        new: dict[int, History] = {}
        for history in histories:
            digest = int.from_bytes(hashlib.blake2b(history.user.encode(), digest_size=8).digest(), "little")
            if digest in new or any(_holds(run, digest) for run in self._runs):
                raise TableError(
                    f"{self._path}: {history.place}: user {history.user!r:.80} comes again after other users, expected "
                    "the rows of a user together; sort the file by user (and time)"
                )
            new[digest] = history
            if len(new) == BLOCK:
                self._keep(np.sort(np.fromiter(new, dtype=np.uint64, count=len(new))))
                new = {}
            yield history

    def _keep(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate((self._runs.pop(), run)))
        self._runs.append(run)


def _holds(run: np.ndarray, digest: int) -> bool:
    key = np.uint64(digest)
    place = int(np.searchsorted(run, key))
    return place < len(run) and run[place] == key


# Tables and lists of items --------------------------------------------------------------------------------------------


def read_tokens(path: Path) -> list[str]:
    """The items that a file names: a column item of CSV, JSON lines or Parquet, or the lines of a .txt.

    Raises:
        TableError: no such file or column, or a cell that is no token.
    """
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise TableError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise TableError(f"{path}: it is not text in UTF-8 ({error})") from error
        return [line for line in lines if line]
    with opened(path) as source:
        column = column_in(path, source.columns, COLUMNS["item"])
        rows = source.rows([column])
        return [token_in(cell, f"{path}: {place}, column {column}") for place, (cell,) in rows]


def read_table(path: Path) -> pa.Table:
    """A whole file as a table, such as the new items or interactions of an update.

    Names are text, whole numbers among them; times are seconds since 1970; an empty cell is null.

    Raises:
        TableError: no such file, or a row that cannot be right.
    """
    with opened(path) as source:
        if len(set(source.columns)) < len(source.columns):
            raise TableError(f"{path}: two of its columns {', '.join(source.columns)!s:.200} have one name")
        columns: dict[str, list[Any]] = {name: [] for name in source.columns}
        for place, cells in source.rows(source.columns):
            for name, cell in zip(source.columns, cells, strict=True):
                if name in COLUMNS["time"]:
                    cell = seconds_of(cell, f"{path}: {place}, column {name}")
                elif type(cell) is int:  # names may be numbers in one row and text in another
                    cell = str(cell)
                columns[name].append(None if cell == "" else cell)
        try:
            return pa.table({name: pa.array(cells) for name, cells in columns.items()})
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise TableError(f"{path}: a column holds values of several kinds ({error})") from error
