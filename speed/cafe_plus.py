"""What CaFePlus costs beside CaFe, and whether its step costs more in a larger catalogue.

`ours` is the median training step of CaFePlus, `theirs` that of CaFe, on the same data with the same batches, steps of
both alternating. `growth`: CaFePlus on catalogues of 20 thousand and 2 million items with the same users and the same
number of interactions, and the ratio of the two. `average`: seconds that the mean of the weights takes at the end of an
epoch on either (recbole_cafe.train.weight_average.WeightAverage), the way back to the trained weights included.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common
from common import data, machine, ours, parser, report, workplace
from step_scaling import LARGE, SMALL

from recbole_cafe.train.weight_average import WeightAverage


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--steps", type=int, default=20, help="steps per turn (default: %(default)s)")
    arguments.add_argument("--warm-up", type=int, default=60, help="steps before (default: %(default)s)")
    options = arguments.parse_args()
    n_steps, warm_up = (2, 1) if options.quick else (options.steps, options.warm_up)
    with workplace(options) as folder:
        source = data(options, folder)
        speed = machine(options)
        beside = _alternating(
            options, {m: ours(options, source, m) for m in ("CaFePlus", "CaFe")}, n_steps=n_steps, warm_up=warm_up
        )
        small = data(options, folder, common.large(100 if options.quick else SMALL, interactions_of=LARGE))
        big = data(options, folder, common.large(LARGE))
        sizes = {"small": ours(options, small, "CaFePlus"), "large": ours(options, big, "CaFePlus")}
        growth = _alternating(options, sizes, n_steps=n_steps, warm_up=warm_up)
        average = {name: _averaging(side, options.repeats) for name, side in sizes.items()}
        report(
            options, "cafe_plus", ours=beside["CaFePlus"], theirs=beside["CaFe"], unit="seconds per training step",
            note="growth: seconds at 20 thousand and at 2 million items, large / small",
            growth={**growth, "ratio": growth["large"] / growth["small"]}, n_steps=n_steps * options.repeats,
            average=average, data_small=small.facts, data_large=big.facts, machine=speed,
        )  # fmt: skip


def _alternating(
    options: argparse.Namespace, sides: dict[str, common.Side], *, n_steps: int, warm_up: int
) -> dict[str, float]:
    """Median seconds of a step of each side."""
    for side in sides.values():
        common.train_steps(side, warm_up)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            taken[name] += common.train_steps(side, n_steps)
    return {name: statistics.median(values) for name, values in taken.items()}


def _averaging(side: common.Side, repeats: int) -> float:
    """Median seconds of an epoch's part in the mean of the weights."""
    average = WeightAverage(side.model.parameters())
    average.add()  # makes the copy
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        average.train()
        average.add()
        taken.append(time.perf_counter() - start)
    average.train()
    return statistics.median(taken)


if __name__ == "__main__":
    main()
