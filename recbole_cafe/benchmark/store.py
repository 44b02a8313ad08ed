"""The folder of a benchmark. What is on disk is the only truth: there is no other record of what has been done.

    DIR/benchmark.json                                   the plan: cells, their points, protocols, commands
    DIR/candidates/                                      the candidate lists all runs share
    DIR/runs/<data set>/<system>/<hash>-s<seed>/         a run: result.json, ranks.npz, log.txt, or error.txt

A run is done if and only if its result.json, which is written last, is there and names the hash of its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PLAN, RESULT, RANKS, ERROR, LOG = "benchmark.json", "result.json", "ranks.npz", "error.txt", "log.txt"


class StoreError(ValueError):
    """A file of a benchmark folder is not what it should be."""


def folder_name(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.+,=@-]", "_", label)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits that stand for the settings of a run, whatever the order of the keys."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_folder(out: Path, dataset: str, system: str, digest: str, seed: int) -> Path:
    """Folder of a run."""
    return out / "runs" / folder_name(dataset) / folder_name(system) / f"{digest}-s{seed}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

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


def finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The result of a run that is done, None for any other.

    Raises:
        StoreError: there is a result.json that no run of ours has written, or one of other settings.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    found = result.get("benchmark", {}).get("hash")
    if found != digest:
        raise StoreError(f"{path} has the hash {found!r}, its folder {digest!r}; remove the folder to run it again")
    return result


def finished_runs(out: Path, dataset: str, system: str, digests: Iterable[str],
                  seeds: Iterable[int]) -> dict[tuple[str, int], dict[str, Any]]:  # fmt: skip
    """(hash, seed) -> result of the runs of a cell that are done."""
    seeds = list(seeds)
    folder = run_folder(out, dataset, system, "", 0).parent
    if not folder.is_dir():
        return {}
    there = {path.name for path in folder.iterdir()}
    wanted = [(d, s) for d in digests for s in seeds if f"{d}-s{s}" in there]
    runs = {key: finished(folder / f"{key[0]}-s{key[1]}", key[0]) for key in wanted}
    return {key: result for key, result in runs.items() if result is not None}


def score(result: Mapping[str, Any]) -> float:
    """What a search maximises: the best validation score, negated for a metric of which less is better."""
    sign = 1.0 if result["config"].get("valid_metric_bigger", True) else -1.0
    return sign * float(result["best_valid_score"])


def choose(scores: Mapping[str, float]) -> str | None:
    """The point of the best validation score; of equal ones the first in the order of hashes."""
    return min(scores, key=lambda digest: (-scores[digest], digest), default=None)
