"""recbole_cafe.layers.attention: Eq. 5 and 6 of CaFe, by hand, and against the naive form with all its terms."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.packing import Packing

LN = math.log
EXACT = {"rtol": 0.0, "atol": 1e-10}  # float64


def attention(**settings):
    """float64, eval mode, all weights random and of the size of 1."""
    arguments = {"hidden_size": 8, "n_heads": 4, "n_local_heads": 2, "max_seq_length": 6} | settings
    if "theta_source" in settings:
        arguments["local_options"] = {"source": arguments.pop("theta_source")}
    layer = SelfAttention(**arguments).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer


def identity(layer):
    """Projections that return their input."""
    with torch.no_grad():
        for projection in (layer.query, layer.key, layer.value, layer.output):
            projection.weight.copy_(torch.eye(len(projection.weight)))
            projection.bias.zero_()
    return layer


def packed(*lengths, longest=None, size=8):
    """Random [N, D] and the [B, L] mask of rows of these lengths."""
    real = torch.arange(longest or max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(int(real.sum()), size, dtype=torch.float64), real


def naive(layer, x, real, query_term=1.0, bias=0.0, user_term=0.0):
    """Eq. 5 with theta = exp of Eq. 6, every term and every sum written out.

    query_term scales the query-side term of Eq. 6, bias is its b_L and user_term LOCKER's u: the implementation has
    none of them.
    """
    M, H, d = layer.n_heads, layer.n_local_heads, layer.head_size
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    rows, start = [], 0
    for n in real.sum(1).tolist():
        heads = []
        for m in range(M):
            head = slice(m * d, (m + 1) * d)
            qm, km, vm = (t[start : start + n, head] for t in (q, k, v))
            content_i, content_j = (qm, km) if H and layer.local.source == "qk" else (vm, vm)
            out = torch.zeros(n, d, dtype=x.dtype)
            for i in range(n):
                terms = []
                for j in range(i + 1):
                    theta = torch.ones((), dtype=x.dtype)
                    if m >= M - H:
                        w, b = layer.local.theta_weight[m - (M - H)], layer.local.distance[m - (M - H), i - j]
                        inside = query_term * content_i[i] + content_j[j] + b + user_term
                        theta = torch.exp(w @ inside + bias)
                    terms.append(theta * torch.exp(qm[i] @ km[j] * layer.scale))
                for j in range(i + 1):
                    out[i] += terms[j] / sum(terms) * vm[j]
            heads.append(out)
        rows.append(torch.cat(heads, dim=1))
        start += n
    return layer.output(torch.cat(rows))


# By hand --------------------------------------------------------------------------------------------------------------


def test_two_items_one_plain_head():
    """x = (0, a) with a^2 = ln 3: the second item's scores are 0 and ln 3, its weights 1/4 and 3/4."""
    layer = identity(attention(hidden_size=1, n_heads=1, n_local_heads=0))
    a = math.sqrt(LN(3))
    out = layer(torch.tensor([[0.0], [a]], dtype=torch.float64), Packing(torch.ones(1, 2, dtype=torch.bool)))
    torch.testing.assert_close(out, torch.tensor([[0.0], [0.75 * a]], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("theta_source", ["qk", "v"])
def test_two_items_one_local_head(theta_source):
    """As above with W = 1, b_0 = 0, b_1 = a + ln 12 (key and value are both x here).

    Item 1 looks at item 0 with theta = exp(k_0 + b_1) = 12 e^a and exp(score) = 1, at itself with theta =
    exp(k_1 + b_0) = e^a and exp(score) = 3: weights 12 to 3, that is 4/5 and 1/5.
    """
    layer = identity(attention(hidden_size=1, n_heads=1, n_local_heads=1, theta_source=theta_source))
    a = math.sqrt(LN(3))
    with torch.no_grad():
        layer.local.theta_weight.fill_(1.0)
        layer.local.distance.zero_()
        layer.local.distance[0, 1] = a + LN(12)
    out = layer(torch.tensor([[0.0], [a]], dtype=torch.float64), Packing(torch.ones(1, 2, dtype=torch.bool)))
    torch.testing.assert_close(out, torch.tensor([[0.0], [a / 5]], dtype=torch.float64), **EXACT)


def test_three_items_the_last_head_is_the_local_one():
    """Scores are 0 (queries are 0), so the plain head averages the past. The local head's b = (0, ln 2, ln 3) by
    distance gives item 2 the weights 3/6, 2/6, 1/6 on items 0, 1, 2 and item 1 the weights 2/3, 1/3."""
    layer = identity(attention(hidden_size=2, n_heads=2, n_local_heads=1, theta_source="qk"))
    with torch.no_grad():
        layer.query.weight.zero_()
        layer.key.weight.zero_()
        layer.local.theta_weight.fill_(1.0)
        layer.local.distance.zero_()
        layer.local.distance[0, 1], layer.local.distance[0, 2] = LN(2), LN(3)
    x = torch.tensor([[6.0, 6.0], [0.0, 0.0], [12.0, 12.0]], dtype=torch.float64)
    out = layer(x, Packing(torch.ones(1, 3, dtype=torch.bool)))
    wanted = [[6.0, 6.0], [3.0, 6 * 2 / 3], [6.0, 6 * 3 / 6 + 12 * 1 / 6]]
    torch.testing.assert_close(out, torch.tensor(wanted, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(("attn_scale", "share"), [("hidden", 3 / 4), ("head", 9 / 10)])
def test_scores_are_divided_by_the_root_of_the_width_or_of_a_head(attn_scale, share):
    """D = 4, d = 1, x = 0 and a with a^2 = 2 ln 3: the score a^2 over sqrt(4) is ln 3, over sqrt(1) it is ln 9."""
    layer = identity(attention(hidden_size=4, n_heads=4, n_local_heads=0, attn_scale=attn_scale))
    a = math.sqrt(2 * LN(3))
    x = torch.tensor([[0.0], [a]], dtype=torch.float64).expand(2, 4)
    out = layer(x, Packing(torch.ones(1, 2, dtype=torch.bool)))
    torch.testing.assert_close(out[1], torch.full((4,), share * a, dtype=torch.float64), **EXACT)


# Against the naive form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_local_heads", [0, 1, 4])
@pytest.mark.parametrize("attn_scale", ["hidden", "head"])
@pytest.mark.parametrize("theta_source", ["qk", "v"])
def test_the_naive_form_with_all_terms_is_the_same(theta_source, attn_scale, n_local_heads):
    layer = attention(theta_source=theta_source, attn_scale=attn_scale, n_local_heads=n_local_heads)
    x, real = packed(5, 1, 3)
    torch.testing.assert_close(layer(x, Packing(real)), naive(layer, x, real, bias=0.3), **EXACT)


def test_the_naive_form_is_the_same_for_rows_of_different_groups():
    layer = attention(max_seq_length=17)
    x, real = packed(2, 17, 9)
    torch.testing.assert_close(layer(x, Packing(real)), naive(layer, x, real), **EXACT)


@pytest.mark.parametrize("theta_source", ["qk", "v"])
def test_query_term_bias_and_user_term_cancel(theta_source):
    layer = attention(theta_source=theta_source)
    x, real = packed(5, 2)
    plain = naive(layer, x, real, query_term=0.0)
    for other in ({"query_term": 1.0}, {"query_term": -2.5}, {"bias": 4.0}, {"user_term": torch.randn(2)}):
        torch.testing.assert_close(naive(layer, x, real, **{"query_term": 0.0, **other}), plain, **EXACT)


def test_key_and_distance_terms_do_not_cancel():
    layer = attention()
    x, real = packed(5)
    before = layer(x, Packing(real))
    with torch.no_grad():
        layer.local.distance[:, 1].add_(1.0)
    assert (layer(x, Packing(real)) - before).abs().max() > 1e-2
    torch.testing.assert_close(layer(x, Packing(real))[0], before[0], **EXACT)  # the first item has no distance but 0
    qk, v = attention(theta_source="qk"), attention(theta_source="v")
    v.load_state_dict(qk.state_dict())
    assert (qk(x, Packing(real)) - v(x, Packing(real))).abs().max() > 1e-2


def test_adding_one_vector_to_all_distances_changes_nothing():
    layer = attention()
    x, real = packed(6)
    before = layer(x, Packing(real))
    with torch.no_grad():
        layer.local.distance.add_(torch.randn(2, 1, 2))
    torch.testing.assert_close(layer(x, Packing(real)), before, **EXACT)


@pytest.mark.parametrize("theta_source", ["qk", "v"])
def test_the_key_bias_changes_nothing_and_has_no_gradient(theta_source):
    layer = attention(theta_source=theta_source)
    x, real = packed(6)
    before = layer(x, Packing(real))
    before.pow(2).sum().backward()
    assert layer.key.bias.grad.abs().max() < 1e-10
    for name, parameter in layer.named_parameters():
        assert name == "key.bias" or parameter.grad.abs().max() > 1e-3, name
    with torch.no_grad():
        layer.key.bias.add_(3.0)
    torch.testing.assert_close(layer(x, Packing(real)), before, **EXACT)


def test_without_theta_a_local_head_is_a_plain_one():
    local, plain = attention(n_local_heads=3), attention(n_local_heads=0)
    plain.load_state_dict({name: value for name, value in local.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        local.local.theta_weight.zero_()
    x, real = packed(4, 6, 1)
    torch.testing.assert_close(local(x, Packing(real)), plain(x, Packing(real)), **EXACT)


@pytest.mark.parametrize("lengths", [(6, 6), (1, 6, 3), (1, 1)])
def test_without_local_heads_it_is_torchs_causal_attention(lengths):
    layer = attention(n_local_heads=0)
    x, real = packed(*lengths)
    out = layer(x, Packing(real))
    start = 0
    for n in lengths:
        row = x[start : start + n]
        q, k, v = (p(row).view(n, 4, 2).transpose(0, 1) for p in (layer.query, layer.key, layer.value))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.testing.assert_close(out[start : start + n], layer.output(heads.transpose(0, 1).reshape(n, 8)), **EXACT)
        start += n


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_local_heads", [0, 2])
def test_the_future_does_not_change_the_past(n_local_heads):
    layer = attention(n_local_heads=n_local_heads)
    x, real = packed(6)
    before = layer(x, Packing(real))
    for t in range(5):
        changed = x.clone()
        changed[t + 1 :] = torch.randn(5 - t, 8, dtype=torch.float64) * 10
        out = layer(changed, Packing(real))
        torch.testing.assert_close(out[: t + 1], before[: t + 1], **EXACT)
        assert (out[t + 1] - before[t + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("n_local_heads", [0, 2])
@pytest.mark.parametrize(("lengths", "longest"), [((3, 5, 1, 4), 5), ((3, 5, 1, 4), 6), ((3, 17, 1, 8, 9, 35), 40)])
def test_rows_are_computed_as_if_alone(n_local_heads, lengths, longest):
    """Rows of the last case are of several groups of lengths (recbole_cafe.layers.packing)."""
    layer = attention(n_local_heads=n_local_heads, max_seq_length=40)
    x, real = packed(*lengths, longest=longest)
    parts = layer(x, Packing(real)).split(lengths)
    for row, part in zip(x.split(lengths), parts, strict=True):
        torch.testing.assert_close(layer(row, Packing(torch.ones(1, len(row), dtype=torch.bool))), part, **EXACT)


def test_dropout_keeps_the_mean_and_acts_in_training_only():
    layer = attention(dropout=0.4)
    x, real = packed(3)
    many = 20_000
    exact = layer(x, Packing(real))
    assert torch.equal(layer(x, Packing(real)), exact)
    layer.train()
    out = layer(x.repeat(many, 1), Packing(real.expand(many, 3))).view(many, 3, 8)
    assert out.std(0).min() > 0.01
    # Dropout acts on the weights, in which the output is linear. Five standard errors of the mean:
    assert ((out.mean(0) - exact).abs() < 5 * out.std(0) / math.sqrt(many)).all()


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 10}, "hidden_size=10 is not a multiple of n_heads=4"),
        ({"n_heads": 0}, "hidden_size=8 is not a multiple of n_heads=0"),
        ({"n_local_heads": 5}, r"n_local_heads=5 is not in 0\.\.n_heads=4"),
        ({"n_local_heads": -1}, r"n_local_heads=-1 is not in 0\.\.n_heads=4"),
        ({"theta_source": "k"}, "theta_source='k' is not one of qk, v"),
        ({"attn_scale": "none"}, "attn_scale='none' is not one of hidden, head"),
    ],
)
def test_wrong_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        attention(**settings)


def test_parameters_of_local_heads_exist_with_local_heads_only():
    names = {name for name, _ in attention(n_local_heads=0).named_parameters()}
    assert names == {f"{p}.{w}" for p in ("query", "key", "value", "output") for w in ("weight", "bias")}
    local = attention(n_local_heads=3)
    assert local.local.theta_weight.shape == (3, 2)
    assert local.local.distance.shape == (3, 6, 2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_local_heads", [0, 1, 2])
@pytest.mark.parametrize("source", ["qk", "v"])
def test_training_in_lines_is_attention_in_groups_with_the_same_gradients(causal, n_local_heads, source):
    """float64; rows that share lines, rows too long for that, and an empty one."""
    layer = attention(
        n_heads=2, n_local_heads=n_local_heads, max_seq_length=140, causal=causal, theta_source=source
    )  # fmt: skip
    x, real = packed(1, 70, 5, 64, 2, 0, 130, 65, 3, 20)
    x.requires_grad_()
    packing, gradient = Packing(real), torch.randn_like(x)
    outcomes = []
    for training in (True, False):
        layer.train(training).zero_grad()
        x.grad = None
        out = layer(x, packing)
        out.backward(gradient)
        outcomes.append([out.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for lines, groups in zip(*outcomes, strict=True):
        torch.testing.assert_close(lines, groups, **EXACT)


def test_training_drops_weights_in_lines_and_keeps_their_mean():
    layer = identity(attention(n_local_heads=0, dropout=0.5)).train()
    x, real = packed(5, 3)
    packing = Packing(real)
    drawn = torch.stack([layer(x, packing).detach() for _ in range(4000)])
    assert len({draw[0, 0].item() for draw in drawn}) == 2  # the first position sees itself alone: dropped, or doubled
    torch.testing.assert_close(drawn.mean(0), layer.eval()(x, packing).detach(), rtol=0.0, atol=0.15)
