"""Full ranking: recbole_cafe's streamed, exact, pruned ranking against RecBole's dense one, the same CaFe weights.

RecBole scores a batch against all items in one matrix and keeps, beside it, an integer matrix of the same size that
says which item is the target. `ratio` is at the default size, after training for a stated number of steps; `large` is
the same at 2 million items, each side in fresh processes: ours with its resident memory beyond what it held before,
RecBole's with the largest batch that stays within a stated memory, or the reason why none does.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import common
from common import AMAZON, data, floor, machine, ours, parser, report, workplace

from recbole_cafe.train.checkpoint import take_weights

LARGE = 2_000_000
BATCHES = (4096, 1024, 512, 256, 128, 64)  # RecBole's default first


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--train-steps", type=int, default=300, help="steps of training before (default: 300)")
    arguments.add_argument("--users", type=int, default=512, help="test users at 2 million items (default: 512)")
    arguments.add_argument("--memory", type=float, default=20.0, help="GB RecBole may use there (default: 20)")
    arguments.add_argument("--no-large", action="store_true", help="leave the 2 million items out")
    options = arguments.parse_args()
    with workplace(options) as folder:
        if options.child:
            print(json.dumps(_large(options, **json.loads(options.child))), flush=True)
            return
        options.train_steps = 3 if options.quick else options.train_steps
        at_large = {} if options.no_large else _both_large(options, folder)
        speed, source = machine(options), data(options, folder, AMAZON)
        side = ours(options, source, eval_mode=["full"])
        common.train_steps(side, options.train_steps)
        dense = ours(options, source, "SASRec", eval_mode=["full"])
        recbole = ours(options, source, eval_mode="full", candidates="recbole", eval_batch_size=BATCHES[0])
        recbole.model.load_state_dict(side.model.state_dict())
        last = common.LastCatalogue(side)
        loaders = {name: which.eval_data("test") for name, which in _named(side, dense, recbole).items()}
        metrics: dict[str, Any] = {}

        def evaluate(name: str, which: Any) -> Any:
            def run() -> None:
                metrics[name] = which.trainer.evaluate(loaders[name], load_best_model=False)

            return run

        calls = {name: evaluate(name, which) for name, which in _named(side, dense, recbole).items()}
        for call in calls.values():
            call()
        timings = common.alternate(calls, options.repeats)
        share = last.catalogue.counters.share
        n_users, n_items, dim = len(side.parts[2]), side.parts[2].item_num, side.config["hidden_size"]
        lengths = int(side.parts[2].inter_feat[side.parts[2].item_list_length_field].sum())
        encoders = 2 * lengths * common.encoder_flops(dim, side.config["inner_size"], side.config["n_layers"])
        report(
            options, "full_eval", ours=timings["ours"].median, theirs=timings["recbole"].median,
            unit="seconds, all test users", ours_sasrec=timings["ours_sasrec"].median,
            note=f"CaFe after {options.train_steps} steps, the same weights on both sides; ours_sasrec: RecBole's "
                 f"SASRec (untrained) evaluated by ours",
            share_of_products=share, users=n_users, items=n_items - 1, hidden_size=dim,
            theirs_eval_batch_size=recbole.config["eval_batch_size"], ours_all=timings["ours"].all,
            theirs_all=timings["recbole"].all, data=source.facts,
            ndcg10={name: float(values["ndcg@10"]) for name, values in metrics.items()}, large=at_large,
            floor_dense=floor(
                speed, flops=encoders + 2.0 * n_users * n_items * dim, moved=4.0 * n_items * dim
            ),
            floor_pruned=floor(speed, flops=encoders + 2.0 * share * n_users * n_items * dim, moved=0), machine=speed,
        )  # fmt: skip


def _named(side: Any, dense: Any, recbole: Any) -> dict[str, Any]:
    return {"ours": side, "ours_sasrec": dense, "recbole": recbole}


# 2 million items ------------------------------------------------------------------------------------------------------


def _both_large(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = data(options, folder, common.large(LARGE))
    task = {
        "folder": str(source.folder), "name": source.name, "facts": source.facts, "users": options.users,
        "steps": options.train_steps, "checkpoint": str(folder / "large.pth"),
    }  # fmt: skip
    result: dict[str, Any] = {"memory_limit_gb": options.memory, "data": source.facts}
    result["ours"] = common.in_child(options, **task)
    result["theirs_failed"] = {}
    for batch in BATCHES:
        tried = common.in_child(options, **task, batch=batch, limit_gb=options.memory)
        if "failed" not in tried:
            result["theirs"] = tried
            break
        result["theirs_failed"][batch] = tried["failed"]
    if "theirs" in result and "failed" not in result["ours"]:
        result["ratio"] = result["ours"]["seconds_per_user"] / result["theirs"]["seconds_per_user"]
    return result


def _large(options: argparse.Namespace, *, folder: str, name: str, facts: dict[str, Any], users: int, steps: int,
           checkpoint: str, batch: int | None = None, limit_gb: float | None = None) -> dict[str, Any]:  # fmt: skip
    """One side at 2 million items, in its own process. Ours (no batch) trains first and leaves its weights."""
    given: dict[str, Any] = {"eval_mode": ["full"]}
    if batch is not None:
        given = {"eval_mode": "full", "candidates": "recbole", "eval_batch_size": batch}
    side = ours(options, common.Data(Path(folder), name, facts), **given)
    if batch is None:
        common.train_steps(side, steps)
        side.trainer._save_checkpoint(0, verbose=False, saved_model_file=checkpoint)
    else:
        take_weights(side.trainer.model, side.trainer._load(checkpoint), checkpoint)
        users = batch  # one full batch
    loader, last = side.eval_data("test", users), common.LastCatalogue(side)
    n_users = len(loader._dataset)
    common.reset_peak()
    before = common.resident_mb()
    if limit_gb is not None:  # of the address space in use now, RecBole may add what brings it to the limit
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        extra = int(limit_gb * 1e9) - int((before or 0) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
    metrics: dict[str, Any] = {}
    taken = common.seconds(lambda: metrics.update(side.trainer.evaluate(loader, load_best_model=False)))
    peak = common.peak_mb()
    result = {
        "seconds": taken, "users": n_users, "seconds_per_user": taken / n_users, "peak_mb": peak,
        "before_mb": before, "beyond_mb": None if before is None else peak - before, "batch": batch,
        "table_mb": side.model.network.item_embedding.weight.numel() * 4 / 2**20, "ndcg10": float(metrics["ndcg@10"]),
    }  # fmt: skip
    if batch is None:
        catalogue = last.catalogue
        result |= {"train_steps": steps, "share_of_products": catalogue.counters.share}
        start = common.clock()
        side.model.network.catalogue()
        result["catalogue_seconds"] = common.clock() - start
        rows = min(64, n_users)
        batch_of = loader.transform(loader._dataset, loader._dataset[list(range(rows))])
        query = side.model.query(batch_of)
        exact = common.seconds(lambda: catalogue.rank(query, batch_of["item_id"]))
        result["exact_seconds_per_user"] = exact / rows
    return result


if __name__ == "__main__":
    main()
