"""RecBole's atomic files: the only place that writes and checks them.

A data set is one folder, named like the data set, that holds `<name>.inter` (one interaction a row) and,
where items have features, `<name>.item` (one item a row). Both are tab separated UTF-8 text; the header gives
each column a name and a type, `item_id:token`. See https://recbole.io/docs/user_guide/data/atomic_files.html.
In every function `folder` is the data set's own folder (`dataset_atomic/amazon`), not the one above it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import ctypes
import hashlib
import math
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from glob import escape as glob_escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

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
_UNSAFE = re.compile(r"[\t\n\r\0]")


class AtomicFileError(ValueError):
    """An atomic file, or a table meant to become one, is not what RecBole reads; the message says where."""


@dataclass(frozen=True)
class Written:
    """What `write_dataset` wrote: numbers of rows and of distinct ids, and the sha256 of each data file."""

    name: str
    interactions: int
    users: int
    items: int
    item_rows: int
    items_without_row: int
    rows_without_interaction: int
    sha256: dict[str, str] = field(default_factory=dict)


Text = str | Callable[[Written], str]


@dataclass(frozen=True)
class Stream:
    """A table that is never in memory as a whole: record batches, sorted by their first column as bytes.

    Columns are named like the header (`user_id:token`): text for tokens, whole numbers or float64 for floats.
    """

    batches: Iterable[pa.RecordBatch]
    rows: int  # how many there will be in all


# ---------------------------------------------------------------------------------------------------- reading
def read_header(path: str | Path) -> dict[str, str]:
    """The columns of an atomic file, in order: name -> type (one of `TYPES`).

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


