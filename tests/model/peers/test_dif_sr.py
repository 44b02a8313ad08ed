"""recbole_cafe.model.peers.dif_sr: the contract; the fusions by hand and as loops; which of them sees the future."""

import math

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, C, L, from_yaml, histories, item2intent, layer_norm, scores, share, small
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.errors import ConfigError
from recbole_cafe.model.peers.dif_sr import FUSIONS, DecoupledAttention, DIFSRNet, ScoreFusion

SMALLER = {"n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.1}
TRAIN = {"train_batch_size": 16, "learning_rate": 0.005}


class TestDIFSR(ModelContract):
    model = "DIFSR"
    causal = False
    settings = {**SMALLER, "train_layout": "last", "initializer_range": 0.05}  # a gate turns small scores into less
    layouts = {"last": 12}
    learns_with = TRAIN
    no_gradient = {"gate.2.bias": "adds the same to the numbers of all sources, which the softmax does not see"}


class TestDIFSRWithASum(ModelContract):
    model = "DIFSR"
    settings = {**SMALLER, "fusion": "sum"}
    layouts = {"all": 20}
    learns_with = TRAIN


class TestDIFSRAsReleased(ModelContract):
    model = "DIFSR"
    causal = False
    settings = {**SMALLER, "fusion": "concat", "intent_table": "frozen", "train_layout": "last"}
    layouts = {"last": 12}
    learns_with = TRAIN
    no_gradient = {"intent_embedding.weight": "stays at its first draw"}


def net(**settings):
    given = {"n_heads": 2, "n_layers": 2, "intent_hidden_size": 4, "train_layout": "last"}
    return small(DIFSRNet, "DIFSR", **given | settings)


# Fusions --------------------------------------------------------------------------------------------------------------


def fusion(kind, length=L, n_sources=3):
    return ScoreFusion(fusion=kind, n_sources=n_sources, max_seq_length=length).double()


def sources(length=L):
    """Of intents, items and positions; those of positions are the same in all rows."""
    return [torch.randn(b, 2, length, length, dtype=torch.float64) for b in (3, 3, 1)]


def test_a_gate_without_weights_is_the_mean_and_concat_of_identities_the_sum():
    given = sources()
    total = given[0] + given[1] + given[2]
    torch.testing.assert_close(fusion("sum")(given), total, **EXACT)
    gate, concat = fusion("gate"), fusion("concat")
    with torch.no_grad():
        for part in (gate.gate[0], gate.gate[2]):
            part.weight.zero_()
        concat.concat.weight.copy_(torch.eye(L).repeat(1, 3))
        concat.concat.bias.zero_()
    torch.testing.assert_close(gate(given), total / 3, **EXACT)
    torch.testing.assert_close(concat(given), total, **EXACT)


@pytest.mark.parametrize("kind", FUSIONS)
def test_fusions_are_the_loop_over_rows_heads_and_queries(kind):
    made, given = fusion(kind), sources()
    got = made(given)
    for b in range(3):
        for h in range(2):
            for i in range(L):
                rows = [s[b if len(s) > 1 else 0, h, i] for s in given]
                if kind == "concat":
                    wanted = made.concat.weight @ torch.cat(rows) + made.concat.bias
                else:
                    weight = torch.ones(3, dtype=torch.float64)
                    if kind == "gate":
                        inner, outer = made.gate[0], made.gate[2]
                        energy = [
                            outer.weight[0] @ (inner.weight @ r + inner.bias).relu() + outer.bias[0] for r in rows
                        ]
                        weight = torch.stack(energy).softmax(0)
                    wanted = sum(w * r for w, r in zip(weight, rows, strict=True))
                torch.testing.assert_close(got[b, h, i], wanted, **EXACT)


def test_the_attention_by_hand():
    """Items (1, 0) and (0, 1), one intent at both, no positions: scores 2, 1 and 1, 2, over sqrt 2."""
    made = DecoupledAttention(hidden_size=2, intent_size=1, n_heads=1, dropout=0.0, fusion=fusion("sum", 2)).double()
    with torch.no_grad():
        for part in (made.query, made.key, made.value, made.output, made.intent_query, made.intent_key):
            part.weight.copy_(torch.eye(len(part.weight)))
            part.bias.zero_()
        for part in (made.position_query, made.position_key):
            part.bias.zero_()
    x, position = torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2, 2, dtype=torch.float64)
    intent, past = torch.ones(1, 2, 1, dtype=torch.float64), torch.ones(1, 2, 2, dtype=torch.bool).tril()
    got = made(x, position, intent, past)[0]
    assert got[0].tolist() == pytest.approx([1.0, 0.0])
    assert got[1].tolist() == pytest.approx([0.330, 0.670], abs=5e-4)


