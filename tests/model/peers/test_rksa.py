"""rksa: the contract; the logits' distribution against loops; what may not leak into training."""

import math

import pytest
import torch
import toy
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, L, V, histories, layer_norm, share, small
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.peers import rksa
from recbole_cafe.model.peers.rksa import KernelAttention, Relations, RKSANet

SHORT = 1e-6  # jitter that the comparisons with loops can tell from nothing


class TestRKSA(ModelContract):
    model = "RKSA"
    layouts = {"last": 8}
    causal = False  # scale and shape of every position depend on the last item


class TestRKSAWithSampledNegativesAndTanh(ModelContract):
    model = "RKSA"
    settings = {"loss_type": "BCE", "activation": "tanh", "n_negatives": 5}
    layouts = {"last": 10}
    causal = False


def clicks(factor=1):
    """Users and items of train interactions; each user `factor` times, so that all counts are multiplied by it."""
    baskets = [[3, 5, 8, 1, 12, 19], [2, 9, 4], [7, 3, 8], [5, 12, 6, 8], [3, 5, 12], [9, 4, 3, 8, 5], [1, 19], [6, 5]]
    pairs = [(u * factor + k, i) for u, basket in enumerate(baskets) for k in range(factor) for i in basket]
    return torch.tensor([u for u, _ in pairs]), torch.tensor([i for _, i in pairs])


def count(i, j):
    """Users with both, from `clicks`."""
    users, items = clicks()
    return len(set(users[items == i].tolist()) & set(users[items == j].tolist()))


def net(**settings):
    return small(RKSANet, "RKSA", **{"train_pairs": clicks(), "jitter": SHORT} | settings)


def scores(made, seq=None, user=USERS):
    return made.scores(made.query(histories() if seq is None else seq, user))


def distributions(made, seq, user=USERS):
    """The logits' distribution of the first block, per group, with the rows of the batch they are of."""
    packing, found = Packing(seq > 0), []
    block = made.encoder.blocks[0]
    plain = block.attention.logits

    def spy(*arguments):
        found.append(plain(*arguments))
        return found[-1]

    block.attention.logits = spy
    made.encode(seq, user, packing, draw=False, surprises=None)
    del block.attention.logits
    return [(packing.row[at[:, 0]], real, one) for at, real, one in
            zip(packing.groups, packing.real_of_groups, found, strict=True)]  # fmt: skip


# The distribution of the logits -------------------------------------------------------------------------------------


