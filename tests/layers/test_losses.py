"""recbole_cafe.layers.losses, by hand and against loops."""

import math

import pytest
import torch

from recbole_cafe.layers.losses import bce_loss, ce_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("k", [1, 5])
def test_bce_of_logits_zero_is_two_ln_2_whatever_the_number_of_negatives(k):
    assert bce_loss(torch.zeros(3), torch.zeros(3, k)).item() == pytest.approx(2 * math.log(2))


def test_bce_by_hand():
    """sigmoid(ln 3) = 3/4 for the target; negatives ln 3 (1 - 3/4 = 1/4) and -ln 3 (1 - 1/4 = 3/4), averaged."""
    ln3 = math.log(3)
    loss = bce_loss(torch.tensor([ln3]), torch.tensor([[ln3, -ln3]]))
    assert loss.item() == pytest.approx(-math.log(3 / 4) - (math.log(1 / 4) + math.log(3 / 4)) / 2)


@pytest.mark.parametrize("k", [1, 4])
def test_bce_is_the_loop(k):
    positive, negative = torch.randn(6) * 3, torch.randn(6, k) * 3
    loop = 0.0
    for p, row in zip(positive.tolist(), negative.tolist(), strict=True):
        loop -= math.log(sigmoid(p)) / 6
        for n in row:
            loop -= math.log(1 - sigmoid(n)) / (6 * k)
    assert bce_loss(positive, negative).item() == pytest.approx(loop, rel=1e-5)


def test_bce_of_large_logits_is_finite_and_linear():
    loss = bce_loss(torch.tensor([-1000.0]), torch.tensor([[1000.0]]))
    assert loss.item() == pytest.approx(2000.0)


def test_ce_of_equal_logits_is_the_log_of_the_number_of_items():
    assert ce_loss(torch.full((2, 11), 7.0), torch.tensor([1, 10])).item() == pytest.approx(math.log(10))


def test_ce_is_the_loop_over_ids_from_one():
    logits, target = torch.randn(5, 7) * 2, torch.tensor([1, 6, 3, 3, 2])
    loop = 0.0
    for row, t in zip(logits.tolist(), target.tolist(), strict=True):
        loop -= math.log(math.exp(row[t]) / sum(math.exp(x) for x in row[1:])) / 5
    assert ce_loss(logits, target).item() == pytest.approx(loop, rel=1e-5)


def test_padding_is_no_class():
    logits = torch.randn(4, 6, requires_grad=True)
    target = torch.tensor([1, 2, 3, 5])
    before = ce_loss(logits, target)
    before.backward()
    assert torch.count_nonzero(logits.grad[:, 0]) == 0
    changed = logits.detach().clone()
    changed[:, 0] = 1e6
    assert ce_loss(changed, target).item() == before.item()
