"""Seconds per epoch: CaFe through recbole_cafe against RecBole's SASRec through RecBole's own Trainer.

Both go once over the same train interactions. Ours: CaFe with the paper's loss (BCE, one negative), one row per user,
every position a target, batches of 64 users. Theirs: SASRec with RecBole's defaults (softmax over all items, one padded
prefix row per interaction, batches of 2,048), same width, layers, heads, inner size and history.

An epoch of theirs takes minutes, so a stated number of its steps is measured after one for warming up, alternating with
full epochs of ours, and scaled to the number of steps of its epoch. It is measured twice: with autograd's anomaly mode
on, as importing RecBole's sequential models leaves it, and off.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import common
import torch
from common import AMAZON, data, floor, machine, ours, parser, report, workplace


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=6, help="steps of theirs at a time (default: %(default)s)")
    arguments.add_argument("--variants", action="store_true", help="also CaFe with what theirs does, one at a time")
    options = arguments.parse_args()
    with workplace(options) as folder:
        speed, source = machine(options), data(options, folder, AMAZON)
        cafe, sasrec = ours(options, source), common.recboles(options, source)
        n_steps = 2 if options.quick else options.steps

        def an_epoch(side: common.Side, n: int | None = None, anomaly: bool = False) -> Callable[[], None]:
            def run() -> None:
                with torch.autograd.set_detect_anomaly(anomaly):
                    side.trainer._train_epoch(common.Steps(side.train_data, n), 0)

            return run

        calls = {
            "ours": an_epoch(cafe),
            "theirs": an_epoch(sasrec, n_steps, anomaly=True),
            "theirs_anomaly_off": an_epoch(sasrec, n_steps),
        }
        if options.variants:
            calls["ours_ce"] = an_epoch(ours(options, source, loss_type="CE"))
            calls["ours_dense_table"] = an_epoch(ours(options, source, sparse_tables=False))
        an_epoch(cafe)()
        an_epoch(sasrec, 1)()
        timings = common.alternate(calls, options.repeats)
        epoch_steps = len(sasrec.train_data)
        scale = epoch_steps / min(n_steps, epoch_steps)
        seconds, on, off = (timings[key].median for key in ("ours", "theirs", "theirs_anomaly_off"))
        report(
            options, "train_epoch", ours=seconds, theirs=on * scale, theirs_anomaly_off=off * scale,
            ratio_anomaly_off=seconds / (off * scale), unit="seconds per epoch",
            ours_model="CaFe, BCE, train_layout all, sparse tables", theirs_model="SASRec, CE, prefix rows",
            ours_all=timings["ours"].all,
            theirs_all=[s * scale for s in timings["theirs"].all],
            theirs_anomaly_off_all=[s * scale for s in timings["theirs_anomaly_off"].all],
            variants={key: timings[key].median for key in calls if key.startswith("ours_")},
            note=f"theirs: {min(n_steps, epoch_steps)} of {epoch_steps} steps measured, after one for warming up, and "
                 f"scaled to the epoch; ours: whole epochs",
            ours_steps=len(cafe.train_data), ours_batch=cafe.config["train_batch_size"],
            theirs_steps=epoch_steps, theirs_batch=sasrec.config["train_batch_size"],
            hidden_size=cafe.config["hidden_size"], history=cafe.config["MAX_ITEM_LIST_LENGTH"], data=source.facts,
            floor_ours=floor_ours(cafe, speed), floor_theirs=_floor_theirs(sasrec, speed), machine=speed,
        )  # fmt: skip


def floor_ours(side: common.Side, speed: dict[str, float]) -> dict[str, float]:
    """Forward and backward of both encoders on the real positions (three times forward), and per step the rows of
    inputs, targets and negatives: weight and two moments, read and written."""
    config, train = side.config, side.parts[0]
    positions = int(train.inter_feat[train.item_list_length_field].sum())
    dim = config["hidden_size"]
    flops = 3 * 2 * positions * common.encoder_flops(dim, config["inner_size"], config["n_layers"])
    rows = positions * (2 + config["n_negatives"])
    return floor(speed, flops=flops, moved=rows * 4 * dim * 3 * 2) | {"positions": positions}


def _floor_theirs(side: common.Side, speed: dict[str, float]) -> dict[str, float]:
    """The encoder on all L places of each prefix row, the softmax over the catalogue, and dense Adam: weight, gradient
    and two moments read, all but the gradient written, at every step."""
    config, train = side.config, side.parts[0]
    n_items, dim, n = train.item_num, config["hidden_size"], len(train)
    places = n * config["MAX_ITEM_LIST_LENGTH"]
    flops = (
        3 * places * common.encoder_flops(dim, config["inner_size"], config["n_layers"]) + 3 * 2.0 * n * n_items * dim
    )
    steps = math.ceil(n / config["train_batch_size"])
    return floor(speed, flops=flops, moved=steps * 7 * 4.0 * n_items * dim) | {"places": places}


if __name__ == "__main__":
    main()