def naive(made, items, u, f):
    """xi, omega, R and alpha of the first block for one history, term by term."""
    n, d = len(items), 8
    block = made.encoder.blocks[0]
    x = layer_norm(made.item_embedding.weight[items] + made.encoder.position.weight[:n], block.attention_norm)
    a = block.attention

    def score(part, i, j):
        return (part.query.weight @ x[i]) @ (part.key.weight @ x[j]) / math.sqrt(d)

    xi = torch.stack([torch.stack([f(score(a.location, t, j)) for j in range(n)]) for t in range(n)])
    omega = torch.stack([torch.log1p(score(a.scale, n - 1, i).exp()) for i in range(n)])
    r = (made.mixture.weight @ u + made.mixture.bias).softmax(0)
    c = [[float(count(i, j)) for j in items] for i in items]
    correlation = torch.eye(n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            if i != j:
                root = math.sqrt(c[i][i] * c[j][j])
                k_c = 1.0 if items[i] == items[j] else c[i][j] / root if root else 0.0
                k_i = x[i] @ x[j] / (x[i].norm() * x[j].norm())
                k_u = (x[i] * u) @ (x[j] * u) / ((x[i] * u).norm() * (x[j] * u).norm())
                correlation[i, j] = r[0] * k_c + r[1] * k_i + r[2] * k_u
    for k in range(n):
        others = [c[k][m] for m in range(n) if m != k]
        c[k][k] = sum(others) / len(others) if others else 0.0
    ahat = [sum(c[j][k] * c[k][n - 1] for k in range(n)) for j in range(n)]
    lean = [a_j / max(ahat) if max(ahat) else 0.0 for a_j in ahat]
    alpha = torch.stack([f(score(a.shape, n - 1, j)) * lean[j] for j in range(n)])
    return xi, omega, correlation, alpha


@pytest.mark.parametrize(("activation", "f"), [("identity", lambda x: x), ("tanh", torch.tanh)])
def test_the_logits_are_distributed_as_the_formulas_say(activation, f):
    made, compared = net(activation=activation), 0
    for rows, real, one in distributions(made, histories()):
        for b, row in enumerate(rows.tolist()):
            items = histories()[row]
            items, n = items[items > 0].tolist(), int(real[b].sum())
            xi, omega, correlation, alpha = naive(made, items, made.user_embedding.weight[USERS[row]], f)
            torch.testing.assert_close(one.location[b, :n, :n], xi, **EXACT)
            torch.testing.assert_close(one.scale[b, :n], omega, **EXACT)
            torch.testing.assert_close(one.correlation[b, :n, :n], correlation, **EXACT)
            torch.testing.assert_close(one.slant[b, :n], alpha, **EXACT)
            torch.testing.assert_close(one.correlation[b, n:], torch.eye(len(real[b]), dtype=torch.float64)[n:])
            assert not one.scale[b, n:].any() and not one.slant[b, n:].any()
            compared += 1
            assert n == 1 or alpha.abs().max() > 1e-3
    assert compared == 4


def batches():
    """Random rows of all lengths; items that repeat, and 10, 11, 13 to 18, which no train user has."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(1, L + 1, (16,), generator=generator)
        seq = torch.randint(1, V, (16, L), generator=generator)
        yield torch.where(torch.arange(L) < length[:, None], seq, 0), torch.randint(1, 4, (16,), generator=generator)


def test_the_covariance_is_one():
    made, smallest = net(), []
    for seq, user in batches():
        for _, _, one in distributions(made, seq, user):
            torch.testing.assert_close(one.correlation.diagonal(dim1=1, dim2=2), torch.ones_like(one.slant), **EXACT)
            torch.testing.assert_close(one.correlation, one.correlation.transpose(1, 2), **EXACT)
            sigma = one.scale[:, :, None] * one.correlation * one.scale[:, None]
            rest = one.correlation - one.delta[:, :, None] * one.delta[:, None]
            smallest += [torch.linalg.eigvalsh(m).min().item() for m in (one.correlation, sigma, rest)]
            assert (one.delta.abs() < 1).all()
    assert min(smallest) > -1e-9


def test_each_kernel_alone_is_positive_semi_definite():
    made, smallest = net(), []
    for kernel in range(3):
        with torch.no_grad():
            made.mixture.weight.zero_()
            made.mixture.bias.copy_(F.one_hot(torch.tensor(kernel), 3) * 1000.0)
        for seq, user in batches():
            for _, _, one in distributions(made, seq, user):
                smallest.append(torch.linalg.eigvalsh(one.correlation).min().item())
    assert min(smallest) > -1e-9


def test_the_shape_does_not_change_when_every_count_is_seven_times_as_large():
    once, often = net(), net(train_pairs=clicks(7))
    share(once, often)
    seq = histories()
    assert torch.equal(often.cooccurrence(seq), 7 * once.cooccurrence(seq))
    for (_, _, a), (_, _, b) in zip(distributions(once, seq), distributions(often, seq), strict=True):
        torch.testing.assert_close(b.slant, a.slant, **EXACT)
        torch.testing.assert_close(b.correlation, a.correlation, **EXACT)
        assert a.slant.abs().max() > 1e-2


def test_where_nothing_occurs_together_there_is_no_skew():
    made = net(train_pairs=(torch.tensor([1, 2]), torch.tensor([3, 5])))
    for _, _, one in distributions(made, histories()):
        assert not one.slant.any()
        assert torch.equal(one.mean(), one.location)


def test_leaning_by_hand():
    """c_12 = 2, c_13 = 4, c_23 = 6; the diagonal becomes 3, 4, 5. c_.n = (4, 6, 5), so that
    ahat = (3 4 + 2 6 + 4 5, 2 4 + 4 6 + 6 5, 4 4 + 6 6 + 5 5) = (44, 62, 77)."""
    c = torch.tensor([[[90.0, 2, 4, 7], [2, 90, 6, 7], [4, 6, 90, 7], [7, 7, 7, 90]]])
    got = rksa.leaning(c, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(got, torch.tensor([[44 / 77, 62 / 77, 1.0, 0.0]]))
    assert rksa.leaning(c, torch.tensor([[True, False, False, False]])).tolist() == [[0.0] * 4]  # a single item


# Attention ------------------------------------------------------------------------------------------------------------


def test_without_deviation_it_is_plain_attention():
    """softplus(-30 + ...) is 1e-13: the logits are the scores, in training as in eval mode."""
    made = KernelAttention(hidden_size=8, dropout=0.0, activation="identity", jitter=1e-4).double()
    plain = SelfAttention(
        hidden_size=8, n_heads=1, max_seq_length=L, output_projection=False, bias=False
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
        for own, part in (("query", made.location.query), ("key", made.location.key), ("value", made.value)):
            getattr(plain, own).weight.copy_(part.weight)
    made.deviation = lambda score: F.softplus(score - 30.0)
    seq = histories()
    packing = Packing(seq > 0)
    x = torch.randn(14, 8, dtype=torch.float64)
    rows = [packing.row[at[:, 0]] for at in packing.groups]
    users, mixture = torch.randn(4, 8, dtype=torch.float64), torch.full((4, 3), 1 / 3, dtype=torch.float64)
    counts = [net().cooccurrence(packing.pack(seq)[at]).double() for at in packing.groups]
    for draw in (True, False):
        relations = Relations(
            [rksa.cosine_of(c, packing.pack(seq)[at]) for c, at in zip(counts, packing.groups, strict=True)],
            [rksa.leaning(c, real) for c, real in zip(counts, packing.real_of_groups, strict=True)],
            [users[row] for row in rows], [mixture[row] for row in rows], draw, None,
        )  # fmt: skip
        torch.testing.assert_close(made(x, packing, relations), plain(x, packing), rtol=0, atol=1e-9)
        del made.deviation  # and with it, it is not
        assert (made(x, packing, relations) - plain(x, packing)).abs().max() > 1e-2
        made.deviation = lambda score: F.softplus(score - 30.0)


def test_every_block_has_projections_of_its_own():
    made = net(n_layers=3)
    names = {f"{part}.{side}.weight" for part in ("location", "scale", "shape") for side in ("query", "key")}
    names.add("value.weight")
    for block in made.encoder.blocks:
        assert {name for name, _ in block.attention.named_parameters()} == names
    weights = [p for block in made.encoder.blocks for p in block.attention.parameters()]
    assert len({id(p) for p in weights}) == 3 * 7


def test_scores_use_the_mean_of_the_logits_and_are_the_same_twice():
    made = net()
    assert torch.equal(scores(made), scores(made))


def test_training_draws_the_logits():
    made, seq = net(hidden_dropout_prob=0.0, attn_dropout_prob=0.0).train(), histories()
    assert (made(seq, USERS)[0] - made(seq, USERS)[0]).abs().max() > 1e-3


def test_scores_from_draws_are_their_mean():
    made = net(eval_samples=3)
    torch.manual_seed(9)
    got = scores(made)
    made.eval_samples = 1
    torch.manual_seed(9)
    torch.testing.assert_close(got, sum(scores(made) for _ in range(3)) / 3, **EXACT)
    assert (scores(made) - scores(made)).abs().max() > 1e-3


def test_trailing_padding_and_longer_batch_mates_do_not_change_a_score():
    made = small(RKSANet, "RKSA", train_pairs=clicks(), max_seq_length=20)
    torch.manual_seed(0)
    mates = torch.randint(1, V, (3, 20))
    alone = [scores(made, row[row > 0][None], USERS[i : i + 1])[0] for i, row in enumerate(histories())]
    together = scores(made, torch.cat((F.pad(histories(), (0, 14)), mates)), torch.cat((USERS, USERS[:3])))
    torch.testing.assert_close(together[:4], torch.stack(alone), **EXACT)


def test_the_user_matters_through_the_kernels():
    assert (scores(net(), user=USERS.flip(0)) - scores(net())).abs().max() > 1e-4


@pytest.mark.parametrize("size", [20, 50])
def test_long_rows_of_one_item_can_be_drawn_in_float32(size):
    """Every kernel is singular then."""
    made = small(RKSANet, "RKSA", train_pairs=clicks(), max_seq_length=size).float().train()
    for item in (3, 13):  # with and without train users
        seq = torch.full((4, size), item)
        target = next_items(seq, torch.full((4,), size), NEXT, "last")
        loss = made.loss(Batch(seq, target, USERS))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad.to_dense()).all() for p in made.parameters() if p.grad is not None)


def test_autocast_leaves_the_covariances_in_float32():
    made, seen = small(RKSANet, "RKSA", train_pairs=clicks()).float().train(), []
    plain = torch.linalg.cholesky

    def spy(matrix):
        seen.append(matrix.dtype)
        return plain(matrix)

    with pytest.MonkeyPatch.context() as patch, torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        patch.setattr(torch.linalg, "cholesky", spy)
        loss = made.loss(Batch(histories(), next_items(histories(), (histories() > 0).sum(1), NEXT, "last"), USERS))
        loss.backward()
    assert torch.isfinite(loss)
    assert set(seen) == {torch.float32} and len(seen) == 2 * 2  # two blocks: the draw, and the kernels' loss


# Leaks ----------------------------------------------------------------------------------------------------------------


def test_states_before_the_last_know_the_last_item():
    """Which is why the loss is taken at the last position only."""
    made, seq = net(), histories()[:1]
    other = seq.clone()
    other[0, -1] = 8
    before, after = made(seq, USERS[:1])[0], made(other, USERS[:1])[0]
    assert ((after - before)[:-1].abs().amax(1) > 1e-4)[1:].all()  # the first position attends to itself alone


def test_training_at_all_positions_is_refused(toy_path):
    with pytest.raises(ConfigError, match="train_layout=all does not suit RKSA, which trains under last"):
        build("RKSA", toy_path, train_layout="all")


def test_only_train_interactions_are_counted(toy_path):
    run = build("RKSA", toy_path)
    dataset, n = run.train._dataset, run.model.n_items
    wanted = torch.zeros(n, n, dtype=torch.long)
    for tokens in toy.walks().values():
        # the last two are held out, but a user of three keeps one target to train on
        own = {int(dataset.token2id(dataset.iid_field, token)) for token in tokens[: max(2, len(tokens) - 2)]}
        for i in own:
            for j in own:
                wanted[i, j] += 1
    got = run.model.network.cooccurrence(torch.arange(n)[None])[0]
    assert torch.equal(got.long(), wanted)


def test_counts_are_in_no_checkpoint():
    assert not [name for name in net().state_dict() if "cooccurrence" in name]


# Loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss_type", "k"), [("CE", 1), ("BCE", 1), ("BCE", 3)])
def test_the_loss_is_that_of_the_last_position_plus_the_weighted_surprise(loss_type, k):
    seq = histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, "last")
    without, with_ = (
        net(loss_type=loss_type, n_negatives=k, kernel_weight=weight, n_layers=1) for weight in (0.0, 0.3)
    )
    with torch.no_grad():
        positive, negative = [], []
        for logit, user, item in zip(scores(without), USERS.tolist(), NEXT.tolist(), strict=True):
            if loss_type == "CE":
                positive.append((logit[1:].logsumexp(0) - logit[item]).item())
                continue
            positive.append(-math.log(1 / (1 + math.exp(-logit[item]))))
            drawn = [1 + (7 * user + 3 * item + j) % (V - 1) for j in range(k)]  # small.Fixed
            negative += [-math.log(1 - 1 / (1 + math.exp(-logit[i]))) for i in drawn]
        items = sum(positive) / len(positive) + (sum(negative) / len(negative) if negative else 0.0)
        assert without.loss(Batch(seq, target, USERS)).item() == pytest.approx(items, abs=1e-9)
        surprises = []
        for _, real, one in distributions(with_, seq):
            for b, n in enumerate(real.sum(1).tolist()):
                y, omega = one.location[b, n - 1, :n], one.scale[b, :n]
                sigma = torch.outer(omega, omega) * one.correlation[b, :n, :n] + SHORT * torch.eye(n).double()
                fit = y @ torch.linalg.inv(sigma) @ y + torch.logdet(sigma)
                surprises.append((fit.item() + n * math.log(2 * math.pi)) / (2 * n))
        wanted = items + 0.3 * sum(surprises) / len(surprises)
        assert with_.loss(Batch(seq, target, USERS)).item() == pytest.approx(wanted, abs=1e-6)


def test_the_kernels_loss_teaches_the_kernels_and_not_the_scores():
    made, seq = net(kernel_weight=1.0, n_layers=1, n_negatives=1), histories()
    surprises = []
    made.encode(seq, USERS, Packing(seq > 0), draw=False, surprises=surprises)
    assert torch.cat(surprises).shape == (4,)
    torch.cat(surprises).mean().backward()
    attention = made.encoder.blocks[0].attention
    for part, learns in ((attention.location, False), (attention.scale, True), (attention.shape, False)):
        for side in (part.query, part.key):
            assert (side.weight.grad is not None and side.weight.grad.abs().max() > 1e-5) == learns
    assert made.mixture.weight.grad.abs().max() > 1e-5
    assert made.user_embedding.weight.grad.to_dense()[1:].abs().max() > 1e-5


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "relu"}, "activation='relu' is not one of identity, tanh"),
        ({"cooccurrence_items": 0}, "cooccurrence_items=0 should be at least 1"),
        ({"jitter": 0.0}, r"jitter=0\.0 should be above 0"),
        ({"eval_samples": -1}, "eval_samples=-1 should be at least 0"),
        ({"loss_type": "BPR"}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("activation", "tanh"), ("cooccurrence_items", 2), ("hidden_act", "gelu"), ("eval_samples", 2)):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key


def test_both_tables_get_sparse_gradients_where_they_can(toy_path):
    for loss_type, sparse_tables, wanted in (("BCE", True, [True, True]), ("CE", True, [False, True]),
                                             ("BCE", False, [False, False])):  # fmt: skip
        network = build("RKSA", toy_path, loss_type=loss_type, sparse_tables=sparse_tables).model.network
        assert [network.item_embedding.sparse, network.user_embedding.sparse] == wanted
