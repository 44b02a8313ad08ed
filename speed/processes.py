"""What further processes of one machine bring, each of one thread, and what each of them holds.

* throughput: epochs of CaFe in one process and in two that share their steps, whole runs in turn; the time in the
  epochs alone is compared. `ours` is an epoch in two processes, `theirs` one in one; the ratio is at best 0.5.
* tables: a run of CaFe, width 128, over 2 million items, whose table the processes hold together: an epoch, its
  checkpoint and the test over all items. What is told is what a process holds more than with a hundredth of the items.
* loading: 100 million interactions in 1, 2 and 4 processes: seconds until all have them, and what each holds.

Memory is what the system cannot drop (anonymous pages), of the process that holds most.

    python speed/processes.py --data ../data amazon-mix0 --out results/speed/processes.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Data, Shape, data, family, machine, parser, report, status_mb, workplace

from recbole_cafe import experiment
from recbole_cafe.config.config import Config
from recbole_cafe.data.mapped import read_once
from recbole_cafe.processes import place_here

MB, MIB = 1e6, 2**20
SETTINGS = {"model": "CaFe", "hidden_size": 128, "MAX_ITEM_LIST_LENGTH": 50, "loss_type": "BCE", "gpu_id": "",
            "show_progress": False, "state": "ERROR", "eval_step": 0}  # fmt: skip
OF_TABLES = {"n_negatives": 16, "eval_mode": "[full]", "epochs": 1, "train_batch_size": 256, "shard_tables": True}


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=512, help="rows of a step (default: %(default)s)")
    arguments.add_argument("--epochs", type=int, default=4, help="of a run that is timed")
    arguments.add_argument("--shard", default="auto", help="shard_tables of the timed runs (default: %(default)s)")
    arguments.add_argument("--items", type=int, default=2_000_000, help="of the table (default: %(default)s)")
    arguments.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4], help="of processes, for the memory")
    arguments.add_argument("--interactions", type=int, default=100_000_000, help="to load (default: %(default)s)")
    options = arguments.parse_args()
    if options.quick:
        options.epochs, options.items, options.interactions, options.counts = 2, 700, 10_000, [1, 2]
    with workplace(options) as folder:
        if options.child:
            _load(**json.loads(options.child))
            return
        timed = _throughput(options, folder)
        # the memory is that of simulated sets of the sizes asked for
        own = argparse.Namespace(**vars(options) | {"data": None, "quick": False})
        report(
            options, "processes", unit="seconds per epoch", **timed, tables=_tables(own, folder),
            loading=_loading(own, folder), machine=machine(options),
        )  # fmt: skip


def _throughput(options: Any, folder: Path) -> dict[str, Any]:
    source = data(options, folder)
    keys = {"train_batch_size": options.rows, "epochs": options.epochs, "eval_mode": "[uni10]",
            "shard_tables": options.shard}  # fmt: skip
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for n, done in runs.items():
            done.append(_trained(folder / f"{repeat}-{n}", n, source, keys)["result"])
    seconds = {n: sorted(run["seconds"]["train"] / options.epochs for run in done) for n, done in runs.items()}
    median = {n: statistics.median(values) for n, values in seconds.items()}
    return {
        "ours": median[2], "theirs": median[1], "seconds": seconds, "rows": options.rows, "epochs": options.epochs,
        "data": source.facts, "throughput": median[1] / median[2],
        "loss": {n: done[0]["curve"][-1]["loss"] for n, done in runs.items()},
    }  # fmt: skip


def _tables(options: Any, folder: Path) -> dict[str, Any]:
    """What a process holds of a table with its moments, by the number of processes."""
    peaks: dict[int, list[float]] = {n: [] for n in options.counts}
    tests = {}
    users = min(2_000, options.items // 10)
    few = max(options.items // 100, 50)
    source = data(options, folder, Shape(users, few, 20, 50 * users))
    for items in (few, options.items):
        if items > few:
            _add_items(source, folder / "data", items - few)
            source = Data(folder / "data", source.name, source.facts)
        for n in options.counts:
            done = _trained(folder / f"table-{items}-{n}", n, source, OF_TABLES)
            peaks[n].append(done["peak_mb"])
            tests[n] = done["result"]["test_result"]["full"]
    return {
        "items": options.items, "table_with_moments_mb": 12 * options.items * SETTINGS["hidden_size"] / MB,
        "held_mb": {n: large - small for n, (small, large) in peaks.items()}, "peaks_mb": peaks, "tests": tests,
    }  # fmt: skip


def _add_items(source: Data, parent: Path, n: int) -> None:
    """A copy of a data set with more items, which nobody has bought."""
    folder = parent / source.name
    if not folder.is_dir():
        shutil.copytree(source.folder / source.name, folder)
    with (folder / f"{source.name}.item").open("a") as file:
        file.writelines(f"more{i}\t1\n" for i in range(n))


def _loading(options: Any, folder: Path) -> dict[str, Any]:
    n = options.interactions
    source = data(options, folder, Shape(n // 40, n // 100, 20, n))
    return {
        "data": source.facts,
        "runs": {processes: _loaded(folder, processes, source) for processes in options.counts},
    }


def _trained(folder: Path, n: int, source: Data, keys: dict[str, Any]) -> dict[str, Any]:
    """A training in n processes: its result, and the most that one of them held."""
    keys = SETTINGS | {"data_path": source.folder, "dataset": source.name} | keys
    command = ["recbole_cafe", "run", "--result_file=result.json", *(f"--{key}={value}" for key, value in keys.items())]
    peak = _run(folder, n, ["-m", *command])
    return {"peak_mb": peak, "result": json.loads((folder / "result.json").read_text())}


def _loaded(folder: Path, n: int, source: Data) -> dict[str, Any]:
    """A loading in n processes."""
    folder /= f"loading-{n}"
    task = json.dumps({"data_path": str(source.folder), "dataset": source.name, "out": str(folder)})
    peak = _run(folder, n, [str(Path(__file__).resolve()), "--child", task])
    done = [json.loads(file.read_text()) for file in folder.glob("of-*.json")]
    assert len(done) == n
    return {"peak_mb": peak} | {key: max(one[key] for one in done) for key in done[0]}


def _run(folder: Path, n: int, command: list[str]) -> float:
    """A command in n processes of one thread; the most that one of them held, in megabytes."""
    folder.mkdir(parents=True)
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={n}"] if n > 1 else []
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *torchrun, *command], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said,
            stderr=said,
        )  # fmt: skip
        peak = 0.0
        while process.poll() is None:
            peak = max([peak, *map(_anonymous, family(process.pid))])
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit((folder / "said").read_text()[-4000:])
    return peak


def _anonymous(process: int) -> float:
    """Megabytes of a process's memory that belong to no file."""
    return (status_mb("RssAnon", process) or 0.0) * MIB / MB


def _load(data_path: str, dataset: str, out: str) -> None:
    """One process that loads."""
    place = place_here()
    settings = {"data_path": data_path, "use_gpu": False, "state": "ERROR", "MAX_ITEM_LIST_LENGTH": 50,
                **(place.keys() if place else {})}  # fmt: skip
    config = Config("CaFe", dataset, config_dict=settings)
    before, start = _anonymous(os.getpid()), time.perf_counter()
    facts, read, parts = read_once(config, lambda: experiment.read(config))
    train, valid, test = experiment.loaders(config, read, parts)
    seconds = time.perf_counter() - start
    assert len(next(iter(train))) and len(valid) and len(test) and facts["interactions"]
    held = {"seconds": seconds, "before_mb": before, "left_mb": _anonymous(os.getpid())}
    Path(out, f"of-{place.rank if place else 0}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main()
