"""Mutated raw tables for `recbole-cafe prepare table`: CSV, TSV, JSON lines and Parquet, packed or not."""

from __future__ import annotations

import bz2
import codecs
import collections
import contextlib
import datetime
import decimal
import gzip
import io
import json
import lzma
import math
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzzing import data_mutations as cells
from fuzzing.children import run_once
from fuzzing.data import NoMutation
from fuzzing.data_mutations import BYTE_MUTATIONS, MISSING, Tables
from fuzzing.outcomes import check, short
from recbole_cafe.cli.main import main

COLUMNS = {"interactions": ["user", "item", "time"], "items": ["item", "category"]}
SHARED = [
    cells.missing_word, cells.number_word, cells.odd_token, cells.quotation_mark, cells.trailing_space,
    cells.column_order, cells.column_removed, cells.row_width, cells.rows_moved, cells.rows_deleted, cells.rows_doubled,
    cells.windows_lines,
]  # fmt: skip
JSON_VALUES = ["null", "true", "1.5", "-1", "0", "[]", "{}", '["a", "b"]', r'"\ud800"', r'"\u0000"', "NaN", "-Infinity",
               "1e400", "12345678901234567890", "9" * 5000, r'"a\tb"', '"2020-01-01"', '[[["x"]]]', r'"\u00e9"', '""',
               "[" * 100_000, '{"a": [1]}', "1.0", '"NA"', r'"a\nb"', "'a'", "01", '"2020-13-01"']  # fmt: skip
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def before() -> None:
    run_once(lambda: case(NoMutation(), Path.cwd(), {"mutations": []}))


# Input ---------------------------------------------------------------------------------------------------------------


def raw_tables(rng: random.Random) -> Tables:
    start, step = rng.choice([(0, 1), (1_600_000_000, 1), (1_600_000_000, 0.25)])
    clicks = [
        [f"u{user}", f"i{rng.randrange(20)}", str(start + rng.randrange(30) * step)]
        for user in range(10)
        for _ in range(6)
    ]
    items = [[f"i{item}", rng.choice(["Toys > Dolls", "Toys > Cars", "Books", ""])] for item in range(20)]
    return Tables({"interactions": [COLUMNS["interactions"][:], *clicks], "items": [COLUMNS["items"][:], *items]})


def as_csv(t: Tables, name: str, separator: str) -> bytes:
    def cell(text: str) -> str:
        needs = any(sign in text for sign in (separator, '"', "\n", "\r"))
        return '"' + text.replace('"', '""') + '"' if needs else text

    return "".join(separator.join(map(cell, row)) + t.newline for row in t.cells[name]).encode(errors="replace")


def as_json(t: Tables, name: str, rng: random.Random) -> bytes:
    header, *rows = t.cells[name]
    odd = {(rng.randrange(len(rows) or 1), rng.choice(header or ["x"])) for _ in range(rng.choice([0, 0, 1, 3]))}
    lines = []
    for at, row in enumerate(rows):
        parts = [
            f"{json.dumps(key)}: {rng.choice(JSON_VALUES) if (at, key) in odd else json.dumps(value)}"
            for key, value in zip(header, row, strict=False)
        ]
        lines.append("{" + ", ".join(parts) + "}" + t.newline)
    return "".join(lines).encode()


def utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def as_numbers(texts: list[str | None]) -> list[float | None]:
    return [float(text) if text and is_number(text) and abs(float(text)) < 2**40 else None for text in texts]


def typed_column(rng: random.Random, texts: list[str | None], is_time: bool) -> pa.Array:
    numbers = as_numbers(texts)
    whole = [None if number is None else int(number) for number in numbers]
    if is_time:
        choices = [
            lambda: pa.array(numbers, pa.float64()),
            lambda: pa.array(whole, pa.int64()),
            lambda: pa.array(numbers, pa.float32()),
            lambda: pa.array(
                [None if n is None else utc(n) for n in whole],
                rng.choice([pa.timestamp("ms", "UTC"), pa.timestamp("s")]),
            ),
            lambda: pa.array([None if n is None else utc(n).date() for n in whole], pa.date32()),
            lambda: pa.array([None if n is None else decimal.Decimal(n) for n in whole], pa.decimal128(20, 2)),
            lambda: pa.array([None if n is None else datetime.time(n % 24) for n in whole], pa.time32("s")),
            lambda: pa.array(texts, pa.string()),
        ]
    else:
        choices = [
            lambda: pa.array(texts, pa.string()),
            lambda: pa.array(texts, pa.large_string()),
            lambda: pa.array(texts, pa.string()).dictionary_encode(),
            lambda: pa.array([int(re.sub(r"\D", "", text)[:9] or 0) if text else None for text in texts], pa.int64()),
            lambda: pa.array([text.encode() if text else None for text in texts], pa.binary()),
            lambda: pa.array([[text, "x"] if text else None for text in texts], pa.list_(pa.string())),
            lambda: pa.array([{"a": text} if text else None for text in texts], pa.struct({"a": pa.string()})),
            lambda: pa.nulls(len(texts)),
            lambda: pa.array([1.5 if text else None for text in texts], pa.float64()),
        ]
    return rng.choice(choices[:3] * 4 + choices)()


