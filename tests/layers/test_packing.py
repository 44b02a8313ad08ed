"""Real positions of padded batches, and rows grouped by length."""

import pytest
import torch

from recbole_cafe.layers.packing import SHORTEST, Packing


def rows_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None]


def test_packing_takes_the_real_positions_row_after_row():
    seq = torch.tensor([[4, 5, 0, 0], [7, 0, 0, 0], [1, 2, 3, 0]])
    packing = Packing(seq > 0)
    assert packing.pack(seq).tolist() == [4, 5, 7, 1, 2, 3]
    assert packing.row.tolist() == [0, 0, 1, 2, 2, 2]
    assert packing.position.tolist() == [0, 1, 0, 0, 1, 2]
    assert packing.last(packing.pack(seq)).tolist() == [5, 7, 3]


@pytest.mark.parametrize("lengths", [[1], [3, 1, 2], [SHORTEST, SHORTEST + 1, 1], [40, 3, 17, 33, 8, 9, 16, 1]])
def test_groups_laid_end_to_end_and_back_are_what_they_were(lengths):
    packing = Packing(rows_of(lengths))
    values = torch.arange(sum(lengths))
    laid = torch.cat([values[group].flatten() for group in packing.groups])
    assert torch.equal(laid[packing.back], values)


def test_rows_of_a_group_are_at_most_twice_as_long_as_its_shortest():
    lengths = [40, 3, 17, 33, 8, 9, 16, 1]
    groups = Packing(rows_of(lengths)).groups
    assert [tuple(group.shape) for group in groups] == [(3, 8), (2, 16), (1, 17), (2, 40)]


def test_a_row_shorter_than_its_group_repeats_its_last_position():
    (group,) = Packing(rows_of([3, 1])).groups
    assert group.tolist() == [[0, 1, 2], [3, 3, 3]]
