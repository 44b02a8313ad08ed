"""recbole_cafe.layers.losses, by hand and against loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_cafe.layers import losses
from recbole_cafe.layers.losses import bce_loss, check_loss, gbce_loss, hinge_loss, next_id_loss, sampled_softmax_loss
from recbole_cafe.layers.sampling import PopularitySampler


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


def test_gbce_by_hand():
    """One negative of four ids that could be drawn, t = 3/4: beta = 1 - 3/4 * 3/4 = 7/16. Probabilities 3/4 and 1/4."""
    loss = gbce_loss(torch.tensor([math.log(3)]), torch.tensor([[-math.log(3)]]), sampling_rate=0.25, t=0.75)
    assert loss.item() == pytest.approx(-(7 / 16 * math.log(3 / 4) + math.log(3 / 4)) / 2)


def test_gbce_without_calibration_or_with_all_ids_drawn_is_bce_of_the_summed_negatives():
    positive, negative = torch.randn(5), torch.randn(5, 3)
    plain = -(F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1)).mean() / 4
    torch.testing.assert_close(gbce_loss(positive, negative, sampling_rate=0.1, t=0.0), plain)
    torch.testing.assert_close(gbce_loss(positive, negative, sampling_rate=1.0, t=1.0), plain)
    torch.testing.assert_close(gbce_loss(positive, negative, sampling_rate=7.0, t=1.0), plain)  # with replacement


def test_calibrated_fully_gbce_makes_the_logit_that_of_the_true_probability():
    """Four ids with the probabilities .6, .3, .1, 0 of being next; beside each target another id is drawn. Where the
    gradient of the expected loss is zero, the sigmoid of an id's logit is its probability (the paper's Theorem 5.2);
    BCE's is p / (p + (1 - p) / 3)."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    for t, wanted in ((1.0, p), (0.0, p / (p + (1 - p) / 3))):
        logit = torch.logit(wanted).requires_grad_()
        total = 0.0
        for target in range(3):
            for drawn in range(4):
                if drawn == target:
                    continue
                negative = logit[drawn] if drawn < 3 else torch.tensor(-100.0).double()
                total = total + p[target] / 3 * gbce_loss(logit[target][None], negative.reshape(1, 1),
                                                          sampling_rate=1 / 3, t=t)  # fmt: skip
        total.backward()
        assert logit.grad.abs().max() < 1e-10


def test_sampled_softmax_by_hand():
    """Logits ln 2 of the target; ln 3 expected half a time, hence 6, and ln 1 expected twice, hence 1/2."""
    loss = sampled_softmax_loss(torch.tensor([math.log(2)]), torch.tensor([[math.log(3), 0.0]]),
                                torch.tensor([0.5, 2.0]).log())  # fmt: skip
    assert loss.item() == pytest.approx(-math.log(2 / (2 + 6 + 0.5)))


def test_a_drawn_target_does_not_count_twice():
    state, table = torch.randn(2, 3), nn.Embedding(5, 3)
    target, drawn = torch.tensor([2, 4]), torch.tensor([2, 3, 2])
    log_expected = torch.tensor([0.1, -0.2, 0.1])
    with torch.no_grad():
        loss = next_id_loss(state, target, target, table, loss_type="SSM", negatives=lambda _k: (drawn, log_expected))
        logits = state @ table.weight.T
        first = logits[0, 2] - torch.logaddexp(logits[0, 2], logits[0, 3] + 0.2)
        second = logits[1, 4] - torch.stack((logits[1, 4], *(logits[1, drawn] - log_expected))).logsumexp(0)
    torch.testing.assert_close(loss, -(first + second) / 2)


def test_the_sum_of_a_sampled_softmax_is_right_on_average():
    """Unbiased: over many draws the sum of all other ids' exponentials is the true one."""
    torch.manual_seed(3)
    logits, sampler = torch.randn(9), PopularitySampler(torch.tensor([1] * 20 + [2] * 5 + [7] * 9), n=9)
    target = 2
    drawn, log_expected = sampler(400_000)
    weight = (logits[drawn] - log_expected).exp().where(drawn != target, torch.tensor(0.0))
    true = logits.exp()[1:].sum() - logits[target].exp()
    assert weight.sum().item() == pytest.approx(true.item(), rel=0.02)


def test_with_many_draws_a_sampled_softmax_is_the_softmax():
    torch.manual_seed(4)
    state, table, target = torch.randn(6, 4), nn.Embedding(30, 4), torch.randint(1, 30, (6,))
    bias, sampler = torch.randn(30), PopularitySampler(torch.randint(1, 30, (200,)), n=30)
    with torch.no_grad():
        whole = next_id_loss(state, target, target, table, loss_type="CE", bias=bias)
        sampled = next_id_loss(state, target, target, table, loss_type="SSM", negatives=sampler, n_negatives=200_000,
                               bias=bias)  # fmt: skip
    assert sampled.item() == pytest.approx(whole.item(), rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("BPR", 1, 0.5), "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
        (("SSM", 0, 0.5), "n_negatives=0 must be at least 1 for loss_type='SSM'"),
        (("gBCE", 1, 1.5), r"gbce_t=1.5 must be in \[0, 1\]"),
    ],
)
def test_settings_of_no_loss_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_loss(*settings)
    check_loss("CE", 0, 0.0)


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
