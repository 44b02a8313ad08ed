"""The writer of RecBole's atomic files: tables come as streams of Arrow batches, so they may be larger than memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.atomic import ITEM, MISSING, TYPES, UNSAFE, USER, AtomicFileError, fault_of
from recbole_cafe.files.whole import restore, whole_folder

ROWS = 1 << 16  # rows of a batch of `Stream.of`


@dataclass(frozen=True)
class Written:
    """What `write_dataset` wrote: numbers of rows and of distinct ids, and the sha256 of each data file."""

    name: str
    interactions: int
    users: int
    items: int
    item_rows: int
    items_without_row: int
    sha256: dict[str, str] = field(default_factory=dict)


Text = str | Callable[[Written], str]


@dataclass(frozen=True)
class Stream:
    """A table as record batches, sorted by its first column, so that it never has to be in memory as a whole.

    Columns are named like the header (`user_id:token`): text or whole numbers for tokens, numbers for floats. A first
    column of text is sorted as bytes. It may be a dictionary column instead, the same dictionary in every batch; then
    the order is that of the dictionary.

    Attributes:
        batches: the rows.
        rows: how many there will be in all.
    """

    batches: Iterable[pa.RecordBatch]
    rows: int

    @classmethod
    def of(cls, table: pa.Table) -> Stream:
        """Make a stream of a table in memory."""
        return cls(table.to_batches(max_chunksize=ROWS), table.num_rows)


def write_dataset(
    folder: str | Path,
    name: str,
    interactions: Stream,
    items: Stream,
    *,
    n_items: int,
    texts: Mapping[str, Text] | None = None,
    old_files: Collection[str] = (),
    replace: bool = False,
    show_progress: bool = False,
) -> Written:
    """Write a whole data set, all of it or nothing (see `recbole_cafe.files.whole.whole_folder`).

    Args:
        folder: the data set's own folder; its parents are made.
        name: the data set's name, and so that of its files.
        interactions: sorted by user.
        items: sorted by item, one row each, only items that occur; a feature may be null and is then empty in the file.
        n_items: how many distinct items occur in the interactions.
        texts: small files beside the data, file name -> text, or a function of what was written that returns it.
        old_files: files of the data set to be replaced that go with it, beside `<name>.*`, README.md and those of
            `texts`.
        replace: whether an existing data set may be replaced. A folder with files that are not a data set's never is.
        show_progress: a progress bar on stderr.

    Returns:
        Counts and checksums. Items that occur without a row in `items` are counted, not refused: real data have them.

    Raises:
        AtomicFileError: a value RecBole could not read back, rows that are not in order, more or fewer rows than
            announced, or a target that may not be replaced.
    """
    folder, texts = Path(folder).resolve(), texts or {}
    check = functools.partial(check_target, folder, name, {*texts, *old_files}, replace)
    with whole_folder(folder, replace=replace, check=check) as temporary:
        total = interactions.rows + items.rows
        with tqdm(total=total, desc=f"write {name}", unit="row", unit_scale=True, disable=not show_progress) as bar:
            inter, users = _write(temporary / f"{name}.inter", interactions, [USER, ITEM], bar.update)
            item, item_rows = _write(temporary / f"{name}.item", items, [ITEM], bar.update)
        written = Written(
            name=name,
            interactions=interactions.rows,
            users=users,
            items=n_items,
            item_rows=item_rows,
            items_without_row=n_items - item_rows,
            sha256={f"{name}.inter": inter, f"{name}.item": item},
        )
        for file, text in texts.items():
            (temporary / file).write_bytes((text if isinstance(text, str) else text(written)).encode())
    return written


def check_target(folder: str | Path, name: str, extra_files: Collection[str] = (), replace: bool = False) -> None:
    """Check whether a data set may be written to `folder`, for those who want to know before a long computation.

    Args:
        folder: as in `write_dataset`.
        name: as in `write_dataset`.
        extra_files: names of the files beside `<name>.*` and README.md that belong to the data set.
        replace: as in `write_dataset`.

    Raises:
        ConfigError: a name that is none.
        AtomicFileError: a folder that holds other files, or a data set that may not be replaced.
    """
    if not name or name.startswith(".") or UNSAFE.search(name) or Path(name).name != name:
        raise ConfigError(f"{name!r} is no data set name, expected a plain file name such as 'amazon'")
    folder = Path(folder).resolve()
    restore(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise AtomicFileError(f"{folder}: is a file, expected a folder for the data set {name!r}")
    present = {entry.name for entry in folder.iterdir()}
    foreign = sorted(file for file in present - {*extra_files, "README.md"} if not file.startswith(f"{name}."))
    if foreign:
        raise AtomicFileError(
            f"{folder}: holds {', '.join(foreign[:3])}, which is not part of the data set {name!r}; "
            "nothing was written, choose another folder"
        )
    if present and not replace:
        raise AtomicFileError(f"{folder}: exists already; nothing was written, pass replace (--replace) to replace it")


# One file -------------------------------------------------------------------------------------------------------------


def _write(path: Path, stream: Stream, needed: list[str], progress: Callable[[int], object]) -> tuple[str, int]:
    """Write one file batch by batch.

    No row passes through Python, which is what makes millions of rows a matter of seconds.

    Returns:
        The sha256 of the file and the number of distinct values of its first column.
    """
    digest, rows = hashlib.sha256(), 0
    order = _Order(path.name, unique=path.suffix == ".item")
    header: list[str] | None = None
    with open(path, "wb") as file:
        for batch in stream.batches:
            if header is None:
                header = _header(batch.schema.names, needed, path.name)
                line = ("\t".join(header) + "\n").encode()
                file.write(line)
                digest.update(line)
            if not len(batch):
                continue
            columns = [_text(batch.column(i), name, path, rows) for i, name in enumerate(header)]
            order.check(batch.column(0), columns[0], rows)
            joined = pc.binary_join_element_wise(*columns, pa.scalar("\t", columns[0].type))
            lines = pc.binary_join_element_wise(joined, pa.scalar("", joined.type), pa.scalar("\n", joined.type))
            text = _bytes(lines)
            file.write(text)
            digest.update(text)
            rows += len(batch)
            progress(len(batch))
    if not rows:
        raise AtomicFileError(f"{path.name}: no rows, expected at least one")
    if rows != stream.rows:
        raise AtomicFileError(f"{path.name}: {rows} rows came, {stream.rows} were announced")
    return digest.hexdigest(), order.distinct


def _header(names: list[str], needed: list[str], file: str) -> list[str]:
    for header in needed:
        if header not in names:
            raise AtomicFileError(f"{file}: no column {header!r}, found {', '.join(names)}")
    for header in names:
        if header.rpartition(":")[2] not in TYPES or UNSAFE.search(header):
            raise AtomicFileError(f"{file}: column {header!r}, expected name:type with a type of {', '.join(TYPES)}")
    return names


def _text(column: pa.Array, header: str, path: Path, rows: int) -> pa.Array:
    """A column of a batch as text, every value checked.

    Args:
        column: the values.
        header: `name:type`.
        path: the file that is written.
        rows: how many rows came before.
    """
    kind = header.rpartition(":")[2]
    optional = path.suffix == ".item" and header != ITEM
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if kind == "float" and not numbers:
        raise AtomicFileError(f"{path.name}: column {header!r} holds {column.type}, expected numbers")
    if kind != "float" and pa.types.is_floating(column.type):
        raise AtomicFileError(f"{path.name}: column {header!r} holds {column.type}, expected ids as text or integers")
    text = column.cast(pa.large_string())
    if kind == "float":
        bad = pc.invert(pc.is_finite(column))
    elif kind == "float_seq":  # rare, so each distinct text may pass through Python
        distinct = [value for value in pc.unique(text).to_pylist() if value is not None and fault_of(value, kind)]
        bad = pc.is_in(text, pa.array(distinct, pa.large_string()))
    else:
        bad = pc.or_(pc.match_substring_regex(text, UNSAFE.pattern), pc.starts_with(text, '"'))
        bad = pc.or_(bad, pc.is_in(text, pa.array(sorted(MISSING), pa.large_string())))
        if kind == "token" and not optional:
            bad = pc.or_(bad, pc.equal(text, ""))
    bad = pc.if_else(pc.is_null(column), not optional, bad)
    if (row := pc.index(bad, True).as_py()) >= 0:
        value = column[row].as_py()
        fault = f"no value, expected {kind}" if value is None else f"found {value!r}, {fault_of(str(value), kind)}"
        raise AtomicFileError(f"{path.name}: row {rows + row}, column {header!r}: {fault}")
    return pc.fill_null(text, "") if optional else text


class _Order:
    """The order of a file's first column, checked batch by batch.

    Attributes:
        distinct: different values so far.
    """

    def __init__(self, file: str, *, unique: bool) -> None:
        self.file, self.unique, self.distinct = file, unique, 0
        self._last: int | str | None = None  # as it is compared
        self._last_text: str | None = None
        self._dictionary: pa.Array | None = None

    def check(self, column: pa.Array, text: pa.Array, rows: int) -> None:
        """Check the next batch.

        Args:
            column: the first column, not empty, without nulls.
            text: the same as text.
            rows: how many rows came before.

        Raises:
            AtomicFileError: a value that comes too late, or twice where each comes once.
        """
        key = text
        if pa.types.is_dictionary(column.type):
            self._same_dictionary(column.dictionary)
            key = column.indices.cast(pa.int64())
        before = pa.concat_arrays([pa.array([self._last], key.type), key[:-1]])
        above = pc.fill_null(pc.greater(key, before), True)  # null: before the first of all
        fine = above if self.unique else pc.fill_null(pc.greater_equal(key, before), True)
        if (row := pc.index(fine, False).as_py()) >= 0:
            late = text[row].as_py()
            earlier = text[row - 1].as_py() if row else self._last_text
            expected = "each item once, in order" if self.unique else "rows sorted by user"
            raise AtomicFileError(
                f"{self.file}: row {rows + row}: {late!r} comes after {earlier!r}, expected {expected}"
            )
        self.distinct += pc.sum(above.cast(pa.int64())).as_py()
        self._last, self._last_text = key[-1].as_py(), text[-1].as_py()

    def _same_dictionary(self, dictionary: pa.Array) -> None:
        if self._dictionary is None:
            if len(pc.unique(dictionary)) != len(dictionary):
                raise AtomicFileError(f"{self.file}: the dictionary of the first column names a value twice")
            self._dictionary = dictionary
        elif not self._dictionary.equals(dictionary):
            raise AtomicFileError(f"{self.file}: the dictionary of the first column changes between batches")


def _bytes(lines: pa.Array) -> memoryview:
    """The texts of an array one after another."""
    _, offsets, text = lines.buffers()
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(text)[int(ends[0]) : int(ends[-1])]
