"""Lists for all histories of a file, in bounded memory; a run that was killed goes on where it was.

The lists of a few thousand histories at a time are a part. Parts stand in a hidden folder beside the output, each there
whole or not at all, with what they were made of; the last step joins them to the output.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_cafe import __version__
from recbole_cafe.errors import DataError, OutputError, UsageError
from recbole_cafe.files.whole import write_json, written_whole
from recbole_cafe.recommend.bundle import version_of
from recbole_cafe.recommend.files import PARQUET, SEPARATORS, History, ending_of, histories_in, opened
from recbole_cafe.recommend.histories import histories_of
from recbole_cafe.recommend.recommender import Question, Recommender

PART = 16_384  # histories, or fewer
PART_ITEMS = 2_000_000  # of the histories of a part, or those of one history
PART_ROWS = 1_000_000  # of the lists of a part
SLICE = 65_536  # rows made to text at a time
MANIFEST = "parts.json"

_logger = logging.getLogger("recbole_cafe.recommend")


@dataclass
class Counts:
    """What was read and written.

    Attributes:
        histories: how many.
        items: of the histories, known or not.
        unknown: of those, how many the bundle does not have.
        empty: histories without a known item, which get what is popular.
        rows: of the lists.
    """

    histories: int = 0
    items: int = 0
    unknown: int = 0
    empty: int = 0
    rows: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of another part."""
        for name, number in asdict(other).items():
            setattr(self, name, vars(self)[name] + number)

    def report(self) -> None:
        """Say what was left out."""
        if self.unknown:
            _logger.warning(
                f"{self.unknown:,} of {self.items:,} items of the histories are not in the bundle; left out"
            )
        if self.empty:
            _logger.warning(f"{self.empty:,} of {self.histories:,} histories have no item of the bundle; they get what "
                            "is popular")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is wanted of each history, as it is given to :meth:`Recommender.question`.

    Attributes:
        k, exclude_seen, exclude, allow, per_intent, intents, reasons: see :meth:`Recommender.recommend`.
    """

    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[str] | None = None
    allow: Sequence[str] | None = None
    per_intent: int | None = None
    intents: Sequence[str] | None = None
    reasons: bool = False


def recommend_file(
    folder: str | os.PathLike[str], histories: str | os.PathLike[str], out: str | os.PathLike[str],
    asked: Asked = Asked(), *, show_progress: bool = False,
) -> Counts:  # fmt: skip
    """Write the lists of all histories of a file.

    Args:
        folder: the bundle.
        histories: CSV, JSON lines or Parquet, by its name; see :mod:`recbole_cafe.recommend.files`.
        out: CSV, JSON lines or Parquet, by its name: the table of :meth:`Recommender.recommend`, in the order of the
            histories. Of the reasons, CSV has the sentence.
        asked: what is wanted.
        show_progress: on standard error.

    Returns:
        what was read and written.

    Raises:
        BundleError: no bundle, or a damaged one.
        DataError: a file of another form, or a row that cannot be right.
        OutputError: a place that cannot be written, or where a run with other settings has been killed.
    """
    out = Path(out).resolve()
    ending = ending_of(out)
    ending_of(histories, packed=True)
    if not Path(histories).is_file():
        raise DataError(f"{histories} does not exist, expected a file of histories")
    if out == Path(histories).resolve():
        raise UsageError(f"{out} would be written over the histories that it is made of")
    recommender = Recommender.load(folder)
    question = recommender.question(**vars(asked))
    parts = _Parts(out, ending, manifest_of(folder, histories, asked))
    total = Counts()
    with opened(histories) as source, tqdm(total=os.path.getsize(histories), unit="B", unit_scale=True,
                                           disable=not show_progress) as bar:  # fmt: skip
        for number, part in enumerate(in_parts(histories_in(source), size_of_part(asked.k))):
            total.add(parts.made(number, len(part)) or parts.make(number, part, recommender, question))
            bar.set_postfix_str(f"{total.histories:,} histories", refresh=False)
            bar.update(source.position() - bar.n)
    parts.join()
    return total


def size_of_part(k: int) -> int:
    """How many histories a part has whose lists are of k items."""
    return max(1, min(PART, PART_ROWS // k))


def in_parts(histories: Iterator[History], size: int) -> Iterator[list[History]]:
    """Histories, some at a time; one part at least, which may be empty."""
    part: list[History] = []
    n_items, is_first = 0, True
    for history in histories:
        if part and (len(part) == size or n_items + len(history.items) > PART_ITEMS):
            yield part
            part, n_items, is_first = [], 0, False
        part.append(history)
        n_items += len(history.items)
    if part or is_first:
        yield part


def lists_of(part: Sequence[History], recommender: Recommender, question: Question) -> tuple[pa.Table, Counts]:
    """The lists of some histories, with the users' tokens."""
    user = pa.array([history.user for history in part], pa.string())
    given = histories_of(user, [history.items for history in part], recommender.lookup)
    table = recommender.lists(given, question)
    unknown = int(given.n_unknown.sum())
    empty = int((np.diff(given.start) == 0).sum())
    return table, Counts(len(part), unknown + len(given.item), unknown, empty, len(table))


