"""Evaluation against 100 sampled negatives: recbole_cafe's path against RecBole's.

Ours encodes each history once and scores 101 candidates by one product; RecBole repeats each history 101 times, encodes
all of them, and builds a [users, items] matrix. The same SASRec weights go through both, and CaFe through ours.
Our candidates are drawn once and stored; the first evaluation, which draws them, is given too.
RecBole is measured on the first users of the test split and scaled to all of them, as said in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
from common import AMAZON, data, floor, machine, ours, parser, report, workplace

from recbole_cafe.files.candidates import parse_protocol


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--users", type=int, default=200, help="users RecBole is measured on (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options) as folder:
        speed, source = machine(options), data(options, folder, AMAZON)
        mode = {"eval_mode": ["pop100"]}
        cafe, sasrec = ours(options, source, **mode), ours(options, source, "SASRec", **mode)
        theirs = common.recboles(options, source, mode="pop100")
        theirs.model.load_state_dict(sasrec.model.state_dict())
        protocol = parse_protocol("pop100")
        metrics: dict[str, Any] = {}

        def evaluate(name: str, side: common.Side, loader: Any) -> Callable[[], None]:
            def run() -> None:
                metrics[name] = side.trainer.evaluation.measure(loader, protocol, phase="test")

            return run

        def evaluate_theirs() -> None:
            metrics["theirs"] = theirs.trainer.evaluate(loader, load_best_model=False)

        n_test = len(theirs.parts[2])
        n_users = min(40 if options.quick else options.users, n_test)
        loader = theirs.eval_data("test", n_users)
        calls = {
            "cafe": evaluate("cafe", cafe, cafe.eval_data("test")),
            "sasrec": evaluate("sasrec", sasrec, sasrec.eval_data("test")),
        }
        first = common.seconds(calls["cafe"])
        calls["sasrec"]()
        timings: dict[str, common.Timing] = common.alternate(calls | {"theirs": evaluate_theirs}, options.repeats)
        scale = n_test / n_users
        theirs_all = timings["theirs"].median * scale
        dim, inner = cafe.config["hidden_size"], cafe.config["inner_size"]
        lengths = theirs.parts[2].inter_feat[theirs.parts[2].item_list_length_field]
        flops = int(lengths.sum()) * common.encoder_flops(dim, inner, cafe.config["n_layers"])
        report(
            options, "sampled_eval", ours=timings["sasrec"].median, theirs=theirs_all, unit="seconds, all test users",
            ours_cafe=timings["cafe"].median, ratio_cafe=timings["cafe"].median / theirs_all,
            ours_cafe_first=first, ours_all=timings["sasrec"].all,
            theirs_all=[s * scale for s in timings["theirs"].all],
            note=f"ours and theirs: SASRec, the same weights; theirs: {n_users} of {n_test} users measured, scaled to "
                 f"all; ours_cafe_first also draws and stores the candidates",
            users=n_test, candidates=101, hidden_size=dim, history=cafe.config["MAX_ITEM_LIST_LENGTH"],
            theirs_eval_batch_size=theirs.config["eval_batch_size"], data=source.facts,
            ndcg10={name: float(values["ndcg@10"]) for name, values in metrics.items()},
            floor_sasrec=floor(speed, flops=flops + 2.0 * n_test * 101 * dim, moved=n_test * 101 * 4.0 * dim),
            floor_cafe=floor(speed, flops=2 * flops + 2.0 * n_test * 101 * dim, moved=n_test * 101 * 4.0 * dim),
            machine=speed,
        )  # fmt: skip


if __name__ == "__main__":
    main()
