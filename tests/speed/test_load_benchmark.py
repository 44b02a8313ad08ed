"""speed/load.py: both sides in a process each, and what it says when one exceeds its limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preloaded import Preloaded

SCRIPT = Path(__file__).resolve().parents[2] / "speed" / "load.py"

pytestmark = pytest.mark.slow


def run(python: Preloaded, *options: str) -> dict:
    """The JSON of the last line."""
    done = python(SCRIPT, "--quick", "--threads=1", "--out=result.json", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ours: loading")
    last = done.stdout.splitlines()[-1]
    assert Path("result.json").read_text() == last + "\n"
    return json.loads(last)


def test_both_sides_load_the_same_split(fresh_python: Preloaded) -> None:
    result = run(fresh_python)
    ours, theirs = result["ours"], result["theirs"]
    assert result["ratio"] == pytest.approx(ours["seconds"] / theirs["seconds"])
    assert ours["dataset"].startswith("recbole_cafe.") and theirs["dataset"].startswith("recbole.")
    assert ours["rows"][1:] == theirs["rows"][1:]
    for side in (ours, theirs):
        assert side["peak_mb"] >= side["peak_mb_of_imports"] > 0


def test_a_limit_is_a_result(fresh_python: Preloaded) -> None:
    result = run(fresh_python, "--time_s=0.3")
    assert result["ratio"] is None
    assert result["no_ratio_because"] == "ours: more than 0.3 seconds; theirs: more than 0.3 seconds"
    result = run(fresh_python, "--memory_gb=0.1")
    assert result["theirs"]["failed"] == "more than 0.1 GiB of memory"
    assert result["theirs"]["peak_mb"] > 100
