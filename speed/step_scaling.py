"""Whether a training step of CaFe costs more in a larger catalogue, and what a training run holds in memory.

Two catalogues, 20 thousand and 2 million items, with the same users and the same number of interactions; steps of both
alternate. `ours` is the median step at 2 million items, `theirs` that at 20 thousand, `ratio` large / small.

Memory: a fresh process loads a data set of 1,910,226 items, trains, writes a checkpoint and validates on `full`; the
largest resident size of each phase is the operating system's count.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from common import PAPER, data, floor, machine, ours, parser, report, workplace

from recbole_cafe.train.checkpoint import take_weights

SMALL, LARGE = 20_000, 2_000_000


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--steps", type=int, default=20, help="steps per turn (default: %(default)s)")
    arguments.add_argument("--warm-up", type=int, default=400, help="steps before (default: %(default)s)")
    arguments.add_argument("--memory-steps", type=int, default=200, help="training steps of the memory run")
    arguments.add_argument("--memory-users", type=int, default=512, help="users validated in the memory run")
    options = arguments.parse_args()
    with workplace(options) as folder:
        if options.child:
            print(json.dumps(_memory(options, **json.loads(options.child))), flush=True)
            return
        n_steps = 2 if options.quick else options.steps
        small = data(options, folder, common.large(100 if options.quick else SMALL, interactions_of=LARGE))
        big = data(options, folder, common.large(LARGE))
        memory = _memory_run(options, folder)  # before this process holds much itself
        speed = machine(options)
        sides = {"small": ours(options, small), "large": ours(options, big)}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        caught_up: dict[str, list[float]] = {name: [] for name in sides}
        # Until the system has provided the pages of the moments, which takes some hundred steps, steps cost more
        for side in sides.values():
            common.train_steps(side, 1 if options.quick else options.warm_up)
        for _ in range(options.repeats):
            for name, side in sides.items():
                start = common.clock()
                steps = common.train_steps(side, n_steps)
                taken[name] += steps
                caught_up[name].append(common.clock() - start - sum(steps))
        medians = {name: statistics.median(values) for name, values in taken.items()}
        report(
            options, "step_scaling", ours=medians["large"], theirs=medians["small"], unit="seconds per training step",
            note="ours: 2 million items, theirs: 20 thousand; median over the steps, loading of the batch included",
            n_measured=len(taken["large"]), batch=sides["large"].config["train_batch_size"],
            hidden_size=sides["large"].config["hidden_size"], data_small=small.facts, data_large=big.facts,
            seconds_after_the_last_step={name: statistics.median(values) for name, values in caught_up.items()},
            floor_large=_floor(sides["large"], speed), memory=memory, machine=speed,
        )  # fmt: skip


def _floor(side: common.Side, speed: dict[str, float]) -> dict[str, float]:
    """As train_epoch.py's, for one step."""
    from train_epoch import floor_ours

    epoch, steps = floor_ours(side, speed), len(side.train_data)
    return floor(speed, flops=epoch["flops"] / steps, moved=epoch["bytes"] / steps)


def _memory_run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape = common.large(PAPER.items)
    source = data(options, folder, shape)
    task = {
        "folder": str(source.folder), "name": source.name, "facts": source.facts,
        "steps": 2 if options.quick else options.memory_steps, "users": options.memory_users,
    }  # fmt: skip
    return common.in_child(options, **task)


def _memory(options: argparse.Namespace, *, folder: str, name: str, facts: dict[str, Any], steps: int,
            users: int) -> dict[str, Any]:  # fmt: skip
    """The run itself, in its own process."""
    phases: dict[str, dict[str, float | None]] = {}

    def phase(name: str, call: Callable[[], Any]) -> Any:
        common.reset_peak()
        start = common.clock()
        result = call()
        phases[name] = {
            "seconds": common.clock() - start,
            "peak_mb": common.peak_mb(),
            "resident_after_mb": common.resident_mb(),
        }
        return result

    # the paper's own file, two and a half times as large, would be read by columns anyway
    side = phase("data and model", lambda: ours(options, common.Data(Path(folder), name, facts)))
    Path(side.trainer.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    phase("train", lambda: common.train_steps(side, steps))
    phase("checkpoint", lambda: side.trainer._save_checkpoint(0, verbose=False))
    valid_data = side.eval_data("valid", users)
    phase("validation", lambda: side.trainer.evaluate(valid_data, load_best_model=False))
    # as the trainer reads its own best weights back
    file = side.trainer.saved_model_file
    phase("read checkpoint", lambda: take_weights(side.model, side.trainer._load(file, mmap=True), file))
    rows = side.model.network.item_embedding.weight
    touched = int((side.trainer._row_wise.state[rows]["last"] > 0).sum())
    return {
        "peak_mb": max(values["peak_mb"] for values in phases.values()), "phases": phases,
        "table_mb": rows.numel() * 4 / 2**20, "rows_touched": touched, "steps": steps,
        "users_validated": len(valid_data._dataset), "checkpoint_mb": Path(side.trainer.saved_model_file).stat().st_size
        / 2**20, "data": facts,
    }  # fmt: skip


if __name__ == "__main__":
    main()
