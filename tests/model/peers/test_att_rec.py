"""att_rec: the contract, the distances against loops, and what the window may and may not see."""

import math

import pytest
import torch
from contract import ModelContract
from small import from_yaml
from torch import nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.model.peers.att_rec import AttRecNet, time_signal

EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64
V, USERS, L, D = 12, 6, 7, 8
USER = torch.tensor([1, 5, 2, 1])


class TestAttRec(ModelContract):
    model = "AttRec"


class TestAttRecWithSoftmax(ModelContract):
    model = "AttRec"
    settings = {"loss_type": "CE", "max_norm": None}
    layouts = {"all": 20}


class Fixed(nn.Module):
    """Negatives that follow from the row."""

    def forward(self, key, target, k):
        return 1 + (7 * key[:, None] + 3 * target[:, None] + torch.arange(k)) % (V - 1)


def net(**settings):
    """AttRec as its YAML has it, small, float64; some vectors are longer than 1."""
    torch.manual_seed(3)
    given = {"hidden_size": D, "att_window": 3, "n_items": V, "n_users": USERS, "item_negatives": Fixed()}
    made = from_yaml(AttRecNet, "AttRec", **given | settings).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4)
        for table in (made.item_embedding, made.long_term_item, made.user_embedding):
            table.weight[0] = 0.0
        made.attention.signal.copy_(time_signal(*made.attention.signal.shape))  # it has been float32
    return made


def histories():
    """[4, L], of lengths 7, 3, 1, 4."""
    rows = [[3, 5, 8, 1, 10, 11, 4], [2, 9, 4, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0], [5, 10, 6, 6, 0, 0, 0]]
    return torch.tensor(rows)


def scores(made, seq=None, user=USER):
    return made.scores(made.query(histories() if seq is None else seq, user))


def naive_interest(made, items):
    """m of a window, oldest item first, by the formulas, one number at a time."""
    x = [clipped(made, made.item_embedding.weight[i]) for i in items]
    n = len(x)
    signal = [
        [(math.sin if c % 2 == 0 else math.cos)((n - 1 - i) / 10000 ** (2 * (c // 2) / D)) for c in range(D)]
        for i in range(n)
    ]
    seen = [x[i] + torch.tensor(signal[i], dtype=torch.float64) for i in range(n)]
    q = [torch.relu(made.attention.query.weight @ s) for s in seen]
    k = [torch.relu(made.attention.key.weight @ s) for s in seen]
    m = torch.zeros(D, dtype=torch.float64)
    for i in range(n):
        others = [j for j in range(n) if j != i or n == 1]
        e = {j: math.exp((q[i] @ k[j]).item() / math.sqrt(D)) for j in others}
        for j in others:
            m += e[j] / sum(e.values()) * x[j] / n
    return m


def clipped(made, vector):
    norm = vector.norm().item()
    return vector if made.max_norm is None or norm <= made.max_norm else vector / norm * made.max_norm


def naive_distance(made, history, user):
    """[V] y of every item."""
    w, m = made.long_term_weight, naive_interest(made, history[-3:])
    u = clipped(made, made.user_embedding.weight[user])
    pairs = zip(made.long_term_item.weight, made.item_embedding.weight, strict=True)
    return torch.stack([
        w * (u - clipped(made, v)).square().sum() + (1 - w) * (m - clipped(made, x)).square().sum() for v, x in pairs
    ])  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"long_term_weight": 0.7}, {"max_norm": None}, {"max_norm": 0.3},
                                      {"shared_projection": True}])  # fmt: skip
@torch.no_grad()
def test_scores_differ_as_the_negative_distances_do(settings):
    made = net(**settings)
    got = scores(made)
    for row, user, score in zip(histories().tolist(), USER.tolist(), got, strict=True):
        wanted = -naive_distance(made, [i for i in row if i], user)
        torch.testing.assert_close(score[1:] - score[1], wanted[1:] - wanted[1], **EXACT)


@torch.no_grad()
def test_the_vectors_of_the_data_are_long_enough_for_the_bound_to_matter():
    assert not torch.allclose(scores(net()), scores(net(max_norm=None)))


@torch.no_grad()
def test_the_streamed_ranking_is_by_the_same_score():
    made = net().float()
    query = made.query(histories(), USER)
    top = made.catalogue().top(query, 4, None)[0]
    assert torch.equal(top, made.scores(query)[:, 1:].topk(4)[1] + 1)


@torch.no_grad()
def test_with_weight_one_the_history_is_irrelevant():
    made, other = net(long_term_weight=1.0), histories().flip(0)
    assert torch.equal(scores(made, other), scores(made))
    assert not torch.equal(scores(net(), other), scores(net()))


@torch.no_grad()
def test_with_weight_zero_the_user_is_irrelevant():
    made, other = net(long_term_weight=0.0), USER.flip(0)
    assert torch.equal(scores(made, user=other), scores(made))
    assert not torch.equal(scores(net(), user=other), scores(net()))


# The window ---------------------------------------------------------------------------------------------------------


def weights(made, items):
    """Of one window's items, oldest first."""
    attention, position = made.attention, torch.arange(len(items))
    x = made.item_embedding(torch.tensor(items))
    window, real = attention.windows(position, position[-1:])
    return attention.weights(x, window, real)[0].flip(0)


def test_a_window_of_one_item_attends_to_itself():
    made = net()
    assert weights(made, [7]).tolist() == [1.0]
    alone = torch.tensor([[7], [3]])
    loss = made.loss(Batch(alone, torch.tensor([[2], [4]]), torch.tensor([1, 2])))
    loss.backward()
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in made.parameters() if p.grad is not None)


