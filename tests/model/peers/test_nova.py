"""recbole_cafe.model.peers.nova: side information steers attention and is never carried."""

import pytest
import torch
from contract import ModelContract
from small import EXACT, hidden_intents_do_not_matter, histories, scores, small

from recbole_cafe.model.peers.nova import FUSIONS, GATES, Fusion, NOVANet


class TestNOVA(ModelContract):
    model = "NOVA"
    causal = False
    settings = {"mask_ratio": 0.4, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    layouts = {"last": 20}
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003}


def net(**settings):
    return small(NOVANet, "NOVA", **settings)


def permute_intents(made):
    """Other intents for all items."""
    made.intents.item2intent[1:-1] = made.intents.item2intent[1:-1] % 4 + 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_queries_and_keys_intents_change_nothing(fusion):
    """Purity, bit for bit: attention is uniform then, and what it carries are items alone."""
    made = net(fusion=fusion)
    before = scores(made)
    permute_intents(made)
    assert (scores(made) - before).abs().max() > 1e-3
    with torch.no_grad():
        for block in made.encoder.blocks:
            for part in (block.attention.query, block.attention.key):
                part.weight.zero_()
                part.bias.zero_()
    before = scores(made)
    permute_intents(made)
    assert torch.equal(scores(made), before)


def test_queries_and_keys_are_fused_again_in_every_layer(monkeypatch):
    """Ports that fuse once give deeper layers the first layer's queries: here they see the updated item states."""
    made = net()
    seen = []
    for fusion in made.fusions:
        monkeypatch.setattr(fusion, "forward", lambda f, own=fusion: seen.append(f) or Fusion.forward(own, f))
    made(histories())
    (first, *side), (second, *side_too) = seen
    assert (first - second).abs().max() > 1e-2
    assert all(torch.equal(a, b) for a, b in zip(side, side_too, strict=True))  # side information is not updated


def test_the_intent_of_a_hidden_item_changes_nothing():
    hidden_intents_do_not_matter(net())


def test_add_with_zero_side_tables_is_attention_on_items():
    made = net(fusion="add")
    with torch.no_grad():
        made.position.weight.zero_()
        made.intents.embedding.weight.zero_()
    state, packing = made(histories())
    wanted = made.encoder(made.item_embedding(packing.pack(histories())), packing)
    torch.testing.assert_close(state, wanted, **EXACT)


def fusion(**settings):
    return Fusion(n_features=3, hidden_size=4, **{"fusion": "add", "gate_act": "sigmoid", **settings}).double()


def test_fusions_by_hand():
    f = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    torch.testing.assert_close(fusion()(f), f[0] + f[1] + f[2], **EXACT)
    gate = fusion(fusion="gating")
    with torch.no_grad():
        gate.gate.weight.zero_()
    torch.testing.assert_close(gate(f), 0.5 * (f[0] + f[1] + f[2]), **EXACT)
    concat = fusion(fusion="concat")
    with torch.no_grad():
        concat.concat.weight.copy_(torch.cat((torch.eye(4), torch.zeros(4, 8)), dim=1))
        concat.concat.bias.zero_()
    torch.testing.assert_close(concat(f), f[0], **EXACT)


@pytest.mark.parametrize("gate_act", GATES)
def test_gates_are_the_loop(gate_act):
    made, f = fusion(fusion="gating", gate_act=gate_act), [torch.randn(2, 4, dtype=torch.float64) for _ in range(3)]
    w = made.gate.weight[0]
    for row in range(2):
        logits = torch.stack([part[row] @ w for part in f])
        gates = {"sigmoid": logits.sigmoid(), "relu": logits.relu(), "softmax": logits.softmax(0)}[gate_act]
        wanted = sum(g * part[row] for g, part in zip(gates, f, strict=True))
        torch.testing.assert_close(made(f)[row], wanted, **EXACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "mean"}, "fusion='mean' is not one of add, concat, gating"),
        ({"gate_act": "tanh"}, "gate_act='tanh' is not one of sigmoid, relu, softmax"),
    ],
)
def test_wrong_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)
