"""Dense Adam at the cost of the touched rows: RowWise against torch.optim.Adam and torch.optim.SparseAdam.

One step is what a training step does with the item table: look the batch's rows up (RowWise first applies the steps
they missed), make the gradient, update. `theirs` is torch.optim.Adam, the same update on the whole table. SparseAdam
leaves untouched rows alone: a different algorithm, given for its cost. All three go through the same rows; the weights
that RowWise ends with are compared with dense Adam's. Each is built, run and freed in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from common import WIDTH, floor, machine, parser, report, workplace
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.train.row_adam import RowWise


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--items", type=int, default=2_000_000, help="rows of the table (default: %(default)s)")
    arguments.add_argument("--positions", type=int, default=64 * 40, help="real positions of a batch (64 x 40)")
    arguments.add_argument("--steps", type=int, default=10, help="steps per measurement (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options):
        n, dim, n_steps, positions = options.items, WIDTH, options.steps, options.positions
        if options.quick:
            n, dim, n_steps, positions = 1_000, 16, 3, 50
        speed = machine(options)
        batches = _batches(n, positions, n_steps + 1)
        distinct = sum(len(torch.unique(rows)) for rows in batches) / len(batches)
        makers: dict[str, Callable[[nn.Parameter], torch.optim.Optimizer]] = {
            "ours": lambda table: RowWise([table], lr=1e-3),
            "theirs": lambda table: torch.optim.Adam([table], lr=1e-3, fused=True),
            "sparse_adam": lambda table: torch.optim.SparseAdam([table], lr=1e-3),
        }
        taken: dict[str, list[float]] = {name: [] for name in makers}
        ends: dict[str, Tensor] = {}
        for _ in range(options.repeats):
            for name, make in makers.items():
                seconds, ends[name] = _run(make, batches, n, dim, sparse=name != "theirs")
                taken[name] += seconds
        medians = {name: float(np.median(values)) for name, values in taken.items()}
        report(
            options, "optimizer", ours=medians["ours"], theirs=medians["theirs"], unit="seconds per step",
            sparse_adam=medians["sparse_adam"], ratio_sparse_adam=medians["ours"] / medians["sparse_adam"],
            note="lookup, gradient and update of the table; theirs: torch.optim.Adam(fused=True) with dense gradients",
            difference_to_adam=_difference(ends["ours"], ends["theirs"]),
            difference_of_sparse_adam=_difference(ends["sparse_adam"], ends["theirs"]),
            table=[n, dim], rows_per_step=len(batches[0]), distinct_rows_per_step=distinct,
            n_measured=len(taken["ours"]),
            floor_ours=floor(speed, flops=0, moved=distinct * 4 * dim * 3 * 2),
            floor_adam=floor(speed, flops=0, moved=7 * 4.0 * n * dim), machine=speed,
        )  # fmt: skip


def _batches(n: int, positions: int, n_batches: int) -> list[Tensor]:
    """Rows of inputs and targets, by Zipf's law as popularity is, and of uniform negatives."""
    rng = np.random.default_rng(0)
    weight = 1.0 / (np.arange(1, n) + 10.0)
    cumulative = np.cumsum(weight) / weight.sum()
    shuffled = 1 + rng.permutation(n - 1)  # popular rows are not neighbours
    batches = []
    for _ in range(n_batches):
        popular = shuffled[np.searchsorted(cumulative, rng.random(2 * positions)).clip(max=n - 2)]
        batches.append(torch.from_numpy(np.concatenate((popular, rng.integers(1, n, positions)))))
    return batches


def _run(make: Callable[[nn.Parameter], torch.optim.Optimizer], batches: list[Tensor], n: int, dim: int, *,
         sparse: bool) -> tuple[list[float], Tensor]:  # fmt: skip
    """Seconds of each step but the first, which allocates; and the weights at the end, of the rows of two batches."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.empty(n, dim).normal_(std=0.02, generator=generator))
    # of the size of a loss that is a mean over positions: where gradients are small, epsilon counts
    pull = torch.empty(len(batches[0]), dim).normal_(std=1 / len(batches[0]), generator=generator)
    optimizer: Any = make(table)
    taken = []
    for rows in batches:
        start = common.clock()
        optimizer.zero_grad(set_to_none=True)
        if isinstance(optimizer, RowWise):
            optimizer.catch_up(table, rows)
        (F.embedding(rows, table, sparse=sparse) * pull).sum().backward()
        optimizer.step()
        taken.append(common.clock() - start)
    if isinstance(optimizer, RowWise):
        optimizer.catch_up_all()
    checked = torch.unique(torch.cat((batches[0], batches[-1])))
    return taken[1:], table.detach()[checked].clone()


def _difference(observed: Tensor, expected: Tensor) -> dict[str, float]:
    apart = (observed - expected).abs()
    return {"largest": float(apart.max()), "mean": float(apart.mean())}


if __name__ == "__main__":
    main()