def as_parquet(t: Tables, name: str, rng: random.Random) -> tuple[bytes, list[dict[str, Any]] | None]:
    """The file, and its rows; None when a column is named twice, so that they cannot be told."""
    header, *rows = t.cells[name]
    columns = [
        [row[at] if at < len(row) and rng.random() > 0.002 else None for row in rows] for at in range(len(header))
    ]
    arrays = [typed_column(rng, column, key == "time") for key, column in zip(header, columns, strict=True)]
    out = io.BytesIO()
    pq.write_table(
        pa.table(arrays, header), out, row_group_size=rng.choice([7, 1000]), compression=rng.choice(["none", "zstd"])
    )
    told = [{} for _ in rows]
    for key, array in zip(header, arrays, strict=True):
        for row, value in zip(told, array.to_pylist(), strict=True):
            row[key] = value
    return out.getvalue(), told if len(set(header)) == len(header) else None


# Oracle --------------------------------------------------------------------------------------------------------------


@dataclass
class Raw:
    """What a file says: records with their line, lines left out, and whether it has to be, or may be, refused."""

    records: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    refused: str = ""
    doubt: str = ""
    damaged: bool = False


def unpacked(blob: bytes) -> tuple[bytes, bool, str]:
    """The content as far as it can be had, whether it is damaged, and what may count as damage or not."""
    makers = {
        b"\x1f\x8b": lambda: zlib.decompressobj(31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ\0": lzma.LZMADecompressor,
    }
    make = next((make for magic, make in makers.items() if blob.startswith(magic)), None)
    if make is None:
        return blob, False, ""
    text, at, stream = b"", 0, make()
    with contextlib.suppress(zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
        while at < len(blob) and not stream.eof:
            text += stream.decompress(blob[at : at + 1])
            at += 1
        behind = stream.eof and at < len(blob)
        is_gzip = blob.startswith(b"\x1f\x8b")  # the others may have anything behind their end
        return text, not stream.eof or (behind and is_gzip), "something behind the end" if behind else ""
    return text, True, ""


def is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text)) and "_" not in text
    return False


def lines_of(text: bytes) -> list[str]:
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def csv_records(lines: list[str], separator: str, raw: Raw) -> Iterator[tuple[int, list[str]]]:
    """Each record and the line where it begins, by RFC 4180; a mark inside a cell without quotes is a character."""
    at = 0
    while at < len(lines):
        first, record, cell, quoted, left = at + 1, [], "", False, False
        while True:
            line, place = lines[at], 0
            if not quoted and "\r" in line:
                raw.doubt = "carriage return"
            at += 1
            while place < len(line):
                sign = line[place]
                place += 1
                if quoted and sign == '"':
                    if line[place : place + 1] == '"':
                        cell, place = cell + '"', place + 1
                    else:
                        quoted, left = False, True
                elif quoted:
                    cell += sign
                elif sign == separator:
                    record, cell, left = [*record, cell], "", False
                elif sign == '"' and cell == "" and not left:
                    quoted = True
                else:
                    cell += sign
            if not quoted:
                break
            cell += "\n"
            if at == len(lines):
                raw.doubt = "a quotation mark that nothing closes"
                break
        if not (record or cell or left):
            continue
        yield first, [*record, cell]


def read_csv(text: bytes, wanted: list[str], separator: str) -> Raw:
    raw = Raw()
    records = csv_records(lines_of(text.removeprefix(codecs.BOM_UTF8)), separator, raw)
    first, header = next(records, (0, []))
    header = [name.strip() for name in header]
    if first > 1 or len(set(header)) < len(header):
        raw.doubt = "header"
    if missing := [name for name in wanted if name not in header]:
        raw.refused = f"no column {missing[0]}"
        return raw
    for line, record in records:
        if len(record) != len(header):
            raw.faults.append(line)
        else:
            raw.records.append((line, dict(zip(header, record, strict=True))))
    return raw


