"""recbole_cafe.model.peers.sse_pt: the contract; Eq. 2 to 5 against loops; what is swapped, how often and when."""

import math

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, Fixed, L, V, histories, layer_norm, share, small

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.model.cafe import CaFeNet
from recbole_cafe.model.peers.sse_pt import SSEPTNet


class TestSSEPT(ModelContract):
    model = "SSEPT"
    settings = {"user_size": 16}
    layouts = {"all": 24}


class TestSSEPTOnSASRecWithSoftmax(ModelContract):
    model = "SSEPT"
    settings = {"user_size": 16, "residual": "input", "output_projection": True, "loss_type": "CE"}
    layouts = {"last": 4}
    learns_with = {**ModelContract.learns_with, "p_user": 0.5, "p_input": 0.0, "p_output": 0.05}


def net(**settings):
    return small(SSEPTNet, "SSEPT", **{"user_size": 4} | settings)


def scores(made, seq=None, user=USERS):
    return made.scores(made.query(histories() if seq is None else seq, user))


# Forward --------------------------------------------------------------------------------------------------------------


def authors(made, items, u):
    """Eq. 2 and the authors' blocks on one history, loops over positions: LN on queries only, no last matrix, the
    residual carries what is normalised."""
    d_i, d_u = made.item_embedding.embedding_dim, len(u)
    x = torch.stack([
        torch.cat((math.sqrt(d_i) * made.item_embedding.weight[item], math.sqrt(d_u) * u))
        + made.encoder.position.weight[t]
        for t, item in enumerate(items)
    ])  # fmt: skip
    for block in made.encoder.blocks:
        a, ffn = block.attention, block.feed_forward
        normed = layer_norm(x, block.attention_norm)
        q, k, v = a.query(normed), a.key(x), a.value(x)
        rows = []
        for t in range(len(items)):
            weight = torch.stack([q[t] @ k[j] / math.sqrt(d_i + d_u) for j in range(t + 1)]).softmax(0)
            rows.append(normed[t] + sum(w * v[j] for j, w in enumerate(weight)))
        z = layer_norm(torch.stack(rows), block.feed_forward_norm)
        x = z + (z @ ffn[0].weight.T + ffn[0].bias).relu() @ ffn[3].weight.T + ffn[3].bias
    return layer_norm(x, made.encoder.norm)


def test_states_are_the_authors_blocks_on_item_and_user():
    made, seq = net(), histories()
    state, packing = made(seq, USERS)
    assert state.shape == (14, 8 + 4)
    for row, user, part in zip(seq, USERS, state.split(packing.length.tolist()), strict=True):
        torch.testing.assert_close(part, authors(made, row[row > 0], made.user_embedding.weight[user]), **EXACT)


def test_without_users_it_is_sasrec():
    """CaFe without intents and local heads is SASRec; its item table is that of here times sqrt(d) (Eq. 2)."""
    made = net(user_size=0, residual="input", output_projection=True, n_heads=2)
    assert made.user_embedding is None
    sasrec = small(
        CaFeNet, "CaFe", intent_tower=False, intent_loss=False, joint="item", n_local_heads=0, attn_scale="head",
        hidden_act="relu", item2intent=torch.zeros(V, dtype=torch.long), n_intents=2, intent_negatives=None,
    )  # fmt: skip
    renamed = {name.replace("item_encoder", "encoder"): name for name in sasrec.state_dict()}
    weights = {name: made.state_dict()[own] for own, name in renamed.items()}
    weights["item_embedding.weight"] = weights["item_embedding.weight"] * math.sqrt(8)
    sasrec.load_state_dict(weights)
    wanted = sasrec.scores(sasrec.query(histories())) / math.sqrt(8)
    torch.testing.assert_close(scores(made), wanted, **EXACT)


@pytest.mark.parametrize("t", range(L - 1))
def test_a_future_item_does_not_change_earlier_states(t):
    made, seq = net(), histories()[:1]
    state = made(seq, USERS[:1])[0]
    other = seq.clone()
    other[0, t + 1 :] = torch.tensor([10, 11, 13, 14, 15, 16])[: L - 1 - t]
    after = made(other, USERS[:1])[0]
    torch.testing.assert_close(after[: t + 1], state[: t + 1], **EXACT)
    assert (after[t + 1] - state[t + 1]).abs().max() > 1e-3


def test_the_user_matters_at_the_input():
    made = net()
    assert (scores(made, user=USERS.flip(0)) - scores(made))[1:3].abs().max() > 1e-2


# Scores: Eq. 3 --------------------------------------------------------------------------------------------------------


