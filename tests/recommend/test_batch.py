"""recbole_cafe.recommend.batch: files in and out, both shapes, parts of a killed command, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from made import bundle_of

from recbole_cafe.errors import DataError, OutputError
from recbole_cafe.recommend import batch
from recbole_cafe.recommend.bundle import write
from recbole_cafe.recommend.recommender import Recommender

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
    elif ".csv" in path.name:
        rows = [{**row, "items": " ".join(row["items"])} if listed else row for row in rows]
        text = ",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
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
    ["rows.csv", "rows.csv.gz", "rows.jsonl", "rows.parquet", "lists.csv", "lists.jsonl", "lists.parquet"],
)
def test_every_form_of_histories_gives_the_lists_of_memory(shop: Path, name: str) -> None:
    done = batch.recommend_file(shop, write_histories(Path(name)), Path("out.jsonl"), OPTIONS)
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == expected(shop)
    assert (done.histories, done.rows, done.resumed, done.unknown) == (5, len(expected(shop)), 0, 2)
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

    def killed(path: Path, table: pa.Table) -> None:
        nonlocal n
        n += 1
        if n == 2:
            raise KeyboardInterrupt
        write_part(path, table)

    monkeypatch.setattr(batch, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        batch.recommend_file(shop, source, Path("out.jsonl"), OPTIONS)
    assert not Path("out.jsonl").exists()
    with pytest.raises(OutputError, match="killed command with another bundle, histories or options"):
        batch.recommend_file(shop, source, Path("out.jsonl"), {"k": 4})
    done = batch.recommend_file(shop, source, Path("out.jsonl"), OPTIONS)
    assert (done.histories, done.resumed) == (5, 2)
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == expected(shop)


def test_no_histories_give_no_lists(shop: Path) -> None:
    Path("none.csv").write_text("user,item\n")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert batch.recommend_file(shop, Path("none.csv"), Path(name), OPTIONS).histories == 0
    assert Path("out.csv").read_text() == "user,rank,item,probability,intent,reason\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.csv", "user,item\na,1\nb,1\na,2\n", "row 3: user 'a' was there before"),
        ("h.csv", "user,thing\na,1\n", "no column item or item_id; there are user, thing"),
        ("h.csv", "user,item\na,1\n,2\n", "row 1 has no user"),
        ("h.csv", "user,item,time\na,1,soon\n", "cannot be read: .*'soon'"),
        ("h.jsonl", '{"user": "a", "items": ["b"]}\nnonsense\n', "line 2 is not JSON"),
        ("h.jsonl", '{"user": "a", "items": "b"}\n[1]\n', "line 2 holds a list, expected an object"),
        ("h.jsonl", '{"user": "a", "items": [["b"]]}\n', "row 1, user 'a': items.0.: .* expected a token"),
        ("h.parquet", "no Parquet", "cannot be read"),
        ("h.txt", "user item", "expected a name that ends in .csv, .jsonl, .parquet"),
        ("h.csv.gz", "not compressed", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_right_is_named(shop: Path, name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
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