def read_json(text: bytes) -> Raw:
    raw = Raw()
    for line, one in enumerate(lines_of(text.removeprefix(codecs.BOM_UTF8)), 1):
        if one and not one.isspace():
            try:
                record = json.loads(one)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                raw.records.append((line, record))
            else:
                raw.faults.append(line)
    return raw


def token(value: Any) -> str | None:
    return value if isinstance(value, str) else str(value) if type(value) is int else None


def is_text(value: str | None) -> bool:
    return value is None or not re.search("[\ud800-\udfff]", value)


def is_id(value: str | None, quotes: bool) -> bool:
    if value is None or value in MISSING or not is_text(value) or re.search(r"[\t\n\r\0]", value):
        return False
    return quotes or not value.startswith('"')


def seconds(value: Any) -> float | None:
    small = type(value) in (float, str) or (type(value) is int and abs(value) < 1e300)
    if small and is_number(str(value)):
        return float(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)).timestamp()
    return None


def intent(value: Any, separator: str | None) -> str | None:
    """The last level of an intent; white space runs are one blank, marks in front go."""
    if separator and isinstance(value, str):
        value = [part.strip("[]'\" ") for part in value.split(separator)]
    names = []
    for one in value if isinstance(value, (list, tuple)) else [value]:
        name = " ".join(re.sub(r"[\x00-\x1f]", " ", token(one) or "").split()).lstrip('"').strip()
        if name not in MISSING:
            names.append(name)
    return "\x1f".join(names) or None


def expected(files: dict[str, Raw], separator: str | None, quotes: bool) -> tuple[list[Any], dict[str, str], int]:
    """Interactions by user and time, the intent of each item, and how many rows were left out."""
    left_out = sum(len(raw.faults) for raw in files.values())
    clicks: dict[tuple[str, str, float], int] = {}
    votes: dict[str, dict[str | None, list[int]]] = {}
    for name, raw in files.items():
        for line, record in raw.records:
            item = token(record.get("item"))
            name_of = intent(record.get("category"), separator) if name == "items" or len(files) == 1 else None
            good = is_id(item, quotes) and is_text(name_of)
            if name == "interactions":
                user, when = token(record.get("user")), seconds(record.get("time"))
                good = good and is_id(user, quotes) and when is not None
                if good:
                    clicks.setdefault((user, item, when), line)
            if not good:
                left_out += 1
            elif name == "items" or len(files) == 1:
                votes.setdefault(item, {}).setdefault(name_of, []).append(line)
    best = {}
    for item, of_item in votes.items():
        order = sorted(of_item, key=lambda one: (one is None, -len(of_item[one]), of_item[one][0]))
        best[item] = (order[0] or "").rpartition("\x1f")[2]
    rows = sorted(clicks, key=lambda click: (click[0], click[2], clicks[click]))
    return rows, {item: best.get(item, "") for item in sorted({click[1] for click in rows})}, left_out


# Case ----------------------------------------------------------------------------------------------------------------


