"""Reading one raw file is a task: in this process, in one of its own, or on an executor of Spark.

A process of its own is started as `python -m recbole_cafe.prepare.tasks TASK.json`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recbole_cafe.errors import OutputError, output_error
from recbole_cafe.prepare.raw import PrepareError, Source
from recbole_cafe.prepare.sources import READERS


def run_task(task: Mapping[str, Any], progress: Callable[[int], None] = lambda _bytes: None) -> dict[str, Any]:
    """Read one raw file into one Parquet file.

    Args:
        task: see `Source`; "source" is one of `READERS`.
        progress: takes the bytes read so far.

    Returns:
        What was read and what was wrong.

    Raises:
        PrepareError: a file that cannot be opened, lacks columns, or has a fault while strict.
        OutputError: the disk is full.
    """
    source = Source(task, progress)
    try:
        source.write(task["out"], READERS[task["source"]](source, task["role"]))
    except OSError as error:
        if refused := output_error(task["out"], error):
            raise refused from error
        raise
    return source.result() | {"role": task["role"]}


def run_task_or_tell(task: Mapping[str, Any], progress: Callable[[int], None] = lambda _bytes: None) -> dict[str, Any]:
    """Run a task, with the message of what could not be read or written as `error`, which travels between processes.

    Args:
        task: as in `run_task`.
        progress: as in `run_task`.
    """
    try:
        return run_task(task, progress)
    except (PrepareError, OutputError) as error:
        return {"error": str(error)}


def worker(path: str) -> int:
    """Run a task in a process of its own; end when the parent does.

    Args:
        path: JSON file of the task. `<path>.progress` gets the bytes read so far, `<path>.result` the result.

    Returns:
        The exit status.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    next_time = 0.0

    def progress(n_bytes: int) -> None:
        nonlocal next_time
        if time.monotonic() > next_time:
            next_time = time.monotonic() + 0.2
            Path(f"{path}.progress").write_text(str(n_bytes))

    result = run_task_or_tell(json.loads(Path(path).read_text(encoding="utf-8")), progress)
    Path(f"{path}.part").write_text(json.dumps(result), encoding="utf-8")
    os.replace(f"{path}.part", f"{path}.result")
    return 0


if __name__ == "__main__":
    sys.exit(worker(sys.argv[1]))