@torch.no_grad()
def test_without_the_diagonal_two_items_weigh_one_half_each():
    """Each attends to the other alone, whatever the projections say."""
    torch.testing.assert_close(weights(net(), [7, 3]), torch.tensor([0.5, 0.5]).double(), **EXACT)


@torch.no_grad()
def test_the_interest_is_a_mean_of_untransformed_items():
    made = net(max_norm=None)
    share = weights(made, [3, 9, 4])
    assert share.sum().item() == pytest.approx(1.0)
    assert share.min() > 0
    assert share.max() - share.min() > 0.01  # and not the plain mean
    state, packing = made(torch.tensor([[3, 9, 4]]), torch.tensor([1]))
    m = packing.last(state)[0, D:]
    torch.testing.assert_close(m, share @ made.item_embedding.weight[[3, 9, 4]], **EXACT)


@torch.no_grad()
def test_the_last_items_count_and_no_others():
    made, seq = net(att_window=3), histories()[:1]
    for position in range(L):
        changed = seq.clone()
        changed[0, position] = 9
        assert torch.equal(scores(made, changed, USER[:1]), scores(made, seq, USER[:1])) == (position < L - 3)


@torch.no_grad()
def test_each_position_has_the_window_it_would_have_as_the_last():
    made, seq = net(), histories()
    state, packing = made(seq, USER)
    for row in range(len(seq)):
        for t in range(int((seq[row] > 0).sum())):
            alone = made.query(seq[row : row + 1, : t + 1], USER[row : row + 1]).vector
            at = int(((packing.row == row) & (packing.position == t)).nonzero())
            torch.testing.assert_close(made.query_vector(state[at : at + 1]), alone, **EXACT)


@torch.no_grad()
def test_time_enters_queries_and_keys():
    made = net()
    one, other = weights(made, [3, 9, 4]), weights(made, [9, 3, 4])
    assert not torch.allclose(one[[1, 0, 2]], other)
    made.attention.signal.zero_()
    torch.testing.assert_close(weights(made, [3, 9, 4])[[1, 0, 2]], weights(made, [9, 3, 4]), **EXACT)


def test_the_time_signal_by_hand():
    got = time_signal(3, 5)
    assert got.shape == (3, 5)
    assert got[0].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    wanted = [math.sin(2), math.cos(2), *(f(2 / 10000**0.4) for f in (math.sin, math.cos)), math.sin(2 / 10000**0.8)]
    assert got[2].tolist() == pytest.approx(wanted, rel=1e-12)


def test_one_projection_or_two():
    shared, separate = net(shared_projection=True), net()
    assert shared.attention.query is shared.attention.key
    assert separate.attention.query is not separate.attention.key
    count = [sum(p.numel() for p in made.attention.parameters()) for made in (shared, separate)]
    assert count == [D * D, 2 * D * D]


# Training -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_hinge_of_the_distances():
    made = net(n_negatives=2, margin=0.7)
    history, user, target = [2, 9, 4], 5, 8
    seq, wanted = torch.tensor([history]), torch.tensor([[0, 0, target]])
    y = naive_distance(made, history, user).detach()
    negatives = Fixed()(torch.tensor([user]), torch.tensor([target]), 2)[0]
    hand = sum(max(0.0, 0.7 + float(y[target]) - float(y[n])) for n in negatives) / 2
    assert hand > 0
    assert made.loss(Batch(seq, wanted, torch.tensor([user]))).item() == pytest.approx(hand, rel=1e-12)


def test_softmax_is_over_the_items_without_padding():
    made = net(loss_type="CE")
    target = torch.tensor([4, 1, 11, 2])
    wanted = torch.zeros_like(histories())
    wanted[torch.arange(4), torch.tensor([6, 2, 0, 3])] = target
    by_hand = nn.functional.cross_entropy(scores(made)[:, 1:], target - 1)
    torch.testing.assert_close(made.loss(Batch(histories(), wanted, USER)), by_hand, **EXACT)


@pytest.mark.parametrize("loss_type", ["hinge", "BCE", "CE"])
def test_without_targets_the_loss_is_zero(loss_type):
    loss = net(loss_type=loss_type).loss(Batch(histories(), torch.zeros_like(histories()), USER))
    loss.backward()
    assert loss.item() == 0.0


def test_only_touched_rows_have_a_gradient():
    made = net()
    assert all(t.sparse for t in (made.item_embedding, made.long_term_item, made.user_embedding))
    made.loss(Batch(torch.tensor([[2, 9]]), torch.tensor([[9, 4]]), torch.tensor([5]))).backward()
    assert made.user_embedding.weight.grad.coalesce().indices().tolist() == [[5]]
    assert not any(t.sparse for t in (m for m in net(loss_type="CE").modules() if isinstance(m, nn.Embedding)))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("att_window", 0, "att_window=0 should be at least 1"),
    ("long_term_weight", 1.5, r"long_term_weight=1.5 is not in 0\.\.1"),
    ("max_norm", 0.0, "max_norm=0.0 should be above 0"),
    ("margin", 0.0, "margin=0.0 should be above 0"),
    ("n_negatives", 0, "n_negatives=0 must be at least 1 for loss_type='hinge'"),
    ("loss_type", "BPR", "loss_type='BPR' is not one of BCE, gBCE, SSM, CE, hinge"),
])  # fmt: skip
def test_values_out_of_range_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        net(**{key: value})
