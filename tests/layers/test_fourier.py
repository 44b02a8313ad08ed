"""recbole_cafe.layers.fourier: orthonormal waves, and what torch.fft gives."""

import math

import pytest
import torch
from small import EXACT

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.fourier import fourier_basis


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 50])
def test_all_waves_are_an_orthonormal_basis(length):
    waves, bins = fourier_basis(length)
    assert len(waves) == len(bins) == length
    assert bins.max() == length // 2
    torch.testing.assert_close(waves @ waves.T, torch.eye(length, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("length", [4, 7, 50])
def test_coefficients_are_those_of_the_fast_transform(length):
    x = torch.randn(length, dtype=torch.float64)
    waves, bins = fourier_basis(length)
    theirs = torch.fft.rfft(x, norm="ortho")
    seen = set()
    for coefficient, t in zip((waves @ x).tolist(), bins.tolist(), strict=True):
        alone = t == 0 or 2 * t == length
        part = -theirs[t].imag if t in seen else theirs[t].real  # the cosine comes first
        assert coefficient == pytest.approx(part.item() * (1.0 if alone else math.sqrt(2.0)), abs=1e-10)
        seen.add(t)


def test_the_lowest_bins_are_the_first_waves():
    waves, bins = fourier_basis(50, 3)
    assert bins.tolist() == [0, 1, 1, 2, 2]
    assert torch.equal(waves, fourier_basis(50)[0][:5])


@pytest.mark.parametrize("n_bins", [0, 4])
def test_a_bin_that_there_is_not_is_refused(n_bins):
    with pytest.raises(ConfigError, match=rf"{n_bins} frequencies are not in 1\.\.3, which 4 positions have"):
        fourier_basis(4, n_bins)
