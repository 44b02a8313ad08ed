"""The statistics of a report, each a formula one can redo by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recbole_cafe.errors import ConfigError
from recbole_cafe.ranking.expectation import expectation


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (n - 1 in the denominator; None for n = 1) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired comparison over users.

    Attributes:
        mean: mean difference.
        low: lower end of its 95 % confidence interval (Student's t).
        high: upper end of that interval.
        p: of the test, two-sided.
        users: how many pairs.
        p_holm: p corrected for all comparisons of the table.
    """

    mean: float
    low: float
    high: float
    p: float
    users: int
    p_holm: float | None = None


def stat(values: Sequence[float]) -> Stat:
    """Mean and standard deviation of what the seeds gave."""
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
    return Stat(mean, sd, len(values))


def gain(value: float, baseline: float) -> float | None:
    """(value - baseline) / baseline, None over a baseline of 0."""
    return (value - baseline) / baseline if baseline else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m is taken times m - i + 1, never less than the one before, at most 1.
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for i, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - i) * p_values[at]))
        adjusted[at] = worst
    return adjusted


def paired(values: np.ndarray, reference: np.ndarray, test: str = "t") -> Difference:
    """Compare two systems on the same users.

    Args:
        values: [N] a metric of each user.
        reference: [N] that of the other system, of the same users.
        test: t or wilcoxon (pairs without difference are dropped).
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * error if n > 1 else math.inf
    if not difference.any():
        p = 1.0
    elif test == "wilcoxon":
        p = float(stats.wilcoxon(difference).pvalue)
    elif error == 0.0:
        p = 0.0 if n > 1 else 1.0  # the same difference for every user
    else:
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, mean - half, mean + half, p, n)


def per_user(metric: str, above: np.ndarray, tied: np.ndarray, n_candidates: np.ndarray) -> np.ndarray:
    """A metric of each user, one target each; a tie counts by its expectation (recbole_cafe.ranking.ranks).

    Args:
        metric: ndcg@K, hit@K, mrr@K, or mrr, over all candidates.
        above: [N] candidates above the target.
        tied: [N] other candidates with the target's score.
        n_candidates: [N] candidates, the target included.

    Returns:
        [N] float64.

    Raises:
        ConfigError: another metric.
    """
    name, _, cut = metric.partition("@")
    place = np.arange(int(cut) if cut else int(n_candidates.max()))
    if name == "ndcg" and cut:
        values = 1.0 / np.log2(place + 2)
    elif name == "hit" and cut:
        values = np.ones(len(place))
    elif name == "mrr":
        values = 1.0 / (place + 1)
    else:
        raise ConfigError(f"{metric!r} of single users can be made for ndcg@K, hit@K, mrr@K and mrr")
    return expectation(values, above, tied)