def relevance(made, users):
    """Eq. 3 for every item, the [B, V, d] of it, with the rows `users` of the user table at the output."""
    state, packing = made(histories(), USERS)
    vectors = torch.stack([
        torch.cat((made.item_embedding.weight, u.expand(V, -1)), dim=1) for u in users
    ])  # fmt: skip
    return torch.einsum("bd,bvd->bv", packing.last(state), vectors)


def test_scores_are_eq_3_less_a_constant_of_the_row():
    made = net()
    full = relevance(made, made.user_embedding.weight[USERS])
    constant = full - scores(made)
    torch.testing.assert_close(constant, constant[:, :1].expand(-1, V), **EXACT)
    assert constant.abs().min() > 1e-2  # there is one


def test_another_user_at_the_output_changes_no_ranking():
    made = net()
    ranking = relevance(made, made.user_embedding.weight[USERS]).argsort(1)
    torch.testing.assert_close(relevance(made, torch.randn(4, 4, dtype=torch.float64)).argsort(1), ranking)
    torch.testing.assert_close(scores(made).argsort(1), ranking)


def test_scores_are_an_inner_product_of_the_items_width():
    made = net()
    assert made.query(histories(), USERS).vector.shape == (4, 8)
    assert made.item_vectors().shape == (V, 8)
    assert made.float().catalogue().table.shape == (V, 8)


# Loss: Eq. 5 ----------------------------------------------------------------------------------------------------------


def naive_loss(made, layout, k):
    """Position by position, sums and logarithms written out."""
    table, users = made.item_embedding.weight, made.user_embedding.weight
    positive, negative = [], []
    for row, user, following in zip(histories(), USERS.tolist(), NEXT.tolist(), strict=True):
        items = [*row[row > 0].tolist(), following]
        states = authors(made, items[:-1], users[user])
        for t in range(len(items) - 1 if layout == "last" else 1, len(items)):

            def r(item, t=t, states=states, user=user):
                return states[t - 1] @ torch.cat((table[item], users[user]))

            if made.loss_settings.loss_type == "CE":
                total = sum(math.exp(r(i)) for i in range(1, V))
                positive.append(-math.log(math.exp(r(items[t])) / total))
                continue
            positive.append(-math.log(1 / (1 + math.exp(-r(items[t])))))
            for j in range(k):
                drawn = 1 + (7 * user + 3 * items[t] + j) % (V - 1)  # small.Fixed
                negative.append(-math.log(1 - 1 / (1 + math.exp(-r(drawn)))))
    return sum(positive) / len(positive) + (sum(negative) / len(negative) if negative else 0.0)


@pytest.mark.parametrize("layout", ["all", "last"])
@pytest.mark.parametrize(("loss_type", "k"), [("BCE", 1), ("BCE", 3), ("CE", 1)])
def test_the_loss_is_the_loop_over_positions(layout, loss_type, k):
    made, seq = net(loss_type=loss_type, n_negatives=k), histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, layout)
    with torch.no_grad():
        assert made.loss(Batch(seq, target, USERS)).item() == pytest.approx(naive_loss(made, layout, k), abs=1e-9)


@pytest.mark.parametrize(("loss_type", "seen"), [("BCE", True), ("CE", False)])
def test_only_bce_sees_the_user_at_the_output(loss_type, seen):
    """The final LayerNorm's bias at the user's part of a state acts at the output alone."""
    made, seq = net(loss_type=loss_type), histories()
    made.loss(Batch(seq, next_items(seq, (seq > 0).sum(1), NEXT, "all"), USERS)).backward()
    assert (made.encoder.norm.bias.grad[8:].abs().max() > 1e-3) == seen
    assert made.encoder.norm.bias.grad[:8].abs().min() > 1e-4


# Stochastic shared embeddings -----------------------------------------------------------------------------------------


def off():
    return {"p_user": 0.0, "p_input": 0.0, "p_output": 0.0}


@pytest.mark.parametrize("mode", ["independent", "authors"])
def test_with_probabilities_zero_training_mode_swaps_nothing(mode):
    made, seq = net(**off(), sse_mode=mode, hidden_dropout_prob=0.0, attn_dropout_prob=0.0), histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "all")
    in_eval_mode = made.loss(Batch(seq, target, USERS)).item()
    made.train()
    assert made.loss(Batch(seq, target, USERS)).item() == made.loss(Batch(seq, target, USERS)).item() == in_eval_mode


@pytest.mark.parametrize("p", ["p_user", "p_input", "p_output"])
def test_swaps_happen_in_training_only(p):
    made, seq = net(**off() | {p: 1.0}, hidden_dropout_prob=0.0, attn_dropout_prob=0.0), histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "all")
    plain = made.loss(Batch(seq, target, USERS)).item()
    assert made.loss(Batch(seq, target, USERS)).item() == plain
    made.train()
    assert len({made.loss(Batch(seq, target, USERS)).item() for _ in range(5)} - {plain}) > 1


