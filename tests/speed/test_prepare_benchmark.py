"""The benchmark of `prepare` runs to its end with --quick and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preloaded import Preloaded

FOLDER = Path(__file__).resolve().parents[2] / "speed"

pytestmark = pytest.mark.slow


def test_it_measures_the_command_and_its_children(tmp_path: Path, fresh_python: Preloaded) -> None:
    done = fresh_python(FOLDER / "prepare.py", "--quick", "--threads=1", "--out=result.json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert result["benchmark"] == "prepare" and result["quick"] is True and result["engine"] == "duckdb"
    assert result["data"]["reviews"] == 20_000 and result["data"]["raw_mb_unpacked"] > result["data"]["raw_mb"] > 0
    assert result["reviews_per_second"] == pytest.approx(20_000 / result["seconds"])
    assert 50 < result["largest_process_mb"] <= result["peak_mb"] < 4096
    assert any("not a JSON record" in line for line in result["steps"])  # the broken lines are counted
    assert not any(str(tmp_path) in line or "/tmp" in line for line in result["steps"])
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
