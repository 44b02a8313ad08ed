"""recbole_cafe.layers.dropout: each element dropped with its probability, independently, the mean kept."""

import math

import pytest
import torch

from recbole_cafe.layers.draws import LEVELS, Draws, drawing
from recbole_cafe.layers.dropout import Dropout

N = 1_000_000


def dropped(p, shape=(N // 1000, 1000)):
    return (Dropout(p)(torch.ones(shape)) == 0).double().flatten()


def within(share, p, n, sigmas=5.0):
    """Whether a share of n draws is compatible with the probability p."""
    return abs(float(share) - p) < sigmas * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_mean_is_kept(p):
    out = Dropout(p)(torch.full((N // 1000, 1000), 2.0, dtype=torch.float64))
    assert within((out == 0).double().mean(), p, N)
    used = round(p * LEVELS) / LEVELS
    assert abs(used - p) <= 0.5 / LEVELS
    assert (out[out != 0] - 2 / (1 - used)).abs().max() < 1e-12  # so the expectation is 2 exactly
    assert out.mean().item() == pytest.approx(2.0, abs=5 * 2 * math.sqrt(p / (1 - p) / N))


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_elements_are_independent(p):
    """Four elements share one draw of 64 bits: within it, to the next draw, and for each of its quarters."""
    gone = dropped(p)
    for quarter in range(4):
        assert within(gone[quarter::4].mean(), p, N // 4)
    for distance in (1, 2, 3, 4):
        for first in range(4):
            pair = gone[first : N - 4 : 4] * gone[first + distance :: 4][: len(gone[first : N - 4 : 4])]
            assert within(pair.mean(), p * p, len(pair)), (first, distance)


def test_draws_follow_the_seed_and_differ_from_call_to_call():
    layer, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(3)
    one, two = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), one)
    assert not torch.equal(one, two)


def test_rows_are_independent_of_each_other_and_of_the_columns():
    gone = dropped(0.5).view(N // 1000, 1000) - 0.5
    for product in (gone @ gone.T / 1000, gone.T @ gone / 1000):  # covariances, 0 but for chance
        assert product.fill_diagonal_(0).abs().max() < 7 * 0.25 / math.sqrt(1000)


def test_in_a_step_what_is_dropped_belongs_to_the_row_whoever_has_it():
    layer, x = Dropout(0.5), torch.ones(6, 3, 40)
    with drawing(Draws(7, torch.arange(6))):
        first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    with drawing(Draws(7, torch.tensor([1, 3, 5]))):
        assert torch.equal(layer(x[1::2]), first[1::2])
        assert torch.equal(layer(x[1::2]), second[1::2])
    with drawing(Draws(8, torch.arange(6))):
        assert not torch.equal(layer(x), first)


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (5,), (7, 3), (2, 3, 5)])
def test_any_shape(shape):
    out = Dropout(0.5)(torch.ones(shape))
    assert out.shape == shape
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


def test_a_transposed_input():
    x = torch.arange(1.0, 13.0).view(3, 4).T
    out = Dropout(0.5)(x)
    assert ((out == 0) | (out == 2 * x)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_is_kept(dtype):
    assert Dropout(0.5)(torch.ones(8, dtype=dtype)).dtype == dtype


def test_the_gradient_passes_where_the_value_does():
    x = torch.ones(1000, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_eval_mode_and_p_0_are_the_identity():
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_p_1_drops_everything():
    x = torch.randn(100, requires_grad=True)
    out = Dropout(1.0)(x)
    assert torch.count_nonzero(out) == 0
    out.sum().backward()
    assert torch.count_nonzero(x.grad) == 0


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_is_between_0_and_1(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(p)
