"""speed/cpu_step.py trains two trees in turn; a tree beside itself trains the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preloaded import Preloaded

TREE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def test_a_tree_beside_itself(tmp_path: Path, toy_path: Path, fresh_python: Preloaded) -> None:
    options = ["--repeats=1", "--seeds=1", "--epochs=1", "--out=result.json"]
    done = fresh_python(TREE / "speed" / "cpu_step.py", "--before", TREE, "--data", toy_path, "toy", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert result["ratio"] == pytest.approx(result["now"] / result["before"]) and result["ratio"] > 0
    assert result["loss"]["now"] == result["loss"]["before"] and len(result["loss"]["now"]) == 2
    assert result["runs"]["now"] == result["runs"]["before"] and "valid" in result["runs"]["now"][0]
    assert result["commits"]["now"] == result["commits"]["before"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
