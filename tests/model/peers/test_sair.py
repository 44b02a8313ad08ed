"""recbole_cafe.model.peers.sair: the contract; Eq. 4 to 11 by hand and against loops; what the slides leave open."""

import math

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, C, L, V, histories, item2intent, layer_norm, share, small

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.peers.sair import InterestPool, SAIRNet

P, K = 7, 3


class TestSAIR(ModelContract):
    model = "SAIR"
    layouts = {"all": 20}


class TestSAIRWithRawWeightsAndSoftmax(ModelContract):
    model = "SAIR"
    settings = {"loss_type": "CE", "interest_weights": "raw"}
    layouts = {"last": 4}
    no_gradient = {
        **ModelContract.no_gradient,
        "interaction.query.weight": "which interests are retrieved has no gradient",
        "interaction.key.weight": "which interests are retrieved has no gradient",
        "interaction.value.weight": "which interests are retrieved has no gradient",
    }


def net(**settings):
    given = {"pool_size": P, "n_interests": K, "n_intents": C, "item2intent": item2intent()}
    return small(SAIRNet, "SAIR", **given | settings)


def pool(pool_size=P, n_interests=K, interest_weights="interacted"):
    made = InterestPool(
        hidden_size=8, pool_size=pool_size, n_interests=n_interests, max_seq_length=L, dropout=0.0,
        interest_weights=interest_weights, std=0.02,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def states(*lengths):
    """Random F [N, 8] of rows of these lengths, and where they are."""
    packing = Packing(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    return torch.randn(sum(lengths), 8, dtype=torch.float64), packing


def scores(made, seq=None):
    return made.scores(made.query(histories() if seq is None else seq))


# Retrieval: Eq. 4-10 --------------------------------------------------------------------------------------------------


def retrieved(made, row):
    """Eq. 4 to 10 on one row F [n, D], step by step, in the order of the slides. Returns e [n, D]."""
    a, size = made.interaction, len(made.interests)
    asked = torch.stack([made.interests @ f for f in row])  # (4)
    q, k, v = asked @ a.query.weight.T, asked @ a.key.weight.T, asked @ a.value.weight.T
    out = []
    for t in range(len(row)):
        weight = torch.stack([q[t] @ k[j] / math.sqrt(size) for j in range(t + 1)]).softmax(0)
        interacted = sum(w * v[j] for j, w in enumerate(weight))  # (5)
        index = sorted(range(size), key=lambda i: -interacted[i].item())[: made.n_interests]  # (6)
        relevance = interacted if made.interest_weights == "interacted" else asked[t]
        weights = torch.stack([relevance[i] for i in index]).softmax(0)  # (9)
        out.append(sum(w * (made.interests[i] + row[t]) for w, i in zip(weights, index, strict=True)))  # (7, 8, 10)
    return torch.stack(out)


@pytest.mark.parametrize("interest_weights", ["interacted", "raw"])
@pytest.mark.parametrize("k", [1, K, P])
def test_interests_are_added_as_the_slides_print_it(interest_weights, k):
    made = pool(n_interests=k, interest_weights=interest_weights)
    lengths = (4, 1, 6, 3)
    f, packing = states(*lengths)
    for row, got in zip(f.split(lengths), made(f, packing).split(lengths), strict=True):
        torch.testing.assert_close(got, retrieved(made, row), **EXACT)


def test_by_hand_the_interest_asked_for_is_added():
    """Interests along the axes and an interaction that passes a single step through: e = F + its largest axis."""
    made = pool(pool_size=2, n_interests=1)
    with torch.no_grad():
        made.interests.copy_(torch.eye(2, 8))
        made.interaction.value.weight.copy_(torch.eye(2))
    f = torch.tensor([[3.0, 1, 0, 0, 0, 0, 0, 5], [1.0, 2, 0, 0, 0, 0, 0, 5]], dtype=torch.float64)
    packing = Packing(torch.ones(2, 1, dtype=torch.bool))
    wanted = torch.tensor([[4.0, 1, 0, 0, 0, 0, 0, 5], [1.0, 3, 0, 0, 0, 0, 0, 5]], dtype=torch.float64)
    torch.testing.assert_close(made(f, packing), wanted, **EXACT)


def test_what_is_added_lies_in_the_convex_hull_of_the_retrieved_interests():
    made = pool()
    f, packing = states(6, 3, 1)
    weight, index = made.retrieve(f, packing)
    assert weight.shape == index.shape == (10, K)
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.sum(1), torch.ones(10, dtype=torch.float64), **EXACT)
    assert all(len(set(row)) == K for row in index.tolist())
    added = made(f, packing) - f
    corners = made.interests[index]  # [N, k, D]
    torch.testing.assert_close(added, (weight[..., None] * corners).sum(1), **EXACT)
    assert (added <= corners.amax(1) + 1e-12).all() and (added >= corners.amin(1) - 1e-12).all()


def test_the_most_relevant_interests_after_interaction_are_retrieved():
    made = pool()
    f, packing = states(6, 3)
    interacted = made.interaction(f @ made.interests.T, packing)
    _, index = made.retrieve(f, packing)
    assert torch.equal(index, interacted.topk(K).indices)  # random numbers: no ties
    assert not torch.equal(index, (f @ made.interests.T).topk(K).indices)  # the interaction decides


def test_of_equally_relevant_interests_the_first_are_retrieved():
    made = pool(pool_size=40)
    with torch.no_grad():
        made.interaction.value.weight.zero_()  # Ca' = 0
    f, packing = states(6, 3, 5)
    assert made.retrieve(f, packing)[1].tolist() == [[0, 1, 2]] * 14


def test_without_interests_it_is_sasrec_with_an_intent_input():
    """C = 0 and k = P leave e = F, SASRec's blocks on H_id + H_cate + H_pos written out."""
    made = net(n_interests=P)
    with torch.no_grad():
        made.pool.interests.zero_()
    seq = histories()
    state, packing = made(seq)
    for row, part in zip(seq, state.split(packing.length.tolist()), strict=True):
        items = row[row > 0]
        x = made.item_embedding.weight[items] + made.intent_embedding.weight[item2intent()[items]]
        x = x + made.encoder.position.weight[: len(items)]
        for block in made.encoder.blocks:
            a, ffn = block.attention, block.feed_forward
            y = layer_norm(x, block.attention_norm)
            logit = (a.query(y) @ a.key(y).T / math.sqrt(8)).tril()
            future = torch.ones(len(items), len(items), dtype=torch.bool).triu(1)
            x = x + a.output(logit.masked_fill(future, -math.inf).softmax(1) @ a.value(y))
            y = layer_norm(x, block.feed_forward_norm)
            x = x + (y @ ffn[0].weight.T + ffn[0].bias).relu() @ ffn[3].weight.T + ffn[3].bias
        torch.testing.assert_close(part, layer_norm(x, made.encoder.norm), **EXACT)


@pytest.mark.parametrize("t", range(L - 1))
def test_a_future_item_or_intent_does_not_change_earlier_states(t):
    made, seq = net(), histories()[:1]
    state = made(seq)[0]
    other = seq.clone()
    other[0, t + 1 :] = torch.tensor([10, 11, 13, 14, 15, 16])[: L - 1 - t]
    moved = net()  # the same weights; the items from t + 1 on have another intent
    moved.item2intent = moved.item2intent.clone()
    moved.item2intent[seq[0, t + 1 :]] = moved.item2intent[seq[0, t + 1 :]] % (C - 1) + 1
    for after in (made(other)[0], moved(seq)[0]):
        torch.testing.assert_close(after[: t + 1], state[: t + 1], **EXACT)
        assert (after[t + 1] - state[t + 1]).abs().max() > 1e-3


def test_items_without_an_intent_share_a_row_of_their_own():
    made = net()
    assert made.intent_embedding.num_embeddings == C + 1
    before = scores(made)
    with torch.no_grad():
        made.intent_embedding.weight[C, 0] += 1.0  # all D entries alike would be lost in a LayerNorm
    changed = (scores(made) - before).abs().amax(1) > 1e-3
    assert changed.tolist() == [True, False, False, True]  # items 5 and 12 are in the first and the last history


# Loss: Eq. 11, 12 -----------------------------------------------------------------------------------------------------


def test_the_interaction_learns_unless_weights_are_raw():
    seq = histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "all")
    for interest_weights, learns in (("interacted", True), ("raw", False)):
        made = net(interest_weights=interest_weights)
        made.loss(Batch(seq, target, USERS)).backward()
        for part in (made.pool.interaction.query, made.pool.interaction.key, made.pool.interaction.value):
            size = 0.0 if part.weight.grad is None else part.weight.grad.norm().item()
            assert (size > 1e-4) if learns else size == 0.0