def test_each_kind_of_id_is_swapped_at_its_own_rate():
    """An id is drawn anew with probability p, and that draw is the id itself in 1 of V - 1 cases."""
    made = net(p_user=0.7, p_input=0.2, p_output=0.5)
    seq, user = torch.full((40_000, 3), 5), torch.full((40_000,), 2)
    seq[:, 2] = 0
    read, label, reader = made.shared(seq, seq + (seq > 0), user)
    assert (read[:, 2] == 0).all() and (label[:, 2] == 0).all()  # padding stays
    for got, was, p, n in ((read[:, :2], 5, 0.2, V), (label[:, :2], 6, 0.5, V), (reader, 2, 0.7, 5)):
        assert sorted(got.unique().tolist()) == list(range(1, n))  # all ids, never 0
        # five standard deviations of a rate over 40,000 draws are 0.0125
        assert (got != was).float().mean().item() == pytest.approx(p * (1 - 1 / (n - 1)), abs=0.0125)


def test_in_authors_mode_one_event_swaps_input_and_target_and_targets_follow_the_next_input():
    made = net(p_user=0.0, p_input=0.3, p_output=0.3, sse_mode="authors", n_items=10**6)  # a draw repeats nothing
    seq = torch.tensor([[11, 12, 13, 0]]).expand(30_000, 4)
    target = torch.tensor([[12, 13, 14, 0]]).expand(30_000, 4)
    read, label, _ = made.shared(seq, target, torch.ones(30_000, dtype=torch.long))
    assert (read[:, 3] == 0).all() and (label[:, 3] == 0).all()
    event = read[:, :3] != seq[:, :3]
    assert event.float().mean().item() == pytest.approx(0.3, abs=0.01)
    for t in range(3):
        follows = read[:, t + 1] if t < 2 else target[:, 2]
        assert (label[:, t] == follows)[~event[:, t]].all()
        assert (label[:, t] != target[:, t])[event[:, t]].all()
    swapped = (label[:, :3] != target[:, :3]).float().mean(0).tolist()
    assert swapped == pytest.approx([1 - 0.7**2, 1 - 0.7**2, 0.3], abs=0.01)


def test_in_authors_mode_prefix_rows_have_no_further_targets():
    made = net(p_input=0.5, p_output=0.5, sse_mode="authors")
    seq = histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "last")
    for _ in range(20):
        assert torch.equal(made.shared(seq, target, USERS)[1] > 0, target > 0)


def test_other_users_vectors_learn_when_users_are_swapped():
    made, seq = net(p_user=1.0).train(), histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "all")
    alone = torch.ones_like(USERS)  # all rows are user 1's
    for _ in range(20):
        made.loss(Batch(seq, target, alone)).backward()
    assert (made.user_embedding.weight.grad.to_dense()[1:].norm(dim=1) > 1e-3).all()
    assert (made.user_embedding.weight.grad.to_dense()[0] == 0).all()


def test_negatives_avoid_the_items_of_the_true_user():
    asked = []

    class Asked(Fixed):
        def forward(self, key, target, k):
            asked.append(key)
            return super().forward(key, target, k)

    made, seq = net(p_user=1.0, item_negatives=Asked(V)).train(), histories()
    made.loss(Batch(seq, next_items(seq, (seq > 0).sum(1), NEXT, "last"), USERS))
    assert torch.equal(asked[0], USERS)


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_size": -1}, "user_size=-1 should be at least 0"),
        ({"sse_mode": "both"}, "sse_mode='both' is not one of independent, authors"),
        ({"p_user": 1.5}, r"p_user=1\.5 is not a probability"),
        ({"p_output": -0.1}, r"p_output=-0\.1 is not a probability"),
        ({"sse_mode": "authors", "p_input": 0.1, "p_output": 0.2}, r"got p_input=0\.1 and p_output=0\.2"),
        ({"loss_type": "BPR"}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
        ({"n_heads": 5}, "hidden_size=12 is not a multiple of n_heads=5"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net(output_projection=True)
    for key, value in (("residual", "normed"), ("residual", "input"), ("hidden_act", "gelu"), ("n_heads", 3)):
        made = net(output_projection=True, **{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, (key, value)
    made = net()
    share(base, made)
    assert (scores(made) - scores(base)).abs().max() > 1e-4


def test_both_tables_get_sparse_gradients_where_they_can(toy_path):
    for loss_type, sparse_tables, wanted in (("BCE", True, [True, True]), ("CE", True, [False, True]),
                                             ("BCE", False, [False, False])):  # fmt: skip
        network = build("SSEPT", toy_path, loss_type=loss_type, sparse_tables=sparse_tables).model.network
        assert [network.item_embedding.sparse, network.user_embedding.sparse] == wanted
