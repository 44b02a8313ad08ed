"""recbole_cafe.recommend.spark: the same rows as on this machine, by a local Spark."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from made import bundle_of

from recbole_cafe.cli.main import main
from recbole_cafe.errors import DataError, OutputError
from recbole_cafe.recommend.batch import Summary, recommend_file
from recbole_cafe.recommend.bundle import write
from recbole_cafe.recommend.spark import recommend_on_spark

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed"),
    pytest.mark.skipif(not (shutil.which("java") or os.environ.get("JAVA_HOME")), reason="Spark needs Java"),
]

INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z"}
WALKS = {"u1": "abcab", "u2": "bcd", "u3": "acdf", "u4": "fbe"}
HISTORIES = {"anna": ["a", "b"], "ben": ["c"], "7": ["b", "nowhere", "c"], "nobody": ["nowhere"], "zoe": ["f"]}
HISTORIES |= {f"u{n}": list("abcdef"[n % 6 :]) for n in range(50)}
OPTIONS = {"k": 3, "per_intent": 2}


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for key, value in {
        "spark.sql.shuffle.partitions": "3", "spark.driver.host": "localhost",
        "spark.driver.bindAddress": "127.0.0.1", "spark.ui.showConsoleProgress": "false",
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }.items():  # fmt: skip
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield
    session.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spark") / "shop"
    write(bundle_of("CaFePlus", WALKS, INTENT), folder)
    return folder


def write_histories(name: str) -> Path:
    path = Path(name)
    if path.stem == "lists":
        rows: list[dict[str, Any]] = [{"user": user, "items": items} for user, items in HISTORIES.items()]
    else:  # newest first, so that times have to be read
        rows = [
            {"user_id": user, "item_id": item, "timestamp": time}
            for user, items in HISTORIES.items()
            for time, item in reversed(list(enumerate(items)))
        ]
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "items": " ".join(row["items"])} if "items" in row else row for row in rows)
    return path


def rows_of(path: Path) -> list[Any]:
    """Of a file, or of the files of a folder; in order of user and rank."""
    if path.suffix == ".parquet":
        rows = pa.parquet.read_table(path).to_pylist()
    else:
        files = [path] if path.is_file() else sorted(path.glob("part-*"))
        rows = []
        for part in files:
            with open(part, newline="", encoding="utf-8") as file:
                rows += [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))
    for row in rows:
        row["rank"], row["probability"] = int(row["rank"]), pytest.approx(float(row["probability"]), rel=1e-5)
    return sorted(rows, key=lambda row: (row["user"], row["rank"]))


@pytest.mark.parametrize(
    ("name", "out"),
    [("rows.csv", "out.parquet"), ("rows.parquet", "out.jsonl"), ("rows.jsonl", "out.csv"), ("lists.csv", "out.csv"),
     ("lists.jsonl", "out.parquet"), ("lists.parquet", "out.jsonl")],
)  # fmt: skip
def test_spark_gives_the_rows_of_this_machine(shop: Path, name: str, out: str) -> None:
    source = write_histories(name)
    options = {**OPTIONS, "reasons": out == "out.csv"}
    here = recommend_file(shop, source, Path(f"here-{out}"), options)
    there = recommend_on_spark(shop, str(source), Path(out), options)
    assert there == here == Summary(len(HISTORIES), here.rows, unknown=2, empty=1)
    assert rows_of(Path(out)) == rows_of(Path(f"here-{out}"))


def test_rows_of_a_user_need_not_stand_together(shop: Path) -> None:
    Path("mixed.csv").write_text("user,item,time\nb,c,9\na,b,2024-01-02\nb,a,1\na,a,2024-01-01\n")
    Path("sorted.csv").write_text("user,items\na,a b\nb,a c\n")
    recommend_on_spark(shop, "mixed.csv", Path("out.parquet"), OPTIONS)
    recommend_file(shop, Path("sorted.csv"), Path("here.parquet"), OPTIONS)
    assert rows_of(Path("out.parquet")) == rows_of(Path("here.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("user,item\na,\n", "user 'a', column item is empty, expected a token"),
        ("user,item\n,b\n", "column user is empty, expected a token"),
        ("user,items\na,b\na,c\n", "user 'a' has 2 rows, expected one with all of his items"),
        ("user,item,time\na,b,soon\n", "user 'a', column time: 'soon', expected a finite number or a date"),
        ("user,thing\na,b\n", "found neither; there are user, thing"),
    ],
)
def test_what_cannot_be_right_is_named(shop: Path, text: str | None, message: str) -> None:
    if text is not None:
        Path("h.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        recommend_on_spark(shop, "h.csv", Path("out.csv"), OPTIONS)
    assert "h.csv" in str(caught.value)
    assert not Path("out.csv").exists()


def test_the_command_asks_for_spark(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_histories("rows.csv")
    command = ["recommend", str(shop), f"--histories={source}", "--out=out.jsonl", "--k=2", "--engine=spark"]
    assert main(command) == 0
    assert "out.jsonl: 83 rows for 55 histories" in capsys.readouterr().out
    assert main(command) == 1
    assert "out.jsonl is there already" in capsys.readouterr().err
    with pytest.raises(OutputError):
        recommend_on_spark(shop, str(source), Path("out.jsonl"), OPTIONS)
