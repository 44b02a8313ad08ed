"""recbole_cafe.recommend.spark: the rows that Spark writes are those of one process."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from made import bundle_of

from recbole_cafe.errors import DataError, OutputError
from recbole_cafe.recommend.batch import recommend_file
from recbole_cafe.recommend.bundle import write
from recbole_cafe.recommend.spark import recommend_on_spark

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed"),
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java, which Spark needs"),
]
INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z"}
WALKS = {"u1": "abcab", "u2": "bcd", "u3": "acdf", "u4": "fbe"}
OPTIONS = {"k": 3, "reasons": True}


def rows(lines: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


def test_spark_writes_the_rows_of_one_process(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    write(bundle_of("IntentBackoff", WALKS, INTENT), shop)
    taken = {"anna": "ab", "ben": "c", "7": "bec", "zoe": "fa"}
    by_user = [(user, item, t) for user, items in taken.items() for t, item in enumerate(items)]
    for name, order in (("sorted", by_user), ("mixed", sorted(by_user, key=lambda row: row[2]))):
        text = "".join(f"{user},{item},{t}\n" for user, item, t in order)
        (tmp_path / f"{name}.csv").write_text("user_id,item_id,timestamp\n" + text)
    recommend_file(shop, tmp_path / "sorted.csv", tmp_path / "lists.jsonl", OPTIONS)
    local = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    n = recommend_on_spark(shop, str(tmp_path / "mixed.csv"), tmp_path / "lists.parquet", OPTIONS)
    assert n == len(local)
    assert rows(pyarrow.parquet.read_table(tmp_path / "lists.parquet").to_pylist()) == rows(local)

    with pytest.raises(OutputError, match="is there already"):
        recommend_on_spark(shop, str(tmp_path / "mixed.csv"), tmp_path / "lists.parquet", OPTIONS)
    (tmp_path / "wrong.csv").write_text("who,what\n1,2\n")
    with pytest.raises(DataError, match="expected the columns user and item"):
        recommend_on_spark(shop, str(tmp_path / "wrong.csv"), tmp_path / "other.csv", OPTIONS)
