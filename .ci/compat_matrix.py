"""Train RecBole's models and ours by RecBole's `run_recbole` after `import recbole_cafe`; compare environments.

    python .ci/compat_matrix.py --out results/compatibility.jsonl    # once in each environment: a line of its own
    python .ci/compat_matrix.py --compare results/compatibility.jsonl    # exit status 1 if a metric differs

The data is ml-100k, which ships inside RecBole, or another set (`--dataset`); `--through run` takes recbole_cafe's own
entry. Seed, epochs and thread count are fixed, so every environment in which RecBole runs has to give the same numbers,
to the four decimals RecBole rounds to. RecBole's own models are compared from PyTorch 2.13 on: their dropout is
PyTorch's, and that of 2.4 draws other numbers. Ours draw their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS = 1
SEQUENTIAL = ("SASRec", "SASRecF", "BERT4Rec", "FDSA", "GRU4Rec", "LightSANs", "SINE")
GENERAL = ("Pop", "ItemKNN", "BPR", "LightGCN")
ENTRIES = ("run_recbole", "run")

SETTINGS: dict[str, Any] = {
    "gpu_id": "",
    "seed": 2020,
    "epochs": EPOCHS,
    "train_batch_size": 512,
    "eval_batch_size": 512,
    "show_progress": False,
    "state": "WARNING",
    "topk": [5, 10],
    "metrics": ["Hit", "NDCG", "MRR"],
    "valid_metric": "NDCG@10",
}
FOR_SEQUENTIAL: dict[str, Any] = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "MAX_ITEM_LIST_LENGTH": 10,
    "hidden_size": 32,
    "inner_size": 64,
    "embedding_size": 32,
    # short histories only, so that the whole table takes minutes on one core
    "user_inter_num_interval": "[0,40)",
}


# ItemKNN keeps each item's 100 nearest ones by argpartition, which NumPy 1 and 2 let break ties differently
FOR_GENERAL: dict[str, Any] = {"k": 2000}


def ours() -> tuple[str, ...]:
    """Names of all our models; without RecTools' where it is not installed, since it needs NumPy 1 and pandas 2."""
    from recbole_cafe.model import MODELS

    return tuple(name for name in MODELS if name != "RecToolsSASRec" or importlib.util.find_spec("rectools"))


def metrics_of(model: str, dataset: str, entry: str) -> dict[str, float]:
    """Metrics of one model on the test split, from an unmodified `run_recbole` or from `recbole_cafe.run`."""
    from recbole.quick_start import run_recbole

    import recbole_cafe
    from recbole_cafe.config.signature import net_keys

    settings = SETTINGS | (FOR_GENERAL if model in GENERAL else FOR_SEQUENTIAL)
    if model in ours():
        known = net_keys(recbole_cafe.Config(model, dataset).model_class)
        sizes = ("hidden_size", "inner_size", "embedding_size")
        settings = {k: v for k, v in settings.items() if k not in sizes or k in known} | {"eval_mode": "full"}
    if entry == "run":
        settings = {k: v for k, v in settings.items() if k != "eval_args"} | {"eval_mode": "full"}
        return recbole_cafe.run(model, dataset, config_dict=settings).test_result["full"]
    result = run_recbole(model=model, dataset=dataset, config_dict=dict(settings))
    return {name: float(value) for name, value in result["test_result"].items()}


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import numpy
    import pandas
    import recbole
    import scipy
    import torch

    modules = (numpy, pandas, recbole, scipy, torch)
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def run(models: list[str], out: Path, dataset: str, entry: str) -> None:
    """Train ``models`` in a temporary folder, since RecBole writes log/ and saved/ where it stands."""
    import torch

    import recbole_cafe  # noqa: F401 - repairs RecBole

    torch.set_num_threads(1)
    out = out.absolute()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for model in models:
            start = time.perf_counter()
            try:
                results[model] = metrics_of(model, dataset, entry)
            except Exception as error:  # the other models still count
                results[model] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{model:10} {time.perf_counter() - start:6.1f} s  {results[model]}", flush=True)
        os.chdir(out.parent)
    facts = {"dataset": dataset, "through": entry, "versions": versions(), "settings": SETTINGS, "metrics": results}
    add(out, facts)


def add(out: Path, facts: dict[str, Any]) -> None:
    """Write a line of a file, in place of that of the same data set, entry and versions if there is one."""
    found = facts["versions"]
    short = {name: found[name] for name in ("python", "recbole", "torch", "numpy")}
    place = "-".join([facts["dataset"], facts["through"], *(f"{name}{number}" for name, number in short.items())])
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    lines = [line for line in lines if line["place"] != place] + [{"place": place, "result": facts}]
    lines.sort(key=lambda line: line["place"])
    out.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def rounded(metrics: dict[str, Any]) -> dict[str, Any]:
    """To four decimals, as RecBole has them; a model of ours gives all."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in metrics.items()}


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """The metrics that all environments should agree on."""
    draws_alike = tuple(map(int, result["versions"]["torch"].split(".")[:2])) >= (2, 13)
    return {name: metrics for name, metrics in result["metrics"].items() if draws_alike or name in ours()}


def compare(files: list[Path]) -> bool:
    """Print the metrics of all lines side by side; return whether they agree and none holds an error."""
    tables = [comparable(json.loads(line)["result"]) for file in files for line in file.read_text().splitlines()]
    agree = True
    for model in dict.fromkeys(name for table in tables for name in table):
        rows = [rounded(table[model]) for table in tables if model in table]
        same = all(row == rows[0] for row in rows) and "error" not in rows[0]
        agree &= same
        print(f"{model:10} {'equal ' if same else 'DIFFER'} {len(rows)}", *(rows[:1] if same else rows), sep="  ")
    return agree


def main() -> int:
    """Run the models, or compare what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of JSON lines to add a line to")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: RecBole's listed here, and all of ours")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--through", choices=ENTRIES, default="run_recbole", help="the entry that trains")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="FILE", help="compare such lines instead")
    arguments = parser.parse_args()
    sys.argv[1:] = []  # RecBole reads the command line too
    if arguments.compare:
        return 0 if compare(arguments.compare) else 1
    if not arguments.out:
        parser.error("--out or --compare is needed")
    models = arguments.models or [*SEQUENTIAL, *GENERAL, *ours()]
    run(models, arguments.out, arguments.dataset, arguments.through)
    return 0


if __name__ == "__main__":
    sys.exit(main())
