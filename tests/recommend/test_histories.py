"""recbole_cafe.recommend.histories: raw tokens to ids, from lists and from tables of every kind."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from made import bundle_of

from recbole_cafe.errors import DataError
from recbole_cafe.recommend import histories as module
from recbole_cafe.recommend.histories import Lookup, read_histories

INTENT = {"b": "x", "10": "x", "é": "y", "a": "", "9": "z", "A": "z"}
LOOKUP = Lookup(bundle_of("IntentBackoff", {"u": ["a", "b"]}, INTENT).items)
IDS = {token: at for at, token in enumerate(INTENT, start=1)}


def ids(given: Any) -> list[list[int]]:
    read = read_histories(given, LOOKUP)
    return [read.item[start:end].tolist() for start, end in zip(read.start[:-1], read.start[1:], strict=True)]


@pytest.mark.parametrize("many", [0, 10**9])
def test_a_token_has_the_id_of_its_place(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_UP_ONE_BY_ONE", many)
    tokens = ["a", "A", "b", "é", "e", "", "10", "9", "1", "ab", "zzz", "\x00", "10 "]
    assert LOOKUP.ids(tokens).tolist() == [IDS.get(token, 0) for token in tokens]
    assert LOOKUP.ids([]).tolist() == []


def test_lists_may_be_empty_unknown_single_and_hold_duplicates() -> None:
    given = [["a"], [], ["nowhere"], ["b", "x", "b", "b"], [10, np.int64(9)], ("é",), np.array(["a", "b"])]
    read = read_histories(given, LOOKUP)
    assert ids(given) == [[4], [], [], [1, 1, 1], [2, 5], [3], [4, 1]]
    assert read.n_unknown.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert read.user.to_pylist() == list(range(7))
    assert len(read) == 7
    assert len(read_histories([], LOOKUP)) == 0


def test_rows_are_the_newest_items_padded_on_the_right() -> None:
    read = read_histories([["a", "b", "10"], ["9"], [], ["a", "a"]], LOOKUP)
    assert read.padded(np.array([0, 1, 3]), 2).tolist() == [[1, 2], [5, 0], [4, 4]]
    assert read.padded(np.array([1]), 8).tolist() == [[5]]
    assert [one.tolist() for one in read.distinct(np.array([0, 3]))] == [[1, 2, 4], [4]]
    part = read.rows(slice(1, 4))
    assert part.user.to_pylist() == [1, 2, 3]
    assert part.padded(np.array([0, 2]), 3).tolist() == [[5, 0], [4, 4]]


ROWS = {"user": ["u2", "u1", "u2", "u1", "u2"], "item": ["b", "a", "9", "nowhere", "10"], "time": [3, 2, 1, 1, 3]}
IN_TIME = [[5, 1, 2], [4]]  # u2 first, since his row is; of equal times the first in the table
IN_ORDER = [[1, 5, 2], [4]]


def tables() -> dict[str, Any]:
    polars = pytest.importorskip("polars")
    renamed = {f"{name}_id" if name != "time" else "timestamp": cells for name, cells in ROWS.items()}
    return {
        "mapping": ROWS,
        "pandas": pd.DataFrame(ROWS),
        "pandas with an index": pd.DataFrame(ROWS, index=list("vwxyz")),
        "pandas of categories": pd.DataFrame(ROWS).astype({"user": "category", "item": "category"}),
        "Polars": polars.DataFrame(ROWS),
        "Arrow": pa.table(ROWS),
        "a batch": pa.RecordBatch.from_pydict(ROWS),
        "RecBole's names": pa.table(renamed),
        "dates": pa.table({**ROWS, "time": [datetime(2024, 1, day) for day in ROWS["time"]]}),
        "dictionaries": pa.table({**ROWS, "item": pa.array(ROWS["item"]).dictionary_encode()}),
        "large text": pa.table({**ROWS, "user": pa.array(ROWS["user"], pa.large_string())}),
        "chunks": pa.concat_tables([pa.table(ROWS).slice(0, 2), pa.table(ROWS).slice(2)]),
    }


@pytest.mark.parametrize("kind", list(tables()))
def test_a_table_of_any_kind_gives_histories_in_time(kind: str) -> None:
    given = tables()[kind]
    read = read_histories(given, LOOKUP)
    assert ids(given) == IN_TIME
    assert read.user.to_pylist() == ["u2", "u1"]
    assert read.n_unknown.tolist() == [0, 1]


def test_without_times_the_rows_are_in_order() -> None:
    assert ids({name: ROWS[name] for name in ("user", "item")}) == IN_ORDER
    assert ids(pa.table({"user": pa.array([], pa.string()), "item": pa.array([], pa.string())})) == []


def test_numbers_are_names_too() -> None:
    assert ids(pd.DataFrame({"user": [1, 1], "item": [9, 10]})) == [[5, 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("abc", "histories: 'abc' is a str, expected a list of lists"),
        (7, "histories: 7 is a int, expected a list of lists"),
        (["abc"], r"histories\[0\]: 'abc' is a str, expected a list of items"),
        ([["a"], None], r"histories\[1\]: None is a NoneType"),
        ([["a", 1.5]], r"histories\[0\]\[1\]: 1.5 is a float, expected a token"),
        ([["a", True]], r"histories\[0\]\[1\]: True is a bool"),
        ([{"a": 1}], r"histories\[0\]: {'a': 1} is a dict"),
        ({"user": ["u"]}, "histories: no column item or item_id; there are user"),
        ({"user": ["u"], "item": ["a"], "item_id": ["a"]}, "both columns item and item_id"),
        ({"user": ["u", None], "item": ["a", "b"]}, "histories: row 1 has no user"),
        ({"user": ["u"], "item": [1.5]}, "column item is of type double, expected tokens"),
        ({"user": ["u"], "item": ["a"], "time": ["soon"]}, "column time is of type string, expected numbers or dates"),
        ({"user": ["u"], "item": ["a"], "time": [float("nan")]}, "row 0 has the time nan"),
        ({"user": ["u"], "item": ["a", "b"]}, "cannot be read as a table"),
    ],
)
def test_what_is_no_history_is_named(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_histories(given, LOOKUP)
