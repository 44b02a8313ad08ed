"""Lists for a file of histories: streamed, bounded in memory, and continued where it was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from tqdm import tqdm

from recbole_cafe.errors import DataError, OutputError, output_error
from recbole_cafe.files.atomic import checksum
from recbole_cafe.files.whole import write_json, written_whole
from recbole_cafe.recommend.bundle import version_of
from recbole_cafe.recommend.histories import column_of, read_histories, text_of, times_of, tokens_of
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.tables import TableError, format_of, read_blocks

PART = 8192  # histories whose lists are kept together, at most
ROWS = 1_000_000  # of a part, at most
STATE = "command.json"

# Users, and the items of each, oldest first
Chunk = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Summary:
    """What has been done.

    Attributes:
        histories: how many there are.
        rows: of their lists.
        resumed: histories whose lists an earlier, killed command had made.
        unknown: items of the other histories that the bundle does not know.
    """

    histories: int
    rows: int
    resumed: int
    unknown: int


def recommend_file(folder: Path, histories: Path, out: Path, options: Mapping[str, Any]) -> Summary:
    """Write the lists for a file of histories. A killed command is continued by the same one.

    Args:
        folder: of the bundle.
        histories: CSV, JSON lines or Parquet with the columns user, item and perhaps time, where the rows of a user
            stand together; or with user and items, a list (in CSV separated by spaces).
        out: CSV, JSON lines or Parquet, by its ending. Of reasons, CSV gets the sentence.
        options: of :meth:`Recommender.recommend`.

    Raises:
        BundleError: see :func:`recbole_cafe.recommend.bundle.read`.
        TableError: a file of another form; the message names row and column.
        OutputError: the place cannot be written, or another command was killed there.
    """
    writer = WRITERS[format_of(out)]
    if out.suffix == ".gz":
        raise TableError(f"{out}: compressed text is read, not written; expected a name without .gz")
    if out.is_dir():
        raise OutputError(f"{out} is a folder, expected a file to write")
    format_of(histories)
    if not histories.is_file():
        raise TableError(f"there is no file {histories}")
    recommender = Recommender.load(folder)
    parts = out.with_name(f".{out.name}.parts")
    command = {"bundle": version_of(folder), "histories": checksum(histories), "options": dict(options)}
    size = max(1, min(PART, ROWS // int(options.get("k", 10))))
    n_done, n_histories, resumed, unknown = _begin(parts, command), 0, 0, 0
    try:
        with tqdm(unit=" histories", desc=out.name, disable=None) as bar:  # on a terminal
            for number, (users, lists) in enumerate(_chunks(histories, size)):
                if number < n_done:
                    resumed += len(users)
                else:
                    given = read_histories(lists, recommender.lookup)
                    unknown += int(given.n_unknown.sum())
                    table = recommender.lists(given, **options)
                    place = table.column_names.index("user")
                    names = pa.array(users, pa.string()).take(table["user"].combine_chunks())
                    _write_part(parts / f"{number:08d}.arrow", table.set_column(place, "user", names))
                n_histories += len(users)
                bar.update(len(users))
        with written_whole(out) as file:
            rows = writer(file, [_read_part(path) for path in sorted(parts.glob("*.arrow"))])
    except OSError as error:
        raise output_error(out, error) or error from error
    except DataError:
        shutil.rmtree(parts)  # the same command would fail again
        raise
    shutil.rmtree(parts)
    return Summary(n_histories, rows, resumed, unknown)


# Parts ----------------------------------------------------------------------------------------------------------------


def _begin(parts: Path, command: Mapping[str, Any]) -> int:
    """Make the folder of parts, or find how many of them the same command has finished.

    Raises:
        OutputError: another command was killed there.
    """
    state = parts / STATE
    if state.is_file():
        if json.loads(state.read_text(encoding="utf-8")) != json.loads(json.dumps(command)):
            raise OutputError(f"{parts} holds the lists of a killed command with another bundle, histories or options; "
                              f"remove that folder, or give another --out")  # fmt: skip
        return len(list(parts.glob("*.arrow")))
    shutil.rmtree(parts, ignore_errors=True)  # killed before it had begun
    try:
        parts.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{parts} cannot be made: {error.strerror}") from error
    write_json(state, command)
    return 0


def _write_part(path: Path, table: pa.Table) -> None:
    with written_whole(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read_part(path: Path) -> Callable[[], pa.Table]:
    def read() -> pa.Table:
        with pa.memory_map(os.fspath(path)) as file:
            return pa.ipc.open_file(file).read_all()

    return read


# Histories ------------------------------------------------------------------------------------------------------------


def _chunks(path: Path, size: int) -> Iterator[Chunk]:
    """So many histories at a time; one empty chunk if there are none.

    Raises:
        TableError: see :func:`recommend_file`.
    """
    users: list[str] = []
    lists: list[list[str]] = []
    n_chunks = 0
    for user, items in _histories(path):
        users.append(user)
        lists.append(items)
        if len(users) == size:
            yield users, lists
            users, lists, n_chunks = [], [], n_chunks + 1
    if users or not n_chunks:
        yield users, lists


def _histories(path: Path) -> Iterator[tuple[str, list[str]]]:
    """User and items, one history after the other."""
    first = 0  # row of the block
    seen: set[str] = set()
    open_user, items, times = None, [], []
    for block in read_blocks(path):
        what = f"{path}, rows from {first + 1} on"
        if "items" in block.column_names:
            yield from _listed(block, path, first, seen)
        else:
            try:
                user = text_of(column_of(block, "user", what), "user", what)
                item = text_of(column_of(block, "item", what), "item", what).to_pylist()
                column = column_of(block, "time", what, needed=False)
                time = [0.0] * len(item) if column is None else times_of(column, what).tolist()
            except DataError as error:
                raise TableError(str(error)) from error
            codes = np.asarray(user.dictionary_encode().indices)
            bounds = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else codes
            for start, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(codes)], strict=False):
                name = user[start].as_py()
                if name != open_user:
                    if open_user is not None:
                        yield open_user, _in_order(items, times)
                    _first_time(name, seen, path, first + start)
                    open_user, items, times = name, [], []
                items += item[start:end]
                times += time[start:end]
        first += len(block)
    if open_user is not None:
        yield open_user, _in_order(items, times)


def _listed(block: pa.Table, path: Path, first: int, seen: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The histories of a file with one a row."""
    what = f"{path}, rows from {first + 1} on"
    try:
        users = text_of(column_of(block, "user", what), "user", what).to_pylist()
    except DataError as error:
        raise TableError(str(error)) from error
    for row, (user, cell) in enumerate(zip(users, block["items"].to_pylist(), strict=True)):
        _first_time(user, seen, path, first + row)
        try:
            yield user, cell.split() if isinstance(cell, str) else tokens_of([] if cell is None else cell, "items")
        except DataError as error:
            raise TableError(f"{path}: row {first + row + 1}, user {user!r}: {error}") from error


