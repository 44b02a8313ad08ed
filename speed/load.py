"""Seconds and peak memory until the first batch: recbole_cafe's data path against RecBole's.

Each side runs in a fresh process and does create_dataset and data_preparation, histories of 50 items. Ours: CaFe,
one row per user. Theirs: SASRec with RecBole's Config, reader and SequentialDataset. A side that
exceeds the limits of memory or time is ended, and that is its result. Both also load a data set of a twentieth of the
size, where RecBole's path is within the limits of common machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import common
import psutil
from common import Data, Shape, data, parser, workplace

import recbole.config  # isort: skip
import recbole.data  # isort: skip

TMALL = Shape(131_086, 1_788_758, 9_999, 14_460_516)  # of arXiv:2204.01839
MODELS = {"ours": "CaFe", "theirs": "SASRec"}


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    for key, value in vars(TMALL).items():
        arguments.add_argument(f"--{key}", type=int, default=value, help="of the data set (default: %(default)s)")
    arguments.add_argument("--small", type=int, default=20, help="also 1/SMALL of it, 0: not (default: %(default)s)")
    arguments.add_argument(
        "--memory_gb",
        type=float,
        default=20,
        help="limit of a side, at most 80%% of what is free (default: %(default)s)",
    )
    arguments.add_argument("--time_s", type=float, default=600, help="limit of a side (default: %(default)s)")
    options = arguments.parse_args()
    if options.child:
        with workplace(options):
            print(json.dumps(load(**json.loads(options.child))))
        return
    with workplace(options) as folder:
        shape = Shape(**{key: getattr(options, key) for key in vars(TMALL)})
        measurement = measured(options, data(options, folder, shape))
        if options.small and not options.data and not options.quick:
            measurement["small"] = measured(options, data(options, folder, divided(shape, options.small)))
        result = {"benchmark": "load", "unit": "seconds of create_dataset and data_preparation", **measurement}
        result |= {"limits": {"memory_gb": options.memory_gb, "time_s": options.time_s}, "quick": options.quick}
        result |= {"threads": options.threads, "command": common.COMMAND, "processor": common.processor()}
        line = json.dumps(result | {"versions": common.versions()}, default=str)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(line + "\n", encoding="utf-8")
        print(line, flush=True)


def divided(shape: Shape, by: int) -> Shape:
    """A shape with as many interactions per user and per item, and fewer of all."""
    smaller = {key: max(1, value // by) for key, value in vars(shape).items()}
    return replace(shape, **smaller | {"intents": min(shape.intents, smaller["items"])})


def measured(options: argparse.Namespace, source: Data) -> dict[str, Any]:
    """Both sides on one data set, and seconds of ours by seconds of theirs."""
    measurement: dict[str, Any] = {"data": source.facts}
    for side in MODELS:
        print(f"{side}: loading {source.name} ...", flush=True)
        measurement[side] = in_process(options, side=side, folder=str(source.folder), name=source.name)
        print(f"{side}: {measurement[side]}", flush=True)
    failed = [f"{side}: {measurement[side]['failed']}" for side in MODELS if "failed" in measurement[side]]
    measurement["ratio"] = None if failed else measurement["ours"]["seconds"] / measurement["theirs"]["seconds"]
    return measurement | ({"no_ratio_because": "; ".join(failed)} if failed else {})


def in_process(options: argparse.Namespace, **task: Any) -> dict[str, Any]:
    """:func:`load` in a process of its own, ended when it exceeds a limit; `failed` then says which."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--threads={options.threads}"]
    start, peak = perf_counter(), 0
    # not all there is: at the end of memory the system ends some process, and not always this one
    limit = min(options.memory_gb, 0.8 * psutil.virtual_memory().available / 2**30)
    environment = os.environ | {"PYTHONPATH": str(Path(common.recbole_cafe.__file__).parents[1])}  # as for this process
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # pipes fill, and nobody reads
        child = subprocess.Popen([*command, f"--child={json.dumps(task)}"], stdout=out, stderr=err, env=environment)
        process, reason = psutil.Process(child.pid), None
        while child.poll() is None and reason is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, process.memory_info().rss)
            if peak > limit * 2**30:
                reason = f"more than {limit:.3g} GiB of memory"
            elif perf_counter() - start > options.time_s:
                reason = f"more than {options.time_s:g} seconds"
            sleep(0.1)
        if reason:
            child.kill()
        child.wait()
        printed, said = (file.seek(0) or file.read() for file in (out, err))
    if reason is None and child.returncode == 0:
        return json.loads(printed.splitlines()[-1])
    last = (said.strip().splitlines() or ["no message"])[-1][:300]
    return {
        "failed": reason or (f"ended by signal {-child.returncode}" if child.returncode < 0 else last),
        "seconds_until_then": perf_counter() - start,
        "peak_mb": peak / 2**20,
    }


def load(side: str, folder: str, name: str) -> dict[str, Any]:
    """Seconds (without imports) and peak memory in MiB of this process, and the rows of each split."""
    settings: dict[str, Any] = {
        "data_path": folder, "MAX_ITEM_LIST_LENGTH": common.LENGTH, "show_progress": False, "use_gpu": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "intent"]},
    }  # fmt: skip
    if side == "ours":
        config = common.Config(MODELS[side], name, config_dict=settings)
        create, prepare = common.create_dataset, common.data_preparation
    else:
        split = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"}
        settings |= {"TIME_FIELD": "timestamp", "train_neg_sample_args": None, "eval_args": split}
        config = recbole.config.Config(MODELS[side], name, config_dict=settings)
        create, prepare = recbole.data.create_dataset, recbole.data.data_preparation
    imported = common.peak_mb()
    start = perf_counter()
    built = create(config)
    created = perf_counter()
    loaders = prepare(config, built)
    return {
        "seconds": perf_counter() - start,
        "seconds_create": created - start,
        "peak_mb": common.peak_mb(),
        "peak_mb_of_imports": imported,
        "dataset": f"{type(built).__module__}.{type(built).__name__}",
        "rows": [len(loader._dataset) for loader in loaders],
    }


if __name__ == "__main__":
    main()
