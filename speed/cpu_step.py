"""Seconds of a training epoch of CaFe on a CPU, in two trees of the repository, in turn in one run.

Each tree trains in a process of its own, with one thread, on the same data with the same settings; while one trains the
other waits. CPU seconds of the process are compared, so that what else the machine does counts as little as can be.

    git worktree add --detach ../before 1a14462
    python speed/cpu_step.py --before ../before --data ../data amazon-mix0 --out results/speed/cpu_step.json

With --seeds both trees also train and test from the start, for what the change does to the metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
SETTINGS = {"hidden_size": 128, "MAX_ITEM_LIST_LENGTH": 50, "loss_type": "BCE", "gpu_id": "", "show_progress": False,
            "state": "WARNING"}  # fmt: skip
METRIC = "ndcg@10"


class Tree:
    """A process that trains with the package of one tree."""

    def __init__(self, tree: Path, data: tuple[str, str]) -> None:
        env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen([sys.executable, __file__, "--child", *data], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, env=env)  # fmt: skip

    def ask(self, **what: Any) -> Any:
        """Have something done, and wait for what it gives."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def child(data_path: str, name: str) -> None:
    """Do what comes in, a line of JSON each, with the package of this process's path."""
    answers, sys.argv = sys.stdout, sys.argv[:1]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        os.chdir(folder)
        import torch

        torch.set_num_threads(1)
        import recbole_cafe  # noqa: F401  first: it repairs what RecBole does on import

        try:
            from recbole_cafe import experiment
            from recbole_cafe.config.config import Config
            from recbole_cafe.train.trainer import trainer_class
        except ImportError:  # before 0.3
            from recbole_cafe.trainer import trainer_class

            from recbole_cafe import quick_start as experiment
            from recbole_cafe.config import Config
        from recbole.utils import get_trainer, init_seed

        settings = {**SETTINGS, "data_path": data_path}
        config = Config("CaFe", name, config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        built = experiment.create_dataset(config)
        train_data, _, _ = experiment.data_preparation(config, built)
        model = config.model_class(config, train_data.dataset)
        trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
        epoch = 0
        for line in sys.stdin:
            asked = json.loads(line)
            if "seed" in asked:
                given = {**settings, "seed": asked["seed"], "epochs": asked["epochs"], "stopping_step": asked["epochs"]}
                result = experiment.run("CaFe", name, config_dict=given)
                answer: Any = {key: values.get(METRIC) for key, values in result.test_result.items()}
                answer["valid"] = result.best_valid_score
            else:
                start, wall = time.process_time(), time.perf_counter()
                loss = trainer._train_epoch(train_data, epoch, show_progress=False)
                answer = {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "loss": loss,
                          "steps": len(train_data), "batch": config["train_batch_size"]}  # fmt: skip
                epoch += 1
            print(json.dumps(answer), file=answers, flush=True)


def commit(tree: Path) -> str:
    """Of a tree, with a plus if it has changes."""
    head, changes = (subprocess.run(["git", "-C", str(tree), *command], capture_output=True, text=True).stdout.strip()
                     for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"]))  # fmt: skip
    return head + "+" * bool(changes)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help="tree that this one is compared with")
    parser.add_argument("--data", nargs=2, metavar=("DIR", "NAME"), help="data set DIR/NAME/NAME.inter")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each, after one (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=0, help="whole runs of each for the metrics (default: none)")
    parser.add_argument("--epochs", type=int, default=20, help="of a whole run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if not options.before or not options.data:
        parser.error("--before and --data are needed")
    trees = {"before": options.before.resolve(), "now": HERE}
    data = str(Path(options.data[0]).resolve()), options.data[1]
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Tree(tree, data)) for name, tree in trees.items()}
        epochs: dict[str, list[Any]] = {name: [] for name in sides}
        for _ in range(options.repeats + 1):
            for name, side in sides.items():
                epochs[name].append(side.ask())
        runs = {name: [side.ask(seed=2020 + i, epochs=options.epochs) for i in range(options.seeds)]
                for name, side in sides.items()}  # fmt: skip
    cpu = {name: statistics.median(e["cpu"] for e in of[1:]) for name, of in epochs.items()}
    result = {
        "benchmark": "cpu_step", **cpu, "ratio": cpu["now"] / cpu["before"],
        "wall": {name: statistics.median(e["wall"] for e in of[1:]) for name, of in epochs.items()},
        "wall_least": {name: min(e["wall"] for e in of[1:]) for name, of in epochs.items()},
        "cpu_all": {name: [e["cpu"] for e in of] for name, of in epochs.items()},
        "loss": {name: [e["loss"] for e in of] for name, of in epochs.items()},
        "steps": epochs["now"][0]["steps"], "train_batch_size": epochs["now"][0]["batch"],
        "unit": "CPU seconds per epoch, median", "metric": METRIC, "runs": runs, "run_epochs": options.epochs,
        "commits": {name: commit(tree) for name, tree in trees.items()}, "settings": SETTINGS, "data": data[1],
        "threads": 1,
    }  # fmt: skip
    line = json.dumps(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
