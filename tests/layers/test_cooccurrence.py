"""recbole_cafe.layers.cooccurrence: counts against a loop over users, without a matrix of the catalogue's size."""

from itertools import pairwise

import pytest
import torch

from recbole_cafe.layers import cooccurrence
from recbole_cafe.layers.cooccurrence import CoOccurrence

N = 12


def interactions(n_users=40, n_items=N, seed=0, most=30):
    """User -> items in order of time, repeats among them, as a dict and as the two tensors."""
    generator = torch.Generator().manual_seed(seed)
    of = {}
    for user in range(1, n_users + 1):
        n = int(torch.randint(1, most, (), generator=generator))
        of[user] = torch.randint(1, n_items, (n,), generator=generator).tolist()
    users = torch.tensor([user for user, items in of.items() for _ in items])
    return of, users, torch.tensor([item for items in of.values() for item in items])


def naive(of, limit):
    """[N, N] by looping over users: sets of their `limit` latest distinct items."""
    count = torch.zeros(N, N, dtype=torch.long)
    for items in of.values():
        latest = list(dict.fromkeys(reversed(items)))[:limit]
        for i in latest:
            for j in latest:
                count[i, j] += 1
    return count


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
@pytest.mark.parametrize("chunk", [1, 50, 2**23])
def test_counts_are_the_loop_over_users(monkeypatch, limit, chunk):
    monkeypatch.setattr(cooccurrence, "CHUNK", chunk)
    of, users, items = interactions()
    made = CoOccurrence(users, items, n_items=N, limit=limit)
    everything = torch.arange(N)[None]
    assert torch.equal(made(everything)[0].long(), naive(of, limit))


def test_items_of_a_row_in_any_order_and_twice():
    of, users, items = interactions()
    made, count = CoOccurrence(users, items, n_items=N, limit=1000), naive(of, 1000)
    rows = torch.tensor([[3, 9, 3, 1], [11, 2, 5, 5]])
    wanted = torch.stack([count[row][:, row] for row in rows])
    assert torch.equal(made(rows).long(), wanted)


def test_users_whose_interactions_are_not_side_by_side():
    of, users, items = interactions()
    # position in time, user after user within it: each user's own order is kept
    step = torch.cat([torch.arange(len(of[user])) for user in of])
    mixed = step.argsort(stable=True)
    made = CoOccurrence(users[mixed], items[mixed], n_items=N, limit=4)
    assert torch.equal(made(torch.arange(N)[None])[0].long(), naive(of, 4))


def test_padding_counts_nothing():
    made = CoOccurrence(torch.tensor([1, 1, 1]), torch.tensor([3, 0, 4]), n_items=N, limit=10)
    count = made(torch.tensor([[0, 3, 4]]))[0]
    assert count.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_without_pairs_there_are_users_only():
    made = CoOccurrence(torch.tensor([1, 2, 2]), torch.tensor([3, 4, 4]), n_items=N, limit=10)
    assert made(torch.tensor([[3, 4]])).tolist() == [[[1, 0], [0, 1]]]


def test_what_is_kept_grows_with_the_pairs_and_not_with_the_square_of_the_catalogue():
    n = 10**6
    items = torch.arange(1, 301)
    made = CoOccurrence(torch.arange(300) // 3, items, n_items=n, limit=10)
    assert len(made.pairs) == len(made.counts) == 100 * 3
    assert made.users_of.shape == (n,)
    assert {name for name, _ in made.named_buffers()} == {"pairs", "counts", "users_of"}
    assert made.state_dict() == {}  # the data's, in no checkpoint
    assert all(a < b for a, b in pairwise(made.pairs.tolist()))
    assert made(torch.tensor([[1, 2, 3, 4]]))[0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def test_a_limit_below_one_is_named():
    with pytest.raises(ValueError, match="limit=0 should be at least 1"):
        CoOccurrence(torch.tensor([1]), torch.tensor([1]), n_items=N, limit=0)
