"""The discrete Fourier transform of short rows as a matrix: real, orthonormal, the same in every precision.

At the lengths of histories a product with L x L numbers is no slower than a fast transform, and a band of few
frequencies far cheaper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_cafe.errors import ConfigError


def fourier_basis(length: int, n_bins: int | None = None) -> tuple[Tensor, Tensor]:
    """Waves over L positions that are orthogonal and of length 1: the real form of ``rfft(x, norm="ortho")``.

    Bin t has a cosine and a sine with t periods; bin 0 and, where L is even, bin L/2 have one wave each. All bins
    together are a basis of the rows of length L. A coefficient here is sqrt(2) times rfft's in bins with two waves (the
    sine's with its sign turned), and rfft's own in bins with one.

    Args:
        length: L.
        n_bins: how many bins, the lowest first, of L // 2 + 1; None for all.

    Returns:
        the waves [R, L], float64, and the bin of each [R].

    Raises:
        ConfigError: more or fewer bins than there are.
    """
    most = length // 2 + 1
    n_bins = most if n_bins is None else n_bins
    if not 1 <= n_bins <= most:
        raise ConfigError(f"{n_bins} frequencies are not in 1..{most}, which {length} positions have")
    position = torch.arange(length, dtype=torch.float64)
    waves, bins = [], []
    for t in range(n_bins):
        angle = 2.0 * math.pi * t / length * position
        alone = t == 0 or 2 * t == length
        size = math.sqrt((1.0 if alone else 2.0) / length)
        for wave in (torch.cos,) if alone else (torch.cos, torch.sin):
            waves.append(size * wave(angle))
            bins.append(t)
    return torch.stack(waves), torch.tensor(bins)
