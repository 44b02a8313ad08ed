"""Real positions of padded batches, and rows grouped by length."""

import pytest
import torch

from recbole_cafe.layers.packing import SHORTEST, WIDEST, Packing, share_lines


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


def test_lines_take_the_longest_that_fits():
    assert share_lines([2, 5, 3, 1, 5, 2], 6) == [[4, 3], [1], [2, 5], [0]]
    assert share_lines([4, 4], 4) == [[1], [0]]
    assert share_lines([1] * 5, 2) == [[4, 3], [2, 1], [0]]


@pytest.mark.parametrize("lengths", [[1], [3, 1, 2], [40, 3, 17, 33, 0, 9, 1], [WIDEST, WIDEST + 1, 2, 3 * WIDEST, 7]])
@pytest.mark.parametrize("n_heads", [1, 3])
def test_rows_laid_in_lines_and_taken_up_are_what_they_were(lengths, n_heads):
    packing = Packing(rows_of(lengths))
    x = torch.randn(sum(lengths), 6, dtype=torch.float64, requires_grad=True)
    blocks = packing.lines.lay(x, n_heads)
    assert all(block.shape[1] == n_heads and block.shape[3] == 6 // n_heads for block in blocks)
    assert len(blocks) == len({0 if n <= WIDEST else 1 if n <= 2 * WIDEST else 2 for n in lengths})
    gradient = torch.randn_like(x)
    taken = packing.lines.take_up([block * 2.0 for block in blocks])
    assert torch.equal(taken, 2.0 * x)
    taken.backward(gradient)
    assert torch.equal(x.grad, 2.0 * gradient)


def test_places_of_one_row_see_each_other_and_no_others():
    packing = Packing(rows_of([2, 3, 1]))  # one line of 3, and one of 2 + 1
    (same,) = packing.lines.same
    (row,) = packing.lines.lay(packing.row.double()[:, None], 1)
    assert row[:, 0, :, 0].tolist() == [[1, 1, 1], [0, 0, 2]]
    assert same.int().tolist() == [[[1, 1, 1]] * 3, [[1, 1, 0], [1, 1, 0], [0, 0, 1]]]
    (same,) = Packing(rows_of([3, 1])).lines.same  # empty places keep to themselves: a softmax over nothing is NaN
    assert same[1].int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
