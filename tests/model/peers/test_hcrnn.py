"""recbole_cafe.model.peers.hcrnn: the contract, the recurrence against loops, the leak, the clip, the divergence."""

import math

import pytest
import torch
from contract import ModelContract
from small import from_yaml
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch
from recbole_cafe.model.peers.hcrnn import LEAST, HCRNNNet, TopicModel

EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64
V, D, K = 12, 4, 3
USER = torch.tensor([1, 2, 3, 4])


class TestHCRNN(ModelContract):
    model = "HCRNN"
    layouts = {"all": 8}


class TestHCRNNv2OfTheAuthorsCode(ModelContract):
    model = "HCRNN"
    settings = {"hcrnn_version": "v2", "bi_att": True, "global_context": "session", "train_layout": "last"}
    causal = False  # every step sees the whole row's set
    layouts = {"last": 4}


def net(**settings):
    """HCRNN as its YAML has it, small, float64, weights at which the gates are open and closed."""
    torch.manual_seed(6)
    given = {"hidden_size": D, "n_topics": K, "n_items": V, "item_negatives": None, "train_layout": "last"}
    made = from_yaml(HCRNNNet, "HCRNN", **given | settings).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
        made.item_embedding.weight[0] = 0.0
    return made


def histories():
    """[4, 6], of lengths 6, 3, 1, 4; with repeats."""
    return torch.tensor([[3, 5, 3, 1, 10, 5], [2, 9, 4, 0, 0, 0], [7, 0, 0, 0, 0, 0], [5, 10, 6, 6, 0, 0]])


def naive_query(made, items):
    """What the last position says, by the formulas, one row and one step at a time."""
    cell, read, size = made.cell, made.read_out, D
    x = [made.item_embedding.weight[i] for i in items]

    def theta(upto):
        hidden = F.elu(made.topics.hidden(sum(made.item_embedding.weight[i] for i in set(items[: upto + 1]))))
        return made.topics.mean(hidden).softmax(0)

    def of(matrix, i, vector):  # the i-th of the matrices that stand side by side
        return matrix.weight[i * size : (i + 1) * size] @ vector

    bias = cell.of_item.bias.chunk(4)
    drift = None if cell.drift is None else cell.drift.clamp(min=LEAST)
    h, c, hs, cs = torch.zeros(D).double(), torch.zeros(D).double(), [], []
    for t in range(len(items)):
        share = theta(t if made.global_context == "running" else len(items))
        e = torch.stack([
            cell.topic_score @ torch.sigmoid(cell.topic_key(share[k] * cell.topic[k]) + cell.topic_query(h))
            for k in range(K)
        ])  # fmt: skip
        local = sum(a * v for a, v in zip(e.softmax(0), cell.topic, strict=True))
        gate = torch.sigmoid(of(cell.of_item, 0, x[t]) + of(cell.of_state, 0, h) + cell.topic_gate(c) + bias[0])
        before, c = c, (1 - gate) * c + gate * local
        reset = of(cell.of_item, 1, x[t]) + of(cell.of_state, 1, h) + bias[1]
        kept = h
        if cell.version == "v1":
            reset = reset + cell.reset_gate(before)
        if cell.version == "v2":
            reset = reset + (x[t] * c) @ drift
        if cell.version == "v3":
            kept = torch.sigmoid((x[t] * c) @ drift + cell.drift_bias) * h
        candidate = torch.tanh(of(cell.of_item, 3, x[t]) + cell.of_reset(reset.sigmoid() * kept) + bias[3])
        z = torch.sigmoid(of(cell.of_item, 2, x[t]) + of(cell.of_state, 2, h) + cell.update_gate(c) + bias[2])
        h = (1 - z) * h + z * candidate
        hs, cs = [*hs, h], [*cs, c]
    match = torch.stack([read.score @ torch.sigmoid(read.key(past) + read.query(h)) for past in hs])
    parts = [sum(a * past for a, past in zip(match.softmax(0), hs, strict=True)), h]
    if read.context_key is not None:
        match = torch.stack([read.context_key(past) @ read.context_query(c) / math.sqrt(D) for past in cs])
        parts.insert(0, sum(a * past for a, past in zip(match.softmax(0), hs, strict=True)))
    return read.bilinear(torch.cat(parts))


@pytest.mark.parametrize("global_context", ["running", "session"])
@pytest.mark.parametrize(("version", "bi_att"), [("v1", False), ("v2", False), ("v3", False), ("v3", True)])
@torch.no_grad()
def test_states_are_the_loops(version, bi_att, global_context):
    made = net(hcrnn_version=version, bi_att=bi_att, global_context=global_context)
    query = made.query(histories())
    for row, got in zip(histories().tolist(), query.vector, strict=True):
        torch.testing.assert_close(got, naive_query(made, [i for i in row if i]), **EXACT)
    items = made.item_embedding.weight
    torch.testing.assert_close(made.scores(query), query.vector @ items.T, **EXACT)


@torch.no_grad()
def test_every_position_says_what_it_would_as_the_last():
    made = net(bi_att=True)
    state, packing = made(histories())
    for i, (row, t) in enumerate(zip(packing.row.tolist(), packing.position.tolist(), strict=True)):
        torch.testing.assert_close(state[i], naive_query(made, histories()[row, : t + 1].tolist()), **EXACT)


