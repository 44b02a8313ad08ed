"""Files of histories, interactions and items, a block at a time: CSV, JSON lines, Parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recbole_cafe.errors import DataError
from recbole_cafe.recommend.histories import COLUMNS

FORMATS = (".csv", ".jsonl", ".parquet")
LINES = 20_000  # of JSON, read at a time
BLOCK = 1 << 24  # bytes of CSV


class TableError(DataError):
    """A file of a table that cannot be read; the message names file, row and column."""


def format_of(path: Path) -> str:
    """The ending that says how a file is written; ``.gz`` behind it is allowed where it is read.

    Raises:
        TableError: another ending.
    """
    name = path.name.removesuffix(".gz")
    ending = "." + name.rpartition(".")[2].lower()
    if ending not in FORMATS or (path.suffix == ".gz" and ending == ".parquet"):
        raise TableError(
            f"{path}: expected a name that ends in {', '.join(FORMATS)} (.csv.gz and .jsonl.gz are read, too)"
        )
    return ending


def read_blocks(path: Path) -> Iterator[pa.Table]:
    """A table, some rows at a time. Cells of CSV are text, empty ones null.

    Raises:
        TableError: no such file, or a damaged one.
    """
    ending = format_of(path)
    if not path.is_file():
        raise TableError(f"there is no file {path}")
    try:
        if ending == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield pa.Table.from_batches([batch])
        elif ending == ".csv":
            yield from _csv(path)
        else:
            yield from _json_lines(path)
    except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def read_table(path: Path) -> pa.Table:
    """All of a table; see :func:`read_blocks`."""
    blocks = list(read_blocks(path))
    return pa.concat_tables(blocks, promote_options="default") if blocks else pa.table({})


def _csv(path: Path) -> Iterator[pa.Table]:
    names = [name for aliases in COLUMNS.values() for name in aliases] + ["items", "intent", "title"]
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names if name not in COLUMNS["time"]}
        | {name: pa.float64() for name in COLUMNS["time"]},
        strings_can_be_null=True, null_values=[""],
    )  # fmt: skip
    with pa.csv.open_csv(path, read_options=pa.csv.ReadOptions(block_size=BLOCK), convert_options=convert) as file:
        for batch in file:
            yield pa.Table.from_batches([batch])


def _json_lines(path: Path) -> Iterator[pa.Table]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = []
        first = 1
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(_object(line, path, number))
            if len(rows) == LINES:
                yield _table(rows, path, first)
                rows, first = [], number + 1
        if rows:
            yield _table(rows, path, first)


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: line {number} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise TableError(f"{path}: line {number} holds a {type(row).__name__}, expected an object")
    for key, value in row.items():
        if isinstance(value, list):
            row[key] = [str(cell) if type(cell) is int else cell for cell in value]
        elif type(value) is int and key not in COLUMNS["time"]:
            row[key] = str(value)  # names of users and items may be numbers in one row and text in another
    return row


def _table(rows: list[dict[str, Any]], path: Path, first: int) -> pa.Table:
    try:
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise TableError(f"{path}: lines {first} to {first + len(rows) - 1}: a column of more than one type "
                         f"({' '.join(str(error).split())[:200]})") from error  # fmt: skip
