"""recbole_cafe.layers.draws: SplitMix64 by row, the same whoever asks."""

import torch

from recbole_cafe.layers.draws import GOLDEN, Draws, drawing, mixed, sequence
from recbole_cafe.layers.sampling import ExclusiveSampler, PopularitySampler, swap_ids

MASK = 2**64 - 1


def splitmix64(state):
    """One number of the reference algorithm, in Python's whole numbers."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def test_it_is_splitmix64():
    states = [0, 1, 2**63, MASK, 0x9E3779B97F4A7C15, 1234567890123456789]
    got = mixed(torch.tensor([s - 2**64 if s >= 2**63 else s for s in states]))
    assert [int(x) & MASK for x in got] == [splitmix64(s) for s in states]


def test_a_sequence_is_that_of_the_generator_started_at_its_key():
    key = 42
    got = sequence(torch.tensor([key]), torch.arange(5))[0]
    assert [int(x) & MASK for x in got] == [splitmix64(key + (i + 1) * (GOLDEN & MASK) & MASK) for i in range(5)]
    # the first numbers of SplitMix64 from state 0, as its authors' code prints them
    assert int(sequence(torch.tensor([0]), torch.arange(1))[0, 0]) & MASK == 0xE220A8397B1DCDAF


def test_uniform_numbers_fill_the_interval_evenly():
    u = Draws(3, torch.arange(2000)).for_rows.uniform(500)
    assert u.min() >= 0
    assert u.max() < 1
    share = torch.histc(u, bins=20, min=0, max=1) / u.numel()
    assert (share - 0.05).abs().max() < 5 * (0.05 * 0.95 / u.numel()) ** 0.5
    whole = Draws(4, torch.arange(2000)).for_rows.integers(500, 7)
    assert sorted(torch.unique(whole).tolist()) == list(range(7))


def test_negatives_of_a_target_are_the_same_wherever_it_lies():
    sampler = ExclusiveSampler(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), n_keys=4, n=50)
    user, item = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    with drawing(Draws(1, torch.arange(3))):
        every = sampler(user, item, 8)
    with drawing(Draws(1, torch.tensor([2]))):
        assert torch.equal(sampler(user[2:], item[2:], 8), every[2:])
    with drawing(Draws(2, torch.arange(3))):
        assert not torch.equal(sampler(user, item, 8), every)


def test_a_sample_for_all_targets_is_that_of_the_step():
    sampler = PopularitySampler(torch.tensor([1, 1, 2, 3]), n=9)
    with drawing(Draws(5, torch.arange(4))):
        first, second = sampler(20)[0], sampler(20)[0]
    assert not torch.equal(first, second)
    with drawing(Draws(5, torch.tensor([3]))):
        assert torch.equal(sampler(20)[0], first)


def test_swaps_belong_to_the_rows():
    ids = torch.arange(1, 25).view(4, 6)
    with drawing(Draws(6, torch.arange(4))):
        every = swap_ids(ids, 0.5, 30)
    with drawing(Draws(6, torch.tensor([1, 3]))):
        assert torch.equal(swap_ids(ids[[1, 3]], 0.5, 30), every[[1, 3]])
