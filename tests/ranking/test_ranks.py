"""recbole_cafe.ranking.ranks: where a target stands, and what a metric is worth over ties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from recbole_cafe.ranking.ranks import Ranks, ScoreError, expectation, rank_of_target

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("scores", "target", "above", "tied"),
    [
        ([3.0, 1.0, 2.0], 0, 0, 0),
        ([3.0, 1.0, 2.0], 2, 1, 0),
        ([3.0, 1.0, 2.0], 1, 2, 0),
        ([2.0, 2.0, 2.0], 1, 0, 2),
        ([5.0, 2.0, 2.0, 1.0], 2, 1, 1),
        ([INF, INF, 0.0], 0, 0, 1),
        ([-INF, 0.0, -INF], 0, 1, 1),
        ([0.0, -0.0], 0, 0, 1),
        ([7.0], 0, 0, 0),
    ],
)
def test_rank_by_hand(scores: list[float], target: int, above: int, tied: int) -> None:
    ranks = rank_of_target(torch.tensor([scores]), torch.tensor([target]))
    assert (int(ranks.above), int(ranks.tied), int(ranks.n_candidates)) == (above, tied, len(scores))
    assert float(ranks.mean_rank) == above + tied / 2


def test_only_valid_columns_compete_and_the_target_always_does() -> None:
    scores = torch.tensor([[9.0, 3.0, 5.0, 3.0], [9.0, 3.0, 5.0, 3.0]])
    valid = torch.tensor([[False, True, True, True], [False, False, True, False]])
    before = valid.clone()
    ranks = rank_of_target(scores, torch.tensor([1, 1]), valid)
    assert ranks.above.tolist() == [1, 1]
    assert ranks.tied.tolist() == [1, 0]
    assert ranks.n_candidates.tolist() == [3, 2]
    assert torch.equal(valid, before)  # the caller's mask is his
    one_mask_for_all = rank_of_target(scores, torch.tensor([1, 2]), torch.tensor([False, True, True, True]))
    assert one_mask_for_all.above.tolist() == [1, 0]
    assert one_mask_for_all.n_candidates.tolist() == [3, 3]


def test_rank_equals_a_loop_over_candidates() -> None:
    rng = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 6, (40, 17), generator=rng).float()  # many ties
    target = torch.randint(0, 17, (40,), generator=rng)
    valid = torch.rand(40, 17, generator=rng) < 0.7
    ranks = rank_of_target(scores, target, valid)
    for i, t in enumerate(target.tolist()):
        others = [scores[i, j].item() for j in range(17) if j != t and valid[i, j]]
        own = scores[i, t].item()
        assert int(ranks.above[i]) == sum(s > own for s in others)
        assert int(ranks.tied[i]) == sum(s == own for s in others)
        assert int(ranks.n_candidates[i]) == len(others) + 1


@pytest.mark.parametrize("row", [[NAN, 1.0, 2.0], [1.0, NAN, 2.0], [NAN, NAN, NAN]])
def test_nan_is_refused(row: list[float]) -> None:
    with pytest.raises(ScoreError, match="scores contain NaN; nothing can be ranked"):
        rank_of_target(torch.tensor([[0.0, 1.0, 2.0], row]), torch.tensor([1, 0]))


def test_nan_outside_the_candidates_is_nobodys_business() -> None:
    ranks = rank_of_target(torch.tensor([[NAN, 1.0, 2.0]]), torch.tensor([1]), torch.tensor([False, True, True]))
    assert (int(ranks.above), int(ranks.tied), int(ranks.n_candidates)) == (1, 0, 2)


def test_parts_are_joined_in_order() -> None:
    a = Ranks(torch.tensor([1, 2]), torch.tensor([0, 3]), torch.tensor([9, 9]))
    b = Ranks(torch.tensor([4]), torch.tensor([5]), torch.tensor([8]))
    joined = Ranks.cat([a, b])
    assert joined.above.tolist() == [1, 2, 4]
    assert joined.tied.tolist() == [0, 3, 5]
    assert joined.n_candidates.tolist() == [9, 9, 8]
    assert joined.mean_rank.tolist() == [1.0, 3.5, 6.5]


def test_expectation_by_hand() -> None:
    values = np.array([1.0, 0.5, 0.25])
    above = np.array([0, 1, 2, 3, 1, 0, 2])
    tied = np.array([0, 0, 0, 0, 1, 3, 7])
    expected = [1.0, 0.5, 0.25, 0.0, (0.5 + 0.25) / 2, (1.0 + 0.5 + 0.25 + 0.0) / 4, 0.25 / 8]
    np.testing.assert_allclose(expectation(values, above, tied), expected, rtol=1e-15)


def test_expectation_is_the_mean_over_every_way_to_break_ties() -> None:
    scores = [2.0, 1.0, 1.0, 1.0, 0.0, 2.0]
    values = np.array([1.0, 0.63, 0.5, 0.43])  # of the first four places, then 0
    padded = [*values, 0.0, 0.0]
    for target in range(len(scores)):
        # all orders of the six candidates that a sort by score may give
        possible = [
            order
            for order in itertools.permutations(range(6))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        brute = np.mean([padded[order.index(target)] for order in possible])
        ranks = rank_of_target(torch.tensor([scores]), torch.tensor([target]))
        exact = expectation(values, ranks.above.numpy(), ranks.tied.numpy())
        assert exact.item() == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 101])
def test_a_constant_scorer_scores_chance(n: int) -> None:
    ranks = rank_of_target(torch.zeros(3, n), torch.tensor([0, n - 1, n // 2]))
    hit5 = expectation(np.ones(5), ranks.above.numpy(), ranks.tied.numpy())
    mrr = expectation(1 / np.arange(1, n + 1), ranks.above.numpy(), ranks.tied.numpy())
    np.testing.assert_allclose(hit5, min(5, n) / n, rtol=1e-14)
    np.testing.assert_allclose(mrr, sum(1 / r for r in range(1, n + 1)) / n, rtol=1e-14)
