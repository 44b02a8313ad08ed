"""recbole_cafe.layers.encoder: SASRec's blocks, against torch's own multi-head attention."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.encoder import EncoderBlock, SequenceEncoder
from recbole_cafe.layers.packing import Packing

EXACT = {"rtol": 0.0, "atol": 1e-10}  # float64


def encoder(**settings):
    """float64, eval mode, random weights of every kind."""
    arguments = {
        "hidden_size": 8, "inner_size": 12, "n_layers": 2, "n_heads": 2, "n_local_heads": 0, "max_seq_length": 6,
        "hidden_dropout_prob": 0.3, "attn_dropout_prob": 0.3,
    }  # fmt: skip
    arguments |= settings
    attention = {key: arguments[key] for key in ("hidden_size", "n_heads", "max_seq_length")}
    attention |= {"n_local_heads": arguments.pop("n_local_heads"), "dropout": arguments.pop("attn_dropout_prob")}
    attention |= {"attn_scale": arguments.pop("attn_scale", "head")}
    attention |= {"local_options": {"source": arguments.pop("theta_source", "qk")}}
    del arguments["n_heads"]
    made = SequenceEncoder(attention=partial(SelfAttention, **attention), **arguments).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def norm(x, weights, eps=1e-8):
    """LayerNorm written out."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights.weight + weights.bias


def sasrec(made, row, *, residual="input", act=torch.relu):
    """SASRec on one row [n, D] without padding, with torch's own multi-head attention (scores over sqrt(d))."""
    n = len(row)
    x = row + made.position.weight[:n]
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    for block in made.blocks:
        a, ffn = block.attention, block.feed_forward
        y = norm(x, block.attention_norm)
        keys = x if residual == "query" else y
        out, _ = F.multi_head_attention_forward(
            y[:, None], keys[:, None], keys[:, None], a.query.weight.shape[0], a.n_heads,
            torch.cat((a.query.weight, a.key.weight, a.value.weight)),
            torch.cat((a.query.bias, a.key.bias, a.value.bias)), None, None, False, 0.0,
            a.output.weight, a.output.bias, training=False, attn_mask=future, need_weights=False,
        )  # fmt: skip
        x = (x if residual == "input" else y) + out[:, 0]
        y = norm(x, block.feed_forward_norm)
        inner = act(y @ ffn[0].weight.T + ffn[0].bias)
        x = (x if residual == "input" else y) + inner @ ffn[3].weight.T + ffn[3].bias
    return norm(x, made.norm)


@pytest.mark.parametrize("residual", ["input", "normed", "query"])
@pytest.mark.parametrize(("hidden_act", "act"), [("relu", torch.relu), ("gelu", F.gelu)])
def test_without_local_heads_it_is_sasrec(residual, hidden_act, act):
    made = encoder(residual=residual, hidden_act=hidden_act)
    lengths = (4, 1, 6)
    real = torch.arange(6) < torch.tensor(lengths)[:, None]
    x = torch.randn(sum(lengths), 8, dtype=torch.float64)
    out = made(x, Packing(real))
    for row, part in zip(x.split(lengths), out.split(lengths), strict=True):
        torch.testing.assert_close(part, sasrec(made, row, residual=residual, act=act), **EXACT)


def test_with_theta_one_local_heads_change_nothing():
    local, plain = encoder(n_local_heads=1), encoder()
    plain.load_state_dict({name: value for name, value in local.state_dict().items() if name in plain.state_dict()})
    x, real = torch.randn(5, 8, dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool)
    assert (local(x, Packing(real)) - plain(x, Packing(real))).abs().max() > 1e-2
    with torch.no_grad():
        for block in local.blocks:
            block.attention.local.theta_weight.zero_()
    torch.testing.assert_close(local(x, Packing(real)), plain(x, Packing(real)), **EXACT)


def test_positions_count_from_the_start_of_each_row():
    made = encoder(n_layers=0)
    real = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    x = torch.zeros(6, 8, dtype=torch.float64)
    wanted = norm(made.position.weight[[0, 1, 0, 0, 1, 2]], made.norm)
    torch.testing.assert_close(made(x, Packing(real)), wanted, **EXACT)


def test_the_options_reach_every_block():
    made = encoder(n_layers=3, n_local_heads=1, theta_source="v", attn_scale="hidden", residual="normed")
    assert len(made.blocks) == 3
    for block in made.blocks:
        assert block.attention.local.source == "v"
        assert block.attention.scale == pytest.approx(1 / math.sqrt(8))
        assert block.attention.n_local_heads == 1
        assert block.attention.dropout.p == 0.3
        assert block.residual == "normed"
        assert [m.p for m in block.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3, 0.3]


def test_dropout_acts_in_training_only():
    made = encoder()
    x, real = torch.randn(5, 8, dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool)
    assert torch.equal(made(x, Packing(real)), made(x, Packing(real)))
    made.train()
    assert not torch.equal(made(x, Packing(real)), made(x, Packing(real)))
    still = encoder(hidden_dropout_prob=0.0, attn_dropout_prob=0.0).train()
    assert torch.equal(still(x, Packing(real)), still(x, Packing(real)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"residual": "both"}, "residual='both' is not one of input, normed, query"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh' is not one of relu, gelu"),
    ],
)
def test_wrong_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderBlock(attention=nn.Identity(), hidden_size=8, inner_size=8, dropout=0.0, **settings)
    with pytest.raises(ValueError, match=message):
        encoder(**settings)