@torch.no_grad()
def test_versions_and_read_outs_differ():
    kinds = [{"hcrnn_version": v} for v in ("v1", "v2", "v3")] + [{"bi_att": True}]
    made = [net(**kind) for kind in kinds]
    assert len({sum(p.numel() for p in one.parameters()) for one in made}) == 3  # v1 and v2 exchange one matrix
    two = net(hcrnn_version="v3")
    two.cell.drift_bias.fill_(1e6)  # T2 = 1: v3 is then v2 without what acts on the reset gate
    two.cell.version, kept = "v2", two.query(histories()).vector
    two.cell.drift.fill_(0.0)
    torch.testing.assert_close(two.query(histories()).vector, kept, **EXACT)


# Global context -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_set_of_the_session_leaks_and_the_running_one_does_not():
    seq, later = histories()[:1], histories()[:1].clone()
    later[0, 4] = 8
    for context, same in (("running", True), ("session", False)):
        made = net(global_context=context)
        states = [made(rows)[0][:4] for rows in (seq, later)]  # of the positions before the change
        assert torch.equal(states[0], states[1]) == same


def test_the_set_of_the_session_is_refused_with_a_loss_at_all_positions():
    with pytest.raises(ValueError, match="global_context='session' does not suit train_layout='all'"):
        net(global_context="session", train_layout="all")


@torch.no_grad()
def test_both_sets_agree_at_the_end_of_a_row():
    made = net()
    packing = made.contexts(histories())[3]
    x = made.item_embedding(packing.pack(histories()))
    running = made.bags(histories(), x, packing)
    made.global_context = "session"
    torch.testing.assert_close(packing.last(running), made.bags(histories(), x, packing), **EXACT)


@torch.no_grad()
def test_a_repeated_item_is_in_the_set_once():
    made, seq = net(), torch.tensor([[3, 5, 3, 3]])
    packing = made.contexts(seq)[3]
    bags = made.bags(seq, made.item_embedding(packing.pack(seq)), packing)
    three, five = made.item_embedding.weight[3], made.item_embedding.weight[5]
    torch.testing.assert_close(bags, torch.stack([three, *[three + five] * 3]), **EXACT)


@torch.no_grad()
def test_theta_is_drawn_in_training_and_the_mean_otherwise():
    topics = TopicModel(hidden_size=D, n_topics=K)
    bag = torch.randn(1, D).expand(20_000, D)
    topics.eval()
    theta, _ = topics(bag)
    mean = topics.mean(F.elu(topics.hidden(bag)))
    assert torch.equal(theta, mean.softmax(1))
    topics.train()
    drawn, _ = topics(bag)
    assert drawn.std(0).min() > 0.01
    torch.testing.assert_close(drawn.sum(1), torch.ones(20_000))
    # logarithms of softmax are the draws up to a constant: their mean differences are those of mu
    logs = drawn.log()
    torch.testing.assert_close((logs[:, 1:] - logs[:, :1]).mean(0), (mean[:, 1:] - mean[:, :1])[0], rtol=0, atol=0.05)


def test_the_divergence_by_hand():
    """mu = (1, -2), sigma = (1, 2): (1 + 4 + 1 + 4 - ln 1 - ln 4 - 2) / 2."""
    topics = TopicModel(hidden_size=D, n_topics=2).eval()
    with torch.no_grad():
        for linear, value in (
            (topics.mean, [1.0, -2.0]),
            (topics.deviation, [math.log(math.expm1(s)) for s in (1, 2)]),
        ):
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor(value))
    _, divergence = topics(torch.randn(3, D))
    assert divergence.tolist() == pytest.approx([(8 - math.log(4)) / 2] * 3, rel=1e-5)


def test_the_loss_is_the_softmax_and_the_divergence_where_there_are_targets():
    target = torch.zeros_like(histories())
    target[0, 2], target[1, 2], target[3, 0] = 4, 11, 1
    rows = [[3, 5, 3], [2, 9, 4], [5]]
    items, loss = torch.tensor([4, 11, 1]), {}
    for weight in (0.0, 0.5):
        made = net(kl_weight=weight)
        loss[weight] = made.loss(Batch(histories(), target, USER))
    logits = torch.stack([naive_query(made, row) for row in rows]) @ made.item_embedding.weight.T
    torch.testing.assert_close(loss[0.0], F.cross_entropy(logits[:, 1:], items - 1), **EXACT)
    sets = torch.stack([made.item_embedding.weight[list(set(row))].sum(0) for row in rows])
    torch.testing.assert_close(loss[0.5] - loss[0.0], 0.5 * made.topics(sets)[1].mean(), **EXACT)


# W_2 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_what_is_read_of_w2_is_positive(version):
    made = net(hcrnn_version=version)
    assert (made.cell.drift < 0).any()
    stored = made.cell.drift.detach().clone()
    before = made.query(histories()).vector
    assert torch.equal(made.cell.drift, stored)  # an evaluation writes nothing
    made.train()
    made.loss(Batch(histories(), histories(), USER)).backward()
    assert torch.equal(made.cell.drift, stored.clamp(min=LEAST))
    at_the_bound = made.cell.drift == LEAST
    assert at_the_bound.any()
    assert torch.count_nonzero(made.cell.drift.grad[at_the_bound]) > 0  # it can come back
    made.eval()
    assert torch.equal(made.query(histories()).vector, before)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("hcrnn_version", "v4", "hcrnn_version='v4' is not one of v1, v2, v3"),
    ("global_context", "all", "global_context='all' is not one of running, session"),
    ("n_topics", 0, "n_topics=0 should be at least 1"),
])  # fmt: skip
def test_values_out_of_range_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        net(**{key: value})
