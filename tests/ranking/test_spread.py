"""Ranks in a spread of scores: as a loop over all items gives them, ties, overrides and excluded items included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_cafe.ranking.ranks import ScoreError
from recbole_cafe.ranking.spread import Spread

V, B = 30, 40


def made(seed: int, overridden: float = 0.4) -> Spread:
    """Few different scores, so that many are equal."""
    draws = torch.Generator().manual_seed(seed)
    plain = torch.randint(0, 8, (V, B), generator=draws).float()
    listed = torch.rand(B, V, generator=draws) < overridden
    listed[:, 0] = False
    row, item = listed.nonzero(as_tuple=True)
    value = torch.randint(0, 8, (len(row),), generator=draws).float()
    return Spread(plain, row, item, plain[item, row], value, listed.sum(1))


def scores(spread: Spread) -> Tensor:
    """[B, V]"""
    dense = spread.plain.T.clone()
    dense[spread.row, spread.item] = spread.value
    return dense


@pytest.mark.parametrize("overridden", [0.0, 0.4])
@pytest.mark.parametrize("with_excluded", [False, True])
def test_ranks_are_those_of_a_loop(overridden: float, with_excluded: bool) -> None:
    spread, draws = made(3, overridden), torch.Generator().manual_seed(4)
    target = torch.randint(1, V, (B,), generator=draws)
    excluded = [torch.randperm(V, generator=draws)[: row % 7] for row in range(B)]  # now and then padding, the target
    assert any(0 in gone for gone in excluded)
    assert any(int(t) in gone for t, gone in zip(target, excluded, strict=True))
    ranks = spread.rank(target, excluded if with_excluded else None)
    dense = scores(spread)
    for row in range(B):
        gone = set(excluded[row].tolist()) if with_excluded else set()
        rivals = [v for v in range(1, V) if v not in gone | {int(target[row])}]
        own = dense[row, target[row]]
        assert ranks.above[row] == sum(bool(dense[row, v] > own) for v in rivals)
        assert ranks.tied[row] == sum(bool(dense[row, v] == own) for v in rivals)
        assert ranks.n_candidates[row] == len(rivals) + 1


def test_ranks_among_candidates_are_those_of_a_loop() -> None:
    spread, draws = made(5), torch.Generator().manual_seed(6)
    items = torch.stack([1 + torch.randperm(V - 1, generator=draws)[:9] for _ in range(B)])
    items[::3, -2:] = 0
    ranks, dense = spread.rank_among(items), scores(spread)
    for row in range(B):
        own, rivals = dense[row, items[row, 0]], [v for v in items[row, 1:].tolist() if v]
        assert ranks.above[row] == sum(bool(dense[row, v] > own) for v in rivals)
        assert ranks.tied[row] == sum(bool(dense[row, v] == own) for v in rivals)
        assert ranks.n_candidates[row] == len(rivals) + 1


def test_nan_is_refused() -> None:
    spread = made(7)
    for name in ("plain", "value"):
        parts = {key: getattr(spread, key).clone() for key in ("plain", "row", "item", "common", "value", "size")}
        parts[name][3] = torch.nan
        with pytest.raises(ScoreError, match="NaN"):
            Spread(**parts)
