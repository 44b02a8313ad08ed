"""recbole_cafe.model.cafe: the towers, Eq. 7 to 10, both losses, the options, and the ablations of Table 3."""

import math

import pytest
import torch
import toy
from contract import ModelContract, build, first_share
from small import EXACT, NEXT, USERS, C, Fixed, L, V, histories, item2intent, scores, share, small

from recbole_cafe.config.props import preset, props_dir, read_yaml
from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.sampling import ExclusiveSampler
from recbole_cafe.layers.scoring import JOINTS
from recbole_cafe.model.cafe import CaFeNet

NONE = C  # intent id of an item without one
SYSTEMS = read_yaml(props_dir() / "benchmark" / "table3.yaml")["systems"]


class TestCaFe(ModelContract):
    model = "CaFe"
    layouts = {"all": 14, "last": 10}


class TestCaFeWithSoftmax(ModelContract):
    model = "CaFe"
    settings = {"loss_type": "CE"}
    layouts = {"all": 14}


class TestCaFeOfTheAuthorsCode(ModelContract):
    model = "CaFe"
    settings = {"theta_source": "v", "attn_scale": "head", "residual": "normed", "joint": "sum"}
    layouts = {"all": 14}


def net(**settings):
    """CaFe as its YAML has it, small, in float64 and eval mode; what it draws as negatives is known."""
    return small(CaFeNet, "CaFe", **settings)


# Towers (Eq. 5-7) -----------------------------------------------------------------------------------------------------


def test_the_fused_state_is_the_sum_of_both_towers():
    made, seq = net(), histories()
    fused, coarse, packing = made(seq)
    items = seq[seq > 0]
    fine = made.item_encoder(made.item_embedding(items), packing)
    plain = made.intent_encoder(made.intent_embedding(item2intent()[items]), packing)
    torch.testing.assert_close(coarse, plain, **EXACT)
    torch.testing.assert_close(fused, fine + plain, **EXACT)
    assert torch.equal(packing.pack(seq), items)


def test_only_the_item_encoder_has_local_heads():
    made = net(n_local_heads=2)
    assert [b.attention.n_local_heads for b in made.item_encoder.blocks] == [2, 2]
    assert [b.attention.n_local_heads for b in made.intent_encoder.blocks] == [0, 0]


def test_with_theta_one_it_is_cafe_without_local_heads():
    local, plain = net(n_local_heads=1), net(n_local_heads=0)
    share(local, plain)
    assert (scores(local) - scores(plain)).abs().max() > 1e-2
    with torch.no_grad():
        for block in local.item_encoder.blocks:
            block.attention.local.theta_weight.zero_()
    torch.testing.assert_close(scores(local), scores(plain), **EXACT)


def test_a_silent_intent_encoder_and_joint_item_leave_the_item_model():
    """LayerNorm with weight and bias zero silences the intent encoder; R is then R^v."""
    made = net(joint="item", intent_loss=False)
    alone = net(joint="item", intent_loss=False, intent_tower=False)
    share(made, alone)
    assert (scores(made) - scores(alone)).abs().max() > 1e-2
    with torch.no_grad():
        made.intent_encoder.norm.weight.zero_()
        made.intent_encoder.norm.bias.zero_()
    torch.testing.assert_close(scores(made), scores(alone), **EXACT)
    fused, coarse, _ = made(histories())
    assert torch.count_nonzero(coarse) == 0
    torch.testing.assert_close(fused, alone(histories())[0], **EXACT)


def test_without_intents_and_local_heads_it_scores_as_sasrec():
    """The last state of SASRec's encoder (tests/layers/test_encoder.py) times the item table."""
    made = net(**SYSTEMS["base"])
    assert made.intent_encoder is None
    for row, got in zip(histories(), scores(made), strict=True):
        items = row[row > 0]
        state = made.item_encoder(made.item_embedding(items), Packing(torch.ones(1, len(items), dtype=torch.bool)))[-1]
        torch.testing.assert_close(got, made.item_embedding.weight @ state, **EXACT)


