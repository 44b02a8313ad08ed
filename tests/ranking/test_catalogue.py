"""The pruned search against brute force in float64, on tables made to tie, saturate and repeat."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_cafe.errors import DataError
from recbole_cafe.layers.scoring import JOINTS, intent_terms
from recbole_cafe.ranking.catalogue import Catalogue, rank_streamed
from recbole_cafe.ranking.precision import BACKENDS, full_float32
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import ScoreError

TRIALS = range(60)
WAYS = {"every item": -torch.inf, "by intent": torch.inf}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """What visiting every item seems to cost decides how a catalogue searches."""
    monkeypatch.setattr(Catalogue, "_dense_cost", lambda *_: WAYS[request.param])
    return request.param


def random_case(trial: int, joint: str):
    """A catalogue, states, terms and targets; every third with many ties, every seventh with equal rows."""
    torch.manual_seed(trial)

    def between(a: int, b: int) -> int:
        return int(torch.randint(a, b, (1,)))

    n, dim, groups, rows = between(3, 300), between(1, 20), between(2, 12), between(1, 20)
    table = torch.randn(n, dim) * 3 * torch.rand(1)
    state, logit = torch.randn(rows, dim) * 2, torch.randn(rows, groups + 1) * 4
    if trial % 3 == 0:
        table, state, logit = (table * 2).round() / 2, state.round(), logit.round()
    if trial % 7 == 0:
        table[torch.randint(0, n, (n // 2,))] = table[1].clone()
    table[0] = 0
    item2intent = torch.randint(1, groups + 1, (n,))
    item2intent[0] = 0
    terms = None if joint == "item" else intent_terms(logit, joint)
    return Catalogue(table, item2intent, joint, groups), state, terms, torch.randint(1, n, (rows,))


def brute_force(catalogue: Catalogue, state: torch.Tensor, terms: torch.Tensor | None) -> torch.Tensor:
    """Every score in float64, [B, V - 1]."""
    items = torch.arange(1, len(catalogue.table))
    rows = []
    for b in range(len(state)):
        term = None if terms is None else terms[b, catalogue.item2intent[items]]
        rows.append(catalogue.score64(state[b].expand(len(items), -1), term, items))
    return torch.stack(rows)


def counts(scores: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    own = scores[torch.arange(len(scores)), target - 1][:, None]
    return (scores > own).sum(1), (scores == own).sum(1) - 1


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("trial", TRIALS)
def test_ranks_are_those_of_brute_force(trial, joint, way):
    catalogue, state, terms, target = random_case(trial, joint)
    above, tied = counts(brute_force(catalogue, state, terms), target)
    for ranks in (catalogue.rank(Query(state, terms), target), rank_streamed(catalogue, Query(state, terms), target)):
        assert torch.equal(ranks.above, above)
        assert torch.equal(ranks.tied, tied)
        assert (ranks.n_candidates == len(catalogue.table) - 1).all()
    cut = catalogue.rank(Query(state, terms), target, at_most=5)
    within = above < 5
    assert torch.equal(cut.above[within], above[within])
    assert torch.equal(cut.tied[within], tied[within])
    assert (cut.above[~within] >= 5).all()


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("trial", TRIALS)
def test_the_best_items_are_those_of_brute_force(trial, joint, way):
    catalogue, state, terms, target = random_case(trial, joint)
    scores = brute_force(catalogue, state, terms)
    k = min(7, scores.shape[1])
    excluded = [torch.unique(torch.randint(1, len(catalogue.table), (3,))) for _ in state]
    for gone in (None, excluded):
        reference = scores.clone()
        for row, items in enumerate(gone or []):
            reference[row, items - 1] = -torch.inf
        best = torch.sort(reference, dim=1, descending=True, stable=True)  # equal scores by item id
        items, values = catalogue.top(Query(state, terms), k, gone)
        assert torch.equal(values, best.values[:, :k])
        assert torch.equal(items, torch.where(best.values[:, :k] > -torch.inf, best.indices[:, :k] + 1, 0))
    # the history is no candidate, the target always is
    for row, items in enumerate(excluded):
        scores[row, items[items != target[row]] - 1] = -torch.inf
    above, tied = counts(scores, target)
    ranks = catalogue.rank(Query(state, terms), target, excluded=excluded)
    assert torch.equal(ranks.above, above)
    assert torch.equal(ranks.tied, tied)


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("rows", [3, 17])
def test_extreme_numbers_ties_and_too_few_items(rows, joint, way):
    """Products beyond what a sigmoid tells apart, items of equal vectors, an intent without items, none without intent,
    more items wanted than there are, all but one left out."""
    torch.manual_seed(1)
    table = torch.randn(40, 3).round() * 1e4
    table[0], table[20:] = 0, table[1:21].clone()
    item2intent = torch.randint(1, 3, (40,)) * (torch.arange(40) > 0)
    state = torch.randn(rows, 3).round() * 1e3
    logit = torch.randn(rows, 5) * 1e3
    terms = None if joint == "item" else intent_terms(logit, joint)
    catalogue = Catalogue(table, item2intent, joint, 4)
    scores, target = brute_force(catalogue, state, terms), torch.randint(1, 40, (rows,))
    above, tied = counts(scores, target)
    ranks = catalogue.rank(Query(state, terms), target)
    assert torch.equal(ranks.above, above) and torch.equal(ranks.tied, tied)
    gone = [torch.arange(2, 40)] + [torch.tensor([1, 3])] * (rows - 1)
    for row, items in enumerate(gone):
        scores[row, items - 1] = -torch.inf
    best = torch.sort(scores, dim=1, descending=True, stable=True)
    items, values = catalogue.top(Query(state, terms), 50, gone)
    assert torch.equal(values[:, :39], best.values) and (values[:, 39:] == -torch.inf).all()
    assert torch.equal(items[:, :39], torch.where(best.values > -torch.inf, best.indices + 1, 0))
    assert (items[:, 39:] == 0).all()


def test_its_parts_make_it_again(monkeypatch):
    catalogue, state, terms, target = random_case(5, "sum")
    monkeypatch.setattr(Catalogue, "_prepare", None)  # not called
    again = Catalogue(catalogue.table, catalogue.item2intent, "sum", catalogue.n_intents, prepared=catalogue.parts())
    query = Query(state, terms)
    assert torch.equal(again.rank(query, target).above, catalogue.rank(query, target).above)
    assert torch.equal(again.top(query, 3)[0], catalogue.top(query, 3)[0])
    for wrong in ({"items": catalogue.items[1:]}, {"more": catalogue.items}):
        with pytest.raises(DataError, match="catalogue: found"):
            Catalogue(catalogue.table, catalogue.item2intent, "sum", 3, prepared=catalogue.parts() | wrong)


def coarse_products_are_allowed() -> bool:
    if BACKENDS:
        return BACKENDS[-1].fp32_precision == "bf16"
    return torch.get_float32_matmul_precision() == "medium"


class CoarseHardware(TorchDispatchMode):
    """Takes products of bfloat16 numbers where that is allowed, as some processors do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default and args[0].dtype == torch.float32 and coarse_products_are_allowed():
            args = tuple(matrix.bfloat16().float() for matrix in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("joint", JOINTS)
def test_ranks_are_exact_where_products_may_be_coarse(joint):
    catalogue, state, terms, target = random_case(4, joint)
    every = brute_force(catalogue, state, terms)
    above, _ = counts(every, target)
    best = torch.sort(every, dim=1, descending=True, stable=True).indices[:, :5] + 1
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with CoarseHardware():
            product = state @ catalogue.table.T
            assert not torch.allclose(product.double(), state.double() @ catalogue.table.double().T, rtol=1e-4)
            assert torch.equal(catalogue.rank(Query(state, terms), target).above, above)
            assert torch.equal(rank_streamed(catalogue, Query(state, terms), target).above, above)
            assert torch.equal(catalogue.top(Query(state, terms), 5)[0], best)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backends", [BACKENDS, ()], ids=["each backend", "PyTorch before 2.9"])
def test_the_precision_of_products_is_given_back(backends, monkeypatch):
    monkeypatch.setattr("recbole_cafe.ranking.precision.BACKENDS", backends)
    before = torch.get_float32_matmul_precision()
    for name in ("medium", "high", "highest"):
        torch.set_float32_matmul_precision(name)
        with full_float32():
            assert not coarse_products_are_allowed()
        assert torch.get_float32_matmul_precision() == name
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("way", ["by intent"], indirect=True)
def test_an_intent_that_cannot_matter_is_not_touched(way):
    """Two intents of 1,000 items; the second's term puts all of it below any item of the first."""
    torch.manual_seed(0)
    table = torch.randn(2001, 8)
    table[0] = 0
    item2intent = torch.cat((torch.zeros(1), torch.ones(1000), torch.full((1000,), 2.0))).long()
    catalogue = Catalogue(table, item2intent, "sum", 3)
    terms = torch.tensor([[0.0, 0.0, -1000.0, 0.0]])
    items, _ = catalogue.top(Query(torch.randn(1, 8), terms), 10)
    assert (items <= 1000).all()
    assert catalogue.counters.pairs == 1000
    assert catalogue.counters.share == 0.5


def test_a_scorer_of_one_score_ties_everything():
    catalogue = Catalogue(torch.zeros(50, 4), torch.tensor([0] + [1, 2] * 24 + [1]), "product", 3)
    ranks = catalogue.rank(Query(torch.zeros(3, 4), torch.zeros(3, 4)), torch.tensor([1, 2, 49]))
    assert ranks.above.tolist() == [0, 0, 0]
    assert ranks.tied.tolist() == [48, 48, 48]


def test_nan_is_refused():
    catalogue = Catalogue.of_items(torch.zeros(5, 2))
    with pytest.raises(ScoreError, match="NaN"):
        catalogue.rank(Query(torch.full((1, 2), torch.nan)), torch.tensor([1]))
