"""From queries to ranks and lists, beside a dense float32 product: every size, every exact search, in one run.

*All users ranked*: the rank of every test target of a data set of Beauty's size (or the one given with --data), by
CaFePlus, CaFe and IntentBackoff trained for a stated number of steps. The encoder's states are made beforehand on both
sides; ours is all that follows, the query (evidence of counts, sums over intents) and the exact ranks. The other side
is a product of states and table and a count of what is above the target, rows of RecBole's batch at a time; for
IntentBackoff a sparse product of SciPy made dense, plus its intents' part, and the same count.

*The 20 best*: of simulated catalogues. Their numbers are those of a CaFe trained for four epochs on Beauty (hidden
size 64): vectors of items lie around centres of intents, lengths 0.21 of a centre and 0.30 of the rest, both with a
spectrum as training leaves it (a few directions carry half); states are 12 long, most of it along an intent of their
own; logits of intents are normal, -1.5 +- 2, that intent's 4 higher. The other side is what a dense model does: all
products, all joint scores, `torch.topk`. `product_and_topk` leaves the intents out, and so does FAISS (flat, exact):
less work, another ranking.

The first list of each size is compared with scores in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import common
import numpy as np
import torch
from common import Shape, data, machine, ours, parser, report, workplace
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from recbole_cafe.layers.scoring import joint_score
from recbole_cafe.model.counts import newest_first
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query

try:
    import faiss
except ImportError:
    faiss = None

K = 20
BATCH = 1024  # rows of a full ranking at a time, as the models' eval_batch_size
SLICE = 64  # states the dense side holds scores of at a time in a large catalogue
BEAUTY = Shape(22_363, 12_101, 195, 198_502)
SIZES = ((12_101, 1, 195), (100_000, 1, 1_422), (2_000_000, 1, 1_422), (2_000_000, 256, 1_422))
GOALS = {"all": 1.5, "IntentBackoff": 2.0, (12_101, 1): 1.2, (100_000, 1): 1.2, (2_000_000, 1): 0.35,
         (2_000_000, 256): 0.15}  # fmt: skip


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=5)
    arguments.add_argument("--train-steps", type=int, default=1000, help="training steps (default: %(default)s)")
    arguments.add_argument("--users", type=int, help="test users ranked, of those there are (default: all)")
    arguments.add_argument("--no-large", action="store_true", help="leave the 2 million items out")
    options = arguments.parse_args()
    with workplace(options) as folder:
        if options.quick:
            options.train_steps = 3
        speed, source = machine(options), data(options, folder, BEAUTY)
        rows = [ranked(options, source, name) for name in ("CaFePlus", "CaFe", "IntentBackoff")]
        sizes = [(500, 1, 20), (500, 16, 20)] if options.quick else SIZES
        for n_items, batch, n_intents in sizes:
            if n_items < 10**6 or not options.no_large:
                rows.append(listed(options, n_items, batch, n_intents))
        report(
            options, "recommend", ours=rows[0]["seconds"], theirs=rows[0]["dense_seconds"],
            unit=f"seconds, all {rows[0]['rows']} test users of CaFePlus", results=rows, data=source.facts,
            all_equal_to_brute_force=all(row["equal"] for row in rows if "equal" in row),
            train_steps=options.train_steps, machine=speed,
        )  # fmt: skip


# All users ------------------------------------------------------------------------------------------------------------


def ranked(options: argparse.Namespace, source: common.Data, name: str) -> dict[str, Any]:
    """The full ranking of one model."""
    given: dict[str, Any] = {"eval_mode": ["full"]}
    if name != "IntentBackoff" and not options.quick:
        given["hidden_size"] = 64  # what the models' own YAML says
    side = ours(options, source, name, **given)
    net = side.model.network
    if net.learns:
        common.train_steps(side, options.train_steps)
    net.eval()
    loader = side.eval_data("test", options.users)
    n = len(loader._dataset)
    batch = loader.transform(loader._dataset, loader._dataset[list(range(n))])
    history, target = batch["item_id_list"].split(BATCH), batch["item_id"].split(BATCH)
    with torch.no_grad():
        catalogue = net.catalogue()
        states = [net(some) for some in history] if net.learns else []
        turn: Iterator[Any] = iter(())
        if net.learns:
            net.forward = lambda _: next(turn)

        def queries() -> list[Query]:
            nonlocal turn
            turn = iter(states)
            return [net.query(some) for some in history]

        def all_ranks() -> None:
            nonlocal turn
            turn = iter(states)
            for some, own in zip(history, target, strict=True):
                catalogue.rank(net.query(some), own)

        made = queries()
        calls: dict[str, Callable[[], Any]] = {"ours": all_ranks, "query": queries}
        if name == "IntentBackoff":
            counts = _scipy_counts(net)
            calls["dense"] = lambda: [
                _count(_by_scipy(net, counts, some, query), own)
                for some, own, query in zip(history, target, made, strict=True)
            ]
        else:
            table = catalogue.plain.table if name == "CaFePlus" else catalogue.table
            calls["dense"] = lambda: [
                _count(query.vector @ table.T, own) for query, own in zip(made, target, strict=True)
            ]
            calls["dense_in_slices"] = lambda: [
                _count(vector @ table.T, own)
                for query, all_own in zip(made, target, strict=True)
                for vector, own in zip(query.vector.split(SLICE), all_own.split(SLICE), strict=True)
            ]
            calls["topk"] = lambda: [(query.vector @ table.T).topk(K, dim=1) for query in made]
        timings = common.alternate(calls, options.repeats)
    seconds = {key: timing.median for key, timing in timings.items()}
    goal = GOALS["IntentBackoff" if name == "IntentBackoff" else "all"]
    return {
        "work": f"rank of all users, {name}", "items": catalogue.n_items - 1, "rows": n, "goal": goal,
        "seconds": seconds["ours"], "query_seconds": seconds["query"], "dense_seconds": seconds["dense"],
        "ratio": seconds["ours"] / seconds["dense"],
        "others": {key: value for key, value in seconds.items() if key not in ("ours", "query", "dense")},
        "ours_all": timings["ours"].all, "dense_all": timings["dense"].all,
    }  # fmt: skip


def _count(scores: Tensor, target: Tensor) -> Tensor:
    return (scores > scores.gather(1, target[:, None])).sum(1)


def _scipy_counts(net: Any) -> sparse.csr_matrix:
    table, n = net.items, net.n_items
    return sparse.csr_matrix(
        (table.count.double().numpy(), table.successor.numpy(), table.start.numpy().astype(np.int32)), shape=(n, n)
    )


def _by_scipy(net: Any, counts: sparse.csr_matrix, history: Tensor, query: Query) -> Tensor:
    """Evidence by a sparse product, made dense, plus what the intents say."""
    lookup = net.counts.lookup
    newest = newest_first(history)[:, : lookup.length]
    real = newest > 0
    weight = (lookup.decay ** torch.arange(newest.shape[1], dtype=torch.float64)).expand(newest.shape)[real]
    start = np.concatenate(([0], np.cumsum(real.sum(1).numpy()))).astype(np.int32)
    of_rows = sparse.csr_matrix(
        (weight.numpy(), newest[real].numpy().astype(np.int32), start), shape=(len(newest), net.n_items)
    )
    scores = torch.from_numpy((of_rows @ counts).toarray())
    assert query.terms is not None
    return scores.add_(query.terms[:, net.item2intent].mul_(net.within))


# Lists ----------------------------------------------------------------------------------------------------------------


def simulated(n_items: int, n_rows: int, n_intents: int, dim: int) -> tuple[Catalogue, Query]:
    """A catalogue like a trained CaFe's, and states that ask it; see the module's docstring."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scale = 1 / (1 + torch.arange(dim) / 4.0)
    scale = scale / scale.norm()
    intent = torch.randint(1, n_intents, (n_items + 1,), generator=generator)
    intent[0] = 0
    centre = 0.21 * normal(n_intents + 1, dim) * scale
    table = normal(n_items + 1, dim).mul_(0.30 * scale)
    for some in torch.arange(n_items + 1).split(2**16):
        table[some] += centre[intent[some]]
    table[0] = 0
    own = torch.randint(1, n_intents, (n_rows,), generator=generator)
    state = F.normalize(F.normalize(centre[own], dim=1) + normal(n_rows, dim) * scale, dim=1) * 12
    logit = normal(n_rows, n_intents + 1) * 2 - 1.5
    logit[torch.arange(n_rows), own] += 4
    return Catalogue(table, intent, "product", n_intents), Query(state, F.logsigmoid(logit))


