"""How long the lists of a file of histories take, and how much memory, at any number of histories.

A bundle of 100,000 items, with drawn weights or counts of drawn interactions, is asked about files of histories of one
to thirty items; `recbole-cafe recommend` runs in a process of its own, whose peak memory and seconds are reported.
`per_history` is what a further history takes, from the difference of the two sizes. `ours` is the peak memory at the
larger size, `theirs` that at the smaller: their ratio says whether memory grows with the file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, parser, report, workplace

WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
sys.exit(status)
"""
ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "recommend")]


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--items", type=int, default=100_000, help="catalogue (default: %(default)s)")
    arguments.add_argument("--histories", default="20000,100000", help="numbers, separated by commas")
    arguments.add_argument("--models", default="CaFe,CaFePlus,IntentBackoff", help="default: %(default)s")
    arguments.add_argument("--hidden_size", type=int, default=64, help="default: %(default)s")
    options = arguments.parse_args()
    if options.quick:
        options.items, options.histories, options.models, options.hidden_size = 300, "20,60", "CaFe", 8
    sizes = [int(number) for number in options.histories.split(",")]
    with workplace(options) as folder:
        speed, measured = machine(options), []
        files = {size: _histories(folder / f"{size}.csv", size, options.items) for size in sizes}
        for model in options.models.split(","):
            _bundle(folder / model, model, options.items, options.hidden_size)
            runs = [_measured(options, folder / model, files[size], size) for size in sizes]
            each = (runs[-1]["seconds"] - runs[0]["seconds"]) / max(1, sizes[-1] - sizes[0])
            measured.append(
                {"model": model, "runs": runs, "per_history": each, "hours_of_a_million": each * 1e6 / 3600}
            )
        first, last = (max(row["runs"][i]["peak_memory_mb"] for row in measured) for i in (0, -1))
        report(
            options, "recommend_files", ours=last, theirs=first, unit="MB at the peak", models=measured,
            items=options.items, hidden_size=options.hidden_size, k=10, machine=speed,
        )  # fmt: skip


def _histories(path: Path, size: int, n_items: int) -> Path:
    rng = np.random.default_rng(1)
    with open(path, "w", encoding="utf-8") as file:
        file.write("user,item,time\n")
        for user in range(size):
            for place, item in enumerate((n_items * rng.random(int(rng.integers(1, 31))) ** 2).astype(int).tolist()):
                file.write(f"user{user},item{item},{place}\n")
    return path


def _bundle(folder: Path, model: str, n_items: int, hidden_size: int) -> None:
    from made import bundle_of

    from recbole_cafe.recommend.bundle import write

    rng = np.random.default_rng(2)
    walks = {
        f"u{u}": [f"item{i}" for i in (n_items * rng.random(10) ** 2).astype(int).tolist()] for u in range(n_items)
    }
    intent = {f"item{i}": f"intent{i % 500}" for i in range(n_items)}
    size = {"hidden_size": hidden_size, "inner_size": hidden_size}
    write(bundle_of(model, walks, intent, **size), folder)


def _measured(options: argparse.Namespace, bundle: Path, histories: Path, size: int) -> dict[str, Any]:
    out = histories.with_name("lists.parquet")
    command = [sys.executable, "-m", "recbole_cafe", "recommend", str(bundle), f"--histories={histories}",
               f"--out={out}", "--k=10"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads)}
    began = time.perf_counter()
    # through a small process: what is forked begins with the memory of who forks it
    done = subprocess.run([sys.executable, "-c", WATCH, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    peak, processor = (float(number) for number in done.stdout.splitlines()[-1].split())
    return {
        "histories": size, "seconds": time.perf_counter() - began, "processor_seconds": processor,
        "peak_memory_mb": peak / 1024,
    }  # fmt: skip


if __name__ == "__main__":
    main()
