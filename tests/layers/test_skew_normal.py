"""recbole_cafe.layers.skew_normal: moments of its draws, and torch's own multivariate normal."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from recbole_cafe.layers.skew_normal import SkewNormal


def correlation(b, size, dtype=torch.float64):
    """Random [b, size, size], positive definite with a unit diagonal."""
    x = torch.nn.functional.normalize(torch.randn(b, size, size + 2, dtype=dtype), dim=-1)
    return x @ x.transpose(1, 2)


def made(b=1, rows=1, size=4, dtype=torch.float64, jitter=1e-8, **given):
    arguments = {
        "location": torch.randn(b, rows, size, dtype=dtype), "scale": torch.rand(b, size, dtype=dtype) + 0.5,
        "correlation": correlation(b, size, dtype), "slant": 3 * torch.randn(b, size, dtype=dtype),
    }  # fmt: skip
    return SkewNormal(**arguments | given, jitter=jitter)


def moments(z):
    """Mean, covariance and skewness of draws [n, l]."""
    mean = z.mean(0)
    centred = z - mean
    covariance = centred.T @ centred / len(z)
    return mean, covariance, (centred**3).mean(0) / covariance.diagonal() ** 1.5


def test_draws_have_the_mean_and_the_covariance_of_the_distribution():
    """xi + omega delta sqrt(2/pi) and Sigma - (2/pi) (omega delta)(omega delta)^T, in 400,000 draws."""
    n = 400_000
    one = made()
    many = made(rows=n, location=one.location.expand(1, n, 4), scale=one.scale, correlation=one.correlation,
                slant=one.slant)  # fmt: skip
    mean, covariance, skewness = moments(many.sample()[0])
    r, alpha, omega = one.correlation[0], one.slant[0], one.scale[0]
    delta = r @ alpha / math.sqrt(1 + alpha @ r @ alpha)
    lean = omega * delta
    # standard errors at omega <= 1.5 are below 0.0025 and 0.0036
    torch.testing.assert_close(mean, one.location[0, 0] + lean * math.sqrt(2 / math.pi), rtol=0, atol=0.01)
    torch.testing.assert_close(one.mean()[0, 0], one.location[0, 0] + lean * math.sqrt(2 / math.pi))
    sigma = torch.outer(omega, omega) * r
    torch.testing.assert_close(covariance, sigma - 2 / math.pi * torch.outer(lean, lean), rtol=0, atol=0.015)
    c = delta * math.sqrt(2 / math.pi)
    wanted = (4 - math.pi) / 2 * c**3 / (1 - c**2) ** 1.5  # of a univariate skew-normal
    torch.testing.assert_close(skewness, wanted, rtol=0, atol=0.03)
    assert wanted.abs().max() > 0.1  # there is something to see


def test_without_slant_it_is_a_normal_distribution():
    n = 200_000
    one = made(slant=torch.zeros(1, 4, dtype=torch.float64))
    assert torch.equal(one.mean(), one.location)
    many = made(rows=n, location=one.location.expand(1, n, 4), scale=one.scale, correlation=one.correlation,
                slant=one.slant)  # fmt: skip
    mean, covariance, skewness = moments(many.sample()[0])
    torch.testing.assert_close(mean, one.location[0, 0], rtol=0, atol=0.015)
    sigma = torch.outer(one.scale[0], one.scale[0]) * one.correlation[0]
    torch.testing.assert_close(covariance, sigma, rtol=0, atol=0.03)
    assert skewness.abs().max() < 0.03  # standard error sqrt(6 / n) = 0.0055


def test_the_vectors_of_a_row_are_independent_and_rows_have_their_own_distribution():
    n = 30_000
    one = made(b=2, rows=3)
    repeated = SkewNormal(*(t.repeat_interleave(n, 0) for t in
                            (one.location, one.scale, one.correlation, one.slant)), jitter=1e-8)  # fmt: skip
    draws = repeated.sample().view(2, n, 3, 4)
    torch.testing.assert_close(draws.mean(1), one.mean(), rtol=0, atol=0.05)
    centred = draws - draws.mean(1, keepdim=True)
    between = torch.einsum("bni,bnj->bij", centred[:, :, 0], centred[:, :, 1]) / n
    assert between.abs().max() < 0.06  # the largest covariance within a vector is about 1
    assert torch.einsum("bni,bnj->bij", centred[:, :, 0], centred[:, :, 0]).abs().amax() / n > 0.4


def test_a_singular_correlation_has_a_factor():
    """An item twice in a row: two coordinates that are the same."""
    r = torch.ones(1, 3, 3, dtype=torch.float64)
    z = made(rows=1000, size=3, correlation=r, scale=torch.ones(1, 3, dtype=torch.float64),
             location=torch.zeros(1, 1000, 3, dtype=torch.float64), jitter=1e-10).sample()  # fmt: skip
    assert (z - z[..., :1]).abs().max() < 1e-3
    assert z.std() > 0.3


def test_draws_are_differentiable_in_everything():
    one = made(b=2, rows=3)
    leaves = [t.requires_grad_() for t in (one.location, one.scale, one.correlation, one.slant)]
    one.sample().square().sum().backward()
    assert all(leaf.grad.norm() > 1e-3 and torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_surprise_is_the_gaussian_density_of_the_real_coordinates():
    lengths, jitter = (5, 3, 1), 1e-3
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    one = made(b=3, size=5, jitter=jitter)
    value = torch.randn(3, 5, dtype=torch.float64)
    got = one.surprise(value, real)
    for i, n in enumerate(lengths):
        omega = one.scale[i, :n]
        sigma = torch.outer(omega, omega) * one.correlation[i, :n, :n] + jitter * torch.eye(n, dtype=torch.float64)
        density = MultivariateNormal(torch.zeros(n, dtype=torch.float64), sigma).log_prob(value[i, :n])
        assert got[i].item() == pytest.approx(-density.item() / n, abs=1e-9)


def test_surprise_by_hand():
    """One coordinate: (y^2 / s^2 + ln s^2 + ln 2 pi) / 2 with y = 3 and s = 2."""
    one = made(size=1, scale=torch.tensor([[2.0]]).double(), correlation=torch.ones(1, 1, 1).double(), jitter=0.0)
    got = one.surprise(torch.tensor([[3.0]]), torch.ones(1, 1, dtype=torch.bool))
    assert got.item() == pytest.approx((9 / 4 + math.log(4) + math.log(2 * math.pi)) / 2)


def test_half_precision_is_left_outside():
    """A correlation of 8 bits' worth of rounding would not be positive definite."""
    one = made(b=8, rows=2, size=24, dtype=torch.float32, jitter=1e-4)
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        assert torch.randn(2, 2).matmul(torch.randn(2, 2)).dtype == torch.bfloat16  # autocast is on
        for got in (one.sample(), one.mean(), one.delta,
                    one.surprise(one.location[:, 0], torch.ones(8, 24, dtype=torch.bool))):  # fmt: skip
            assert got.dtype == torch.float32
            assert torch.isfinite(got).all()
    low = SkewNormal(*(t.to(torch.bfloat16) for t in (one.location, one.scale, torch.eye(24).expand(8, 24, 24),
                                                      one.slant)), jitter=1e-4)  # fmt: skip
    assert low.sample().dtype == torch.float32
