"""The search by intent and weight against brute force over dense scores, on numbers made to tie."""

import pytest
import torch

from recbole_cafe.errors import DataError
from recbole_cafe.ranking.factored import FactoredCatalogue
from recbole_cafe.ranking.query import Query, ScoreOverrides
from recbole_cafe.ranking.ranks import ScoreError

TRIALS = range(60)


def random_case(trial):
    """A catalogue, a query and targets; weights and terms of few values, so that most scores tie; some
    intents without items, every fourth trial without overrides."""
    torch.manual_seed(trial)

    def between(a: int, b: int) -> int:
        return int(torch.randint(a, b, (1,)))

    n, groups, rows = between(3, 300), between(2, 12), between(1, 9)
    item2intent = torch.randint(1, groups + 1, (n,))
    item2intent[0] = 0
    weight, terms = torch.randint(1, 5, (n,)).double() / 7, torch.randint(0, 4, (rows, groups + 1)).double() / 3
    if trial % 3 == 0:
        weight, terms = torch.rand(n).double(), torch.rand(rows, groups + 1).double()
    pairs = torch.unique(torch.randint(0, rows * n, (0 if trial % 4 == 0 else between(1, 60),)))
    pairs = pairs[pairs % n > 0]
    extra = torch.randint(0, 3, (len(pairs),)).double() / 7
    factor = torch.tensor([0.0, 0.5, 1.0, 1.0]).double()[torch.randint(0, 4, (len(pairs),))]
    query = Query(terms=terms, overrides=ScoreOverrides(pairs // n, pairs % n, extra, factor, n))
    return FactoredCatalogue(weight, item2intent, groups), query, torch.randint(1, n, (rows,))


def dense(catalogue, query):
    """Every score, [B, V]; column 0 is no item."""
    scores, listed = query.terms[:, catalogue.item2intent] * catalogue.weight, query.overrides
    for row, item, extra, factor in zip(listed.row, listed.item, listed.extra, listed.factor, strict=True):
        scores[row, item] = (scores[row, item] + extra) * factor
    scores[:, 0] = -torch.inf
    return scores


def excluded_of(catalogue, rows):
    return [torch.unique(torch.randint(1, catalogue.n_items, (4,))) for _ in range(rows)]


@pytest.mark.parametrize("trial", TRIALS)
def test_ranks_are_those_of_brute_force(trial):
    catalogue, query, target = random_case(trial)
    scores = dense(catalogue, query)
    everyone = torch.arange(len(target))
    for gone in (None, excluded_of(catalogue, len(target))):
        competing = scores.clone()
        for row, items in enumerate(gone or []):
            competing[row, items] = torch.nan
        competing[everyone, target] = torch.nan
        competing[:, 0] = torch.nan
        own = scores[everyone, target][:, None]
        ranks = catalogue.rank(query, target, excluded=gone)
        assert torch.equal(ranks.above, (competing > own).sum(1))
        assert torch.equal(ranks.tied, (competing == own).sum(1))
        assert torch.equal(ranks.n_candidates, (~competing.isnan()).sum(1) + 1)
        assert ranks.limit is None


@pytest.mark.parametrize("trial", TRIALS)
def test_the_best_items_are_those_of_brute_force(trial):
    catalogue, query, _ = random_case(trial)
    k = min(7, catalogue.n_items - 1)
    for gone in (None, excluded_of(catalogue, len(query.terms))):
        scores = dense(catalogue, query)
        for row, items in enumerate(gone or []):
            scores[row, items] = -torch.inf
        best = torch.sort(scores[:, 1:], dim=1, descending=True, stable=True)  # equal scores by item id
        items, values = catalogue.top(query, k, gone)
        assert torch.equal(values, best.values[:, :k])
        assert torch.equal(items, torch.where(best.values[:, :k] > -torch.inf, best.indices[:, :k] + 1, 0))


def test_blocks_change_nothing(monkeypatch):
    catalogue, query, target = random_case(7)
    before = catalogue.rank(query, target), catalogue.top(query, 5)
    monkeypatch.setattr("recbole_cafe.ranking.factored.PAIRS", 3)
    after = catalogue.rank(query, target), catalogue.top(query, 5)
    assert torch.equal(after[0].above, before[0].above) and torch.equal(after[0].tied, before[0].tied)
    assert torch.equal(after[1][0], before[1][0]) and torch.equal(after[1][1], before[1][1])


@pytest.mark.parametrize("where", ["terms", "extra"])
def test_nan_is_refused(where):
    catalogue, query, target = random_case(1)
    (query.terms if where == "terms" else query.overrides.extra).fill_(torch.nan)
    with pytest.raises(ScoreError, match="NaN"):
        catalogue.rank(query, target)


def test_its_parts_make_it_again(monkeypatch):
    catalogue, query, target = random_case(2)
    monkeypatch.setattr(FactoredCatalogue, "_prepare", None)  # not called
    again = FactoredCatalogue(catalogue.weight, catalogue.item2intent, catalogue.n_intents, catalogue.parts())
    assert torch.equal(again.rank(query, target).above, catalogue.rank(query, target).above)
    assert torch.equal(again.top(query, 3)[0], catalogue.top(query, 3)[0])
    with pytest.raises(DataError, match="part items of a catalogue"):
        FactoredCatalogue(catalogue.weight[1:], catalogue.item2intent[1:], catalogue.n_intents, catalogue.parts())
