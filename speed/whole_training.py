"""What a whole training of CaFePlus takes beside one of SASRec: epochs, validations, settings of the ranking, test.

`ours` is CaFePlus as shipped, `theirs` SASRec with a softmax over all items at every position, made of CaFe's own
parts: both as in props/benchmark/leaderboard.yaml. They run from the data to the test figures, in turn, with the same
epochs, batches, width, history and validations; none stops early. `parts`: the median seconds of each part.
"""

from __future__ import annotations

import statistics

from common import AMAZON, QUICK_SETTINGS, alternate, data, machine, parser, report, workplace

from recbole_cafe.config.props import preset, preset_model
from recbole_cafe.experiment import run

SYSTEMS = ("CaFePlus", "SASRec")


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--epochs", type=int, default=20, help="of either (default: %(default)s)")
    arguments.add_argument("--eval-step", type=int, default=4, help="epochs per validation (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options) as folder:
        source, speed = data(options, folder, AMAZON), machine(options)
        epochs, step = (2, 1) if options.quick else (options.epochs, options.eval_step)
        settings = {
            "data_path": str(source.folder), "hidden_size": 64, "inner_size": 256, "MAX_ITEM_LIST_LENGTH": 50,
            "epochs": epochs, "eval_step": step, "stopping_step": epochs, "train_batch_size": 128, "seed": 2020,
            "eval_mode": ["full"], "mask_history": True, "topk": [10], "valid_metric": "NDCG@10",
            "show_progress": False, "use_gpu": False,
        } | (QUICK_SETTINGS if options.quick else {})  # fmt: skip
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}

        def whole(name: str) -> None:
            system = f"leaderboard/{name}"
            own = preset(system) | settings  # the same epochs for both
            parts[name].append(run(preset_model(system), source.name, config_dict=own).seconds)

        timings = alternate({name: lambda name=name: whole(name) for name in SYSTEMS}, options.repeats)
        report(
            options, "whole_training", ours=timings["CaFePlus"].median, theirs=timings["SASRec"].median,
            unit="seconds from the data to the test figures", epochs=epochs, eval_step=step, data=source.facts,
            parts={
                name: {part: statistics.median(of[part] for of in runs) for part in runs[0]}
                for name, runs in parts.items()
            },
            machine=speed,
        )  # fmt: skip


if __name__ == "__main__":
    main()
