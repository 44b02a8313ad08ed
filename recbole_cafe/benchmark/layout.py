"""The names a benchmark knows, of files in its folder, of engines, searches and tests; and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recbole_cafe.errors import DataError

PLAN, RESULT, RANKS, ERROR, LOG = "benchmark.json", "result.json", "ranks.npz", "error.txt", "log.txt"
RUNS = "runs"  # folder of the single runs
ENGINES = ("local", "ray")  # what makes the runs
SAMPLERS = ("grid", "tpe")  # of a search
TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon signed-rank test"}


class StoreError(DataError):
    """A file of a benchmark folder is not what it should be."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.

    Raises:
        StoreError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