@pytest.mark.parametrize("t", range(L - 1))
def test_a_future_item_or_intent_does_not_change_earlier_states(t):
    made, seq = net(), histories()[:1]
    fused, coarse, _ = made(seq)
    other = seq.clone()
    other[0, t + 1 :] = torch.tensor([10, 11, 13, 14, 15, 16])[: L - 1 - t]
    for before, after in zip((fused, coarse), made(other)[:2], strict=True):
        torch.testing.assert_close(after[: t + 1], before[: t + 1], **EXACT)
        assert (after[t + 1] - before[t + 1]).abs().max() > 1e-3
    moved = net()  # the same weights; the items from t + 1 on have another intent
    moved.item2intent = moved.item2intent.clone()
    moved.item2intent[seq[0, t + 1 :]] = moved.item2intent[seq[0, t + 1 :]] % (C - 1) + 1
    for before, after in zip((fused, coarse), moved(seq)[:2], strict=True):
        torch.testing.assert_close(after[: t + 1], before[: t + 1], **EXACT)
        assert (after[t + 1] - before[t + 1]).abs().max() > 1e-3


def test_batch_mates_of_other_lengths_do_not_change_a_score():
    """Rows of 1 to 20 items: attention takes them in several groups."""
    made = net(max_seq_length=20)
    lengths = torch.tensor([20, 1, 9, 8, 17, 3])
    seq = torch.randint(1, V, (6, 20)) * (torch.arange(20) < lengths[:, None])
    together = scores(made, seq)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(scores(made, seq[row : row + 1, :n])[0], together[row], **EXACT)


# Scores (Eq. 8 and 10) ------------------------------------------------------------------------------------------------


def test_the_product_score_is_the_log_of_eq_10_and_ranks_like_it():
    made = net()
    fused, coarse, packing = made(histories())
    last = packing.length.cumsum(0) - 1
    item_logit = fused[last] @ made.item_embedding.weight.T
    intent_logit = (coarse[last] @ made.intent_embedding.weight.T)[:, item2intent()]
    known = ((item2intent() != NONE) & (torch.arange(V) > 0)).nonzero()[:, 0]
    product = (item_logit.sigmoid() * intent_logit.sigmoid())[:, known]
    got = scores(made)[:, known]
    torch.testing.assert_close(got, product.log(), **EXACT)
    assert torch.equal(got.argsort(1), product.argsort(1))
    total = net(joint="sum")
    torch.testing.assert_close(scores(total)[:, known], (item_logit + intent_logit)[:, known], **EXACT)
    assert not torch.equal(scores(total)[:, known].argsort(1), got.argsort(1))
    torch.testing.assert_close(scores(net(joint="item")), item_logit, **EXACT)


@pytest.mark.parametrize("joint", ["product", "sum"])
def test_items_without_an_intent_are_scored_with_the_average_intent(joint):
    made = net(joint=joint)
    query = made.query(histories())
    coarse_logit = (made(histories())[1] @ made.intent_embedding.weight.T)[[5, 8, 9, 13]]  # last positions
    known = coarse_logit[:, 1:C]
    term = known.sigmoid().mean(1).log() if joint == "product" else known.mean(1)
    for item in (5, 12):
        logit = query.vector @ made.item_embedding.weight[item]
        own = torch.nn.functional.logsigmoid(logit) if joint == "product" else logit
        torch.testing.assert_close(made.scores(query)[:, item], own + term, **EXACT)


@pytest.mark.parametrize("joint", JOINTS)
def test_candidates_are_scored_as_in_the_full_catalogue(joint):
    made = net(joint=joint)
    query = made.query(histories())
    items = torch.tensor([[1, 5, 19, 1], [2, 12, 3, 4], [5, 12, 7, 8], [6, 9, 10, 11]])
    got = made.scores(query, items)
    torch.testing.assert_close(got, made.scores(query).gather(1, items), **EXACT)
    torch.testing.assert_close(made.scores(query, items, item2intent()[items]), got, **EXACT)
    others = made.scores(query, items, torch.full_like(items, 2))
    if joint == "item":
        torch.testing.assert_close(others, got, **EXACT)
    else:
        same = item2intent()[items] == 2
        torch.testing.assert_close(others[same], got[same], **EXACT)
        assert ((others - got)[~same].abs() > 1e-6).all()


