"""How long the lists of a file of histories take, and how much memory, at any number of histories.

A bundle of 100,000 items, with drawn weights or counts of drawn interactions, is asked about files of histories of one
to thirty items; `recbole-cafe recommend` runs in a process of its own, whose peak memory and seconds are reported.
`per_history` is what a further history takes, from the difference of the two sizes.

    python speed/recommend_files.py --items=100000 --histories=20000,100000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "recommend")]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--histories", default="20000,100000", help="numbers, separated by commas")
    parser.add_argument("--models", default="CaFe,CaFePlus,IntentBackoff")
    parser.add_argument("--hidden_size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed" / "recommend_files.json")
    given = parser.parse_args()
    sizes = [int(number) for number in given.histories.split(",")]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        files = {size: _histories(Path(folder) / f"{size}.csv", size, given.items) for size in sizes}
        for model in given.models.split(","):
            _bundle(Path(folder) / model, model, given.items, given.hidden_size)
            runs = [_measured(Path(folder) / model, files[size], size) for size in sizes]
            first, last = runs[0], runs[-1]
            each = (last["seconds"] - first["seconds"]) / max(1, sizes[-1] - sizes[0])
            hours = each * 1e6 / 3600
            measured.append({"model": model, "runs": runs, "per_history": each, "hours_of_a_million": hours})
            print(json.dumps(measured[-1]), flush=True)
    report = {"items": given.items, "hidden_size": given.hidden_size, "k": 10, "cores": os.cpu_count(),
              "load_before": os.getloadavg(), "models": measured}  # fmt: skip
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


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


def _measured(bundle: Path, histories: Path, size: int) -> dict[str, float]:
    out = histories.with_name("lists.parquet")
    command = [sys.executable, "-m", "recbole_cafe", "recommend", str(bundle), f"--histories={histories}",
               f"--out={out}", "--k=10"]  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return {
        "histories": size, "seconds": time.perf_counter() - began, "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024,
    }  # fmt: skip


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
