"""recbole_cafe.layers.sampling: negatives are uniform over what is not the user's, exactly."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from recbole_cafe.layers.sampling import ExclusiveSampler, PopularitySampler, swap_ids

N = 12  # ids 1..11
OWNED = {0: [], 1: [1, 2, 3], 2: [11], 3: [2, 4, 6, 8, 10], 4: list(range(1, 12)), 5: [1, 11], 6: list(range(2, 12))}


def sampler(owned=OWNED, n=N, n_keys=None):
    pairs = [(key, i) for key, ids in owned.items() for i in ids]
    pairs += pairs[::2]  # interactions repeat
    pairs = [pairs[i] for i in torch.randperm(len(pairs)).tolist()]
    keys, ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return ExclusiveSampler(keys, ids, n_keys=n_keys or max(owned) + 1, n=n)


def draws(made, key, target, count=20_000):
    return made(torch.full((1,), key), torch.full((1,), target), count)[0].tolist()


@pytest.mark.parametrize("key", [0, 1, 2, 3, 5, 6])
def test_never_the_users_own_and_uniform_over_the_rest(key):
    free = sorted(set(range(1, N)) - set(OWNED[key]))
    target = (OWNED[key] or [1])[0]
    seen = Counter(draws(sampler(), key, target))
    assert sorted(seen) == free
    # p-value of a fixed seed; a sampler off by one id in eleven would give less than 1e-100
    assert chisquare([seen[i] for i in free]).pvalue > 1e-3 or len(free) == 1


@pytest.mark.parametrize("target", [1, 5, 11])
def test_who_owns_everything_gets_anything_but_the_target(target):
    others = [i for i in range(1, N) if i != target]
    seen = Counter(draws(sampler(), 4, target))
    assert sorted(seen) == others
    assert chisquare([seen[i] for i in others]).pvalue > 1e-3


def test_the_rth_free_id_is_that_of_a_list():
    """Against the list of free ids, with the same uniform numbers."""
    made, generator = sampler(), torch.Generator()
    key = torch.tensor([3, 1, 4, 6, 0, 5, 2, 4])
    target = torch.tensor([4, 2, 11, 5, 7, 1, 11, 1])
    got = made(key, target, 50, generator=generator.manual_seed(5))
    u = torch.rand(len(key), 50, dtype=torch.float64, generator=generator.manual_seed(5))
    for row, (k, t) in enumerate(zip(key.tolist(), target.tolist(), strict=True)):
        free = [i for i in range(1, N) if i not in OWNED[k]] or [i for i in range(1, N) if i != t]
        assert got[row].tolist() == [free[int(x * len(free))] for x in u[row].tolist()]


def test_the_target_is_never_drawn():
    made = sampler()
    key = torch.tensor([k for k, ids in OWNED.items() for _ in ids])
    target = torch.tensor([i for ids in OWNED.values() for i in ids])
    assert not (made(key, target, 500) == target[:, None]).any()


def test_all_keys_and_ids_of_random_data():
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(0, 40, (700,), generator=generator)
    ids = torch.randint(0, 30, (700,), generator=generator)  # 0 too: ignored
    made = ExclusiveSampler(keys, ids, n_keys=41, n=30)
    own = {(k, i) for k, i in zip(keys.tolist(), ids.tolist(), strict=True) if i}
    drawn = made(torch.arange(41), torch.ones(41, dtype=torch.long), 3000)
    assert drawn.min() == 1
    assert drawn.max() == 29
    for k in range(41):
        assert set(drawn[k].tolist()) == {i for i in range(1, 30) if (k, i) not in own}


def test_large_catalogues_are_reached_to_the_last_id():
    """3e7 ids: a float32 uniform has 2^24 = 1.7e7 values and would never give most odd ids at the upper end."""
    n = 30_000_000
    made = ExclusiveSampler(torch.tensor([0]), torch.tensor([n - 1]), n_keys=1, n=n)
    drawn = made(torch.zeros(1, dtype=torch.long), torch.tensor([n - 1]), 100_000)[0]
    assert drawn.min() >= 1
    assert drawn.max() < n - 1
    assert (drawn[drawn > n // 2] % 2).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_smallest_case_has_one_other_id():
    made = ExclusiveSampler(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 2]), n_keys=2, n=3)
    assert set(draws(made, 0, 1, 50)) == {2}
    assert set(draws(made, 1, 1, 50)) == {2}
    assert set(draws(made, 1, 2, 50)) == {1}


@pytest.mark.parametrize("n", [1, 2])
def test_without_a_second_id_there_is_no_negative(n):
    with pytest.raises(ValueError, match=f"at least two ids beside padding, there are {n - 1}"):
        ExclusiveSampler(torch.tensor([0]), torch.tensor([0]), n_keys=1, n=n)


def test_the_users_data_are_not_in_a_state_dict():
    assert sampler().state_dict() == {}


# Swaps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_an_id_is_drawn_anew_with_probability_p_and_padding_never(p):
    ids = torch.tensor([4, 0, 11]).repeat(50_000, 1)
    got = swap_ids(ids, p, N)
    assert (got[:, 1] == 0).all()
    for column, own in ((0, 4), (2, 11)):
        seen = Counter(got[:, column].tolist())
        share = p / (N - 1)  # of each id; the id itself is among the draws
        wanted = [50_000 * (share + (1 - p) * (i == own)) for i in range(1, N)]
        found = [seen[i] for i in range(1, N)]
        assert sum(found) == 50_000  # no 0, nothing beyond N - 1
        assert found == wanted if p == 0.0 else chisquare(found, wanted).pvalue > 1e-3
    assert ids[0].tolist() == [4, 0, 11]  # not written to


# By popularity --------------------------------------------------------------------------------------------------------


def test_ids_are_drawn_by_their_occurrences_plus_one():
    made = PopularitySampler(torch.tensor([3, 3, 3, 3, 1, 5, 5, 0, 0, 6, 9]), n=6)  # 0, 6 and 9 are no ids of 1..5
    weight = torch.tensor([2.0, 1, 5, 1, 3])
    drawn, log_expected = made(50_000)
    counts = torch.bincount(drawn, minlength=6)
    assert len(counts) == 6
    assert counts[0] == 0
    assert chisquare(counts[1:].numpy(), (50_000 * weight / 12).double().numpy()).pvalue > 1e-3
    torch.testing.assert_close(log_expected, (50_000 * weight / 12).log()[drawn - 1])


def test_without_two_ids_nothing_is_drawn_by_popularity():
    with pytest.raises(ValueError, match="a sampled softmax needs at least two ids beside padding, there are 1"):
        PopularitySampler(torch.tensor([1, 1]), n=2)
