"""The folder of a benchmark. What is on disk is the only truth: there is no other record of what has been done.

    DIR/benchmark.json                                   the plan: cells, their points, protocols, commands
    DIR/candidates/                                      the candidate lists all runs share
    DIR/runs/<data set>/<system>/<hash>-s<seed>/         a run: result.json, ranks.npz, log.txt, or error.txt

A run is done if and only if its result.json, which is written last, is there and names the hash of its folder.
Runs that are kept may be packed into two files (recbole_cafe.benchmark.packed); both forms are read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.benchmark.layout import ERROR, LOG, PLAN, RANKS, RESULT, RUNS, StoreError, read_json
from recbole_cafe.benchmark.packed import load_ranks, read_packed

__all__ = ["ERROR", "LOG", "PLAN", "RANKS", "RESULT", "StoreError", "choose", "finished", "finished_runs",
           "folder_name", "ranks_of", "read_json", "run_folder", "score", "settings_hash"]  # fmt: skip


def folder_name(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.+,=@-]", "_", label)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits that stand for the settings of a run, whatever the order of the keys."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_folder(out: Path, dataset: str, system: str, digest: str, seed: int) -> Path:
    """Folder of a run."""
    return out / RUNS / folder_name(dataset) / folder_name(system) / f"{digest}-s{seed}"


def finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The result of a run that is done, None for any other.

    Raises:
        StoreError: there is a result.json that no run of ours has written, or one of other settings.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    return _checked(read_json(path), path, digest)


def _checked(result: dict[str, Any], path: Path, digest: str) -> dict[str, Any]:
    observed = result.get("benchmark", {}).get("hash")
    if observed != digest:
        raise StoreError(f"{path} has the hash {observed!r}, its folder {digest!r}; remove the folder to run it again")
    return result


def finished_runs(out: Path, dataset: str, system: str, digests: Iterable[str],
                  seeds: Iterable[int]) -> dict[tuple[str, int], dict[str, Any]]:  # fmt: skip
    """The runs of a cell that are done, in folders of their own or packed.

    Args:
        out: the benchmark's folder.
        dataset: label of the data set.
        system: label of the system.
        digests: hashes of the settings that are asked for.
        seeds: seeds that are asked for.

    Returns:
        (hash, seed) -> result.

    Raises:
        StoreError: see :func:`finished`.
    """
    seeds = list(seeds)
    folder = run_folder(out, dataset, system, "", 0).parent
    singles = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    packed = read_packed(out).runs
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    for digest in digests:
        for seed in seeds:
            own = folder / f"{digest}-s{seed}"
            result = finished(own, digest) if own.name in singles else None
            if result is None and (line := packed.get(own.relative_to(out).as_posix())) is not None:
                result = _checked(line.result, own, digest)
            if result is not None:
                runs[digest, seed] = result
    return runs


def ranks_of(folder: Path) -> dict[str, np.ndarray]:
    """Read where the targets of a run stand, from its folder or from the packed form.

    Args:
        folder: as :func:`run_folder` names it.

    Raises:
        StoreError: there are no ranks, or they cannot be read.
    """
    path = folder / RANKS
    out = folder.parents[3]
    packed = read_packed(out)
    place = folder.relative_to(out).as_posix()
    if not path.is_file() and place in packed.runs:
        return packed.ranks(place)
    return load_ranks(path)


def score(result: Mapping[str, Any]) -> float:
    """What a search maximises: the best validation score, negated for a metric of which less is better.

    Minus infinity for a run without one, which validated nothing or gave NaN.
    """
    sign = 1.0 if result["config"].get("valid_metric_bigger", True) else -1.0
    best = result["best_valid_score"]
    return -math.inf if best is None else sign * float(best)


def choose(scores: Mapping[str, float]) -> str | None:
    """The point of the best validation score; of equal ones the first in the order of hashes."""
    return min(scores, key=lambda digest: (-scores[digest], digest), default=None)
