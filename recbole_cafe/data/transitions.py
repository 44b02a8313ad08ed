"""How often what follows what: counts of pairs of ids, as a sparse matrix."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def transitions(users: np.ndarray, ids: np.ndarray, *, n: int, window: int, window_decay: float,
                backward: float) -> sparse.csr_matrix:  # fmt: skip
    """c(u, v): [n, n], columns of a row sorted. users, ids: [P], in the order of users, then time."""
    counts = sparse.csr_matrix((n, n))
    for w in range(1, window + 1):
        same = users[w:] == users[:-w]
        if not same.any():
            break
        pairs = (ids[:-w][same], ids[w:][same])
        weight = np.full(len(pairs[0]), window_decay ** (w - 1))
        counts = counts + sparse.coo_matrix((weight, pairs), shape=(n, n)).tocsr()
    if backward:
        counts = counts + backward * counts.T.tocsr()
    counts.sort_indices()
    return counts
