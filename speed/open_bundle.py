"""How long a bundle takes to be opened, and how much memory, beside reading its files.

A bundle of CaFe with drawn weights, two million items of width 128 if nothing else is said, is opened in a process of
its own, once its files are in the cache of the machine: digests compared, a question asked once, ready to answer.
`ours` is that, `theirs` reading the bytes of its files and taking their digests, which is the least that can be done.
The memory is the most that the process held beyond what it held before, beside the size of the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import machine, parser, report, workplace

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "recommend")]


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--items", type=int, default=2_000_000, help="catalogue (default: %(default)s)")
    arguments.add_argument("--hidden_size", type=int, default=128, help="default: %(default)s")
    options = arguments.parse_args()
    if options.child:
        print(json.dumps(_opened(Path(options.child))))
        return
    if options.quick:
        options.items, options.hidden_size = 300, 8
    with workplace(options) as folder:
        speed = machine(options)
        _write(folder / "bundle", options)
        size = sum(path.stat().st_size for path in (folder / "bundle").iterdir())
        runs, read = [], []
        for _ in range(options.repeats):
            began = time.perf_counter()
            for path in sorted((folder / "bundle").iterdir()):
                hashlib.sha256(path.read_bytes())
            read.append(time.perf_counter() - began)
            command = [sys.executable, __file__, "--child", str(folder / "bundle"), f"--threads={options.threads}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True,
                                  env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        report(
            options, "open_bundle", ours=float(np.median([run["seconds"] for run in runs])),
            theirs=float(np.median(read)), unit="seconds", items=options.items, hidden_size=options.hidden_size,
            files_mb=size / 2**20, memory_of_files=max(run["memory_mb"] for run in runs) / (size / 2**20), runs=runs,
            read=read, machine=speed,
        )  # fmt: skip


def _write(folder: Path, options: argparse.Namespace) -> None:
    from made import bundle_of

    from recbole_cafe.recommend.bundle import write

    n = options.items
    rng = np.random.default_rng(2)
    walks = {f"u{u}": [f"item{i}" for i in (n * rng.random(10) ** 2).astype(int).tolist()] for u in range(n // 100)}
    intent = {f"item{i}": f"intent{i % 500}" for i in range(n)}
    size = {"hidden_size": options.hidden_size, "inner_size": options.hidden_size}
    write(bundle_of("CaFe", walks, intent, **size), folder)


def _opened(folder: Path) -> dict[str, Any]:
    import torch  # noqa: F401  what any process has that asks a bundle

    from recbole_cafe.recommend import Recommender

    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    recommender = Recommender.load(folder)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    recommender.recommend([["item1", "item2"]], k=10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds, "first_question_seconds": time.perf_counter() - began, "memory_mb": (peak - before) / 2**20
    }  # fmt: skip


if __name__ == "__main__":
    main()
