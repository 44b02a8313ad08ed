"""The expectation of a ranking metric over random tie-breaking (see recbole_cafe.ranking.ranks); NumPy only."""

from __future__ import annotations

import numpy as np


def expectation(values: np.ndarray, above: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Mean of a per-place value over the places a target may take.

    Args:
        values: [K] value of a metric for a target at place 0..K-1; beyond that it is 0.
        above: [N] candidates above the target.
        tied: [N] other candidates with the target's score.

    Returns:
        [N] float64.
    """
    total = np.r_[0.0, np.cumsum(values, dtype=np.float64)]  # total[i] = sum of the first i
    first = np.minimum(above, len(values))
    past = np.minimum(above + tied + 1, len(values))
    mean: np.ndarray = (total[past] - total[first]) / (tied + 1)
    return mean