@pytest.mark.parametrize("kind", FUSIONS)
def test_the_net_is_its_equations_head_by_head(kind):
    made = net(fusion=kind)
    states, packing = made(histories())
    intents = item2intent()
    intents[intents == C] = 0  # without one: a zero vector
    for seq, got in zip(histories(), states.split(packing.length.tolist()), strict=True):
        n = int((seq > 0).sum())
        x, e, p = made.norm(made.item_embedding.weight[seq]), made.intent_embedding.weight[intents[seq]], made.position
        for block in made.blocks:
            a, heads = block.attention, []
            for h in range(2):
                wide, narrow = slice(4 * h, 4 * h + 4), slice(2 * h, 2 * h + 2)
                parts = [
                    a.intent_query(e)[:, narrow] @ a.intent_key(e)[:, narrow].T,
                    a.query(x)[:, wide] @ a.key(x)[:, wide].T,
                    a.position_query(p.weight)[:, wide] @ a.position_key(p.weight)[:, wide].T,
                ]
                score = a.fusion([s[None, None] for s in parts])[0, 0] / math.sqrt(4)
                for i in range(L):
                    for j in range(L):
                        if j > i or seq[j] == 0:
                            score[i, j] -= 10_000.0
                heads.append(score.softmax(1) @ a.value(x)[:, wide])
            x = layer_norm(x + a.output(torch.cat(heads, 1)), block.norm)
            first, second, norm = block.feed_forward.layers[0], block.feed_forward.layers[2], block.feed_forward.norm
            x = layer_norm(x + second(F.gelu(first(x))), norm)
        torch.testing.assert_close(got, x[:n], **EXACT)


# Intents and positions ------------------------------------------------------------------------------------------------


def test_without_queries_of_intents_intents_change_no_state_of_a_sum():
    made, seq = net(fusion="sum"), histories()
    other = made.item2intent.clone()
    other[1:] = other[1:] % (C - 1) + 1
    before = made(seq)[0]
    own, made.item2intent = made.item2intent, other
    assert (made(seq)[0] - before).abs().max() > 1e-3
    with torch.no_grad():
        for block in made.blocks:
            block.attention.intent_query.weight.zero_()
            block.attention.intent_query.bias.zero_()
    after = made(seq)[0]
    made.item2intent = own
    assert torch.equal(made(seq)[0], after)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_later_item_changes_earlier_states_unless_scores_are_summed(kind):
    """Why gate and concat must not learn at every position."""
    made, seq = net(fusion=kind), histories()[:1]
    other = seq.clone()
    other[0, 4] = 15
    difference = (made(other)[0] - made(seq)[0]).abs().amax(1)
    assert (difference[4:] > 1e-3).all()
    assert difference[0] == 0.0  # whatever its one score is, it is all there is to attend to
    assert ((difference[1:4] > 1e-9) == (kind != "sum")).all()


@pytest.mark.parametrize("kind", ["gate", "concat"])
def test_a_loss_at_every_position_is_refused_where_it_would_leak(kind, toy_path):
    with pytest.raises(ConfigError, match=f"fusion='{kind}' does not suit train_layout='all'"):
        build("DIFSR", toy_path, fusion=kind, train_layout="all")
    assert build("DIFSR", toy_path, fusion="sum", train_layout="all").model.network is not None


@pytest.mark.parametrize("kind", FUSIONS)
def test_narrow_rows_are_read_as_wide_ones(kind):
    made, seq = net(fusion=kind), histories()[1:]
    torch.testing.assert_close(made(seq[:, :4])[0], made(seq)[0], **EXACT)


