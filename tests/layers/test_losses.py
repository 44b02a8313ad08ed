"""recbole_cafe.layers.losses, by hand and against loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_cafe.layers import losses
from recbole_cafe.layers.losses import bce_loss, hinge_loss, next_id_loss


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


@pytest.mark.parametrize("k", [1, 3])
def test_an_offset_is_added_to_every_logit_of_its_row(k):
    table, state, target = nn.Embedding(9, 4), torch.randn(5, 4), torch.tensor([1, 2, 8, 8, 3])
    negative, offset = torch.randint(1, 9, (5, k)), torch.randn(5) * 3
    with torch.no_grad():
        arguments = (state, target, target, table)
        got = next_id_loss(*arguments, loss_type="BCE", negatives=lambda *_: negative, n_negatives=k, offset=offset)
        logits = state @ table.weight.T + offset[:, None]
        wanted = bce_loss(logits.gather(1, target[:, None])[:, 0], logits.gather(1, negative))
        torch.testing.assert_close(got, wanted)
        softmax = next_id_loss(*arguments, loss_type="CE", offset=offset)
        torch.testing.assert_close(softmax, next_id_loss(*arguments, loss_type="CE"))
        torch.testing.assert_close(softmax, F.cross_entropy(logits[:, 1:], target - 1))


def test_hinge_by_hand():
    """Margin 1: [1 - 2 + 0.5]_+ = 0 and [1 - 2 + 1.25]_+ = 0.25; [1 + 1 + 3]_+ = 5 and [1 + 1 - 2]_+ = 0."""
    loss = hinge_loss(torch.tensor([2.0, -1.0]), torch.tensor([[0.5, 1.25], [3.0, -2.0]]), margin=1.0)
    assert loss.item() == pytest.approx(5.25 / 4)


def ce(logits, target):
    """The loss of given logits [N, V], column 0 being padding: states are the logits, the table is the identity."""
    table = nn.Embedding.from_pretrained(torch.eye(logits.shape[1], dtype=logits.dtype))
    return next_id_loss(logits, target, target, table, loss_type="CE")


def test_ce_of_equal_logits_is_the_log_of_the_number_of_items():
    assert ce(torch.full((2, 11), 7.0), torch.tensor([1, 10])).item() == pytest.approx(math.log(10))


def test_ce_is_the_loop_over_ids_from_one():
    logits, target = torch.randn(5, 7) * 2, torch.tensor([1, 6, 3, 3, 2])
    loop = 0.0
    for row, t in zip(logits.tolist(), target.tolist(), strict=True):
        loop -= math.log(math.exp(row[t]) / sum(math.exp(x) for x in row[1:])) / 5
    assert ce(logits, target).item() == pytest.approx(loop, rel=1e-5)


def test_padding_is_no_class():
    logits = torch.randn(4, 6, requires_grad=True)
    target = torch.tensor([1, 2, 3, 5])
    before = ce(logits, target)
    before.backward()
    assert torch.count_nonzero(logits.grad[:, 0]) == 0
    changed = logits.detach().clone()
    changed[:, 0] = 1e6
    assert ce(changed, target).item() == before.item()


def test_rows_beyond_the_ids_are_no_classes():
    """A table with two further rows (a mask, "no intent"), and a bias."""
    state, target = torch.randn(5, 3), torch.tensor([1, 4, 2, 2, 3])
    table, bias = nn.Embedding(7, 3), torch.randn(5)
    loss = next_id_loss(state, target, target, table, loss_type="CE", n_ids=5, bias=bias)
    logits = (state @ table.weight.T)[:, 1:5] + bias[1:]
    torch.testing.assert_close(loss, F.cross_entropy(logits, target - 1))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block", [1, 20, 10_000])
def test_ce_without_the_logits_is_torchs_with_its_gradients(monkeypatch, block, with_bias):
    """Blocks of one row, of a few (the last one shorter) and of all; large logits do not overflow."""
    monkeypatch.setattr(losses, "BLOCK", block)
    values = [torch.randn(7, 4).double() * 30, torch.randn(9, 4).double(), torch.randn(9).double()]
    target, results = torch.randint(0, 9, (7,)), []
    for function in (losses.linear_ce_loss, lambda s, w, t, b: F.cross_entropy(s @ w.T + (0 if b is None else b), t)):
        state, weight, bias = (v.clone().requires_grad_() for v in values)
        loss = function(state, weight, target, bias if with_bias else None)
        (3 * loss).backward()
        results.append((loss, state.grad, weight.grad, *([bias.grad] if with_bias else [])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_no_target_gives_a_zero_that_is_part_of_the_graph():
    state = torch.randn(0, 3, requires_grad=True)
    loss = next_id_loss(state, torch.zeros(0, dtype=torch.long), None, nn.Embedding(4, 3), loss_type="CE")
    assert loss.item() == 0.0
    loss.backward()
