"""recbole_cafe.model.peers.locker: the contract for every form of locality and both backbones; the forms' maths are in
tests/layers/test_local.py."""

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, histories, scores, share, small

from recbole_cafe.model.peers.locker import LOCAL_TYPES, LOCKERNet

CAUSAL = {"objective": "causal"}


class TestLOCKER(ModelContract):
    model = "LOCKER"
    causal = False
    loss_types = ("CE",)
    layouts = {"all": 40, "last": 10}
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003}


class TestLOCKERCausal(ModelContract):
    model = "LOCKER"
    settings = CAUSAL


def net(**settings):
    return small(LOCKERNet, "LOCKER", **settings)


@pytest.mark.parametrize("objective", ["cloze", "causal"])
@pytest.mark.parametrize("local_type", LOCAL_TYPES)
def test_every_form_trains_and_scores(toy_path, local_type, objective):
    run = build("LOCKER", toy_path, local_type=local_type, objective=objective, hidden_size=16, inner_size=16)
    loss = run.model.calculate_loss(run.batch("train"))
    loss.backward()
    assert torch.isfinite(loss)
    bad = {name for name, p in run.model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert bad == set()
    assert torch.isfinite(run.scores()[:, 1:]).all()


@pytest.mark.parametrize("local_type", LOCAL_TYPES)
def test_the_causal_form_does_not_see_the_future(local_type):
    made = net(objective="causal", local_type=local_type)
    seq = histories()[:1]
    before = made(seq)[0]
    changed = seq.clone()
    changed[0, 3:] = torch.tensor([2, 2, 2])
    torch.testing.assert_close(made(changed)[0][:3], before[:3], **EXACT)
    assert (made(changed)[0][3:] - before[3:]).abs().max() > 1e-3


def test_no_local_type_is_no_local_head():
    """LOCKER without local heads: the type `plain`, whatever n_local_heads says."""
    none, no_head = net(local_type="plain"), net(local_type="win", n_local_heads=0)
    share(none, no_head)
    torch.testing.assert_close(scores(none), scores(no_head), **EXACT)


@pytest.mark.parametrize("local_type", ["initial", "adapt"])
def test_forms_with_positions_of_their_own_have_none_at_the_input(local_type):
    assert net(local_type=local_type).encoder.position is None
    assert net(local_type=local_type, objective="causal").encoder.position is not None
    assert net(local_type="conv").encoder.position is not None


def test_order_matters_through_local_heads_alone():
    """Without positions at the input and without local heads the history is a bag."""
    seq = histories()[:1]
    # the oldest goes when the mask comes: it stays where it is
    other = torch.cat((seq[:, :1], seq[:, [2, 1, 4, 3, 5]]), dim=1)
    made, bag = net(local_type="adapt"), net(local_type="adapt", n_local_heads=0)
    assert (scores(made, seq) - scores(made, other)).abs().max() > 1e-3
    torch.testing.assert_close(scores(bag, seq), scores(bag, other), **EXACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_type": "wide"}, "local_type='wide' is not one of plain, win, initial, adapt, conv, rnn"),
        ({"objective": "next"}, "objective='next' is not one of cloze, causal"),
        ({"loss_type": "BCE"}, "loss_type='BCE': objective='cloze' is learned with loss_type='CE'"),
        ({"loss_type": "BPR", **CAUSAL}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
    ],
)
def test_wrong_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net(**settings)
