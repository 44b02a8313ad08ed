"""A raw file, line by line, into checked rows: what the readers share.

A reader turns records into columns; everything a file can do wrong is counted here by kind, with the first place, and
the row is left out. Rows go to Parquet with their position, `FILE_ROWS * number of the file + line`, which is the order
of ties later. Runs in the process itself, in a worker process or on an executor of Spark; imports neither engine.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recbole_cafe.errors import DataError
from recbole_cafe.files.atomic import MISSING

FILE_ROWS = 1 << 40
SEPARATOR = "\x1f"  # between the levels of an intent, most general first; `intent_text` leaves none inside
LONGEST = 1 << 24  # bytes of a line; what is longer is no record of these sources
BLOCK = 1 << 20  # bytes of text at a time
ROWS = 1 << 16  # rows in memory at a time

SCHEMAS = {
    "interactions": pa.schema(
        {"user": pa.string(), "item": pa.string(), "time": pa.float64(), "rating": pa.float64(), "levels": pa.string(),
         "place": pa.int64()}
    ),
    "items": pa.schema({"item": pa.string(), "levels": pa.string(), "place": pa.int64()}),
}  # fmt: skip
_UNSAFE = "[\\t\\n\\r\\x00]"
_READ_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)


class PrepareError(DataError):
    """A raw file or a choice that cannot become a data set; the message says where and what was expected."""


class Source:
    """One raw file on its way to Parquet: its lines, and what is wrong with them.

    Args:
        task: "source" (of `sources.READERS`), "role" (interactions or items), "path" (or URL), "number" (of the file),
            "strict", "options" (of the reader), and "out", the Parquet file to write.
        progress: takes the bytes read so far.
    """

    def __init__(self, task: Mapping[str, Any], progress: Callable[[int], None] = lambda _bytes: None) -> None:
        self.path, self.options, self.number = str(task["path"]), task["options"], int(task["number"])
        self.schema, self.strict = SCHEMAS[task["role"]], bool(task["strict"])
        self.faults: dict[str, dict[str, Any]] = {}
        self.read, self.kept = 0, 0  # records
        self.per_line = 1  # of a reader that makes several rows of a line, which it numbers line * per_line + n
        self._progress = progress
        self._file: _Counted | None = None

    # Faults -----------------------------------------------------------------------------------------------------------

    def fault(self, kind: str, line: int, value: object = None) -> None:
        """Count a fault; with strict, the first one is an error.

        Args:
            kind: what is wrong, the same for all rows of which it is.
            line: where.
            value: what the file has there.

        Raises:
            PrepareError: names file, line, what was found and what was expected.
        """
        shown = "" if value is None else f": found {_shown(value)}"
        where = f"{self.path}: line {line}{shown}"
        if self.strict:
            raise PrepareError(f"{where}: {kind} (--strict stops here; without it the row is left out and counted)")
        self.faults.setdefault(kind, {"count": 0, "first": where})["count"] += 1

    # Lines ------------------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield the lines of the file without their ends, a block at a time; what breaks off ends there."""
        self._file = _Counted(open_raw(self.path))
        with contextlib.closing(self._file):
            stream, rest, line = decompressed(self._file, self.path), b"", 1
            begins = True
            while True:
                try:
                    block = stream.read1(BLOCK)
                except _READ_ERRORS as error:
                    self.fault("the file is damaged or breaks off; what comes before is used", line, str(error))
                    return
                self._progress(self._file.bytes)
                text = rest + block
                if begins and len(text) >= len(codecs.BOM_UTF8):
                    text, begins = text.removeprefix(codecs.BOM_UTF8), False
                lines = text.split(b"\n")
                rest = lines.pop()
                if len(rest) > LONGEST:
                    self.fault(f"a line of more than {LONGEST} bytes; the file is used up to here", line + len(lines))
                    return
                if lines:
                    line += len(lines)
                    yield lines
                if not block:
                    if rest:
                        yield [rest]
                    return

    def texts(self) -> Iterator[str]:
        """Yield the lines as text. Bytes that are no UTF-8 become lone surrogates, which no token may have."""
        for lines in self.blocks():
            for raw in lines:
                yield raw.decode("utf-8", "surrogateescape")

    def records(self, parse: Callable[[str], Any] = json.loads) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield line number and record of each line of JSON; empty lines are passed over.

        Args:
            parse: raises ValueError for what it cannot read.
        """
        for line, text in enumerate(self.texts(), 1):
            if not text or text.isspace():
                continue
            self.read += 1
            try:
                record = parse(text)
            except (ValueError, RecursionError, MemoryError):
                self.fault("not a JSON record", line, text)
                continue
            if type(record) is dict:
                yield line, record
            else:
                self.fault("not a JSON record", line, text)

    def rows(self, columns: Mapping[str, str], *, separator: str = ",", quotes: bool = True,
             types: bool = False) -> Iterator[tuple[int, list[str]]]:  # fmt: skip
        """Yield line number and cells of each row of a CSV file with a header, cells in the order of `columns`.

        Args:
            columns: what a column is for -> its name in the header.
            separator: between cells.
            quotes: whether quotation marks enclose cells.
            types: the header says `name:type`, as atomic files do.

        Raises:
            PrepareError: a header without one of the columns.
        """
        csv.field_size_limit(LONGEST)
        quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        texts = (text.removesuffix("\r") + "\n" for text in self.texts())
        reader = csv.reader(texts, delimiter=separator, quoting=quoting)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise PrepareError(f"{self.path}: line 1: not a header of CSV: {error}") from None
        header = [name.rpartition(":")[0] or name for name in header] if types else header
        places = []
        for purpose, name in columns.items():
            if name not in header:
                raise PrepareError(
                    f"{self.path}: line 1: no column {name!r} for {purpose}; found {', '.join(header) or 'nothing'}"
                )
            places.append(header.index(name))
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self.read += 1
                self.fault("not a row of CSV", line, str(error))
                continue
            if not cells:
                continue
            self.read += 1
            if len(cells) != len(header):
                self.fault(
                    f"another number of columns than the {len(header)} of the header", line, separator.join(cells)
                )
                continue
            yield line, [cells[place] for place in places]

    # Rows -------------------------------------------------------------------------------------------------------------

    def write(self, out: str, rows: Iterator[tuple[Any, ...]]) -> None:
        """Write the reader's rows. Users and items are text that RecBole can read back, or the row is a fault.

        Args:
            out: the Parquet file.
            rows: each a value for every column of the schema, and its line in place of `place`.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_raw(out, "wb"))
            writer = stack.enter_context(pq.ParquetWriter(file, self.schema, compression="zstd"))
            for part in _chunks(rows, ROWS):
                batch = self._checked(list(zip(*part, strict=True)))
                self.kept += len(batch)
                writer.write_batch(batch)

    def _checked(self, columns: list[Sequence[Any]]) -> pa.RecordBatch:
        """The rows that are good. A row counts as one fault, whatever else is wrong with it."""
        lines = columns[-1]
        arrays, bad = [], [False] * len(lines)

        def refuse(row: int, kind: str, value: object) -> None:
            if not bad[row]:
                bad[row] = True
                self.fault(kind, lines[row] // self.per_line, value)

        for field, values in zip(list(self.schema)[:-1], columns[:-1], strict=True):
            array = _strings(values, refuse) if field.type == pa.string() else pa.array(values, field.type)
            if field.name in ("user", "item"):
                for row in pc.indices_nonzero(pc.fill_null(unsafe(array), False)).to_pylist():
                    refuse(row, f"{field.name} that RecBole cannot read back", array[row].as_py())
                for row in pc.indices_nonzero(pc.is_null(array)).to_pylist():
                    bad[row] = True
            arrays.append(array)
        places = pa.array([self.number * FILE_ROWS + line for line in lines], pa.int64())
        batch = pa.RecordBatch.from_arrays([*arrays, places], schema=self.schema)
        return batch.filter(pc.invert(pa.array(bad, pa.bool_())))

    def result(self) -> dict[str, Any]:
        """Return what was read, as plain data."""
        counted = self._file
        return {
            "path": self.path, "read": self.read, "kept": self.kept, "faults": self.faults,
            "bytes": counted.bytes if counted else None, "sha256": counted.digest.hexdigest() if counted else None,
        }  # fmt: skip


def _strings(values: Sequence[Any], refuse: Callable[[int, str, object], None]) -> pa.Array:
    """As an array; null where a text is no UTF-8, and the row refused."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        clean: list[str | None] = []
        for row, value in enumerate(values):
            try:
                if value is not None:
                    value.encode()
                clean.append(value)
            except UnicodeEncodeError:
                refuse(row, "not UTF-8", value)
                clean.append(None)
        return pa.array(clean, pa.string())


def unsafe(texts: pa.Array) -> pa.Array:
    """Mark the tokens that RecBole would not read back as they are.

    These are empty, 'NA' and its like, with a tab or line break inside, or with a quotation mark in front.
    """
    wrong = pc.or_(pc.match_substring_regex(texts, _UNSAFE), pc.starts_with(texts, '"'))
    return pc.or_(pc.or_(wrong, pc.equal(texts, "")), pc.is_in(texts, pa.array(sorted(MISSING))))


def token(value: Any) -> str | None:
    """Return the text of an id: text as it is, a whole number in digits; None for anything else."""
    if type(value) is str:
        return value
    return str(value) if type(value) is int else None


def number(value: Any) -> float | None:
    """Return a finite number, also of one in digits; None for anything else."""
    if type(value) not in (float, int) and (type(value) is not str or "_" in value):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


_intents: dict[str, str | None] = {}


def intent_text(value: Any) -> str | None:
    """Clean the name of an intent: white space runs become one blank, quotation marks in front go; None for none."""
    if type(value) is not str:
        value = token(value)
    if value is None:
        return None
    if value not in _intents:
        if len(_intents) > 1 << 20:
            _intents.clear()
        text = " ".join(re.sub(r"[\x00-\x1f]", " ", value).split()).lstrip('"').strip()
        _intents[value] = None if not text or text in MISSING else text
    return _intents[value]


def levels(values: Sequence[Any]) -> str | None:
    """Join names of intents, from the most general to the most special one, to one text."""
    return SEPARATOR.join(filter(None, map(intent_text, values))) or None


# Files ----------------------------------------------------------------------------------------------------------------


def open_raw(path: str, mode: str = "rb") -> Any:
    """Open a local file or one that fsspec knows.

    Args:
        path: a path or a URL (s3://..., https://..., zip://member::archive.zip).
        mode: as for `open`.

    Raises:
        PrepareError: no such file, or fsspec or its part for this kind of URL is not installed.
    """
    try:
        if "://" not in path and "::" not in path:
            return open(path, mode)
        import fsspec

        system, inside = fsspec.core.url_to_fs(path)
        file = system.open(inside, mode)
        with contextlib.suppress(AttributeError):
            file.opened_by = system  # an archive is closed when nobody holds it
        return file
    except (ImportError, ValueError) as error:
        raise PrepareError(f"{path}: cannot be opened: {error}") from error
    except FileNotFoundError:
        raise PrepareError(f"{path}: no such file") from None


def size_of(path: str) -> int | None:
    """Return the bytes of a file, None where that is not known.

    Raises:
        PrepareError: as `open_raw`.
    """
    if "://" not in path and "::" not in path:
        if not os.path.isfile(path):
            raise PrepareError(f"{path}: no such file")
        return os.path.getsize(path)
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(path)
        return system.size(inside)
    except (ImportError, ValueError) as error:
        raise PrepareError(f"{path}: cannot be opened: {error}") from error
    except FileNotFoundError:
        raise PrepareError(f"{path}: no such file") from None


def decompressed(file: Any, path: str) -> Any:
    """Return the content of an open file, decompressed if its first bytes say so.

    Args:
        file: has `peek`.
        path: where it comes from, for errors.

    Returns:
        A file with `read1`.

    Raises:
        PrepareError: a zip archive.
    """
    head = file.peek(6)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    if head[:3] == b"BZh":
        return bz2.BZ2File(file)
    if head[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(file)
    if head[:4] == b"PK\x03\x04":
        names = zipfile.ZipFile(path).namelist() if os.path.isfile(path) else ["NAME"]
        raise PrepareError(f"{path}: is a zip archive; name a file inside, for example zip://{names[0]}::{path}")
    return file


class _Counted(io.RawIOBase):
    """A file that counts what is read from it, and its checksum."""

    def __init__(self, file: Any) -> None:
        self._file = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
        self.bytes, self.digest = 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        return self._file.peek(size)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.bytes += len(data)
        self.digest.update(data)
        return data

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    part: list[tuple[Any, ...]] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _shown(value: object) -> str:
    text = str(value)
    return ascii(text if len(text) <= 80 else text[:77] + "...")
