"""RecBole's atomic files: what they are, and the one checked way through their lines.

A data set is one folder, named like the data set, that holds `<name>.inter` (one interaction a row) and,
where items have features, `<name>.item` (one item a row). The header gives each column a name and a type,
`item_id:token`. See https://recbole.io/docs/user_guide/data/atomic_files.html. A quotation mark is a character like any
other, lines end in a line feed with or without a carriage return before it, each has as many cells as the header, and
empty ones are skipped and counted. `columns` makes data of the cells, `atomic_writer` writes such files.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from recbole_cafe.errors import ConfigError, DataError

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
BLOCK_BYTES = 1 << 24  # of text at a time: large enough to be fast, small beside the tables
LINE_BYTES = 1 << 28  # a longer line is none
UNSAFE = re.compile(r"[\t\n\r\0]")  # what no token may have inside
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"  # Python's syntax of a finite float, without 1_000
CODES = pa.dictionary(pa.int32(), pa.string())
_IS_NUMBER = re.compile(NUMBER)
_SPARE = bytes(code for code in range(1, 32) if code not in b"\t\n\r")  # may stand for a separator of several bytes


class AtomicFileError(DataError):
    """An atomic file, or a table meant to become one, is not what RecBole reads; the message says where."""


@dataclass(frozen=True)
class TextFormat:
    """How atomic files are written.

    Attributes:
        encoding: any codec of Python for text; a byte order mark is taken off whatever it is.
        separator: between the cells of a line, taken literally.
        seq_separator: between the values inside a cell of a token_seq or float_seq column, taken literally.

    Raises:
        ConfigError: no such encoding, or a separator that is empty or would end a line.
    """

    encoding: str = "utf-8"
    separator: str = "\t"
    seq_separator: str = " "

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
            codecs.getincrementaldecoder(self.encoding)
        except (LookupError, TypeError):
            raise ConfigError(
                f"encoding={self.encoding!r} should be a text encoding that Python knows, such as utf-8 or gbk"
            ) from None
        for key, text in (("field_separator", self.separator), ("seq_separator", self.seq_separator)):
            if not isinstance(text, str) or not text or re.search(r"[\n\r\0]", text):
                raise ConfigError(f"{key}={text!r} should be one or more characters, no line break or NUL among them")

    @property
    def is_utf8(self) -> bool:
        """Whether the bytes of a file can be looked at as they are."""
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig")


PLAIN = TextFormat()


@dataclass(frozen=True)
class Role:
    """What is asked of a column.

    Attributes:
        kinds: the types it may have.
        required: whether each cell must have a value.
        hint: what helps when it is not so, as the end of a message.
    """

    kinds: tuple[str, ...] = TYPES
    required: bool = False
    hint: str = ""


ID_ROLE = Role(("token",), required=True)
TIME_ROLE = Role(
    ("float",),
    required=True,
    hint="; a time is a number, for example of seconds since 1970: `recbole-cafe prepare table` turns dates into them",
)


# Headers --------------------------------------------------------------------------------------------------------------


def read_header(path: str | Path, text: TextFormat = PLAIN) -> dict[str, str]:
    """Read the columns of an atomic file.

    Args:
        path: the file.
        text: how it is written.

    Returns:
        Name -> type (one of `TYPES`), in order.

    Raises:
        AtomicFileError: no such file, an empty one, another encoding or separator, a column without
            a type or with an unknown one, white space round a field, or a name given twice.
    """
    path = Path(path)
    for _, lines in _decoded(path, text, 1 << 16):
        return _parsed_header(path, lines[: lines.index(b"\n")].decode(), text)
    return _parsed_header(path, "", text)


def _parsed_header(path: Path, line: str, text: TextFormat) -> dict[str, str]:
    if not line:
        raise AtomicFileError(f"{path}: line 1 is empty, expected a header such as {USER!r} <tab> {ITEM!r}")
    header: dict[str, str] = {}
    for number, cell in enumerate(line.split(text.separator), 1):
        where = f"{path}: line 1, column {number}: found {cell!r}"
        if cell.count(":") > 1 or re.search(r":[a-z_]+ *[,;| ]", cell.rstrip()):
            raise AtomicFileError(
                f"{where}, expected one name:type with one colon; columns are separated by {shown(text.separator)} "
                "(key field_separator)"
            )
        name, colon, kind = cell.partition(":")
        if not colon or not name:
            raise AtomicFileError(f"{where}, expected name:type, for example 'item_id:token'")
        if name != name.strip() or kind != kind.strip():
            raise AtomicFileError(f"{where}, expected no white space round the name or the type: '{cell.strip()}'")
        if kind not in TYPES:
            raise AtomicFileError(f"{where}, expected a type among {', '.join(TYPES)}, not {kind!r}")
        if name in header:
            raise AtomicFileError(f"{where}, expected each column once, but {name!r} occurs twice")
        header[name] = kind
    return header


def check_kind(path: Path, name: str, kind: str, role: Role) -> None:
    """Raise an AtomicFileError if a column has a type that its role does not have."""
    if kind not in role.kinds:
        raise AtomicFileError(
            f"{path}: line 1: column {name!r} is of type {kind}, expected {' or '.join(role.kinds)}{role.hint}"
        )


def shown(separator: str) -> str:
    """A separator in words."""
    return {"\t": "tabs", " ": "single spaces", ",": "commas"}.get(separator, repr(separator))


# Lines ----------------------------------------------------------------------------------------------------------------


@dataclass
class Lines:
    """Where the rows of a file stand in it.

    Attributes:
        blank: numbers of the empty lines so far, in order; the header is line 1.
    """

    blank: list[int] = field(default_factory=list)

    def of(self, row: int) -> int:
        """The line of a row, counted from 0 below the header."""
        rows_before = [line - 2 - k for k, line in enumerate(self.blank)]  # rows above each empty line
        return 2 + row + bisect_right(rows_before, row)


@dataclass(frozen=True)
class Block:
    """Some rows of a file as text.

    Attributes:
        path: the file.
        cells: columns of `CODES`, or of text, null where a cell is missing.
        first: the row that is the first here.
        lines: where all rows stand.
    """

    path: Path
    cells: pa.RecordBatch
    first: int
    lines: Lines
    _text: bytes
    _delimiter: bytes
    _names: Sequence[str]

    def fault(self, name: str, row: int, expected: str) -> AtomicFileError:
        """The error for a cell.

        Args:
            name: its column.
            row: its row, counted within the block.
            expected: the end of the sentence.
        """
        rows = [line for line in self._text.split(b"\n") if line]
        cell = rows[row].split(self._delimiter)[list(self._names).index(name)].decode()
        line = self.lines.of(self.first + row)
        return AtomicFileError(f"{self.path}: line {line}, column {name!r}: found {cell!r}, {expected}")


def read_blocks(path: str | Path, coded: Sequence[str], plain: Sequence[str], *, text: TextFormat = PLAIN,
                roles: dict[str, Role] | None = None) -> Iterator[Block]:  # fmt: skip
    """Go through the rows of an atomic file, a block at a time; each line is checked, and each cell that must be there.

    Args:
        path: the file.
        coded: columns to give as `CODES`, each text of a block once.
        plain: columns to give as text.
        text: how the file is written.
        roles: column -> what is asked of it.

    Raises:
        AtomicFileError: as `read_header`; text in another encoding, a carriage return or NUL inside a line, a line of
            another number of cells than the header, a missing cell in a required column, or no rows at all.
    """
    path, lines, row, header = Path(path), Lines(), 0, None
    for first_line, part in _decoded(path, text, BLOCK_BYTES):
        at, rows = first_line, part
        if header is None:
            cut = part.index(b"\n") + 1
            header = list(_parsed_header(path, part[: cut - 1].decode(), text))
            at, rows = first_line + 1, part[cut:]
        rows, delimiter = _delimited(path, rows, text.separator)
        if not rows.strip(b"\n"):
            lines.blank += range(at, at + len(rows))
            continue
        try:
            cells = csv.read_csv(
                # Arrow takes a byte order mark off whatever it reads first, but skips an empty line
                pa.BufferReader(b"\n" + rows if rows.startswith(codecs.BOM_UTF8) else rows),
                read_options=csv.ReadOptions(use_threads=False, block_size=len(rows) + 2, column_names=header),
                parse_options=csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
                convert_options=csv.ConvertOptions(
                    include_columns=[*coded, *plain],
                    column_types=dict.fromkeys(coded, CODES) | dict.fromkeys(plain, pa.string()),
                    null_values=["", *sorted(MISSING)],
                    strings_can_be_null=True,
                    check_utf8=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise _fault_of_width(path, rows, at, delimiter, len(header), text) or AtomicFileError(
                f"{path}: lines {at} and following: {error}"
            ) from None
        if rows.count(b"\n") > len(cells):
            ends = np.flatnonzero(np.frombuffer(rows, np.uint8) == ord("\n"))
            lines.blank += (at + np.flatnonzero(np.diff(ends, prepend=-1) == 1)).tolist()
        start = 0
        for batch in cells.to_batches():
            block = Block(path, batch, row, lines, _part(rows, start, cells, batch), delimiter, header)
            _check_required(block, roles or {})
            yield block
            start, row = start + len(batch), row + len(batch)
    if header is None:
        _parsed_header(path, "", text)
    if not row:
        raise AtomicFileError(f"{path}: a header and no rows, expected at least one row")


def _part(rows: bytes, start: int, cells: pa.Table, batch: pa.RecordBatch) -> bytes:
    """The lines of a batch, where Arrow has made several of the text."""
    if len(batch) == len(cells):
        return rows
    kept = [line for line in rows.split(b"\n") if line]
    return b"\n".join(kept[start : start + len(batch)])


def _check_required(block: Block, roles: dict[str, Role]) -> None:
    for name, column in zip(block.cells.schema.names, block.cells.columns, strict=True):
        role = roles.get(name)
        if role is not None and role.required and column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise block.fault(name, row, "which is a missing value; expected one in each row")


def _delimited(path: Path, rows: bytes, separator: str) -> tuple[bytes, bytes]:
    """The rows with a separator of one byte, as Arrow wants it, and that byte."""
    raw = separator.encode()
    if len(raw) == 1:
        return rows, raw
    for code in _SPARE:
        if code not in rows:
            byte = bytes([code])
            return rows.replace(raw, byte), byte
    raise AtomicFileError(f"{path}: holds every control character there is, expected text")


def _fault_of_width(
    path: Path, rows: bytes, line: int, delimiter: bytes, n_columns: int, text: TextFormat
) -> AtomicFileError | None:
    """The first line of another number of cells. line: the number of the first one."""
    for k, content in enumerate(rows.split(b"\n")):
        if content and content.count(delimiter) != n_columns - 1:
            return AtomicFileError(
                f"{path}: line {line + k}: found {content.count(delimiter) + 1} column(s), expected {n_columns}, "
                f"separated by {shown(text.separator)}"
            )
    return None


def _decoded(path: Path, text: TextFormat, size: int) -> Iterator[tuple[int, bytes]]:
    """A file as UTF-8 without byte order mark, cut at ends of lines: the number of the first line, and the lines.

    Each line ends in a line feed; none holds a carriage return or NUL.
    """
    if not path.is_file():
        raise AtomicFileError(f"{path}: no such file, expected an atomic file ({path.suffix or '.inter, .item'})")
    decoder = None if text.is_utf8 else codecs.getincrementaldecoder(text.encoding)()
    line, rest, more = 1, b"", True
    with open(path, "rb") as file:
        while more:
            raw = file.read(size)
            more = bool(raw)
            block = rest + (raw if decoder is None else _as_utf8(raw, decoder, not more, path, line, text.encoding))
            cut = block.rfind(b"\n") + 1 if more else len(block)
            whole, rest = block[:cut], block[cut:]
            if len(rest) > LINE_BYTES:
                line += whole.count(b"\n")
                raise AtomicFileError(f"{path}: line {line}: longer than {LINE_BYTES >> 20} MiB, expected lines")
            if not whole:
                continue
            if decoder is None:
                _check_utf8(whole, path, line)
            if line == 1:
                whole = whole.removeprefix(codecs.BOM_UTF8)
            whole = _with_plain_ends(whole, path, line)
            if not whole.endswith(b"\n"):
                whole += b"\n"
            yield line, whole
            line += whole.count(b"\n")


def _with_plain_ends(whole: bytes, path: Path, line: int) -> bytes:
    """Lines that end in a line feed alone."""
    for byte, word in ((b"\r", "a carriage return"), (b"\0", "a NUL")):
        if byte not in whole:
            continue
        if byte == b"\r":
            whole = whole.replace(b"\r\n", b"\n")
        if (at := whole.find(byte)) >= 0:
            line += whole.count(b"\n", 0, at)
            raise AtomicFileError(f"{path}: line {line}: found {word} inside the line, expected none")
    return whole


def _check_utf8(raw: bytes, path: Path, line: int) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise AtomicFileError(
            f"{path}: line {line}: found the byte 0x{raw[error.start]:02x}, expected text in UTF-8 (key encoding)"
        ) from None


def _as_utf8(
    raw: bytes, decoder: codecs.IncrementalDecoder, final: bool, path: Path, line: int, encoding: str
) -> bytes:
    """Text of another encoding. line: the number of the line that goes on here."""
    before = decoder.getstate()
    try:
        return decoder.decode(raw, final).encode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"found the byte 0x{error.object[error.start]:02x}"
    except UnicodeEncodeError as error:  # half of a pair, which some codecs let through
        fault = f"found the character U+{ord(error.object[error.start]):04X}"
    except UnicodeError as error:  # of the codec as a whole: UTF-16 without its first mark
        fault = str(error)
    decoder.setstate(before)
    for k in range(len(raw)):  # a byte at a time, to count the lines before the fault
        try:
            text = decoder.decode(raw[k : k + 1])
            text.encode("utf-8")
        except UnicodeError:
            break
        line += text.count("\n")
    raise AtomicFileError(f"{path}: line {line}: {fault}, expected text in {encoding} (key encoding)")


def checksum(path: str | Path) -> str:
    """Compute the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# What may be written --------------------------------------------------------------------------------------------------


def fault_of(text: str, kind: str) -> str | None:
    """Say why one value should not be written, as the end of a sentence. Plain RecBole, too, has to read it back.

    Args:
        text: the value as it would stand in the file.
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
    return bool(_IS_NUMBER.match(text)) and math.isfinite(float(text))
