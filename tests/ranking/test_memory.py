"""The search by vectors and overrides against brute force over dense scores in float64."""

from dataclasses import replace

import pytest
import torch

from recbole_cafe.ranking.blocks import columns
from recbole_cafe.ranking.memory import MemoryCatalogue
from recbole_cafe.ranking.query import Query, ScoreOverrides
from recbole_cafe.ranking.ranks import ScoreError

TRIALS = range(40)


def random_case(trial):
    """A catalogue, a query and targets; every third trial of few values, so that many scores tie; every fourth
    without overrides; some intents without items."""
    torch.manual_seed(trial)

    def between(a, b):
        return int(torch.randint(a, b, (1,)))

    n, groups, rows, dim = between(3, 300), between(2, 12), between(1, 20), between(1, 6)
    item2intent = torch.randint(1, groups + 1, (n,))
    item2intent[0] = 0
    coarse = trial % 3 == 0
    table = torch.randint(-1, 2, (n, dim)).float() if coarse else torch.randn(n, dim)
    vector = torch.randint(-1, 2, (rows, dim)).float() if coarse else torch.randn(rows, dim)
    terms = torch.randint(-3, 0, (rows, groups + 1)).float() if coarse else -3 * torch.rand(rows, groups + 1)
    size = torch.bincount(item2intent, minlength=groups + 1)
    terms[:, size == 0] = -torch.inf
    norm = torch.randint(0, 2, (rows, groups + 1)).float()
    pairs = torch.unique(torch.randint(0, rows * n, (0 if trial % 4 == 0 else between(1, 60),)))
    pairs = pairs[pairs % n > 0]
    extra = torch.rand(len(pairs)).double() * torch.randint(0, 2, (len(pairs),))
    factor = torch.tensor([0.5, 1.0, 2.0]).double()[torch.randint(0, 3, (len(pairs),))]
    query = Query(vector, terms, norm, ScoreOverrides(pairs // n, pairs % n, extra, factor, n))
    return MemoryCatalogue(table, item2intent, groups), query, torch.randint(1, n, (rows,))


def dense(catalogue, query):
    """ln of every score, [B, V]; column 0 is no item."""
    every = torch.arange(catalogue.n_items)
    rows = [catalogue.scores_of(query, torch.full_like(every, row), every) for row in range(len(query.terms))]
    scores = torch.stack(rows)
    scores[:, 0] = torch.nan
    return scores


def with_hints(catalogue, query, trial):
    """The same query with what a model that took all products knows besides.

    These are the products, and the plain scores, off by as much as it says they may be; of all rows or of eight at a
    time."""
    listed, n = query.overrides, len(query.terms)
    without = replace(listed, extra=listed.extra * 0, factor=listed.factor * 0 + 1)
    plain = catalogue.scores_of(replace(query, overrides=without), listed.row, listed.item)
    error = torch.full((n,), 1e-3).double()
    off = error[listed.row] * (2 * torch.rand(len(plain)).double() - 1)
    rows = 8 if trial % 2 else n
    logits = tuple(catalogue.plain.table @ columns(some) for some in query.vector.split(rows))
    return replace(query, overrides=replace(listed, plain=(plain + off).exp(), error=error), logits=logits)


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("trial", TRIALS)
def test_ranks_are_those_of_brute_force(trial, hinted):
    catalogue, query, target = random_case(trial)
    query = with_hints(catalogue, query, trial) if hinted else query
    everyone = torch.arange(len(target))
    gone = [torch.unique(torch.randint(1, catalogue.n_items, (4,))) for _ in target]
    for excluded in (None, gone):
        scores = dense(catalogue, query)
        own = scores[everyone, target][:, None]
        for row, items in enumerate(excluded or []):
            scores[row, items] = torch.nan
        scores[everyone, target] = torch.nan
        ranks = catalogue.rank(query, target, excluded=excluded)
        assert torch.equal(ranks.above, (scores > own).sum(1))
        assert torch.equal(ranks.tied, (scores == own).sum(1))
        assert torch.equal(ranks.n_candidates, (~scores.isnan()).sum(1) + 1)
        cut = catalogue.rank(query, target, excluded=excluded, at_most=5)
        near = ranks.above < 5
        assert torch.equal(cut.above[near], ranks.above[near])
        assert (cut.above[~near] >= 5).all()


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("trial", TRIALS)
def test_the_best_are_those_of_brute_force(trial, hinted):
    catalogue, query, target = random_case(trial)
    query = with_hints(catalogue, query, trial) if hinted else query
    gone = [torch.unique(torch.randint(1, catalogue.n_items, (4,))) for _ in target]
    for excluded in (None, gone):
        scores = dense(catalogue, query).nan_to_num(-torch.inf)
        for row, items in enumerate(excluded or []):
            scores[row, items] = -torch.inf
        items, values = catalogue.top(query, 7, excluded)
        expected = scores.sort(dim=1, descending=True, stable=True)
        k = min(7, scores.shape[1])
        assert torch.equal(values[:, :k], expected.values[:, :k])
        real = expected.values[:, :k] > -torch.inf
        assert torch.equal(items[:, :k][real], expected.indices[:, :k][real])


def test_without_overrides_it_is_a_sum():
    catalogue = MemoryCatalogue(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1, 2]), 2)
    nothing = torch.zeros(0, dtype=torch.long)
    none = ScoreOverrides(nothing, nothing, torch.zeros(0).double(), torch.zeros(0).double(), 4)
    query = Query(torch.ones(1, 1), torch.tensor([[0.0, 0.0, -1.5]]), torch.zeros(1, 3), none)
    assert catalogue.rank(query, torch.tensor([1])).above.tolist() == [2]
    assert catalogue.rank(query, torch.tensor([3])).above.tolist() == [1]
    raised = ScoreOverrides(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([10.0]).double(), torch.ones(1).double(), 4
    )
    query = replace(query, overrides=raised)
    assert catalogue.top(query, 3)[0].tolist() == [[1, 2, 3]]


def test_nan_is_an_error():
    catalogue, query, target = random_case(1)
    query.vector[0, 0] = torch.nan
    with pytest.raises(ScoreError, match="NaN"):
        catalogue.rank(query, target)


def test_a_query_for_another_catalogue_is_refused():
    catalogue, query, target = random_case(1)
    with pytest.raises(TypeError, match="all the parts of a query"):
        catalogue.rank(replace(query, log_norm=None), target)
