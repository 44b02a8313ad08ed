"""What choosing the settings of CaFePlus' ranking takes beside one epoch of its training.

`ours` is the seconds of the choice, `theirs` the mean seconds of an epoch, both of one run as shipped and of the data
set and protocol where the ratio is largest. `runs` has all of them. Sets named with --more lie beside the first.
"""

from __future__ import annotations

from common import AMAZON, QUICK_SETTINGS, data, machine, parser, report, workplace

from recbole_cafe.experiment import run

METRICS = {"full": "NDCG@10", "pop100": "NDCG@5"}  # that settings are chosen by


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--epochs", type=int, default=8, help="of each run (default: %(default)s)")
    arguments.add_argument("--more", nargs="+", default=[], metavar="NAME", help="further sets in DIR")
    options = arguments.parse_args()
    with workplace(options) as folder:
        source, speed = data(options, folder, AMAZON), machine(options)
        epochs = 1 if options.quick else options.epochs
        runs = []
        for name in (source.name, *options.more):
            for protocol, metric in METRICS.items():
                settings = {
                    "data_path": str(source.folder), "hidden_size": 64, "inner_size": 256, "MAX_ITEM_LIST_LENGTH": 50,
                    "epochs": epochs, "eval_step": epochs, "train_batch_size": 128, "seed": 2020, "topk": [5, 10],
                    "eval_mode": [protocol], "valid_metric": metric, "mask_history": protocol == "full",
                    "show_progress": False, "use_gpu": False,
                } | (QUICK_SETTINGS if options.quick else {})  # fmt: skip
                done = run("CaFePlus", name, config_dict=settings)
                choice, epoch = done.seconds["ranking_settings"], done.seconds["train"] / epochs
                runs.append({"data": name, "protocol": protocol, "choice": choice, "epoch": epoch,
                             "ratio": choice / epoch, "rows": done.ranking_settings["rows"],
                             "evaluations": done.ranking_settings["evaluations"]})  # fmt: skip
        most = max(runs, key=lambda one: one["ratio"])
        report(
            options, "choosing", ours=most["choice"], theirs=most["epoch"], unit="seconds", epochs=epochs, runs=runs,
            data=source.facts, machine=speed,
        )  # fmt: skip


if __name__ == "__main__":
    main()