def manifest_of(
    folder: str | os.PathLike[str], histories: str | os.PathLike[str], asked: Asked
) -> dict[str, Any]:  # fmt: skip
    """What lists are made of: if it is the same, the lists are."""
    digest = hashlib.sha256()
    with open(histories, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    settings = json.loads(json.dumps(vars(asked)))
    for name in ("exclude", "allow"):
        if settings[name] is not None:  # they may be long
            settings[name] = hashlib.sha256(json.dumps(settings[name]).encode()).hexdigest()
    return {"bundle": version_of(folder), "histories": digest.hexdigest(), "recbole-cafe": __version__, **settings}


# Parts ----------------------------------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """The parts of an output, in a folder beside it.

    Attributes:
        out: resolved path of the output.
        ending: its kind.
        manifest: what it is made of.
    """

    out: Path
    ending: str
    manifest: Mapping[str, Any]
    folder: Path = field(init=False)
    n: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.folder = self.out.with_name(f".{self.out.name}.parts")
        if self.out.is_dir():
            raise OutputError(f"{self.out} is a folder, expected a file to write to")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written: {error.strerror}") from error
        file = self.folder / MANIFEST
        if not file.is_file():
            write_json(file, self.manifest)
            return
        before = _json_of(file)
        if other := [name for name, value in self.manifest.items() if before.get(name, "") != value]:
            raise OutputError(
                f"{self.folder} holds what a run that did not end has made, with another {', '.join(other)}: run its "
                "command again, which goes on from there, or remove the folder"
            )
        _logger.info(f"going on with the parts in {self.folder}")

    def made(self, number: int, n_histories: int) -> Counts | None:
        """The counts of a part that is there already."""
        self.n = max(self.n, number + 1)
        file = self._file(number, ".json")
        if not file.is_file() or not self._file(number, self.ending).is_file():
            return None
        counts = Counts(**_json_of(file))
        return counts if counts.histories == n_histories else None

    def make(self, number: int, part: Sequence[History], recommender: Recommender, question: Question) -> Counts:
        """Write a part: the lists, then the counts that say it is complete."""
        table, counts = lists_of(part, recommender, question)
        with written_whole(self._file(number, self.ending)) as file:
            write_rows(table, file, self.ending, is_first=number == 0)
        write_json(self._file(number, ".json"), asdict(counts))
        return counts

    def join(self) -> None:
        """Make the output of the parts, and remove them."""
        files = [self._file(number, self.ending) for number in range(self.n)]
        with written_whole(self.out) as out:
            if self.ending == PARQUET:
                _join_parquet(files, out)
            else:
                for path in files:
                    with open(path, "rb") as part:
                        shutil.copyfileobj(part, out, 1 << 20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:08}{ending}"


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove the folder, and begin again") from error
    return content


def _join_parquet(files: Sequence[Path], out: IO[bytes]) -> None:
    schema = pq.read_schema(files[0])
    with pq.ParquetWriter(out, schema) as writer:
        for path in files:
            with pq.ParquetFile(path) as part:
                for group in range(part.num_row_groups):
                    writer.write_table(part.read_row_group(group))


# Rows as files have them ----------------------------------------------------------------------------------------------


def write_rows(table: pa.Table, file: IO[bytes], ending: str, *, is_first: bool) -> None:
    """Write a table.

    Args:
        table: of :meth:`Recommender.recommend`.
        file: to write to.
        ending: of its name.
        is_first: whether it begins the file, where CSV has its header.
    """
    if ending == PARQUET:
        pq.write_table(table, file)
    elif ending in SEPARATORS:
        if "reason" in table.column_names:
            text = pc.struct_field(table["reason"], "text")
            table = table.set_column(table.column_names.index("reason"), "reason", text)
        separator = SEPARATORS[ending]
        if is_first:
            file.write((separator.join(table.column_names) + "\n").encode())
        special = re.compile(f'[{separator}"\r\n]|^$')
        for lines in _slices(table):
            file.write(_lines(lines, "", separator, "\n", partial(_as_csv, special)))
    else:
        for lines in _slices(table):
            keyed = lines.rename_columns([f"{json.dumps(name)}: " for name in lines.column_names])
            file.write(_lines(keyed, "{", ", ", "}\n", _as_json, keyed=True))


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for first in range(0, len(table), SLICE):
        yield table.slice(first, SLICE)


def _lines(table: pa.Table, begin: str, between: str, end: str, quoted: Callable[[str], str],
           *, keyed: bool = False) -> bytes:  # fmt: skip
    """The rows as text, made by column: a row at a time takes longer than its list.

    Args:
        table: of one row at least.
        begin: of each line.
        between: cells.
        end: of each line.
        quoted: gives a text as the cell.
        keyed: whether the names of columns stand before their cells, and null in place of a missing one.
    """
    pieces: list[Any] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        pieces += [pa.scalar((between if pieces else begin) + (name if keyed else "")), _cells(column, quoted)]
    lines = pc.binary_join_element_wise(*pieces, pa.scalar(end), pa.scalar(""), null_handling="replace",
                                        null_replacement="null" if keyed else "")  # fmt: skip
    return "".join(lines.to_pylist()).encode()


def _cells(column: pa.ChunkedArray, quoted: Callable[[str], str]) -> pa.ChunkedArray:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.string())
    if not pa.types.is_string(column.type):
        cells = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in column.to_pylist()]
        return pa.chunked_array([pa.array(cells, pa.string())])
    texts = column.combine_chunks().dictionary_encode()  # the same few items and users again and again
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    values = pa.array([quoted(text) for text in texts.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([values.take(texts.indices)])


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _as_csv(special: re.Pattern[str], text: str) -> str:
    """Quoted where it has to be; an empty text, which is not a missing one, is."""
    if not special.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'
