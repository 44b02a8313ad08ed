"""One run of a benchmark, in a process of its own: its memory, logs, random state and crashes are its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_cafe.benchmark.layout import ERROR, LOG, RANKS, RESULT
from recbole_cafe.files.whole import write_json

CHECKPOINTS = "checkpoints"


def execute(spec: dict[str, Any]) -> None:
    """Train and test; leave result.json, written last, and ranks.npz in the run's folder.

    Args:
        spec: `folder`, `model`, `dataset`, `config_dict` of the run, `benchmark` (fields of the result), `command`,
            `keep_checkpoints`.
    """
    from recbole_cafe.experiment import run

    folder = Path(spec["folder"])
    settings = {**spec["config_dict"], "checkpoint_dir": str(folder / CHECKPOINTS)}
    settings["save_every"] = 0  # a run that was killed begins again, in an empty folder
    result = run(spec["model"], spec["dataset"], config_dict=settings, ranks_file=folder / RANKS)
    if not spec["keep_checkpoints"]:
        result.checkpoint = ""
    result.command = spec["command"]
    for name in ("log", "log_tensorboard", *([] if spec["keep_checkpoints"] else [CHECKPOINTS])):
        shutil.rmtree(folder / name, ignore_errors=True)  # log.txt holds what RecBole's log file does
    write_json(folder / RESULT, {**asdict(result), "benchmark": spec["benchmark"]})


def fresh_folder(folder: Path) -> None:
    """An empty folder: what a killed or failed run has left is of no use."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def attempt(spec: dict[str, Any]) -> bool:
    """:func:`execute`; a failure is left in error.txt. Returns whether it went well."""
    try:
        execute(spec)
    except Exception:
        Path(spec["folder"], ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        shutil.rmtree(Path(spec["folder"], CHECKPOINTS), ignore_errors=True)
        return False
    return True


def attempt_here(spec: dict[str, Any]) -> bool:
    """:func:`attempt` in this process, its output into log.txt."""
    with Path(spec["folder"], LOG).open("w", encoding="utf-8") as log, _inside(Path(spec["folder"])), \
            contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):  # fmt: skip
        return attempt(spec)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """RecBole writes log/ and log_tensorboard/ where it stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """Read a spec from standard input and run it; end when the input does, that is, when the parent is gone."""
    spec = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(0 if attempt(spec) else 1)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