# Loss (Eq. 9) ---------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_loss(made, layout, k=1):
    """Eq. 9 position by position: each position's state from its own prefix, sums and logarithms written out."""
    sums = {"item": [], "intent": []}
    for row, user, following in zip(histories(), USERS.tolist(), NEXT.tolist(), strict=True):
        items = [*row[row > 0].tolist(), following]
        for t in range(1, len(items)):
            if layout == "last" and t < len(items) - 1:
                continue
            fused, coarse, _ = made(torch.tensor([items[:t]]))
            following_id = {"item": items[t], "intent": int(item2intent()[items[t]])}
            for tower, state, table in (
                ("item", fused[-1], made.item_embedding.weight),
                ("intent", coarse[-1], made.intent_embedding.weight),
            ):
                target = following_id[tower]
                if tower == "intent" and target == NONE:
                    continue
                if made.loss_settings.loss_type == "CE":
                    n = V if tower == "item" else C
                    total = sum(math.exp(state @ table[i]) for i in range(1, n))
                    sums[tower].append(-math.log(math.exp(state @ table[target]) / total))
                    continue
                n = V if tower == "item" else C
                loss, weight = -math.log(sigmoid(state @ table[target])), 1 / k
                if (
                    made.loss_settings.loss_type == "gBCE"
                ):  # beta = 1 - t (1 - k / (n - 2)), and a mean over the k + 1 terms
                    loss, weight = (
                        loss * (1 - made.loss_settings.gbce_t * (1 - min(1, k / (n - 2)))) / (k + 1),
                        1 / (k + 1),
                    )
                for j in range(k):
                    negative = 1 + (7 * user + 3 * target + j) % (n - 1)  # Fixed
                    loss -= math.log(1 - sigmoid(state @ table[negative])) * weight
                sums[tower].append(loss)
    mean = {tower: sum(values) / len(values) for tower, values in sums.items()}
    return mean["item"] + (mean["intent"] if made.intent_loss else 0.0)


@pytest.mark.parametrize("layout", ["all", "last"])
@pytest.mark.parametrize("intent_loss", [True, False])
@pytest.mark.parametrize(("loss_type", "k"), [("BCE", 1), ("BCE", 3), ("gBCE", 2), ("gBCE", 5), ("CE", 1)])
def test_the_loss_is_the_loop_over_positions(layout, intent_loss, loss_type, k):
    made = net(loss_type=loss_type, n_negatives=k, intent_loss=intent_loss)
    seq = histories()
    target = next_items(seq, (seq > 0).sum(1), NEXT, layout)
    with torch.no_grad():
        assert made.loss(Batch(seq, target, USERS)).item() == pytest.approx(naive_loss(made, layout, k), abs=1e-9)


@pytest.mark.parametrize("loss_type", ["BCE", "CE"])
def test_targets_without_an_intent_teach_the_intent_tower_nothing(loss_type):
    made, seq = net(loss_type=loss_type), torch.tensor([[3, 5, 0], [7, 0, 0]])
    target = torch.tensor([[5, 12, 0], [12, 0, 0]])
    with_intents = made.loss(Batch(seq, target, USERS[:2]))
    made.intent_loss = False
    assert with_intents.item() == made.loss(Batch(seq, target, USERS[:2])).item()
    with_intents.backward()
    assert torch.isfinite(made.intent_embedding.weight.grad).all()


def test_a_batch_without_any_target_has_loss_zero():
    made, seq = net(), histories()
    loss = made.loss(Batch(seq, torch.zeros_like(seq), USERS))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["BCE", "CE"])
@pytest.mark.parametrize("intent_loss", [True, False])
def test_one_row_with_all_positions_is_the_mean_of_recboles_prefix_rows(toy_path, loss_type, intent_loss):
    """In eval mode and with the same negatives: what `train_layout: all` saves is time. For users whose items fit
    into a row; with the intent loss only where all targets have intents, since both losses are means of their own."""
    settings = {"loss_type": loss_type, "intent_loss": intent_loss, "hidden_size": 16, "n_layers": 1}
    losses = {}
    shared = build("CaFe", toy_path, **settings).model
    for layout in ("all", "last"):
        run = build("CaFe", toy_path, train_layout=layout, **settings)
        model, batch = run.model.double(), run.batch("train")
        model.load_state_dict(shared.state_dict())
        run.enlarged(5.0)
        if loss_type == "BCE":
            model.network.item_negatives = Fixed(model.n_items)
            model.network.intent_negatives = Fixed(model.network.n_intents) if intent_loss else None
        losses[layout] = {}
        for row in range(len(batch)):
            user = run.train._dataset.field2id_token["user_id"][int(batch["user_id"][row])]
            with torch.no_grad():
                losses[layout].setdefault(user, []).append(model.calculate_loss(batch[[row]]).item())
    assert losses["all"].keys() == losses["last"].keys()
    compared = 0
    for user, items in toy.walks().items():
        train = items[:-2] if len(items) > 3 else items[:-1]
        if len(train) > toy.MAX_LENGTH or (intent_loss and toy.item(toy.NO_INTENT) in train[1:]):
            continue
        assert len(losses["all"][user]) == 1
        assert len(losses["last"][user]) == len(train) - 1
        mean = sum(losses["last"][user]) / (len(train) - 1)
        assert losses["all"][user][0] == pytest.approx(mean, abs=1e-9), user
        compared += 1
    assert compared > 100