def listed(options: argparse.Namespace, n_items: int, batch: int, n_intents: int) -> dict[str, Any]:
    """The 20 best of one batch."""
    catalogue, query = simulated(n_items, batch, n_intents, 16 if options.quick else common.WIDTH)
    state, terms, table = query.vector, query.terms, catalogue.table
    assert state is not None and terms is not None

    def dense() -> None:
        for some, own in zip(state.split(SLICE), terms.split(SLICE), strict=True):
            scores = joint_score(some @ table.T, own[:, catalogue.item2intent], catalogue.joint)
            scores[:, 0] = -torch.inf
            scores.topk(K, dim=1)

    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: catalogue.top(query, K), "dense": dense,
        "product_and_topk": lambda: [(some @ table.T).topk(K, dim=1) for some in state.split(SLICE)],
    }  # fmt: skip
    if faiss is not None:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(table.shape[1])
        index.add(table[1:].numpy())
        calls["faiss"] = lambda: index.search(state.numpy(), K)
    catalogue.top(query, K)
    share = catalogue.counters.share
    timings = common.alternate(calls, options.repeats * (5 if batch == 1 else 1))
    seconds = {key: timing.median for key, timing in timings.items()}
    items = catalogue.top(query, K)[0]
    row = {
        "work": f"{K} best of {batch}", "items": n_items, "rows": batch, "goal": GOALS.get((n_items, batch)),
        "seconds": seconds["ours"], "dense_seconds": seconds["dense"], "ratio": seconds["ours"] / seconds["dense"],
        "others": {key: value for key, value in seconds.items() if key not in ("ours", "dense")},
        "share_of_products": share, "equal": _equal(catalogue, query, items),
    }  # fmt: skip
    if faiss is None:
        row["faiss"] = "faiss-cpu is not installed"
    return row


def _equal(catalogue: Catalogue, query: Query, items: Tensor) -> bool:
    """Whether the items of the first row are those of the highest scores in float64, equal ones by id."""
    every = torch.arange(1, catalogue.n_items)
    state, terms = query.vector, query.terms
    assert state is not None and terms is not None
    scores = [
        catalogue.score64(state[:1].expand(len(some), -1), terms[0, catalogue.item2intent[some]], some)
        for some in every.split(2**16)
    ]
    best = torch.cat(scores).sort(descending=True, stable=True).indices[:K] + 1
    return torch.equal(best, items[0])


if __name__ == "__main__":
    main()
