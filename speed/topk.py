"""The 20 best items of a state, and the rank of its target: dense, FAISS, streamed and pruned.

States are those of real users of a test split, from a CaFe trained for a stated number of steps on data simulated with
that catalogue. Every answer is compared with brute force in float64. `ours` and `theirs` are the 20 best of a batch of
256 at the largest catalogue: pruned (Catalogue.top) against matrix product, joint score and torch.topk. FAISS (flat,
exact) knows no joint score: it ranks by the item part alone, which is another ranking and less work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import common
import torch
from common import data, floor, machine, ours, parser, report, workplace
from torch import Tensor

from recbole_cafe.layers.scoring import joint_score
from recbole_cafe.ranking.catalogue import Catalogue, rank_streamed
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks

try:
    import faiss
except ImportError:
    faiss = None

K = 20
BATCHES = (1, 256)  # states at a time
SLICE = 64  # states the dense ranking holds scores of at a time: 256 would hold four matrices of 2 GB
ROWS = 2**16  # items brute force converts to float64 at a time


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--items", type=int, nargs="+", default=[100_000, 2_000_000], help="catalogues")
    arguments.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="states at a time")
    arguments.add_argument("--train-steps", type=int, default=800, help="training steps (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options) as folder:
        items = [100, 400] if options.quick else options.items
        options.train_steps = 3 if options.quick else options.train_steps
        speed = machine(options)
        rows, trained = [], []
        for n in items:
            source = data(options, folder, common.large(n))
            side = ours(options, source)
            common.train_steps(side, options.train_steps)
            side.model.eval()
            trained.append({"data": source.facts, "train_steps": options.train_steps})
            rows += measure(side, options, speed)
            del side
        last = {row["method"]: row for row in rows if row["items"] == rows[-1]["items"] and row["batch"] == _last(rows)}
        report(
            options, "topk", ours=last["top, pruned"]["seconds"], theirs=last["top, dense"]["seconds"],
            unit=f"seconds for the {K} best of {_last(rows)} states", rank=last["rank, pruned"]["seconds"],
            rank_at_most=last[f"rank, pruned, at_most={K}"]["seconds"],
            note="dense ranks in slices of 64 states; FAISS ranks by the item part alone, without intents",
            all_equal_to_brute_force=all(row["equal"] for row in rows if row["equal"] is not None),
            trained=trained, results=rows, machine=speed,
        )  # fmt: skip


def _last(rows: list[dict[str, Any]]) -> int:
    return rows[-1]["batch"]


def measure(side: common.Side, options: argparse.Namespace, speed: dict[str, float]) -> list[dict[str, Any]]:
    """One row per method and batch size."""
    rows: list[dict[str, Any]] = []
    catalogue = side.model.catalogue()
    index = _faiss_index(catalogue.table) if catalogue.table.device.type == "cpu" else None
    loader = side.eval_data("test")
    n_rows = len(loader._dataset)
    for size in getattr(options, "batches", BATCHES):
        size = min(size, n_rows)
        chosen = torch.linspace(0, n_rows - 1, size).long().tolist()  # over all users, not the first ones only
        batch = loader.transform(loader._dataset, loader._dataset[chosen]).to(side.config["device"])
        with torch.no_grad():
            query = side.model.query(batch)
            rows += _measure_batch(catalogue, query, batch["item_id"], options.repeats, index, speed)
    return rows


def _measure_batch(catalogue: Catalogue, query: Query, target: Tensor, repeats: int, index: Any,
                   speed: dict[str, float]) -> list[dict[str, Any]]:  # fmt: skip
    (n, dim), state, terms = catalogue.table.shape, query.vector, query.terms
    calls: dict[str, Callable[[], Any]] = {
        "top, dense": lambda: dense_top(catalogue, state, terms),
        "top, pruned": lambda: catalogue.top(query, K),
        "rank, streamed": lambda: rank_streamed(catalogue, query, target),
        "rank, pruned": lambda: catalogue.rank(query, target),
        f"rank, pruned, at_most={K}": lambda: catalogue.rank(query, target, at_most=K),
    }
    if index is not None:
        calls["top, FAISS flat, item part alone"] = lambda: index.search(state.cpu().numpy(), K)
    answers, share = {}, {}
    for name, call in calls.items():
        before = catalogue.counters.pairs, catalogue.counters.possible
        answers[name] = call()
        pairs, possible = (now - then for now, then in zip(_counts(catalogue), before, strict=True))
        share[name] = pairs / possible if possible else 1.0
    timings = common.alternate(calls, repeats)
    truth = brute_force(catalogue, state, terms, target)
    least = floor(speed, flops=2.0 * len(state) * n * dim, moved=4.0 * n * dim)
    rows = [
        {
            "items": n - 1, "batch": len(state), "method": name, "seconds": timings[name].median,
            "share_of_products": share[name], "equal": _equal(answers[name], truth), "states_checked": len(state),
            "floor_seconds": least["seconds"] * share[name],
        }
        for name in calls
    ]  # fmt: skip
    if index is None:
        reason = "faiss-cpu is not installed" if faiss is None else "not on this device"
        rows.append(
            {"items": n - 1, "batch": len(state), "method": "top, FAISS flat", "equal": None, "skipped": reason}
        )
    return rows


def _counts(catalogue: Catalogue) -> tuple[int, int]:
    return catalogue.counters.pairs, catalogue.counters.possible


def dense_top(catalogue: Catalogue, state: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """As a dense model does it: all products, all scores, the best of them."""
    items, scores = [], []
    for some, some_terms in zip(state.split(SLICE), terms.split(SLICE), strict=True):
        score = joint_score(some @ catalogue.table.T, some_terms[:, catalogue.item2intent], catalogue.joint)
        score[:, 0] = -torch.inf
        best = score.topk(K, dim=1)
        items.append(best.indices)
        scores.append(best.values)
    return torch.cat(items), torch.cat(scores).double()


def _faiss_index(table: Tensor) -> Any:
    """The items without padding; a search returns item id - 1."""
    if faiss is None:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(table.shape[1])
    index.add(table[1:].numpy())
    return index


def brute_force(catalogue: Catalogue, state: Tensor, terms: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Every score in float64: the K best (equal scores by item id), and how many items are above and tied."""
    term_of_target = terms.gather(1, catalogue.item2intent[target][:, None])[:, 0]
    own = catalogue.score64(state, term_of_target, target)[:, None]
    above = torch.zeros(len(state), dtype=torch.long, device=state.device)
    tied = torch.zeros_like(above)
    best = torch.zeros(len(state), 0, dtype=torch.long, device=state.device)
    best_score = torch.zeros(len(state), 0, dtype=torch.float64, device=state.device)
    for ids in torch.arange(1, len(catalogue.table), device=state.device).split(ROWS):
        logit = state.double() @ catalogue.table[ids].double().T
        score = joint_score(logit, terms.double()[:, catalogue.item2intent[ids]], catalogue.joint)
        near = ((score - own).abs() < 1e-9).nonzero()  # a product rounds otherwise than a sum: these once more, exactly
        r, item = near[:, 0], ids[near[:, 1]]
        score[r, near[:, 1]] = catalogue.score64(state[r], terms[r, catalogue.item2intent[item]], item)
        score[r[item == target[r]], near[:, 1][item == target[r]]] = torch.nan  # the target competes with nobody
        above += (score > own).sum(1)
        tied += (score == own).sum(1)
        score = torch.where(score.isnan(), own, score)
        some = score.topk(min(2 * K, len(ids)), dim=1)
        best, best_score = torch.cat((best, ids[some.indices]), dim=1), torch.cat((best_score, some.values), dim=1)
        kept = best_score.topk(min(2 * K, best.shape[1]), dim=1)
        best, best_score = best.gather(1, kept.indices), kept.values
    flat = best.reshape(-1)
    of = torch.arange(len(state), device=state.device).repeat_interleave(best.shape[1])
    exact = catalogue.score64(state[of], terms[of, catalogue.item2intent[flat]], flat).view(best.shape)
    by_id = best.argsort(dim=1)
    order = by_id.gather(1, exact.gather(1, by_id).argsort(dim=1, descending=True, stable=True))[:, :K]
    return {"above": above.cpu(), "tied": tied.cpu(), "items": best.gather(1, order), "scores": exact.gather(1, order)}


def _equal(answer: Any, truth: dict[str, Tensor]) -> bool | None:
    """Whether an answer is the truth. None for what ranks by something else, and for float32 scores, which need not
    be in float64's order: of those only that no score is further off than rounding is asked."""
    if isinstance(answer, Ranks):
        above, tied = truth["above"], truth["tied"]
        if answer.limit is None:
            return bool((answer.above == above).all() and (answer.tied == tied).all())
        known = answer.above < answer.limit
        return bool((known == (above < answer.limit)).all() and (answer.above[known] == above[known]).all())
    items, scores = answer
    if not isinstance(items, Tensor):
        return None
    if items.shape == truth["items"].shape and bool((items == truth["items"]).all()):
        return True
    return bool(torch.allclose(scores, truth["scores"], rtol=1e-4, atol=1e-5)) and None


if __name__ == "__main__":
    main()