def test_redundancy_by_hand():
    """D = 2, rows (1, -1), (2, -2) and (3, 3): centred the last is 0, Z_12 = (1 2 + 1 2) / 2 = 2, so L_d = 2^2."""
    made = pool(pool_size=3)
    made.interests.data = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, 3.0]])
    assert made.redundancy().item() == pytest.approx(4.0)


def test_orthogonal_interests_without_a_mean_are_not_redundant():
    made = pool(pool_size=3)
    rows = [[1, 1, -1, -1], [1, -1, 1, -1], [5, -5, -5, 5]]
    made.interests.data = torch.tensor(rows, dtype=torch.float64)
    assert made.redundancy().item() == pytest.approx(0.0, abs=1e-12)
    made.interests.data += torch.tensor([[1.0], [2.0], [3.0]])  # means do not count
    assert made.redundancy().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss_type", ["BCE", "CE"])
def test_the_loss_is_that_of_the_items_plus_the_weighted_redundancy(loss_type):
    seq = histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "all")
    without, with_ = (net(interest_reg=weight, loss_type=loss_type) for weight in (0.0, 0.3))
    positive, negative = [], []
    for row, user, following in zip(seq, USERS.tolist(), NEXT.tolist(), strict=True):
        read = [*row[row > 0].tolist(), following]
        for t in range(1, len(read)):
            logit = (without.item_embedding.weight @ without(torch.tensor([read[:t]]))[0][-1]).detach()
            if loss_type == "CE":
                positive.append(-(logit[read[t]] - logit[1:].logsumexp(0)).item())
                continue
            drawn = 1 + (7 * user + 3 * read[t]) % (V - 1)  # small.Fixed
            positive.append(-math.log(1 / (1 + math.exp(-logit[read[t]]))))
            negative.append(-math.log(1 - 1 / (1 + math.exp(-logit[drawn]))))
    items = sum(positive) / len(positive) + (sum(negative) / len(negative) if negative else 0.0)
    assert without.loss(Batch(seq, target, USERS)).item() == pytest.approx(items, abs=1e-9)
    wanted = items + 0.3 * with_.pool.redundancy().item()
    assert with_.loss(Batch(seq, target, USERS)).item() == pytest.approx(wanted, abs=1e-9)


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_interests": 0}, r"n_interests=0 is not in 1\.\.pool_size=7"),
        ({"n_interests": 8}, r"n_interests=8 is not in 1\.\.pool_size=7"),
        ({"interest_weights": "both"}, "interest_weights='both' is not one of interacted, raw"),
        ({"loss_type": "BPR"}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("n_interests", 2), ("interest_weights", "raw"), ("hidden_act", "gelu"), ("n_heads", 2)):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key


def test_the_item_table_gets_sparse_gradients_where_it_can(toy_path):
    for loss_type, sparse_tables, wanted in (("BCE", True, True), ("CE", True, False), ("BCE", False, False)):
        network = build("SAIR", toy_path, loss_type=loss_type, sparse_tables=sparse_tables).model.network
        assert network.item_embedding.sparse == wanted
        assert not network.intent_embedding.sparse


def test_buffers_of_the_data_are_in_no_checkpoint():
    assert "item2intent" not in net().state_dict()
