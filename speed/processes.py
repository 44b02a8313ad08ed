"""What a second process brings: seconds of a training epoch in one process of one thread, and in two that share steps.

The same batches, weights and metrics, see docs/scale.md. Whole runs alternate, and what is compared is the time in the
epochs alone. `ours` is an epoch in two processes, `theirs` one in one; their ratio is at best 0.5.

    python speed/processes.py --data ../data amazon-mix0 --out results/speed/processes.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import data, machine, parser, report, workplace

SETTINGS = {"model": "CaFe", "hidden_size": 128, "MAX_ITEM_LIST_LENGTH": 50, "loss_type": "BCE", "gpu_id": "",
            "eval_mode": "[uni10]", "show_progress": False, "state": "ERROR", "eval_step": 0}  # fmt: skip


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=512, help="rows of a step (default: %(default)s)")
    arguments.add_argument("--epochs", type=int, default=4, help="of a run; the first is not counted")
    options = arguments.parse_args()
    epochs = 2 if options.quick else options.epochs
    with workplace(options) as folder:
        source = data(options, folder)
        keys = SETTINGS | {"data_path": source.folder, "dataset": source.name, "train_batch_size": options.rows}
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for repeat in range(options.repeats):
            for n, done in runs.items():
                done.append(_run(folder / f"{repeat}-{n}", n, keys | {"epochs": epochs}))
        seconds = {n: [run["seconds"]["train"] / epochs for run in done] for n, done in runs.items()}
        report(
            options, "processes", ours=statistics.median(seconds[2]), theirs=statistics.median(seconds[1]),
            unit="seconds per epoch", seconds=seconds, rows=options.rows, epochs=epochs, data=source.facts,
            throughput=statistics.median(seconds[1]) / statistics.median(seconds[2]), machine=machine(options),
            loss={n: done[0]["curve"][-1]["loss"] for n, done in runs.items()},
        )  # fmt: skip


def _run(folder: Path, n: int, keys: dict[str, Any]) -> dict[str, Any]:
    """The result of a training in n processes of one thread."""
    folder.mkdir(parents=True)
    torchrun = ["torch.distributed.run", f"--nproc_per_node={n}", "-m"] if n > 1 else []
    command = [sys.executable, "-m", *torchrun, "recbole_cafe", "run", "--result_file=result.json",
               *(f"--{key}={value}" for key, value in keys.items())]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


if __name__ == "__main__":
    main()
