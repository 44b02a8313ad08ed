"""How the rows of a step are dealt out to processes."""

import pytest
import torch

from recbole_cafe.train.sharing import Share


@pytest.mark.parametrize(("n_rows", "world"), [(0, 2), (1, 3), (7, 3), (64, 4)])
def test_every_row_has_one_process_and_all_have_about_as_much_to_do(n_rows: int, world: int) -> None:
    length = torch.randint(1, 51, (n_rows,), generator=torch.Generator().manual_seed(n_rows))
    dealt = [Share(rank, world).places(length) for rank in range(world)]
    assert torch.cat(dealt).sort().values.tolist() == list(range(n_rows))
    assert all(torch.equal(own, own.sort().values) for own in dealt)
    sums = [int(length[own].sum()) for own in dealt]
    assert max(sums, default=0) - min(sums, default=0) <= int(length.max() if n_rows else 0)


def test_rows_are_dealt_there_and_back() -> None:
    length = torch.tensor([3, 9, 1, 7, 5])  # from the longest: places 1, 3, 4, 0, 2
    assert [Share(rank, 2).places(length).tolist() for rank in range(2)] == [[0, 1, 2], [3, 4]]
