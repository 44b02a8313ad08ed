"""Atomic files of any size, read column by column: what RecBole's reader makes of them, in a fraction of its memory.

RecBole reads with pandas' Python engine, which keeps each token of each row as an object. Here Arrow's reader goes
through the file block by block; a token column becomes integer codes and a :class:`Vocabulary`. Cells count as
missing, quoted or numbers exactly where pandas says so.
"""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from recbole_cafe.files.atomic import MISSING, AtomicFileError, read_header

BLOCK_BYTES = 1 << 24  # of text at a time
EXACT_INTEGER = 1 << 53  # float64 holds every integer up to here
EXACT_DIGITS = 15  # any parser gives the same float64 for a plain decimal with so many digits
CODES = pa.dictionary(pa.int32(), pa.string())


class Vocabulary:
    """The tokens of one field, of all files that have it, in order of first appearance."""

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

    def of_texts(self, texts: np.ndarray) -> np.ndarray:
        """Likewise for a column that pandas has read: objects, text or missing."""
        return self.codes([pa.array(texts, pa.string(), from_pandas=True).dictionary_encode()])

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


class TokenIds(Mapping):
    """RecBole's `field2token_id`, the inverse of `field2id_token`; built when first asked, which most runs never do."""

    def __init__(self, id_token: np.ndarray) -> None:
        self._id_token = id_token
        self._ids: dict[str, int] | None = None

    def _built(self) -> dict[str, int]:
        if self._ids is None:
            self._ids = {token: i for i, token in enumerate(self._id_token.tolist())}
        return self._ids

    def __getitem__(self, token: str) -> int:
        return self._built()[token]

    def __contains__(self, token: object) -> bool:
        return token in self._built()

    def __iter__(self) -> Iterator[str]:
        return iter(self._built())

    def __len__(self) -> int:
        return len(self._built())

    def __repr__(self) -> str:
        return repr(self._built())


def read_columns(path: str | Path, columns: list[str], vocabularies: Mapping[str, Vocabulary]) -> dict[str, np.ndarray]:
    """Columns of an atomic file: int32 codes for tokens (see :meth:`Vocabulary.codes`), float64 for numbers.

    Args:
        path: the file; its separator is the tab, its encoding UTF-8.
        columns: names of token and float columns.
        vocabularies: name of each token column -> where its tokens go.

    Raises:
        AtomicFileError: a header, line or value that cannot be read; the message names the file and the place.
    """
    path = Path(path)
    header = read_header(path)
    tokens = [name for name in columns if header[name] == "token"]
    cells: dict[str, list[pa.DictionaryArray]] = {name: [] for name in tokens}
    numbers = {name: _Numbers(path, name) for name in columns if name not in tokens}
    for batch in _batches(path, list(header), columns, tokens):
        for name in columns:
            if name in cells:
                cells[name].append(batch.column(name))
            else:
                numbers[name].add(batch.column(name))
    # popped, so that a column's text is gone before the next one is put together
    return {
        name: vocabularies[name].codes(cells.pop(name)) if name in cells else numbers.pop(name).joined()
        for name in columns
    }


def _batches(path: Path, names: list[str], columns: list[str], tokens: list[str]) -> Iterator[pa.RecordBatch]:
    quoted = _has_quotes(path)
    try:
        yield from csv.open_csv(
            path,
            # one thread: only so does an error know its line. The first line is the header, already read.
            read_options=csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=1),
            parse_options=csv.ParseOptions(
                delimiter="\t", quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=csv.ConvertOptions(
                include_columns=columns,
                column_types={name: CODES if name in tokens else pa.string() for name in columns},
                null_values=sorted(missing_texts()),
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):  # a header and no rows, which the filters will report
            raise AtomicFileError(f"{path}: {error}") from error


def _has_quotes(path: Path) -> bool:
    """Whether a quotation mark occurs at all; without one, lines can be found without looking at values."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b'"') >= 0


@functools.cache
def missing_texts() -> frozenset[str]:
    """The texts that the pandas in use reads as a missing value; they differ between versions."""
    texts = sorted(MISSING)
    read = pd.read_csv(io.StringIO("\n".join(["text", *texts])), dtype=str, sep="\t", engine="python")["text"]
    return frozenset({"", *(text for text, gone in zip(texts, read.isna(), strict=True) if gone)})


class _Numbers:
    """A float column, block by block, as pandas would read it as a whole.

    pandas takes a column of nothing but integers for int64 and makes float64 of that; any other it parses by a method
    of its own, which need not give the nearest float64. Both agree with Arrow on values of few digits.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._blocks: list[np.ndarray] = []  # int64 of integers, else float64
        self._rows = 0

    def add(self, cells: pa.StringArray) -> None:
        """Append a block.

        Raises:
            AtomicFileError: a cell that is no number.
        """
        block = self._integers(cells)
        if block is None:
            block = self._plain(cells)
        if block is None:
            block = self._by_pandas(cells.to_numpy(zero_copy_only=False))
        self._blocks.append(block)
        self._rows += len(cells)

    def joined(self) -> np.ndarray:
        """All of it, float64."""
        mixed = any(block.dtype == np.float64 for block in self._blocks)
        result = np.empty(self._rows, dtype=np.float64)
        at = 0
        while self._blocks:
            block = self._blocks.pop(0)
            if mixed and block.dtype == np.int64 and len(block) and np.abs(block).max() > EXACT_INTEGER:
                block = self._by_pandas(block.astype(str).astype(object))
            result[at : at + len(block)] = block
            at += len(block)
        return result

    @staticmethod
    def _integers(cells: pa.StringArray) -> np.ndarray | None:
        if cells.null_count or not _made_of(cells, b"0123456789-"):
            return None
        with contextlib.suppress(pa.ArrowInvalid):  # 1-2, or beyond int64
            return cells.cast(pa.int64()).to_numpy()
        return None

    @staticmethod
    def _plain(cells: pa.StringArray) -> np.ndarray | None:
        longest = pc.max(pc.binary_length(cells)).as_py() or 0
        if longest > EXACT_DIGITS or not _made_of(cells, b"0123456789-."):
            return None
        with contextlib.suppress(pa.ArrowInvalid):
            return cells.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return None

    def _by_pandas(self, texts: np.ndarray) -> np.ndarray:
        """texts: objects. The last one makes the column one that is not of integers."""
        texts = np.append(texts, "0.5")
        try:
            return pd.to_numeric(texts).astype(np.float64)[:-1]
        except (ValueError, TypeError, OverflowError) as error:
            wrong = np.flatnonzero(pd.isna(pd.to_numeric(pd.Series(texts), errors="coerce")) & ~pd.isna(texts))
            if not len(wrong):
                raise AtomicFileError(f"{self._path}: column {self._name!r}: {error}") from error
            raise AtomicFileError(
                f"{self._path}: row {1 + self._rows + wrong[0]} below the header, column {self._name!r}: found "
                f"{texts[wrong[0]]!r}, expected a number"
            ) from None


def _made_of(cells: pa.StringArray, alphabet: bytes) -> bool:
    """Whether no cell has another character. Arrow reads more than pandas as a number, 0x1F for one."""
    _, offsets, text = cells.buffers()
    if text is None:
        return True
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    other = np.ones(256, dtype=bool)
    other[list(alphabet)] = False
    return not other[np.frombuffer(text, np.uint8)[ends[0] : ends[-1]]].any()
