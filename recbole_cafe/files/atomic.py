"""RecBole's atomic files: what they are, and their reader. `atomic_writer` writes them.

A data set is one folder, named like the data set, that holds `<name>.inter` (one interaction a row) and,
where items have features, `<name>.item` (one item a row). Both are tab separated UTF-8 text; the header gives
each column a name and a type, `item_id:token`. See https://recbole.io/docs/user_guide/data/atomic_files.html.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recbole_cafe.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")
USER, ITEM, TIME, INTENT = "user_id:token", "item_id:token", "timestamp:float", "intent:token"
# What pandas, and so RecBole, silently reads as "no value" (pandas.io.parsers, `na_values`).
MISSING = frozenset(
    {
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    }
)
_CHUNK_BYTES = 1 << 24  # of text at a time: large enough to be fast, small beside the tables
_CSV_BLOCK = 1 << 26  # bytes that Arrow reads at a time; no line may be longer
UNSAFE = re.compile(r"[\t\n\r\0]")  # what no token may have inside


class AtomicFileError(DataError):
    """An atomic file, or a table meant to become one, is not what RecBole reads; the message says where."""


# Reading --------------------------------------------------------------------------------------------------------------


def read_header(path: str | Path) -> dict[str, str]:
    """Read the columns of an atomic file.

    Args:
        path: the file.

    Returns:
        Name -> type (one of `TYPES`), in order.

    Raises:
        AtomicFileError: no such file, an empty one, not UTF-8, another separator than a tab, a column without
            a type or with an unknown one, or a name given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise AtomicFileError(f"{path}: no such file, expected an atomic file ({path.suffix or '.inter, .item'})")
    with open(path, "rb") as file:
        raw = file.readline(1 << 20).rstrip(b"\r\n")
    if not raw:
        raise AtomicFileError(f"{path}: line 1 is empty, expected a header such as {USER!r} <tab> {ITEM!r}")
    if raw.startswith(codecs.BOM_UTF8):
        raise AtomicFileError(f"{path}: line 1 starts with a byte order mark, expected plain UTF-8")
    header: dict[str, str] = {}
    for number, text in enumerate(_decode(raw, path, 1).split("\t"), 1):
        where = f"{path}: line 1, column {number}: found {text!r}"
        if re.search(r":[a-z_]+ *[,;| ] *[^:]+:", text):
            raise AtomicFileError(f"{where}, expected one name:type; columns are separated by tabs")
        name, colon, kind = text.rpartition(":")
        if not colon or not name:
            raise AtomicFileError(f"{where}, expected name:type, for example 'item_id:token'")
        if kind not in TYPES:
            raise AtomicFileError(f"{where}, expected a type among {', '.join(TYPES)}, not {kind!r}")
        if name in header:
            raise AtomicFileError(f"{where}, expected each column once, but {name!r} occurs twice")
        header[name] = kind
    return header


def read_table(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of an atomic file, every line and value checked.

    A feature of an item may be missing (empty, or what RecBole reads so) and is then null; ids and interactions may
    not.

    Args:
        path: the file.
        columns: names to read, without their types; all when None.

    Returns:
        Columns of float64 for type float, else dictionary columns of text, one chunk each, the texts in order of
        appearance.

    Raises:
        AtomicFileError: as `read_header`; a line with too few or too many columns, an empty or missing token,
            a number that is none, or a column that the file lacks.
    """
    path = Path(path)
    header = read_header(path)
    names = list(header) if columns is None else columns
    for name in names:
        if name not in header:
            raise AtomicFileError(f"{path}: no column {name!r}, found {', '.join(header)}")
    _check_lines(path, len(header))
    try:
        texts = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=list(header), skip_rows=1, block_size=_CSV_BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            # As text first, numbers too: only then can a bad value be shown as it stands.
            convert_options=pa.csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.dictionary(pa.int32(), pa.string()) for name in names},
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:  # a carriage return inside a line, or a line longer than a block
        raise AtomicFileError(f"{path}: {error}") from None
    return pa.table({name: _values(path, name, header[name], texts.column(name)) for name in names})


def _values(path: Path, name: str, kind: str, column: pa.ChunkedArray) -> pa.Array:
    """A column of text as what it means: float64, or a dictionary with null for what is missing."""
    coded = column.unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    codes, texts = coded.indices, coded.dictionary.to_pylist()  # each distinct text is looked at once
    required = path.suffix == ".inter" or f"{name}:{kind}" == ITEM
    absent = [not required and (text == "" or text in MISSING) for text in texts]
    for code, text in enumerate(texts):
        if not absent[code] and (fault := fault_of(text, kind)):
            line = 2 + pc.index(codes, pa.scalar(code, codes.type)).as_py()
            raise AtomicFileError(f"{path}: line {line}, column {name!r}: found {text!r}, {fault}")
    if kind == "float":
        numbers = [None if none else float(text) for text, none in zip(texts, absent, strict=True)]
        return pa.array(numbers, pa.float64()).take(codes)
    kept = np.flatnonzero(~np.array(absent))
    place = pa.array(np.cumsum(~np.array(absent)) - 1, pa.int32(), mask=np.array(absent))
    return pa.DictionaryArray.from_arrays(place.take(codes), coded.dictionary.take(pa.array(kept)))


def checksum(path: str | Path) -> str:
    """Compute the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# Checks ---------------------------------------------------------------------------------------------------------------


def fault_of(text: str, kind: str) -> str | None:
    """Say what is wrong with one value, as the end of a sentence.

    Args:
        text: the value as in the file.
        kind: one of `TYPES`.

    Returns:
        None when it is good.
    """
    if kind.startswith("float"):
        parts = text.split(" ") if kind == "float_seq" else [text]
        if (text == "" and kind == "float_seq") or all(map(_is_number, parts)):
            return None
        return "expected " + ("finite numbers separated by spaces" if kind == "float_seq" else "a finite number")
    if UNSAFE.search(text):
        return "expected no tab, line break or NUL inside"
    if text == "" and kind == "token":
        return "expected a value that is not empty"
    if text in MISSING:
        return "which RecBole reads as a missing value; expected another name"
    if text.startswith('"'):
        return "which RecBole reads as the start of a quoted text; expected no quotation mark in front"
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text  # only Python takes 1_000 for a number
    except ValueError:
        return False


def _check_lines(path: Path, n_columns: int) -> None:
    """Every line is UTF-8 and has `n_columns` columns."""
    line, rest, more = 1, b"", True
    with open(path, "rb") as file:
        while more:
            block = file.read(_CHUNK_BYTES)
            more = bool(block)
            block = rest + block
            cut = block.rfind(b"\n") + 1 if more else len(block)
            whole, rest = block[:cut], block[cut:]
            if not whole:
                continue
            _decode(whole, path, line)
            data = np.frombuffer(whole if whole.endswith(b"\n") else whole + b"\n", dtype=np.uint8)
            ends = np.flatnonzero(data == ord("\n"))
            counts = 1 + np.diff(np.searchsorted(np.flatnonzero(data == ord("\t")), ends), prepend=0)
            if (counts != n_columns).any():
                first = int(np.argmax(counts != n_columns))
                raise AtomicFileError(
                    f"{path}: line {line + first}: found {counts[first]} column(s), expected {n_columns}, "
                    "separated by tabs"
                )
            line += len(ends)
    if line == 2:
        raise AtomicFileError(f"{path}: a header and no rows, expected at least one row")


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise AtomicFileError(
            f"{path}: line {line}: found the byte 0x{raw[error.start]:02x}, expected text in UTF-8"
        ) from None