@pytest.mark.parametrize("kind", FUSIONS)
def test_rows_that_are_too_wide_are_refused(kind):
    with pytest.raises(ValueError, match="rows of 7 positions, where MAX_ITEM_LIST_LENGTH=6"):
        net(fusion=kind)(torch.ones(1, L + 1, dtype=torch.long))


def test_rows_of_several_lengths_are_summed_as_each_alone():
    made = net(fusion="sum", max_seq_length=20)
    seq = torch.zeros(3, 20, dtype=torch.long)
    for i, n in enumerate((17, 2, 9)):
        seq[i, :n] = torch.arange(n) % 19 + 1
    together = made(seq)[0].split([17, 2, 9])
    for row, got in zip(seq, together, strict=True):
        torch.testing.assert_close(made(row[None, row > 0])[0], got, **EXACT)


# The loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_of_intents_by_hand():
    made, seq = net(), histories()
    state, packing = made(seq)
    query = packing.last(state)
    with torch.no_grad():
        made.intent_of_next.weight.zero_()
        made.intent_of_next.bias.zero_()
    assert made.intent_loss(query, NEXT).item() == pytest.approx(math.log(2))
    bias = torch.tensor([50.0, 1.0, -2.0, 0.5, 3.0], dtype=torch.float64)  # the first is padding's: not read
    made.intent_of_next.bias.data = bias
    total = 0.0
    for item in NEXT.tolist():
        own = int(item2intent()[item])
        for c in range(1, C):
            p = 1 / (1 + math.exp(-bias[c]))
            total -= math.log(p if c == own else 1 - p)
    assert made.intent_loss(query, NEXT).item() == pytest.approx(total / (4 * (C - 1)))


def test_the_loss_is_that_of_the_items_plus_the_weighted_one_of_intents():
    seq = histories()
    batch = Batch(seq, next_items(seq, (seq > 0).sum(1), NEXT, "last"), USERS)
    without, with_ = net(intent_loss_weight=0.0), net(intent_loss_weight=5.0)
    share(with_, without)
    state, packing = with_(seq)
    query = packing.last(state)
    items = F.cross_entropy(query @ with_.item_embedding.weight[1:].T, NEXT - 1)
    torch.testing.assert_close(without.loss(batch), items, **EXACT)
    torch.testing.assert_close(with_.loss(batch), items + 5 * with_.intent_loss(query, NEXT), **EXACT)


# The table of intents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "wanted"), [("trained", 5_378_503), ("frozen", 5_355_783)])
def test_it_has_the_parameters_of_the_authors_log(table, wanted):
    made = from_yaml(
        DIFSRNet, "DIFSR", n_items=12_102, n_intents=355, max_seq_length=50, item2intent=torch.zeros(12_102).long(),
        intent_table=table, train_layout="last",
    )  # fmt: skip
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == wanted
    spread = made.intent_embedding.weight[1:].std().item()
    assert spread == pytest.approx(1.0 if table == "frozen" else 0.02, rel=0.05)


@pytest.mark.parametrize("table", ["trained", "frozen"])
def test_training_moves_the_table_unless_it_is_frozen(table, toy_path):
    run = build(
        "DIFSR", toy_path, intent_table=table, hidden_size=16, inner_size=16, n_heads=2, n_layers=1,
        intent_hidden_size=4, epochs=1, learning_rate=0.01,
    )  # fmt: skip
    before = run.model.network.intent_embedding.weight.detach().clone()
    run.fit()
    after = run.model.network.intent_embedding.weight
    assert torch.equal(after, before) == (table == "frozen")
    assert "network.intent_embedding.weight" in run.model.state_dict()  # codes drawn at random have to be kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "mean"}, "fusion='mean' is not one of sum, concat, gate"),
        ({"intent_table": "random"}, "intent_table='random' is not one of trained, frozen"),
        ({"intent_loss_weight": -1.0}, "intent_loss_weight=-1.0 should be at least 0"),
        ({"intent_hidden_size": 5}, "intent_hidden_size=5 is not a multiple of n_heads=2"),
        ({"hidden_size": 9}, "hidden_size=9 is not a multiple of n_heads=2"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("fusion", "sum"), ("hidden_act", "relu"), ("n_heads", 1)):
        made = net(**{key: value})
        made.load_state_dict(base.state_dict(), strict=False)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key