def test_dropout_is_off_in_eval_mode_only():
    made, seq = net(hidden_dropout_prob=0.5), histories()
    assert torch.equal(made(seq)[0], made(seq)[0])
    made.train()
    assert not torch.equal(made(seq)[0], made(seq)[0])


@pytest.mark.slow
def test_sparse_tables_change_the_cost_and_not_the_training(toy_path):
    # Two users a step: most items are not in it, and dense Adam moves them all the same
    settings = {"epochs": 1, "train_batch_size": 2, "hidden_size": 16, "learning_rate": 0.002}
    sparse, dense = (build("CaFe", toy_path, sparse_tables=value, **settings) for value in (True, False))
    assert [run.model.network.item_embedding.sparse for run in (sparse, dense)] == [True, False]
    start = {name: value.clone() for name, value in dense.model.state_dict().items()}
    sparse.fit()
    dense.fit()
    for name, value in dense.model.state_dict().items():
        if not name.endswith("key.bias"):  # its gradient is rounding noise, which Adam scales to full steps
            moved = (value - start[name]).abs().max()
            # float32 noise grows along 80 steps of Adam; a wrong update rule is off by the order of `moved`
            assert (sparse.model.state_dict()[name] - value).abs().max() < 0.01 * moved, name
    assert not build("CaFe", toy_path, loss_type="CE").model.network.item_embedding.sparse


# What is wanted next, coarsely ---------------------------------------------------------------------------------------


def test_intent_probabilities_are_a_softmax_over_the_intents():
    made, seq = net(), histories()
    with torch.no_grad():
        probability = made.intent_probabilities(seq)
        _, coarse, packing = made(seq)
        logits = packing.last(coarse) @ made.intent_embedding.weight[1:C].T
    torch.testing.assert_close(probability[:, 1:C], logits.exp() / logits.exp().sum(1, keepdim=True))
    assert torch.count_nonzero(probability[:, [0, C]]) == 0  # padding, and "no intent"


