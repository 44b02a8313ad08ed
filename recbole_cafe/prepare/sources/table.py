"""Anybody's tables: CSV, TSV, JSON lines or Parquet with named columns of user, item, time and intent."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recbole_cafe.errors import ConfigError
from recbole_cafe.prepare.raw import PrepareError, Source, levels, number, open_raw, token

FORMATS = ("csv", "tsv", "json", "parquet", "atomic")
_ENDINGS = {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet",
            "pq": "parquet", "inter": "atomic", "item": "atomic"}  # fmt: skip


def format_of(path: str, given: str | None = None) -> str:
    """Tell the format of a file.

    Args:
        path: of the file; the ending of its name tells the format if it is not given.
        given: one of `FORMATS`.

    Raises:
        ConfigError: an ending that tells nothing.
    """
    if given:
        return given
    name = path.partition("::")[0].partition("?")[0].lower()
    for packed in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(packed)
    kind = _ENDINGS.get(name.rpartition(".")[2])
    if kind is None:
        raise ConfigError(f"{path}: the name does not tell the format; give --format, one of {', '.join(FORMATS)}")
    return kind


def rows(source: Source, role: str) -> Iterator[tuple[Any, ...]]:
    """Read a table.

    Options: columns (purpose -> name: user, item, time, rating, intent), format, time_format, separator (between the
    levels inside an intent).

    Args:
        source: the raw file.
        role: interactions or items.

    Returns:
        Rows of `raw.SCHEMAS[role]`.

    Raises:
        PrepareError: a file without one of the columns.
    """
    columns = source.options["columns"]
    order = [purpose for purpose in ("user", "item", "time", "rating", "intent") if purpose in columns]
    time_of = reader_of_times(source.options["time_format"])
    separator = source.options["separator"]
    for line, cells in _records(source, {purpose: columns[purpose] for purpose in order}):
        row = dict(zip(order, cells, strict=True))
        item = token(row["item"])
        intents = _levels(row.get("intent"), separator)
        if role == "items":
            if item is None:
                source.fault("no item (text or a whole number)", line, row["item"])
            else:
                yield item, intents, line
            continue
        user, when = token(row["user"]), time_of(row["time"])
        if user is None or item is None or when is None:
            purpose = "user" if user is None else "item" if item is None else "time"
            source.fault(f"no {purpose}", line, row[purpose])
            continue
        yield user, item, when, number(row.get("rating")), intents, line


def _levels(value: Any, separator: str | None) -> str | None:
    if separator and isinstance(value, str):
        value = [part.strip("[]'\" ") for part in value.split(separator)]
    return levels(value if isinstance(value, (list, tuple)) else [value])


def _records(source: Source, columns: dict[str, str]) -> Iterator[tuple[int, list[Any]]]:
    kind = format_of(source.path, source.options["format"])
    if kind == "parquet":
        return _parquet(source, columns)
    if kind == "json":
        return _json(source, columns)
    return source.rows(columns, separator="," if kind == "csv" else "\t", quotes=kind in ("csv", "tsv"),
                       types=kind == "atomic")  # fmt: skip


def _json(source: Source, columns: dict[str, str]) -> Iterator[tuple[int, list[Any]]]:
    names = list(columns.values())
    for line, record in source.records(json.loads):
        yield line, [record.get(name) for name in names]


def _parquet(source: Source, columns: dict[str, str]) -> Iterator[tuple[int, list[Any]]]:
    with open_raw(source.path) as file:
        try:
            table = pq.ParquetFile(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PrepareError(f"{source.path}: cannot be read as Parquet: {error}") from None
        for purpose, name in columns.items():
            if name not in table.schema_arrow.names:
                raise PrepareError(
                    f"{source.path}: no column {name!r} for {purpose}; found {', '.join(table.schema_arrow.names)}"
                )
        line, batches = 0, table.iter_batches(columns=list(dict.fromkeys(columns.values())))
        while cells := _cells(source.path, batches, columns, line):
            for row in zip(*cells, strict=True):
                line += 1
                source.read += 1
                yield line, list(row)


def _cells(path: str, batches: Iterator[pa.RecordBatch], columns: dict[str, str], line: int) -> list[list[Any]]:
    """The columns of the next batch as Python has them; an empty list after the last one.

    Raises:
        PrepareError: the file is damaged, or holds a value that Python has not (the year 300000, text that is no
            UTF-8).
    """
    try:
        batch = next(batches, None)
        return [] if batch is None else [batch.column(name).to_pylist() for name in columns.values()]
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise PrepareError(f"{path}: cannot be read as Parquet behind row {line}: {error}") from None


# Times ----------------------------------------------------------------------------------------------------------------


def reader_of_times(form: str) -> Callable[[Any], float | None]:
    """Make the function that reads a time.

    Args:
        form: 'auto' (a number as it is, a date and time of ISO 8601 as seconds since 1970, in UTC unless it names a
            zone), 's', 'ms', 'us' (numbers, as seconds), or a pattern of strptime such as '%d.%m.%Y'.

    Returns:
        A function that gives None for no time.
    """
    parts = {"s": 1, "ms": 1_000, "us": 1_000_000}
    if form in parts:
        return lambda value: None if (count := number(value)) is None else count / parts[form]
    if form == "auto":
        return _any_time
    return functools.partial(_by_pattern, form)


def _any_time(value: Any) -> float | None:
    seconds = number(value)
    if seconds is not None:
        return seconds
    if isinstance(value, datetime.datetime):
        return _seconds(value)
    if isinstance(value, datetime.date):
        return _seconds(datetime.datetime(value.year, value.month, value.day))
    return _by_iso(value) if isinstance(value, str) else None


def _seconds(moment: datetime.datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _by_iso(text: str) -> float | None:
    text = text.strip()
    try:
        return _seconds(datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text))
    except ValueError:
        return None


def _by_pattern(form: str, value: Any) -> float | None:
    try:
        return _seconds(datetime.datetime.strptime(str(value), form))
    except ValueError:
        return None
