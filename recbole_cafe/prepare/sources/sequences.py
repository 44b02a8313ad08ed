"""Sequences as they are passed around since S3-Rec (CIKM 2020): a text line a user, `user item item ...`, in order.

Beside them there may be, each with the same users in the same lines:

* times, `user time time ...`, a stamp for each item, or gaps: for each item the time since the one before (the first
  is counted from 0), or one less, for all items but the first;
* attributes of the items, one JSON object: item -> list of attributes. S3-Rec's lists have the brand first and then
  categories from coarse to fine, so the last is the most special category.

Without times an item's place in its line, from 1, stands for its time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from recbole_cafe.prepare.raw import PrepareError, Source, decompressed, levels, number, open_raw

PER_LINE = 1 << 14  # items of a line at most
UNITS = {"s": 1.0, "ms": 0.001, "min": 60.0, "h": 3600.0, "day": 86_400.0}  # seconds
CHOICES = ("last", "first", "path")


def rows(source: Source, role: str) -> Iterator[tuple[Any, ...]]:
    """Read sequences or attributes.

    Options: times (a path or None), gaps (whether it has gaps), unit (a key of `UNITS`), intent (of `CHOICES`).

    Args:
        source: the raw file.
        role: interactions or items.

    Returns:
        Rows of `raw.SCHEMAS[role]`.

    Raises:
        PrepareError: a file of times of other users or with another number of lines; attributes that are no JSON
            object.
    """
    return _sequences(source) if role == "interactions" else _attributes(source)


def _sequences(source: Source) -> Iterator[tuple[Any, ...]]:
    source.per_line = PER_LINE
    path = source.options["times"]
    times = None if path is None else _lines(path)
    line = 0
    for line, text in enumerate(source.texts(), 1):
        given = None if times is None else next(times, None)
        if times is not None and given is None:
            raise PrepareError(f"{path}: ends before line {line}, expected a line for each of {source.path}")
        if not text or text.isspace():
            continue
        user, *items = text.split()
        source.read += len(items)
        if not items or len(items) >= PER_LINE:
            source.fault(f"no user and then 1 to {PER_LINE - 1} items", line, text)
            continue
        stamps: list[float] | None = [float(n) for n in range(1, len(items) + 1)]
        if given is not None:
            stamps = _stamps(source, line, user, len(items), given)
        if stamps is not None:
            for n, (item, when) in enumerate(zip(items, stamps, strict=True)):
                yield user, item, when, None, None, line * PER_LINE + n
    if times is not None and (more := next((text for text in times if text.strip()), None)) is not None:
        raise PrepareError(
            f"{path}: line {line + 1}: found {more.strip()[:80]!r}, expected the end, as of {source.path}"
        )


def _stamps(source: Source, line: int, user: str, n: int, text: str) -> list[float] | None:
    """The stamps of one line in seconds, or a fault."""
    path, gaps = source.options["times"], source.options["gaps"]
    found, *cells = text.split() or [""]
    if found != user:
        raise PrepareError(f"{path}: line {line}: found user {found!r}, expected {user!r} as in {source.path}")
    values = [number(cell) for cell in cells]
    sizes = (n, n - 1) if gaps else (n,)
    if (
        len(values) not in sizes
        or None in values
        or (gaps and min((v for v in values if v is not None), default=0) < 0)
    ):
        kind = f"not {' or '.join(map(str, sizes))} {'gaps, none below 0' if gaps else 'times'} in {path}"
        source.fault(kind if gaps else f"not a time for each item in {path}", line, text.strip())
        return None
    unit = UNITS[source.options["unit"]]
    stamps = [float(value) for value in values if value is not None]
    if gaps:
        stamps = list(accumulate(stamps if len(stamps) == n else [0.0, *stamps]))
    return [value * unit for value in stamps]


def _lines(path: str) -> Iterator[str]:
    with open_raw(path) as file, io.TextIOWrapper(decompressed(file, path), "utf-8", "surrogateescape") as lines:
        yield from lines


def _attributes(source: Source) -> Iterator[tuple[Any, ...]]:
    try:
        table = json.loads("\n".join(source.texts()))
    except (ValueError, RecursionError) as error:
        raise PrepareError(f"{source.path}: not JSON: {error}") from None
    if type(table) is not dict:
        raise PrepareError(f"{source.path}: holds a {type(table).__name__}, expected an object, item -> attributes")
    choice = source.options["intent"]
    for place, (item, attributes) in enumerate(table.items(), 1):
        source.read += 1
        values = attributes if type(attributes) is list else [attributes]
        chosen = values if choice == "path" else values[-1:] if choice == "last" else values[:1]
        yield item, levels(chosen), place
