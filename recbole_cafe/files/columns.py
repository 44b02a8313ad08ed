"""Columns of atomic files of any size: what RecBole's reader makes of them, in a fraction of its memory.

RecBole reads with pandas' Python engine, which keeps each token of each row as an object. Here the file is gone through
block by block (:func:`recbole_cafe.files.atomic.read_blocks`); a token column becomes integer codes and a
:class:`Vocabulary`. A cell is missing where pandas says so, and a number is the float64 that pandas makes of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cafe.files.atomic import (
    CODES,
    NUMBER,
    PLAIN,
    AtomicFileError,
    Block,
    Lines,
    Role,
    TextFormat,
    check_kind,
    read_blocks,
    read_header,
)

EXACT_INTEGER = 1 << 53  # float64 holds every integer up to here
EXACT_DIGITS = 15  # any parser gives the same float64 for a plain decimal with so many digits
ANY = Role()


class Vocabulary:
    """The tokens of one space of ids, of all columns and files that have them, in order of first appearance."""

    def __init__(self) -> None:
        self._tokens = pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self._tokens)

    def codes(self, cells: list[pa.DictionaryArray]) -> np.ndarray:
        """Take in the cells of a column, given as pieces. Returns the place of each cell's token in the vocabulary.

        int32, and -1 for a missing cell.
        """
        known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self._tokens)
        pieces = pa.chunked_array([known, *cells], CODES).unify_dictionaries().chunks
        self._tokens = pieces[-1].dictionary
        codes = np.empty(sum(map(len, pieces)), dtype=np.int32)
        at = 0
        for piece in pieces:
            codes[at : at + len(piece)] = pc.fill_null(piece.indices, -1).to_numpy(zero_copy_only=False)
            at += len(piece)
        return codes

    def places(self, texts: Iterable[str]) -> np.ndarray:
        """The codes of those of these texts that are tokens here."""
        found: pa.Array = pc.index_in(pa.array(list(texts), pa.string()), self._tokens)
        places: np.ndarray = found.drop_null().to_numpy().astype(np.int32)
        return places

    def texts(self, codes: np.ndarray) -> list[str | None]:
        """The tokens of some codes, None for -1."""
        texts: list[str | None] = self._tokens.take(pa.array(codes, pa.int32(), mask=codes < 0)).to_pylist()
        return texts

    def dictionary(self, codes: np.ndarray) -> pa.DictionaryArray:
        """The same as an Arrow array, null for -1."""
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=codes < 0), self._tokens)

    def id_token(self, codes: np.ndarray) -> np.ndarray:
        """RecBole's `field2id_token`: '[PAD]', then the tokens of these codes, as an array of fixed-width text."""
        step = 1 << 16  # tokens that are Python objects at a time
        tokens = self._tokens.take(pa.array(codes))
        longest = pc.max(pc.utf8_length(tokens)).as_py() or 0
        result = np.empty(len(codes) + 1, dtype=f"<U{max(longest, len('[PAD]'))}")
        result[0] = "[PAD]"
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            result[1 + start : 1 + start + len(part)] = part.to_numpy(zero_copy_only=False)
        return result


@dataclass(frozen=True)
class Lists:
    """A column with a list in each row.

    Attributes:
        flat: all values one after another: int32 codes of tokens, or float64.
        lengths: [rows] how many each row has.
    """

    flat: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[np.ndarray]:
        """The list of each row."""
        ends = np.cumsum(self.lengths)
        pairs = zip((ends - self.lengths).tolist(), ends.tolist(), strict=True)
        return [self.flat[start:end] for start, end in pairs]

    def take(self, kept: np.ndarray) -> Lists:
        """The rows for which `kept`, [rows] of bool, is true."""
        return Lists(self.flat[np.repeat(kept, self.lengths)], self.lengths[kept])


