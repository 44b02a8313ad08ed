"""Look-ups in a table of counts, against loops over pairs."""

import numpy as np
import pytest
import torch

from recbole_cafe.model.counts import Lookup, TransitionCounts, newest_first

N = 9
SETTINGS = {"window": 3, "window_decay": 0.8, "backward": 0.3, "discount": 0.6, "most": 0}
LOOKUP = Lookup(length=4, decay=0.5, prior=2.0)


def pairs(sequences):
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    return torch.from_numpy(users), torch.tensor([i for s in sequences for i in s])


def table(sequences, **settings):
    return TransitionCounts(*pairs(sequences), n=N, **{**SETTINGS, **settings})


def walks(seed, n_users=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, N, rng.integers(1, 8)).tolist() for _ in range(n_users)]  # with repeats


def naive(counts, history, target, lookup):
    """e(target), mu + E and mu + E - sum e of one history, oldest first, pair by pair."""
    evidence, mass, rest = 0.0, lookup.prior, lookup.prior
    for i, source in enumerate(reversed(history[-lookup.length :])):
        begin, end = counts.start[source], counts.start[source + 1]
        row = dict(zip(counts.successor[begin:end].tolist(), counts.count[begin:end].tolist(), strict=True))
        evidence += lookup.decay**i * row.get(target, 0.0)
        mass += lookup.decay**i * counts.total[source].item()
        rest += lookup.decay**i * (counts.total[source].item() - sum(row.values()))
    return evidence, mass, rest


def test_masses_and_evidence_are_those_of_a_history():
    counts = table(walks(2))
    history = [3, 5, 5, 1, 2]
    newest = newest_first(torch.tensor([[*history, 0], [4, 0, 0, 0, 0, 0]]))
    assert newest[0].tolist() == [2, 1, 5, 5, 3, 0]
    mass, rest = counts.masses(newest, LOOKUP)
    evidence = counts.evidence(newest, LOOKUP)
    for target in range(1, N):
        expected = naive(counts, history, target, LOOKUP)
        assert (evidence[0, target].item(), mass[0].item(), rest[0].item()) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(evidence.sum(1), mass - rest, rtol=1e-9, atol=1e-9)
