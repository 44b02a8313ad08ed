"""recbole_cafe.layers.local: LOCKER's forms of locality, by hand and against naive loops.

Causal heads: no form sees the future. Both ways: padding is never seen.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.packing import Packing

EXACT = {"rtol": 0.0, "atol": 1e-10}  # float64
OPTIONS = {
    "theta": {"source": "qk"},
    "win": {"local_window": 1},
    "initial": {"initial_form": "logit_gate", "initial_center": 0},
    "adapt": {},
    "conv": {"local_window": 1},
    "rnn": {"local_window": 2},
}
FORMS = list(OPTIONS)
L = 7


def attention(form, *, causal=False, n_local_heads=2, **options):
    """float64, eval mode, weights of the size of 1."""
    layer = SelfAttention(
        hidden_size=8, n_heads=4, n_local_heads=n_local_heads, max_seq_length=L, causal=causal,
        local_options={"form": form} | OPTIONS[form] | options,
    )  # fmt: skip
    layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer


def row(n=5):
    return torch.randn(n, 8, dtype=torch.float64), Packing(torch.ones(1, n, dtype=torch.bool))


def plain(layer, causal=False):
    """The same projections, all heads global."""
    other = SelfAttention(hidden_size=8, n_heads=4, max_seq_length=L, causal=causal).double().eval()
    other.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("local.")})
    return other


def values_of(layer, x, head):
    return layer.value(x)[:, 2 * head : 2 * head + 2]


def output_of(layer, x, packing):
    """[N, 4, 2] what the heads give, before the output projection."""
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(8))
        layer.output.bias.zero_()
    return layer(x, packing).view(-1, 4, 2)


# Properties of every form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_future_does_not_change_the_past(form):
    layer = attention(form, causal=True)
    x, packing = row(6)
    before = layer(x, packing)
    for t in range(5):
        changed = x.clone()
        changed[t + 1 :] = torch.randn(5 - t, 8, dtype=torch.float64) * 10
        out = layer(changed, packing)
        torch.testing.assert_close(out[: t + 1], before[: t + 1], **EXACT)
        assert (out[t + 1] - before[t + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_without_causality_both_sides_are_read(form):
    layer = attention(form)
    x, packing = row(5)
    x = x / 4  # far from a saturated softmax
    before = layer(x, packing)
    for t in (0, 4):
        changed = x.clone()
        changed[t] += 1.0
        assert ((layer(changed, packing) - before).abs().amax(1) > 1e-6).all()  # through the global heads at least


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_computed_as_if_alone_and_without_padding(form, causal):
    layer = attention(form, causal=causal)
    lengths = (3, 7, 1, 5)
    real = torch.arange(L) < torch.tensor(lengths)[:, None]
    x = torch.randn(sum(lengths), 8, dtype=torch.float64)
    together = layer(x, Packing(real)).split(lengths)
    for part, out in zip(x.split(lengths), together, strict=True):
        alone = layer(part, Packing(torch.ones(1, len(part), dtype=torch.bool)))
        torch.testing.assert_close(out, alone, **EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_beside_padding(form, causal):
    layer = attention(form, causal=causal).train()
    real = torch.tensor([[True] * 6, [True] + [False] * 5])
    layer(torch.randn(7, 8, dtype=torch.float64), Packing(real)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# Window ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_over_the_whole_row_is_plain_attention(causal):
    layer = attention("win", causal=causal, local_window=L - 1)
    x, packing = row()
    torch.testing.assert_close(layer(x, packing), plain(layer, causal)(x, packing), **EXACT)


def test_a_window_of_no_step_gives_the_value():
    layer = attention("win", local_window=0)
    x, packing = row()
    heads = output_of(layer, x, packing)
    for head in (2, 3):
        torch.testing.assert_close(heads[:, head], values_of(layer, x, head), **EXACT)


def test_a_window_of_one_step_averages_neighbours_when_queries_are_zero():
    layer = attention("win", local_window=1)
    with torch.no_grad():
        layer.query.weight.zero_()
        layer.query.bias.zero_()
    x, packing = row(4)
    v = values_of(layer, x, 3)
    wanted = torch.stack([(v[0] + v[1]) / 2, v[:3].mean(0), v[1:].mean(0), (v[2] + v[3]) / 2])
    torch.testing.assert_close(output_of(layer, x, packing)[:, 3], wanted, **EXACT)


# Initial --------------------------------------------------------------------------------------------------------------


def gates(layer):
    """sigmoid(r / 0.1) of the first local head by lag."""
    return (layer.local.relative[0] / 0.1).sigmoid()


@pytest.mark.parametrize(("center", "at"), [(0, 0), (1, -1)])
def test_the_gate_starts_as_a_gaussian_around_its_centre(center, at):
    """exp(-(d / 0.5)^2 / 2) is 1, e^-2 and e^-8 at distances 0, 1, 2: gates .99995, .795 and .501."""
    layer = SelfAttention(
        hidden_size=8, n_heads=4, n_local_heads=1, max_seq_length=L, causal=False,
        local_options={"form": "initial", "initial_form": "logit_gate", "initial_center": center},
    )  # fmt: skip
    gate, lag_0 = gates(layer), L - 1
    assert gate[lag_0 + at].item() == pytest.approx(0.99995, abs=1e-5)
    for side in (-1, 1):
        assert gate[lag_0 + at + side].item() == pytest.approx(1 / (1 + math.exp(-10 * math.exp(-2))), abs=1e-5)
        assert gate[lag_0 + at + 2 * side].item() == pytest.approx(1 / (1 + math.exp(-10 * math.exp(-8))), abs=1e-5)


@pytest.mark.parametrize("form", ["logit_gate", "theta"])
@pytest.mark.parametrize("causal", [True, False])
def test_initial_is_the_loop(form, causal):
    layer = attention("initial", causal=causal, initial_form=form)
    n = 4
    x, packing = row(n)
    q, k, v = (p(x)[:, 6:] for p in (layer.query, layer.key, layer.value))  # the last head
    local = layer.local
    out = torch.zeros(n, 2, dtype=torch.float64)
    for i in range(n):
        terms = {}
        for j in range(i + 1 if causal else n):
            place = (i, j) if causal else (n - 1 - i, n - 1 - j)  # positions count from the end
            qi, kj = q[i] + local.positions.query[1, place[0]], k[j] + local.positions.key[1, place[1]]
            gate = torch.sigmoid(local.relative[1, i - j if causal else i - j + L - 1] / 0.1)
            score = qi @ kj / math.sqrt(2)
            terms[j] = torch.exp(score * gate) if form == "logit_gate" else gate * torch.exp(score)
        for j, term in terms.items():
            out[i] += term / sum(terms.values()) * v[j]
    torch.testing.assert_close(output_of(layer, x, packing)[:, 3], out, **EXACT)


# Adapt ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_adapt_without_weights_and_positions_is_plain_attention(causal):
    layer = attention("adapt", causal=causal)
    x, packing = row()
    assert (layer(x, packing) - plain(layer, causal)(x, packing)).abs().max() > 1e-2
    with torch.no_grad():
        layer.local.theta_weight.zero_()
        layer.local.positions.query.zero_()
        layer.local.positions.key.zero_()
    torch.testing.assert_close(layer(x, packing), plain(layer, causal)(x, packing), **EXACT)


@pytest.mark.parametrize("user", [False, True])
def test_adapt_is_the_five_dimensional_form_with_all_terms(user):
    """ln theta_ij = w . (b_{i-j} + v_i + v_j + u) + beta over [H, l, l, d]; query, user and bias terms cancel."""
    layer = attention("adapt")
    n = 5
    x, packing = row(n)
    local, at = layer.local, torch.arange(n).flip(0)
    q, k, v = (p(x).view(n, 4, 2).transpose(0, 1)[2:] for p in (layer.query, layer.key, layer.value))  # [H, l, d]
    u, beta = (torch.randn(2, 1, 1, 2, dtype=torch.float64), 0.7) if user else (0.0, 0.0)
    lag = torch.arange(n)[:, None] - torch.arange(n) + L - 1
    inside = local.distance[:, lag] + v[:, :, None] + v[:, None, :] + u  # [H, l, l, d]
    log_theta = (inside * local.theta_weight[:, None, None]).sum(-1) + beta
    score = (q + local.positions.query[:, at]) @ (k + local.positions.key[:, at]).transpose(1, 2) / math.sqrt(2)
    wanted = (score + log_theta).softmax(-1) @ v
    torch.testing.assert_close(output_of(layer, x, packing)[:, 2:], wanted.transpose(0, 1), **EXACT)


# Convolution and recurrence -------------------------------------------------------------------------------------------


def test_the_identity_kernel_returns_values_that_are_not_negative():
    layer = attention("conv", local_window=1)
    with torch.no_grad():
        layer.local.conv.weight.zero_()
        layer.local.conv.bias.zero_()
        layer.local.conv.weight[:, :, 1] = torch.eye(2, dtype=torch.float64).repeat(2, 1)  # the centre tap
    x, packing = row()
    heads = output_of(layer, x, packing)
    for head in (2, 3):
        torch.testing.assert_close(heads[:, head], values_of(layer, x, head).relu(), **EXACT)


@pytest.mark.parametrize("causal", [True, False])
def test_conv_is_the_loop_over_its_taps(causal):
    layer = attention("conv", causal=causal, local_window=1)
    n = 5
    x, packing = row(n)
    v, weight, bias = values_of(layer, x, 3), layer.local.conv.weight[2:], layer.local.conv.bias[2:]
    taps = (-2, -1, 0) if causal else (-1, 0, 1)
    wanted = torch.zeros(n, 2, dtype=torch.float64)
    for t in range(n):
        total = bias.clone()
        for i, step in enumerate(taps):
            if 0 <= t + step < n:
                total = total + weight[:, :, i] @ v[t + step]
        wanted[t] = total.relu()
    torch.testing.assert_close(output_of(layer, x, packing)[:, 3], wanted, **EXACT)


@pytest.mark.parametrize("causal", [True, False])
def test_rnn_is_the_last_state_over_each_window(causal):
    layer = attention("rnn", causal=causal, local_window=2)
    n = 4
    x, packing = row(n)
    v, gru = values_of(layer, x, 2), layer.local.gru[0]
    zero = torch.zeros(2, 2, dtype=torch.float64)
    padded = torch.cat((zero, v)) if causal else torch.cat((v, zero))
    wanted = torch.stack([gru(padded[None, t : t + 3])[1][0, 0] for t in range(n)])
    torch.testing.assert_close(output_of(layer, x, packing)[:, 2], wanted, **EXACT)


@pytest.mark.parametrize("form", ["conv", "rnn"])
def test_heads_have_weights_of_their_own(form):
    """LOCKER's rnn code is consistent for one local head only."""
    layer = attention(form)
    x, packing = row()
    before = output_of(layer, x, packing)
    with torch.no_grad():
        (layer.local.conv.weight[2:] if form == "conv" else layer.local.gru[1].weight_ih_l0).add_(1.0)
    after = output_of(layer, x, packing)
    torch.testing.assert_close(after[:, :3], before[:, :3], **EXACT)
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("win", {"local_window": -1}, "local_window=-1 should be at least 0"),
        ("initial", {"initial_form": "gate"}, "initial_form='gate' is not one of logit_gate, theta"),
    ],
)
def test_wrong_options_are_named(form, options, message):
    with pytest.raises(ValueError, match=message):
        attention(form, **options)


def test_without_local_heads_it_is_torchs_bidirectional_attention():
    layer = SelfAttention(hidden_size=8, n_heads=4, max_seq_length=L, causal=False).double().eval()
    lengths = (3, 1, 7)
    real = torch.arange(L) < torch.tensor(lengths)[:, None]
    x = torch.randn(sum(lengths), 8, dtype=torch.float64)
    for part, out in zip(x.split(lengths), layer(x, Packing(real)).split(lengths), strict=True):
        n = len(part)
        q, k, v = (p(part).view(n, 4, 2).transpose(0, 1) for p in (layer.query, layer.key, layer.value))
        heads = F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(out, layer.output(heads.transpose(0, 1).reshape(n, 8)), **EXACT)