def _first_time(user: str, seen: set[str], path: Path, row: int) -> None:
    """Raise if a user was there before: half a history would be taken for a whole one."""
    if user in seen:
        raise TableError(f"{path}: row {row + 1}: user {user!r} was there before, others between; expected the "
                         f"rows of a user together, so sort the file by user")  # fmt: skip
    seen.add(user)


def _in_order(items: list[str], times: list[float]) -> list[str]:
    """By time, equal ones as they stand in the file."""
    return [items[i] for i in sorted(range(len(items)), key=times.__getitem__)]


# Writers --------------------------------------------------------------------------------------------------------------

Parts = list[Callable[[], pa.Table]]


def _to_csv(file: IO[bytes], parts: Parts) -> int:
    rows, writer = 0, None
    for read in parts:
        table = read()
        if "reason" in table.column_names:
            place = table.column_names.index("reason")
            table = table.set_column(place, "reason", pc.struct_field(table["reason"], "text"))
        if writer is None:
            file.write((",".join(table.column_names) + "\n").encode())
            writer = pa.csv.CSVWriter(file, table.schema, write_options=pa.csv.WriteOptions(include_header=False))
        writer.write_table(table)
        rows += len(table)
    if writer is not None:
        writer.close()
    return rows


def _to_parquet(file: IO[bytes], parts: Parts) -> int:
    rows = 0
    with closing(pa.parquet.ParquetWriter(file, parts[0]().schema)) as writer:
        for read in parts:
            table = read()
            writer.write_table(table)
            rows += len(table)
    return rows


def _to_json_lines(file: IO[bytes], parts: Parts) -> int:
    rows = 0
    for read in parts:
        for row in read().to_pylist():
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            rows += 1
    return rows


WRITERS: dict[str, Callable[[IO[bytes], Parts], int]] = {
    ".csv": _to_csv,
    ".parquet": _to_parquet,
    ".jsonl": _to_json_lines,
}
