"""recbole_cafe.recommend.batch: files in and out, both shapes, parts of a killed command, and what is refused."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from made import bundle_of

from recbole_cafe.errors import DataError, OutputError
from recbole_cafe.recommend import batch, tables
from recbole_cafe.recommend.bundle import write
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.tables import histories_in, opened

INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z"}
WALKS = {"u1": "abcab", "u2": "bcd", "u3": "acdf", "u4": "fbe"}
HISTORIES = {"anna": ["a", "b"], "ben": ["c"], "7": ["b", "nowhere", "c"], "nobody": ["nowhere"], "zoe": ["f"]}
OPTIONS = {"k": 3, "reasons": True}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "shop"
    write(bundle_of("IntentBackoff", WALKS, INTENT), folder)
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART", 2)


def write_histories(path: Path) -> Path:
    """In the shape that the name says: `rows` one row an interaction, newest first with times; `lists` one a user."""
    listed = path.name.startswith("lists")
    if listed:
        rows: list[dict[str, Any]] = [{"user": user, "items": items} for user, items in HISTORIES.items()]
    else:
        rows = [
            {"user_id": user, "item_id": item, "timestamp": float(time)}
            for user, items in HISTORIES.items()
            for time, item in reversed(list(enumerate(items)))
        ]
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in path.name or path.suffix == ".tsv":
        rows = [{**row, "items": " ".join(row["items"])} if listed else row for row in rows]
        separator = "\t" if path.suffix == ".tsv" else ","
        text = "".join(separator.join(map(str, cells)) + "\n" for cells in [rows[0], *(row.values() for row in rows)])
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def expected(shop: Path) -> list[dict[str, Any]]:
    rows = Recommender.load(shop).recommend(list(HISTORIES.values()), **OPTIONS).to_pylist()
    names = list(HISTORIES)
    return [{**row, "user": names[row["user"]]} for row in rows]


@pytest.mark.parametrize(
    "name",
    ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.jsonl", "rows.parquet", "lists.csv", "lists.jsonl", "lists.parquet"],
)
def test_every_form_of_histories_gives_the_lists_of_memory(shop: Path, name: str) -> None:
    done = batch.recommend_file(shop, write_histories(Path(name)), Path("out.jsonl"), OPTIONS)
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == expected(shop)
    assert done == batch.Summary(5, len(expected(shop)), unknown=2, empty=1)
    assert not list(Path().glob(".out*"))


def test_every_form_of_lists_holds_the_same(shop: Path) -> None:
    rows = expected(shop)
    source = write_histories(Path("rows.csv"))
    for name in ("out.parquet", "out.csv"):
        batch.recommend_file(shop, source, Path(name), OPTIONS)
    assert pa.parquet.read_table("out.parquet").to_pylist() == rows
    read = pa.csv.read_csv(
        "out.csv",
        convert_options=pa.csv.ConvertOptions(
            column_types={"user": pa.string()}, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    ).to_pylist()
    assert [{**row, "reason": row["reason"] and row["reason"]["text"]} for row in rows] == read


def test_a_killed_command_goes_on_where_it_was(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, write_part, n = write_histories(Path("rows.csv")), batch._write_part, 0

    def killed(path: Path, table: pa.Table, done: batch.Summary) -> None:
        nonlocal n
        n += 1
        if n == 3:
            raise KeyboardInterrupt
        write_part(path, table, done)

    monkeypatch.setattr(batch, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        batch.recommend_file(shop, source, Path("out.jsonl"), OPTIONS)
    assert not Path("out.jsonl").exists()
    with pytest.raises(OutputError, match="killed command with another bundle, histories or options"):
        batch.recommend_file(shop, source, Path("out.jsonl"), {"k": 4})
    done = batch.recommend_file(shop, source, Path("out.jsonl"), OPTIONS)
    assert done == batch.Summary(5, len(expected(shop)), resumed=4, unknown=2, empty=1)
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == expected(shop)


def test_times_may_be_numbers_or_dates_and_equal_ones_stay_in_order(shop: Path) -> None:
    stamps = ["2024-05-31", "1717113600", "2024-05-31T00:00:00+00:00"]  # one moment
    for times in (stamps, ["2024-06-02", "2024-06-01T12:00:00", "0"]):
        rows = [f"u,{item},{time}\n" for item, time in zip("abc", times, strict=True)]
        Path("h.csv").write_text("user,item,time\n" + "".join(rows))
        with opened(Path("h.csv")) as source:
            (history,) = histories_in(source)
        assert history.items == (list("abc") if times is stamps else list("cba"))
    moments = [datetime.datetime(2024, 6, 1, 12), datetime.datetime(2024, 5, 31)]
    for kind in (pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"), pa.date32(), pa.timestamp("s")):
        time = (
            pa.array(moments).cast(kind, safe=False) if kind != pa.date32() else pa.array([m.date() for m in moments])
        )
        pa.parquet.write_table(pa.table({"user": [1, 1], "item": ["a", "b"], "time": time}), "h.parquet")
        with opened(Path("h.parquet")) as source:
            (history,) = histories_in(source)
        assert (history.user, history.items, history.place) == ("1", ["b", "a"], "row 1")


def test_cells_are_quoted_where_they_have_to_be(shop: Path) -> None:
    names = ["plain", "a,b", 'say "x"', "two\nlines", "é", "a\tb", " "]
    Path("h.jsonl").write_text("".join(json.dumps({"user": name, "items": ["a"]}) + "\n" for name in names))
    for name, separator in (("out.csv", ","), ("out.tsv", "\t")):
        batch.recommend_file(shop, Path("h.jsonl"), Path(name), {"k": 1})
        with open(name, newline="", encoding="utf-8") as file:
            assert [row["user"] for row in csv.DictReader(file, delimiter=separator)] == names
    assert Path("out.csv").read_text().splitlines()[1].startswith("plain,1,")
    batch.recommend_file(shop, Path("h.jsonl"), Path("out.jsonl"), {"k": 1})
    assert [json.loads(line)["user"] for line in Path("out.jsonl").read_text().splitlines()] == names


def test_a_user_is_missed_in_no_run_of_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 4)
    n = 100
    Path("h.csv").write_text("user,items\n" + "".join(f"u{i},\n" for i in range(n)))
    with opened(Path("h.csv")) as source:
        assert [history.user for history in histories_in(source)] == [f"u{i}" for i in range(n)]
    for again in (0, 3, 4, 50, 97, 99):
        with open("h.csv", "a") as file:
            end = file.tell()
            file.write(f"u{again},\n")
        with opened(Path("h.csv")) as source, pytest.raises(DataError, match=rf"line 102: user 'u{again}' comes again"):
            list(histories_in(source))
        os.truncate("h.csv", end)


def test_a_part_holds_fewer_histories_of_longer_lists() -> None:
    assert [batch.size_of_part(k) for k in (1, 1000, 10**7)] == [2, 2, 1]  # PART is 2 here


def test_no_histories_give_no_lists(shop: Path) -> None:
    Path("none.csv").write_text("user,item\n")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert batch.recommend_file(shop, Path("none.csv"), Path(name), OPTIONS).histories == 0
    assert Path("out.csv").read_text() == "user,rank,item,probability,intent,reason\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "h.csv",
            "user,item\na,1\nb,1\na,2\n",
            "line 4: user 'a' comes again after other users, expected the rows of a",
        ),
        ("h.jsonl", '{"user": "a", "items": []}\n{"user": "a", "items": []}\n', "line 2: user 'a' comes again"),
        (
            "h.csv",
            "user,thing\na,1\n",
            "expected a column item .* or a column items .*, found neither; there are user, th",
        ),
        ("h.csv", "user,item,items\na,1,1\n", "or a column items .*, found both"),
        ("h.csv", "user_id,user,item\na,1,1\n", "of the columns user_id, user, item two mean the same"),
        ("h.csv", "usr,item\na,1\n", "no column user or user_id; there are usr, item; did you mean usr"),
        ("h.csv", "user,item\na,1\n,2\n", "line 3, column user is empty, expected a token"),
        ("h.csv", "user,item\na,\n", "line 2, column item is empty, expected a token"),
        ("h.csv", "user,item\na,1\n\nb\n", "line 4 has 1 cells, expected 2: user, item"),
        ("h.csv", 'user,item\na,"1\n', "line 2 cannot be read as CSV"),
        ("h.csv", "user,item,time\na,1,soon\n", "line 2, column time: 'soon', expected a finite number or a date"),
        ("h.csv", "user,item,time\na,1,nan\n", "line 2, column time: 'nan', expected a finite number"),
        ("h.csv", "", "is empty, expected names of columns"),
        ("h.csv", b"user,item\na,\xff\n", "cannot be read, is damaged or not what its name says .*utf-8"),
        ("h.jsonl", '{"user": "a", "items": ["b"]}\nnonsense\n', "line 2 is not JSON"),
        ("h.jsonl", '{"user": "a", "items": "b"}\n[1]\n', "line 2 holds a list, expected an object"),
        ("h.jsonl", '{"user": "a", "items": "b"}\n{"user": "b"}\n', "line 2 has no 'items'; it has user"),
        ("h.jsonl", '{"user": "a", "items": [["b"]]}\n', "line 1, column items.0.: .* expected a token"),
        ("h.jsonl", '{"user": "a", "items": [""]}\n', "line 1, column items: an item without a name"),
        ("h.jsonl", '{"user": "a", "items": null}\n', "line 1, column items: None is a NoneType, expected a list"),
        ("h.jsonl", '{"user": 1.5, "items": []}\n', "line 1, column user: 1.5 is a float, expected a token"),
        ("h.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("h.parquet", "no Parquet", "cannot be read"),
        ("h.txt", "user item", "expected a name that ends in .csv, .tsv, .jsonl, .ndjson, .parquet"),
        ("h.csv.gz", "not compressed", "cannot be read"),
        ("h.csv.gz", gzip.compress(b"user,item\n" + b"a,1\n" * 9999, mtime=0)[:-20], "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_right_is_named(shop: Path, name: str, text: str | bytes, message: str) -> None:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        batch.recommend_file(shop, Path(name), Path("out.csv"), OPTIONS)
    assert name in str(caught.value)
    assert not Path("out.csv").exists() and not list(Path().glob(".out*"))


def test_a_place_that_cannot_be_written_is_named(shop: Path) -> None:
    source = write_histories(Path("rows.csv"))
    Path("folder.csv").mkdir()
    with pytest.raises(OutputError, match=r"folder.csv is a folder"):
        batch.recommend_file(shop, source, Path("folder.csv"), OPTIONS)
    with pytest.raises(DataError, match="read, not written"):
        batch.recommend_file(shop, source, Path("out.csv.gz"), OPTIONS)
    with pytest.raises(DataError, match=r"there is no file missing\.csv"):
        batch.recommend_file(shop, Path("missing.csv"), Path("out.csv"), OPTIONS)