@dataclass
class Columns:
    """Columns of an atomic file.

    Attributes:
        path: the file.
        kinds: column -> its type, in the order asked for.
        data: column -> int32 codes of tokens (-1: missing), float64 (NaN: missing), or `Lists`.
        vocabularies: column of tokens -> where its codes lead.
        lines: where the rows stand in the file.
        missing: column -> in how many rows it has no value.
    """

    path: Path
    kinds: dict[str, str]
    data: dict[str, np.ndarray | Lists]
    vocabularies: Mapping[str, Vocabulary]
    lines: Lines
    missing: dict[str, int]

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def value(self, name: str, row: int) -> object:
        """One cell, as a person would write it: text, a number, a list of them, or None."""
        column = self.data[name]
        found = column.rows()[row] if isinstance(column, Lists) else column[row : row + 1]
        values = self.vocabularies[name].texts(found) if self.kinds[name].startswith("token") else found.tolist()
        return values if isinstance(column, Lists) else values[0]

    def notes(self) -> list[str]:
        """What a log should say about the file: empty lines, and columns with missing values."""
        notes = []
        if self.lines.blank:
            notes.append(f"{self.path.name}: {len(self.lines.blank)} empty lines skipped, the first is line "
                         f"{self.lines.blank[0]}")  # fmt: skip
        without = [f"{name} in {count}" for name, count in self.missing.items() if count]
        if without:
            notes.append(f"{self.path.name}: no value in some of {len(self)} rows: {', '.join(without)}")
        return notes

    def drop_repeats(self, key: str) -> int:
        """Keep the first row of each token of a column.

        Args:
            key: the column; none of its values is missing.

        Returns:
            How many rows were dropped.

        Raises:
            AtomicFileError: a later row says something else than the first one in one of the columns read; lines
                are named.
        """
        codes, rows = self.data[key], np.arange(len(self))
        assert isinstance(codes, np.ndarray)
        first = np.empty(len(self.vocabularies[key]), dtype=np.int64)
        first[codes[::-1]] = rows[::-1]  # of several values for one place the last stays: that of the first row
        earlier = first[codes]
        again = np.flatnonzero(earlier != rows)
        if not len(again):
            return 0
        differ = {name: self._differ(name, again, earlier[again]) for name in self.data}
        wrong = {name: int(again[np.argmax(there)]) for name, there in differ.items() if there.any()}
        if wrong:
            name = min(wrong, key=wrong.__getitem__)
            row = wrong[name]
            before = int(earlier[row])
            raise AtomicFileError(
                f"{self.path}: line {self.lines.of(row)}, column {name!r}: found {self.value(name, row)!r}, but line "
                f"{self.lines.of(before)} has {self.value(name, before)!r} for the same {key} "
                f"{self.value(key, row)!r}; expected one row of each {key}, or rows that agree"
            )
        kept = earlier == rows
        self.data = {
            name: column.take(kept) if isinstance(column, Lists) else column[kept] for name, column in self.data.items()
        }
        return len(again)

    def _differ(self, name: str, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether rows differ from others, one by one."""
        column = self.data[name]
        if isinstance(column, Lists):
            lists = column.rows()
            return np.array([not np.array_equal(lists[a], lists[b]) for a, b in zip(rows, others, strict=True)])
        same = column[rows] == column[others]
        if column.dtype == np.float64:
            same |= np.isnan(column[rows]) & np.isnan(column[others])
        differ: np.ndarray = ~same
        return differ

    def table(self) -> pa.Table:
        """As Arrow: dictionaries of text, float64, or lists of these; null where a value is missing."""

        def arrow(name: str, values: np.ndarray) -> pa.Array:
            if self.kinds[name].startswith("token"):
                return self.vocabularies[name].dictionary(values)
            return pa.array(values, pa.float64(), from_pandas=True)

        columns = {}
        for name, column in self.data.items():
            if isinstance(column, Lists):
                offsets = pa.array(np.r_[0, np.cumsum(column.lengths)].astype(np.int32))
                columns[name] = pa.ListArray.from_arrays(offsets, arrow(name, column.flat))
            else:
                columns[name] = arrow(name, column)
        return pa.table(columns)


def read_columns(
    path: str | Path,
    columns: Sequence[str] | None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    *,
    text: TextFormat = PLAIN,
    roles: Mapping[str, Role] | None = None,
) -> Columns:
    """Read columns of an atomic file; every line is checked, and every value of these columns.

    Args:
        path: the file.
        columns: names to read; all when None.
        vocabularies: name of each column of tokens -> where its tokens go; a new one for each column when None.
        text: how the file is written.
        roles: column -> what is asked of it; columns that are not read are left alone.

    Raises:
        AtomicFileError: a header, type, line or value that cannot be right, or a column that the file lacks; the
            message names the file, the place, what was found and what was expected.
    """
    path = Path(path)
    header = read_header(path, text)
    names = list(header) if columns is None else list(columns)
    roles = {name: role for name, role in (roles or {}).items() if name in names}
    for name in names:
        if name not in header:
            raise AtomicFileError(f"{path}: no column {name!r}, found {', '.join(header)}")
        check_kind(path, name, header[name], roles.get(name, ANY))
    kinds = {name: header[name] for name in names}
    if vocabularies is None:
        vocabularies = {name: Vocabulary() for name, kind in kinds.items() if kind.startswith("token")}
    cells: dict[str, list[pa.DictionaryArray]] = {n: [] for n, kind in kinds.items() if kind == "token"}
    numbers = {n: _Numbers(n, roles.get(n, ANY).hint) for n, kind in kinds.items() if kind == "float"}
    lists = {n: _Parts(n, kind, text.seq_separator) for n, kind in kinds.items() if kind.endswith("_seq")}
    missing, lines = dict.fromkeys(names, 0), Lines()
    for block in read_blocks(path, list(cells), [*numbers, *lists], text=text, roles=roles):
        lines = block.lines
        for name, column in zip(block.cells.schema.names, block.cells.columns, strict=True):
            missing[name] += column.null_count
            if name in cells:
                cells[name].append(column)
            else:
                (numbers.get(name) or lists[name]).add(block, column)
    data: dict[str, np.ndarray | Lists] = {}
    for name in names:  # popped, so that a column's text is gone before the next one is put together
        if name in cells:
            data[name] = vocabularies[name].codes(cells.pop(name))
        elif name in numbers:
            data[name] = numbers.pop(name).joined()
        else:
            data[name] = lists.pop(name).joined(vocabularies.get(name))
    return Columns(path, kinds, data, vocabularies, lines, missing)


class _Numbers:
    """A float column, block by block, as pandas would read it as a whole.

    pandas takes a column of nothing but integers for int64 and makes float64 of that; any other it parses by a method
    of its own, which need not give the nearest float64. Both agree with Arrow on values of few digits.
    """

    def __init__(self, name: str, hint: str) -> None:
        self._name, self._expected = name, f"expected a finite number{hint}"
        self._blocks: list[np.ndarray] = []  # int64 of integers, else float64

    def add(self, block: Block, cells: pa.StringArray) -> None:
        """Append a block.

        Raises:
            AtomicFileError: a cell that is no finite number.
        """
        values = self._integers(cells)
        if values is None:
            values = self._plain(cells)
        if values is None:
            if (row := _first_other(cells)) >= 0:
                raise block.fault(self._name, row, self._expected)
            values = _by_pandas(cells.to_numpy(zero_copy_only=False))
            if np.isinf(values).any():  # 1e999
                raise block.fault(self._name, int(np.argmax(np.isinf(values))), self._expected)
        self._blocks.append(values)

    def joined(self) -> np.ndarray:
        """All of it, float64."""
        mixed = any(block.dtype == np.float64 for block in self._blocks)
        result = np.empty(sum(map(len, self._blocks)), dtype=np.float64)
        at = 0
        while self._blocks:
            block = self._blocks.pop(0)
            if mixed and block.dtype == np.int64 and len(block) and np.abs(block).max() > EXACT_INTEGER:
                block = _by_pandas(block.astype(str).astype(object))
            result[at : at + len(block)] = block
            at += len(block)
        return result

    @staticmethod
    def _integers(cells: pa.StringArray) -> np.ndarray | None:
        if cells.null_count or not _made_of(cells, b"0123456789-"):
            return None
        with contextlib.suppress(pa.ArrowInvalid):  # 1-2, or beyond int64
            integers: np.ndarray = cells.cast(pa.int64()).to_numpy()
            return integers
        return None

    @staticmethod
    def _plain(cells: pa.StringArray) -> np.ndarray | None:
        longest = pc.max(pc.binary_length(cells)).as_py() or 0
        if longest > EXACT_DIGITS or not _made_of(cells, b"0123456789-."):
            return None
        with contextlib.suppress(pa.ArrowInvalid):
            numbers: np.ndarray = cells.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return numbers
        return None


class _Parts:
    """A token_seq or float_seq column, block by block."""

    def __init__(self, name: str, kind: str, separator: str) -> None:
        self._name, self._is_token, self._separator = name, kind == "token_seq", separator
        self._flat: list[pa.DictionaryArray | np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def add(self, block: Block, cells: pa.StringArray) -> None:
        """Append a block. Two separators in a row have nothing between them, as in RecBole.

        Raises:
            AtomicFileError: a part that is no finite number.
        """
        parts = pc.split_pattern(cells, self._separator)
        lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy()
        flat, owner = parts.flatten(), np.repeat(np.arange(len(cells)), lengths)
        kept = pc.not_equal(flat, "")
        flat, owner = flat.filter(kept), owner[kept.to_numpy(zero_copy_only=False)]
        self._lengths.append(np.bincount(owner, minlength=len(cells)))
        if self._is_token:
            self._flat.append(flat.dictionary_encode())
            return
        expected = f"expected finite numbers with {self._separator!r} between them"
        if (wrong := _first_other(flat)) >= 0:
            raise block.fault(self._name, int(owner[wrong]), expected)
        values = np.array([float(text) for text in flat.to_pylist()], dtype=np.float64)  # as RecBole does it
        if np.isinf(values).any():
            raise block.fault(self._name, int(owner[np.argmax(np.isinf(values))]), expected)
        self._flat.append(values)

    def joined(self, vocabulary: Vocabulary | None) -> Lists:
        """All of it. vocabulary: where tokens go."""
        flat = np.concatenate(self._flat) if vocabulary is None else vocabulary.codes(self._flat)
        return Lists(flat, np.concatenate(self._lengths))


def _first_other(cells: pa.StringArray) -> int:
    """The first cell that is there and not written as a number is; -1 if none."""
    return int(pc.index(pc.match_substring_regex(cells, NUMBER), False).as_py())


def _by_pandas(texts: np.ndarray) -> np.ndarray:
    """The float64 that pandas makes of each text in a column that is not of integers alone. texts: objects."""
    import pandas as pd  # here: most files have no such numbers, and the other formats need no pandas

    numbers: np.ndarray = pd.to_numeric(np.append(texts, "0.5")).astype(np.float64)[:-1]
    return numbers


def _made_of(cells: pa.StringArray, alphabet: bytes) -> bool:
    """Whether no cell has another character. Arrow reads more than pandas as a number, 0x1F for one."""
    _, offsets, text = cells.buffers()
    if text is None:
        return True
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    other = np.ones(256, dtype=bool)
    other[list(alphabet)] = False
    return not other[np.frombuffer(text, np.uint8)[ends[0] : ends[-1]]].any()
