"""One reader for each source of raw data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recbole_cafe.prepare.raw import Source
from recbole_cafe.prepare.sources import amazon, atomic, sequences, table, tmall

# source -> its reader: takes the raw file and its role, gives rows of `raw.SCHEMAS[role]`
READERS: dict[str, Callable[[Source, str], Iterator[tuple[Any, ...]]]] = {
    "amazon": amazon.rows,
    "tmall": tmall.rows,
    "atomic": atomic.rows,
    "table": table.rows,
    "sequences": sequences.rows,
}