def test_without_a_tower_there_are_no_intent_probabilities():
    made = net(intent_tower=False, intent_loss=False, joint="item")
    with pytest.raises(ValueError, match="intent_tower=False: no tower tells which intent comes next"):
        made.intent_probabilities(histories())


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint": "mean"}, "joint='mean' is not one of product, sum, item"),
        ({"loss_type": "BPR"}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
        ({"n_negatives": 0}, "n_negatives=0 must be at least 1"),
        ({"intent_tower": False}, "intent_tower=False needs intent_loss=False and joint='item'"),
        (
            {"intent_tower": False, "intent_loss": False, "joint": "product"},
            "got intent_loss=False and joint='product'",
        ),
        ({"intent_tower": False, "intent_loss": False, "joint": "sum"}, "got intent_loss=False and joint='sum'"),
        ({"intent_tower": False, "joint": "item"}, "got intent_loss=True and joint='item'"),
        ({"residual": "none"}, "residual='none' is not one of input, normed, query"),
        ({"theta_source": "q"}, "theta_source='q' is not one of qk, v"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("theta_source", "v"), ("attn_scale", "head"), ("residual", "normed"), ("hidden_act", "gelu")):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key
    for key, value in (("joint", "sum"), ("joint", "item")):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, value


def test_the_paper_is_the_default():
    given = read_yaml(props_dir() / "model" / "CaFe.yaml")
    paper = {"theta_source": "qk", "attn_scale": "hidden", "residual": "input", "joint": "product", "loss_type": "BCE",
             "n_negatives": 1, "intent_tower": True, "intent_loss": True, "MAX_ITEM_LIST_LENGTH": 50}  # fmt: skip
    assert {key: given[key] for key in paper} == paper
    assert 0 < given["n_local_heads"] <= given["n_heads"]


# Table 3 --------------------------------------------------------------------------------------------------------------


def test_the_presets_are_the_rows_of_the_ablation():
    assert list(SYSTEMS) == ["base", "+1", "+1+2", "+1+2+3", "+1+2+4", "+1+2+3+4"]


@pytest.mark.parametrize(
    ("without", "with_", "differs"),
    [
        ("base", "+1", {"intent_tower": (False, True)}),
        ("+1", "+1+2", {"intent_loss": (False, True)}),
        ("+1+2", "+1+2+3", {"n_local_heads": (0, 1)}),
        ("+1+2", "+1+2+4", {"joint": ("item", "product")}),
        ("+1+2+3", "+1+2+3+4", {"joint": ("item", "product")}),
        ("+1+2+4", "+1+2+3+4", {"n_local_heads": (0, 1)}),
    ],
)
def test_a_step_of_the_ablation_differs_in_what_its_name_says(toy_path, without, with_, differs):
    one, two = (build("CaFe", toy_path, **preset(f"table3/{name}")) for name in (without, with_))
    settings = [
        {k: v for k, v in run.config.final_config_dict.items() if k not in ("device", "metric_decimal_place")}
        for run in (one, two)
    ]
    changed = {k: tuple(s.get(k) for s in settings) for k in settings[0] if settings[0][k] != settings[1].get(k)}
    assert changed == differs
    names = [set(run.model.state_dict()) for run in (one, two)]
    added = {
        "intent_tower": {n for n in names[1] if ".intent_" in n},
        "n_local_heads": {n for n in names[1] if n.endswith(("theta_weight", "distance"))},
    }.get(next(iter(differs)), set())
    assert names[1] - names[0] == added
    assert names[0] <= names[1]


def test_the_full_preset_is_cafe_as_its_yaml_has_it():
    given = read_yaml(props_dir() / "model" / "CaFe.yaml")
    assert {key: given[key] for key in SYSTEMS["+1+2+3+4"]} == SYSTEMS["+1+2+3+4"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_preset_trains_and_scores(toy_path, name):
    run = build("CaFe", toy_path, **preset(f"table3/{name}"), hidden_size=16)
    loss = run.model.calculate_loss(run.batch("train"))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(run.scores()[:, 1:]).all()


# A learned model ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_next_intent_is_learned_and_leads_to_the_next_item(toy_path):
    """Each letter is followed by the next one: the intent tower alone knows it for nearly every user."""
    run = build("CaFe", toy_path, hidden_size=32, epochs=30, train_batch_size=16, learning_rate=0.005).fit()
    dataset, batch, network = run.test._dataset, run.batch(), run.model.network
    terms = network.query(batch["item_id_list"]).terms
    following = network.item2intent[batch["item_id"]]
    known = following < network.n_intents
    assert known.sum() > 100
    predicted = terms[:, 1 : network.n_intents].argmax(1) + 1
    assert (predicted == following)[known].double().mean() > 0.95
    never = torch.tensor([dataset.token2id("item_id", token) for token in toy.NEVER])
    best = run.scores()[:, 1:].argmax(1) + 1
    assert not torch.isin(best, never).any()  # items nobody ever took are not recommended
    # Whoever is to take the item without an intent next gets items of the predicted intent first: its intent term is
    # that of an average intent. On item relevance alone it is first, like the others.
    joint = first_share(run)
    network.joint = "item"
    assert first_share(run) > max(joint, 0.97)


def test_negatives_can_be_drawn_where_a_user_has_every_intent():
    """CaFe's released code loops for ever there."""
    everything = ExclusiveSampler(torch.ones(C - 1, dtype=torch.long), torch.arange(1, C), n_keys=2, n=C)
    made = net(intent_negatives=everything)
    seq = torch.tensor([[1, 2, 3]])
    assert torch.isfinite(made.loss(Batch(seq, torch.tensor([[2, 3, 4]]), torch.tensor([1]))))


def test_buffers_of_the_data_are_in_no_checkpoint():
    names = set(net(item_negatives=ExclusiveSampler(torch.tensor([1]), torch.tensor([1]), n_keys=2, n=V)).state_dict())
    assert not {name for name in names if "item2intent" in name or "negatives" in name}
    assert len(names) == len(list(net().parameters()))
