"""speed/first_hour.py: the blocks of a page in one shell, in order, each with its time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from page_code import Block

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is committed is asked of git")

LISTED = '[{"name": "recbole-cafe", "version": "1"}, {"name": "recbole", "version": "2"}, {"name": "torch", ' \
         '"version": "3"}, {"name": "numpy", "version": "4"}, {"name": "pandas", "version": "5"}]'  # fmt: skip
INSTALL = f"""mkdir -p .venv/bin
echo '{LISTED}' > .venv/list
printf '#!/bin/sh\\ncat "${{0%%/*}}/../list"\\n' > .venv/bin/pip && chmod +x .venv/bin/pip
export SEEN=1; test -f README.md; test -z "$PYTHONPATH$OMP_NUM_THREADS"; mkdir $HOME/own
"""


@pytest.fixture
def first_hour(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "speed"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import first_hour

    yield first_hour
    sys.modules.pop("first_hour")


def steps(*codes: str) -> list[Block]:
    return [
        Block("x.md", i, "", "python" if code.startswith("import") else "bash", code) for i, code in enumerate(codes)
    ]


def test_the_blocks_share_a_shell_and_are_timed(first_hour: Any, tmp_path: Path) -> None:
    python = "import os, pathlib\nassert os.environ['SEEN'] and pathlib.Path('setup.py').exists()\n"
    run = steps(INSTALL, "sleep 0.3", python, "sleep 60 &\necho '{\"reason\": 1}'")
    result = first_hour.first_hour(run, tmp_path)
    assert [step["command"] for step in result["steps"]][:2] == ["mkdir -p .venv/bin", "sleep 0.3"]
    assert 0.3 <= result["steps"][1]["seconds"] < result["seconds"] < 60
    assert result["minutes"] == pytest.approx(result["seconds"] / 60, abs=0.01)
    assert result["packages"] == {"recbole-cafe": "1", "recbole": "2", "torch": "3", "numpy": "4", "pandas": "5"}


@pytest.mark.parametrize(
    ("codes", "said"),
    [((INSTALL, "echo no >&2\nfalse"), r"x\.md:1 failed with status 1:\n.*no"),
     ((INSTALL, "echo []"), "no list with reasons")],
)  # fmt: skip
def test_a_command_that_fails_is_named(first_hour: Any, tmp_path: Path, codes: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit, match=f"(?s){said}"):
        first_hour.first_hour(steps(*codes), tmp_path)
