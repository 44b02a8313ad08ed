"""A result in a file: what is saved loads back; a file that is none is named with the key at fault."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.errors import DataError
from recbole_cafe.files.result import Result

RESULT = Result(
    model="CaFe", dataset="amazon", seed=7, simulated=True, test_result={"full": {"ndcg@5": 0.25}},
    best_valid_score=0.5, best_valid_result={"ndcg@5": 0.5},
    epochs=3, validations_since_best=1, seconds={"train": 1.5}, peak_memory_mb=100.0,
    curve=[{"epoch": 1, "loss": 0.5, "score": None}],
    parameters=12, data={"users": 3, "nested": [1, None]}, candidates={"pop100": "abc"}, digests={"items": "def"},
    versions={"torch": "2"},
    config={"seed": 7, "loss": None}, checkpoint="", command=["recbole-cafe", "run"],
)  # fmt: skip


def stored(path: Path, change: dict[str, Any] | None = None, without: str | None = None) -> Path:
    content = asdict(RESULT) | (change or {})
    content.pop(without, None)
    path.write_text(json.dumps(content))
    return path


def test_what_is_saved_loads_back(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "new" / "r.json")
    assert Result.load(tmp_path / "new" / "r.json") == RESULT


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN and -Infinity are no JSON: strict readers (JavaScript's, jq) refuse the whole file."""
    numbers = {"best_valid_score": -math.inf, "test_result": {"full": {"gauc": math.nan, "ndcg@5": 0.5}}}
    Result(**asdict(RESULT) | numbers).save(tmp_path / "r.json")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert content["best_valid_score"] is None
    assert content["test_result"] == {"full": {"gauc": None, "ndcg@5": 0.5}}
    loaded = Result.load(tmp_path / "r.json")
    assert loaded.best_valid_score is None
    assert loaded.table().splitlines()[2:] == ["| gauc |  |", "| ndcg@5 | 0.5000 |"]


def test_keys_of_others_are_passed_over_and_whole_numbers_are_numbers(tmp_path: Path) -> None:
    loaded = Result.load(stored(tmp_path / "r.json", {"benchmark": {"run": 1}, "peak_memory_mb": 100}))
    assert loaded == RESULT


def test_what_older_results_lack_is_none(tmp_path: Path) -> None:
    loaded = Result.load(stored(tmp_path / "r.json", without="validations_since_best"))
    assert loaded.validations_since_best is None and loaded.epochs == 3
    assert Result.load(stored(tmp_path / "r.json", without="curve")).curve == []


@pytest.mark.parametrize(
    ("change", "without", "message"),
    [
        (None, "config", r"r\.json: no key 'config', expected a result"),
        ({"seed": "7"}, None, r"r\.json: seed is '7', expected int"),
        ({"seed": True}, None, r"seed is True, expected int"),
        ({"simulated": 1}, None, r"simulated is 1, expected bool"),
        ({"validations_since_best": "one"}, None, r"validations_since_best is 'one', expected int \| None"),
        ({"test_result": []}, None, r"test_result is \[\], expected dict\[str, dict\[str, float \| None\]\]"),
        ({"test_result": {"full": {"ndcg@5": "x"}}}, None, r"test_result\.full\.ndcg@5 is 'x', expected float"),
        ({"command": ["a", 1]}, None, r"command\[1\] is 1, expected str"),
    ],
)
def test_a_key_at_fault_is_named(
    tmp_path: Path, change: dict[str, Any] | None, without: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Result.load(stored(tmp_path / "r.json", change, without))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "not a readable"), ("{", "not a readable"), ("[]", "holds a list, expected a JSON")]
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=rf"r\.json: {message}"):
        Result.load(tmp_path / "r.json")


def test_the_table_has_protocols_as_columns() -> None:
    result = Result(**asdict(RESULT) | {"test_result": {"full": {"ndcg@5": 0.25}, "pop100": {"mrr@5": 0.125}}})
    assert result.table() == ("| test | full | pop100 |\n|---|---|---|\n| ndcg@5 | 0.2500 |  |\n| mrr@5 |  | 0.1250 |")
