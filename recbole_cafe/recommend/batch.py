"""Lists for all histories of a file, in bounded memory; a run that was killed goes on where it was.

The lists of a few thousand histories at a time are a part. Parts stand in a hidden folder beside the output, each there
whole or not at all, with the command that makes them; the last step writes the output from them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_cafe.errors import DataError, OutputError, output_error
from recbole_cafe.files.atomic import checksum
from recbole_cafe.files.whole import write_json, written_whole
from recbole_cafe.recommend.bundle import version_of
from recbole_cafe.recommend.histories import histories_of
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.tables import (
    JSON_LINES,
    PARQUET,
    SEPARATORS,
    History,
    TableError,
    ending_of,
    histories_in,
    opened,
)

PART = 16_384  # histories, or fewer
PART_ITEMS = 2_000_000  # of the histories of a part, or those of one history
PART_ROWS = 1_000_000  # of the lists of a part
SLICE = 65_536  # rows made to text at a time
STATE = "command.json"


@dataclass(frozen=True)
class Summary:
    """What has been done.

    Attributes:
        histories: how many there are.
        rows: of their lists.
        resumed: histories whose lists an earlier, killed command had made.
        unknown: items of the histories that the bundle does not know.
        empty: histories without a known item, which get what is popular.
    """

    histories: int = 0
    rows: int = 0
    resumed: int = 0
    unknown: int = 0
    empty: int = 0

    def __add__(self, other: Summary) -> Summary:
        """Both together."""
        return Summary(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


def recommend_file(folder: Path, histories: Path, out: Path, options: Mapping[str, Any]) -> Summary:
    """Write the lists for a file of histories. A killed command is continued by the same one.

    Args:
        folder: of the bundle.
        histories: CSV, JSON lines or Parquet with the columns user, item and perhaps time, where the rows of a user
            stand together; or with user and items, a list or text with spaces between the items.
        out: CSV, JSON lines or Parquet, by its ending: the table of :meth:`Recommender.recommend`. Of reasons, CSV
            gets the sentence.
        options: of :meth:`Recommender.recommend`.

    Raises:
        BundleError: see :func:`recbole_cafe.recommend.bundle.read`.
        TableError: a file of another form; the message names row and column.
        OutputError: the place cannot be written, or another command was killed there.
    """
    ending = check_places(histories, out)
    recommender = Recommender.load(folder)
    parts = out.with_name(f".{out.name}.parts")
    _begin(parts, {"bundle": version_of(folder), "histories": checksum(histories), "options": dict(options)})
    done = Summary()
    try:
        with opened(histories) as source, tqdm(total=os.path.getsize(histories), unit="B", unit_scale=True,
                                               desc=out.name, disable=None) as bar:  # fmt: skip
            for number, part in enumerate(in_parts(histories_in(source), size_of_part(options.get("k", 10)))):
                path = parts / f"{number:08d}.arrow"
                if path.is_file():
                    of_part = replace(_summary_of(_read_part(path)), resumed=len(part))
                else:
                    table, of_part = lists_of(part, recommender, options)
                    _write_part(path, table, of_part)
                done += of_part
                bar.set_postfix_str(f"{done.histories:,} histories", refresh=False)
                bar.update(source.position() - bar.n)
        with written_whole(out) as file:
            WRITERS[ending](file, [_read_part(path) for path in sorted(parts.glob("*.arrow"))])
    except OSError as error:
        raise output_error(out, error) or error from error
    except DataError:
        shutil.rmtree(parts)  # the same command would fail again
        raise
    shutil.rmtree(parts)
    return done


def check_places(histories: Path, out: Path) -> str:
    """Raise unless there are histories to read and a place to write to.

    Returns:
        the ending of the output.

    Raises:
        TableError: no such file, or a name that does not say what is in it.
        OutputError: a folder.
    """
    ending_of(histories)
    if out.suffix == ".gz":
        raise TableError(f"{out}: compressed text is read, not written; expected a name without .gz")
    ending = ending_of(out)
    if out.is_dir():
        raise OutputError(f"{out} is a folder, expected a file to write")
    if not histories.is_file():
        raise TableError(f"there is no file {histories}")
    if out.resolve() == histories.resolve():
        raise OutputError(f"{out} holds the histories themselves; give another --out")
    return ending


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


def lists_of(part: Sequence[History], recommender: Recommender, options: Mapping[str, Any]) -> tuple[pa.Table, Summary]:
    """The lists of some histories, with the users' tokens."""
    user = pa.array([history.user for history in part], pa.string())
    given = histories_of(user, [history.items for history in part], recommender.lookup)
    table = recommender.lists(given, **options)
    empty = int((np.diff(given.start) == 0).sum())
    return table, Summary(len(part), len(table), unknown=int(given.n_unknown.sum()), empty=empty)


# Parts ----------------------------------------------------------------------------------------------------------------


def _begin(parts: Path, command: Mapping[str, Any]) -> None:
    """Make the folder of parts, or see that the same command has made it.

    Raises:
        OutputError: another command was killed there.
    """
    state = parts / STATE
    if state.is_file():
        if json.loads(state.read_text(encoding="utf-8")) != json.loads(json.dumps(command)):
            raise OutputError(f"{parts} holds the lists of a killed command with another bundle, histories or options; "
                              f"remove that folder, or give another --out")  # fmt: skip
        return
    shutil.rmtree(parts, ignore_errors=True)  # killed before it had begun
    try:
        parts.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{parts} cannot be made: {error.strerror}") from error
    write_json(state, command)


def _write_part(path: Path, table: pa.Table, done: Summary) -> None:
    table = table.replace_schema_metadata({"done": json.dumps(asdict(done))})
    with written_whole(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read_part(path: Path) -> pa.Table:
    """Mapped, not copied."""
    with pa.memory_map(os.fspath(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _summary_of(part: pa.Table) -> Summary:
    return Summary(**json.loads(part.schema.metadata[b"done"]))


# Writers --------------------------------------------------------------------------------------------------------------


def _to_parquet(file: IO[bytes], parts: Sequence[pa.Table]) -> None:
    with pq.ParquetWriter(file, parts[0].schema.remove_metadata()) as writer:
        for table in parts:
            writer.write_table(table.replace_schema_metadata(None))


def _to_json_lines(file: IO[bytes], parts: Sequence[pa.Table]) -> None:
    for table in parts:
        keyed = table.rename_columns([f"{json.dumps(name)}: " for name in table.column_names])
        for lines in _slices(keyed):
            file.write(_lines(lines, "{", ", ", "}\n", _as_json, keyed=True))


def _to_text(separator: str) -> Callable[[IO[bytes], Sequence[pa.Table]], None]:
    def write(file: IO[bytes], parts: Sequence[pa.Table]) -> None:
        file.write((separator.join(parts[0].column_names) + "\n").encode())
        special = re.compile(f'[{separator}"\r\n]|^$')
        for table in parts:
            if "reason" in table.column_names:
                text = pc.struct_field(table["reason"], "text")
                table = table.set_column(table.column_names.index("reason"), "reason", text)
            for lines in _slices(table):
                file.write(_lines(lines, "", separator, "\n", partial(_as_csv, special)))

    return write


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


WRITERS: dict[str, Callable[[IO[bytes], Sequence[pa.Table]], None]] = {
    PARQUET: _to_parquet,
    **dict.fromkeys(JSON_LINES, _to_json_lines),
    **{ending: _to_text(separator) for ending, separator in SEPARATORS.items()},
}