def case(rng: random.Random, folder: Path, note: dict[str, Any]) -> str:
    tables, files, paths = raw_tables(rng), {}, {}
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        mutation = rng.choice(SHARED)
        mutation(rng, tables)
        note["mutations"].append(mutation.__name__)
    form = rng.choice(["csv", "csv", "tsv", "jsonl", "jsonl", "parquet"])
    packed = rng.choice(["", "", "", *PACKERS]) if form != "parquet" else ""
    damaged = rng.choice(["", "", "", "interactions", "items"])
    for name, wanted in COLUMNS.items():
        told = None
        if form == "parquet":
            blob, told = as_parquet(tables, name, rng)
        else:
            separator = "," if form == "csv" else "\t"
            blob = as_json(tables, name, rng) if form == "jsonl" else as_csv(tables, name, separator)
        before_packing = rng.random() < 0.5
        if name == damaged and before_packing:
            blob = mutated(rng, blob, note)
        blob = PACKERS[packed](blob)
        if name == damaged and not before_packing:
            blob = mutated(rng, blob, note)
        paths[name] = folder / f"{name}.{form}{packed}"
        paths[name].write_bytes(blob)
        if form == "parquet":
            files[name] = parquet_oracle(blob, told, wanted, name == damaged)
        else:
            text, is_damaged, doubt = unpacked(blob)
            files[name] = read_json(text) if form == "jsonl" else read_csv(text, wanted, separator)
            files[name].damaged, files[name].doubt = is_damaged, files[name].doubt or doubt
    separator = rng.choice([None, None, " > "])
    arguments = [
        "prepare", "table", "--name=d", "--out=out", "--user=user", "--item=item", "--time=time", "--intent=category",
        f"--interactions={paths['interactions']}", f"--items={paths['items']}", "--memory=200MB", "--threads=1",
        *([f"--separator={separator}"] if separator else []), *(["--strict"] if rng.random() < 0.15 else []),
    ]  # fmt: skip
    note["input"] = arguments
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    left = sorted(path.name for path in folder.rglob("*") if path.is_file() and path not in paths.values())
    wanted_files = ["README.md", "d.inter", "d.item"] if status == 0 else []
    check(left == wanted_files, f"status {status}, files left: {left}")
    told = err.getvalue().strip().splitlines()[-1:] or [""]
    answers = [expected(files, separator, quotes) for quotes in (False, True)]
    if status:
        check(status in (1, 2) and "Traceback" not in "".join(told), told[0], "raw error")
        named = any(path.name in told[0] for path in paths.values())
        check(named, f"names no file: {told[0]}", "unclear error")
        faults = "--strict" in arguments and any(left_out for _, _, left_out in answers)
        reason = faults or any(raw.refused or raw.doubt or raw.damaged for raw in files.values())
        nothing = any(not rows or not any(intents.values()) for rows, intents, _ in answers)
        check(reason or nothing, f"nothing is wrong, but {told[0]}", "refused")
        return "clear error"
    check(not any(raw.refused for raw in files.values()), f"read in spite of {[raw.refused for raw in files.values()]}")
    left_out = int(re.search(r"; ([\d,]+) rows of the raw files left out", out.getvalue())[1].replace(",", ""))
    read = result(folder / "out" / "d")
    if any(raw.damaged for raw in files.values()):
        check(left_out and "damaged" in err.getvalue(), "a file breaks off, which nothing says")
        answers += [answer for cut in shortened(files) for answer in [expected(cut, separator, False)]]
        check(any(read == answer[:2] for answer in answers), "no part of the file gives this")
        return "dropped and counted"
    if any(raw.doubt for raw in files.values()):
        return "equal" if any(read == answer[:2] for answer in answers) else "dropped and counted"
    for answer in answers:
        if read == answer[:2] and left_out == answer[2]:
            check("--strict" not in arguments or not left_out, "strict, but rows were left out")
            return "dropped and counted" if left_out else "equal"
    check(read[0] == answers[0][0], f"interactions {difference(read[0], answers[0][0])}")
    check(read[1] == answers[0][1], f"intents {difference(list(read[1].items()), list(answers[0][1].items()))}")
    check(False, f"{left_out} rows left out, not {answers[0][2]}")


def mutated(rng: random.Random, blob: bytes, note: dict[str, Any]) -> bytes:
    mutation = rng.choice(BYTE_MUTATIONS)
    note["mutations"].append(mutation.__name__)
    return mutation(rng, blob)


def parquet_oracle(blob: bytes, told: list[dict[str, Any]] | None, wanted: list[str], damaged: bool) -> Raw:
    raw = Raw()
    if damaged:  # Parquet has no check of its own: what pyarrow reads in one piece is what the file says
        try:
            told = pq.read_table(io.BytesIO(blob)).to_pylist()
        except Exception as error:
            raw.refused = f"damaged: {error}"
            return raw
        raw.doubt = "a mutated Parquet file"
    if told is None:
        raw.doubt = "a column twice"
        return raw
    columns = pq.read_schema(io.BytesIO(blob)).names
    if missing := [name for name in wanted if name not in columns]:
        raw.refused = f"no column {missing[0]}"
    raw.records = list(enumerate(told, 1))
    return raw


def shortened(files: dict[str, Raw]) -> Iterator[dict[str, Raw]]:
    """The files with each possible end of a damaged one; two damaged ones do not occur."""
    for name, raw in files.items():
        if raw.damaged:
            for size in range(len(raw.records)):
                yield files | {name: Raw(raw.records[:size])}


def result(folder: Path) -> tuple[list[Any], dict[str, str]]:
    inter, item = (
        [line.split("\t") for line in (folder / f"d.{ending}").read_text(encoding="utf-8").split("\n")[1:-1]]
        for ending in ("inter", "item")
    )
    return [(user, item, float(time)) for user, item, time in inter], dict(item)


def difference(read: list[Any], wanted: list[Any]) -> str:
    only = (
        collections.Counter(read) - collections.Counter(wanted),
        collections.Counter(wanted) - collections.Counter(read),
    )
    return f"{short(list(only[0])[:2], 200)} and not {short(list(only[1])[:2], 200)}; {len(read)} and {len(wanted)}"