def read_table(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of an atomic file, every line and value checked; tokens come as categories, floats as float64.

    A feature of an item may be missing (empty, or what RecBole reads so) and is then NaN; ids and
    interactions may not.

    Args:
        path: the file.
        columns: names to read, without their types; all when None.

    Raises:
        AtomicFileError: as `read_header`; a line with too few or too many columns, an empty or missing token,
            a number that is none, or a column that the file lacks.
    """
    path = Path(path)
    header = read_header(path)
    wanted = list(header) if columns is None else columns
    for name in wanted:
        if name not in header:
            raise AtomicFileError(f"{path}: no column {name!r}, found {', '.join(header)}")
    _check_lines(path, len(header))
    # As text first, numbers too: only then can a bad value be shown as it stands. Not dtype="category", with
    # which pandas 3 turns the token '007' into 7.
    table = pd.read_csv(
        path,
        sep="\t",
        header=0,
        names=list(header),
        usecols=wanted,
        dtype=str,
        encoding="utf-8",
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        skip_blank_lines=False,
    )[wanted]
    for name in wanted:
        codes, texts = pd.factorize(table[name])  # each distinct text is looked at once
        required = path.suffix == ".inter" or f"{name}:{header[name]}" == ITEM
        absent = [not required and (text == "" or text in MISSING) for text in texts]
        faults = (code for code, text in enumerate(texts) if not absent[code] and _fault(text, header[name]))
        fault = next(faults, None)
        if fault is not None:
            line, text = 2 + int(np.argmax(codes == fault)), texts[fault]
            raise AtomicFileError(f"{path}: line {line}, column {name!r}: found {text!r}, {_fault(text, header[name])}")
        if header[name] == "float":
            numbers = [math.nan if none else float(text) for text, none in zip(texts, absent, strict=True)]
            table[name] = np.array(numbers)[codes]
        else:
            values = pd.Categorical.from_codes(codes, categories=texts)
            table[name] = values.remove_categories(texts[np.array(absent)])
    return table


def statistics(folder: str | Path, name: str, intent_field: str = "intent") -> dict[str, Any]:
    """Counts of a data set: users, items, intents, interactions, and how they are spread.

    `repeats` is the share of interactions with an item that the user already had; `intents` and
    `items_without_intent` are None where the data set has no .item file. Items and intents count only where
    they occur.

    Raises:
        AtomicFileError: as `read_table`.
    """
    folder = Path(folder)
    table = read_table(folder / f"{name}.inter", ["user_id", "item_id"])
    users, items = table["user_id"].cat, table["item_id"].cat
    result: dict[str, Any] = {
        "users": len(users.categories),
        "items": len(items.categories),
        "intents": None,
        "interactions": len(table),
        "interactions_per_user": _spread(np.bincount(users.codes)),
        "interactions_per_item": _spread(np.bincount(items.codes)),
        "repeats": float(table.duplicated().mean()),
        "items_without_intent": None,
    }
    path = folder / f"{name}.item"
    if path.is_file():
        features = read_table(path, ["item_id", intent_field])
        features = features[features["item_id"].isin(items.categories)].dropna()
        per_intent = features[intent_field].value_counts().to_numpy()
        per_intent = per_intent[per_intent > 0]
        result["intents"] = len(per_intent)
        result["items_per_intent"] = _spread(per_intent)
        result["items_without_intent"] = result["items"] - len(features)
    return result


def checksum(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- writing
def write_dataset(
    folder: str | Path,
    name: str,
    interactions: pd.DataFrame,
    items: pd.DataFrame | None = None,
    *,
    readme: Text | None = None,
    extra_files: Mapping[str, Text] | None = None,
    replace: bool = False,
    show_progress: bool = False,
) -> Written:
    """Write a whole data set, all of it or nothing.

    Everything goes to a temporary folder beside the target, which then takes its place: whatever fails, the
    target holds the old data set or the new one. On Linux the two folders change places in one step. Elsewhere
    it takes two renames; if the process is killed in the microseconds between them, the old data set stands
    whole beside the target, and whoever looks for it next (`restore`) puts it back.

    Args:
        folder: the data set's own folder; its parents are made.
        name: the data set's name, and so that of its files.
        interactions: columns named like the header (`user_id:token`); rows in the order to be written. Token
            columns may be categorical, which is fast; integers are fine too.
        items: likewise, with one row an item; None writes no .item file.
        readme: text of README.md, or a function of what was written that returns it.
        extra_files: further small files, file name -> text or such a function.
        replace: whether an existing data set may be replaced. A folder with files that are not a data set's
            never is.
        show_progress: a progress bar on stderr.

    Returns:
        Counts and checksums. Items that occur without a row in `items` are counted, not refused: real data
        have them.

    Raises:
        AtomicFileError: a table or value RecBole could not read back, or a target that may not be replaced.
    """
    folder = Path(folder).resolve()
    texts = dict(extra_files or {})
    if readme is not None:
        texts["README.md"] = readme
    tables = {f"{name}.inter": interactions} | ({} if items is None else {f"{name}.item": items})
    with _new_folder(folder, name, texts, replace) as temporary:
        columns = {file: _columns(table, file) for file, table in tables.items()}
        counts = _count(columns[f"{name}.inter"], columns.get(f"{name}.item"), name)
        with _bar(name, sum(len(table) for table in tables.values()), show_progress) as bar:
            digests = {file: _write_table(temporary / file, made, bar) for file, made in columns.items()}
        written = Written(name=name, sha256=digests, **counts)
        _write_texts(temporary, texts, written)
    return written


def write_streams(
    folder: str | Path,
    name: str,
    interactions: Stream,
    items: Stream,
    *,
    n_items: int,
    readme: Text | None = None,
    old_files: Collection[str] = (),
    replace: bool = False,
    show_progress: bool = False,
) -> Written:
    """As `write_dataset`, for tables larger than memory.

    Args:
        folder, name, readme, replace, show_progress: as there.
        interactions: sorted by user.
        items: sorted by item, one row each, only items that occur; a feature may be null and is then empty in
            the file.
        n_items: how many distinct items occur in the interactions.
        old_files: files of the data set to be replaced that go with it.

    Raises:
        AtomicFileError: as there; rows that are not in order, or more or fewer than announced.
    """
    folder = Path(folder).resolve()
    texts = {} if readme is None else {"README.md": readme}
    with _new_folder(folder, name, old_files, replace) as temporary:
        with _bar(name, interactions.rows + items.rows, show_progress) as bar:
            inter, users = _write_stream(temporary / f"{name}.inter", interactions, [USER, ITEM], bar)
            item, item_rows = _write_stream(temporary / f"{name}.item", items, [ITEM], bar)
        written = Written(
            name=name,
            interactions=interactions.rows,
            users=users,
            items=n_items,
            item_rows=item_rows,
            items_without_row=n_items - item_rows,
            rows_without_interaction=0,
            sha256={f"{name}.inter": inter, f"{name}.item": item},
        )
        _write_texts(temporary, texts, written)
    return written


@contextlib.contextmanager
def _new_folder(folder: Path, name: str, files: Collection[str], replace: bool) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends, and goes when it fails."""
    check_target(folder, name, files, replace)
    with beside(folder, "tmp") as temporary:
        yield temporary
        for path in temporary.iterdir():
            with open(path, "rb") as file:  # on the disk before it counts, should the power fail
                os.fsync(file.fileno())
        check_target(folder, name, files, replace)  # again: writing took time, another process may have been here
        _put_in_place(temporary, folder, replace)


@contextlib.contextmanager
def beside(folder: Path, ending: str) -> Iterator[Path]:
    """A hidden temporary folder beside `folder`, removed when the block ends.

    Its name holds host and process, so that what a killed process leaves is removed by the next one.
    """
    _sweep(folder)
    temporary = folder.with_name(f".{folder.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{ending}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())


def _sweep(folder: Path) -> None:
    """Remove temporary folders of `beside` whose process is gone. Those of other hosts stay: who knows."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.{_host()}-(\d+)-[0-9a-f]{{8}}\.\w+")
    for path in folder.parent.glob(f".{glob_escape(folder.name)}.*"):
        if (match := ours.fullmatch(path.name)) and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _bar(name: str, rows: int, show: bool) -> tqdm:
    return tqdm(total=rows, desc=f"write {name}", unit="row", unit_scale=True, disable=not show)


def _write_texts(folder: Path, texts: Mapping[str, Text], written: Written) -> None:
    for file, text in texts.items():
        (folder / file).write_bytes((text if isinstance(text, str) else text(written)).encode())


def check_target(folder: str | Path, name: str, extra_files: Collection[str] = (), replace: bool = False) -> None:
    """Whether a data set may be written to `folder`, for those who want to know before a long computation.

    Args:
        folder, name, replace: as in `write_dataset`.
        extra_files: names of the files beside `<name>.*` and README.md that belong to the data set.

    Raises:
        AtomicFileError: a name that is none, a folder that holds other files, or a data set that may not be
            replaced.
    """
    if not name or name.startswith(".") or _UNSAFE.search(name) or Path(name).name != name:
        raise AtomicFileError(f"{name!r} is no data set name, expected a plain file name such as 'amazon'")
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


def restore(folder: str | Path) -> None:
    """Put back the old data set if a replacement was killed between its two renames; else do nothing."""
    folder = Path(folder).resolve()
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _put_in_place(temporary: Path, folder: Path, replace: bool) -> None:
    old = _old(folder)
    if folder.exists() and replace and _exchange(temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
        return
    if folder.exists() and replace:
        shutil.rmtree(old, ignore_errors=True)  # of a process killed after its second rename: `folder` is whole
        os.replace(folder, old)
    elif folder.exists():
        folder.rmdir()  # empty, or it fails: another process has just put a data set here
    try:
        os.replace(temporary, folder)
    except BaseException:
        restore(folder)
        raise
    if replace:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (Linux's renameat2); False where that cannot be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@dataclass(frozen=True)
class _Column:
    """A column ready to be written: `names[codes]` for tokens, plain numbers (`names` None) for floats."""

    header: str
    codes: np.ndarray
    names: np.ndarray | None

    def block(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as fixed-width bytes, padded with NULs: uint8 [rows, width]."""
        part = self.codes[start:stop]
        text = part.astype("S") if self.names is None else self.names[part]
        return text.view(np.uint8).reshape(len(part), -1)


def _columns(table: pd.DataFrame, file: str) -> list[_Column]:
    if not len(table):
        raise AtomicFileError(f"{file}: no rows, expected at least one")
    needed = [USER, ITEM] if file.endswith(".inter") else [ITEM]
    for header in needed:
        if header not in table.columns:
            raise AtomicFileError(f"{file}: no column {header!r}, found {', '.join(map(str, table.columns))}")
    result = []
    for header in table.columns:
        kind = str(header).rpartition(":")[2]
        if kind not in TYPES or _UNSAFE.search(header):
            raise AtomicFileError(f"{file}: column {header!r}, expected name:type with a type of {', '.join(TYPES)}")
        make = _numbers if kind == "float" else _tokens
        result.append(make(table[header], header, file))
    return result


def _numbers(values: pd.Series, header: str, file: str) -> _Column:
    numbers = values.to_numpy()
    if numbers.dtype.kind not in "iuf":
        raise AtomicFileError(f"{file}: column {header!r} holds {numbers.dtype}, expected numbers")
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise AtomicFileError(f"{file}: row {row}, column {header!r}: found {numbers[row]}, expected a finite number")
    return _Column(header, numbers, None)


def _tokens(values: pd.Series, header: str, file: str) -> _Column:
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, names = values.cat.codes.to_numpy(), values.cat.categories
    elif values.dtype.kind == "f":
        raise AtomicFileError(f"{file}: column {header!r} holds {values.dtype}, expected ids as text or integers")
    else:
        codes, names = pd.factorize(values)
    if codes.min() < 0:
        row = int(np.argmin(codes))
        raise AtomicFileError(f"{file}: row {row}, column {header!r}: no value, expected {header.rpartition(':')[2]}")
    texts = [str(value) for value in names]
    for code, text in enumerate(texts):
        if fault := _fault(text, header.rpartition(":")[2]):
            if not (codes == code).any():
                continue  # a category that no row uses
            row = int(np.argmax(codes == code))
            raise AtomicFileError(f"{file}: row {row}, column {header!r}: found {text!r}, {fault}")
    return _Column(header, codes, np.array([text.encode() for text in texts], dtype=np.bytes_))


def _count(inter: list[_Column], item: list[_Column] | None, name: str) -> dict[str, int]:
    seen = _used(inter, USER), _used(inter, ITEM)
    rows: set[bytes] = set()
    if item is not None:
        column = next(column for column in item if column.header == ITEM)
        times = np.bincount(column.codes, minlength=len(column.names))
        if times.max() > 1:
            token = column.names[int(times.argmax())].decode()
            raise AtomicFileError(f"{name}.item: column {ITEM!r}: found {token!r} {times.max()} times, expected once")
        rows = _used(item, ITEM)
    return {
        "interactions": len(inter[0].codes),
        "users": len(seen[0]),
        "items": len(seen[1]),
        "item_rows": len(rows),
        "items_without_row": len(seen[1] - rows),
        "rows_without_interaction": len(rows - seen[1]),
    }


def _used(columns: list[_Column], header: str) -> set[bytes]:
    column = next(column for column in columns if column.header == header)
    return set(column.names[np.bincount(column.codes, minlength=len(column.names)) > 0].tolist())


def _write_table(path: Path, columns: list[_Column], bar: tqdm) -> str:
    """Write one file, a block of rows at a time, and return its sha256.

    A block is laid out as a rectangle of bytes, each column padded to its widest value with NULs; dropping
    the NULs leaves the text. No row passes through Python, which is what makes millions of rows a matter of
    seconds.
    """
    digest = hashlib.sha256()
    n_rows = len(columns[0].codes)
    width = sum(24 if column.names is None else column.names.dtype.itemsize + 1 for column in columns)
    step = max(1, _CHUNK_BYTES // width)
    with open(path, "wb") as file:
        header = ("\t".join(column.header for column in columns) + "\n").encode()
        file.write(header)
        digest.update(header)
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            parts: list[np.ndarray] = []
            for number, column in enumerate(columns, 1):
                parts.append(column.block(start, stop))
                ending = b"\n" if number == len(columns) else b"\t"
                parts.append(np.full((stop - start, 1), ending[0], dtype=np.uint8))
            rectangle = np.concatenate(parts, axis=1)
            text = rectangle[rectangle != 0].tobytes()
            file.write(text)
            digest.update(text)
            bar.update(stop - start)
    return digest.hexdigest()


def _write_stream(path: Path, stream: Stream, needed: list[str], bar: tqdm) -> tuple[str, int]:
    """Write one file batch by batch. Returns its sha256 and the number of distinct values of its first column."""
    digest, rows, distinct, last = hashlib.sha256(), 0, 0, None
    unique = path.suffix == ".item"
    with open(path, "wb") as file:
        for batch in stream.batches:
            if not rows:
                if missing := [header for header in needed if header not in batch.schema.names]:
                    raise AtomicFileError(
                        f"{path.name}: no column {missing[0]!r}, found {', '.join(batch.schema.names)}"
                    )
                header = ("\t".join(batch.schema.names) + "\n").encode()
                file.write(header)
                digest.update(header)
            if not len(batch):
                continue
            columns = [_text(batch.column(i), name, path, rows) for i, name in enumerate(batch.schema.names)]
            distinct += _steps(columns[0], last, unique, f"{path.name}: rows from {rows}")
            last = columns[0][-1]
            joined = pc.binary_join_element_wise(*columns, pa.scalar("\t", columns[0].type))
            lines = pc.binary_join_element_wise(joined, pa.scalar("", joined.type), pa.scalar("\n", joined.type))
            text = _bytes(lines)
            file.write(text)
            digest.update(text)
            rows += len(batch)
            bar.update(len(batch))
    if not rows:
        raise AtomicFileError(f"{path.name}: no rows, expected at least one")
    if rows != stream.rows:
        raise AtomicFileError(f"{path.name}: {rows} rows came, {stream.rows} were announced")
    return digest.hexdigest(), distinct


def _text(column: pa.Array, header: str, path: Path, rows: int) -> pa.Array:
    """A column of a batch as text, every value checked. rows: how many came before."""
    kind = header.rpartition(":")[2]
    optional = path.suffix == ".item" and header != ITEM
    if kind == "float":
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise AtomicFileError(f"{path.name}: column {header!r} holds {column.type}, expected numbers")
        bad = pc.invert(pc.fill_null(pc.is_finite(column), optional))
        text = column.cast(pa.large_string())
    else:
        text = column.cast(pa.large_string())
        bad = pc.or_(pc.match_substring_regex(text, _UNSAFE.pattern), pc.starts_with(text, '"'))
        bad = pc.or_(bad, pc.is_in(text, pa.array(sorted(MISSING), pa.large_string())))
        bad = pc.fill_null(bad if optional else pc.or_(bad, pc.equal(text, "")), not optional)
    if (row := pc.index(bad, True).as_py()) >= 0:
        value = column[row].as_py()
        fault = "expected a value" if value is None else _fault(str(value), kind)
        raise AtomicFileError(f"{path.name}: row {rows + row}, column {header!r}: found {value!r}, {fault}")
    return pc.fill_null(text, "") if optional else text


def _steps(column: pa.Array, last: pa.Scalar | None, unique: bool, where: str) -> int:
    """How often the value of a sorted column changes, the first value of all included."""
    before = pa.concat_arrays([pa.array([None if last is None else last.as_py()], column.type), column[:-1]])
    above = pc.greater(column, before)
    fine = above if unique else pc.greater_equal(column, before)
    if not pc.all(pc.fill_null(fine, True), min_count=0).as_py():
        row = pc.index(fine, False).as_py()
        what = "each item once, in order" if unique else "rows sorted by user"
        raise AtomicFileError(f"{where}: {column[row].as_py()!r} comes after {before[row].as_py()!r}, expected {what}")
    return pc.sum(pc.fill_null(above, True).cast(pa.int64())).as_py()


def _bytes(lines: pa.Array) -> memoryview:
    """The texts of an array one after another."""
    _, offsets, text = lines.buffers()
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(text)[int(ends[0]) : int(ends[-1])]


# ----------------------------------------------------------------------------------------------------- checks
def _fault(text: str, kind: str) -> str | None:
    """What is wrong with one value, as the end of a sentence; None when it is good."""
    if kind.startswith("float"):
        parts = text.split(" ") if kind == "float_seq" else [text]
        if (text == "" and kind == "float_seq") or all(map(_is_number, parts)):
            return None
        return "expected " + ("finite numbers separated by spaces" if kind == "float_seq" else "a finite number")
    if _UNSAFE.search(text):
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
            found = 1 + np.diff(np.searchsorted(np.flatnonzero(data == ord("\t")), ends), prepend=0)
            if (found != n_columns).any():
                first = int(np.argmax(found != n_columns))
                raise AtomicFileError(
                    f"{path}: line {line + first}: found {found[first]} column(s), expected {n_columns}, "
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


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "max": int(counts.max()),
    }
