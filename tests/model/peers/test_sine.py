"""sine: the contract, equality with RecBole's SINE where that has no defect, and each defect."""

import pytest
import torch
from contract import CLOSE, ModelContract, build
from recbole.model.sequential_recommender.sine import SINE
from recbole.utils import get_model
from small import from_yaml
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch
from recbole_cafe.errors import ConfigError
from recbole_cafe.model.peers.sine import SINENet

L, SIZE = 8, 16
COPIES = {  # our name -> RecBole's
    "item_embedding.weight": "item_embedding.weight",
    "activation_hidden": "w1",
    "activation_score": "w2",
    "assignment": "w3",
    "aggregation_score": "w4",
    "weighting_hidden": "w_k_1",
    "weighting_score": "w_k_2",
    "prototype": "C.weight",
    "prototype_norm.weight": "ln2.weight",
    "prototype_norm.bias": "ln2.bias",
    "intention_norm.weight": "ln4.weight",
    "intention_norm.bias": "ln4.bias",
}


class TestCorrectedSINE(ModelContract):
    model = "CorrectedSINE"
    causal = False  # one vector per history
    layouts = {"last": 20}
    no_gradient = {
        "prototype_norm.bias": "adds the same to an item's similarities with all prototypes; the softmax is blind to it"
    }


class TestCorrectedSINEWithNegatives(TestCorrectedSINE):
    settings = {"loss_type": "BCE"}
    layouts = {"last": 30}
    first = 0.8  # one negative per target teaches less than all


@pytest.fixture(scope="module")
def theirs(toy_path):
    """RecBole's SINE with weights of a size at which everything matters."""
    made = build("SINE", toy_path, embedding_size=SIZE, MAX_ITEM_LIST_LENGTH=L).model.eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def like(theirs, **settings):
    """Ours with the weights of RecBole's."""
    given = {"hidden_size": SIZE, "max_seq_length": L, "n_items": theirs.n_items, "item_negatives": None}
    made = from_yaml(SINENet, "CorrectedSINE", **given | settings).eval()
    weights = theirs.state_dict()
    given = {ours: weights[name] for ours, name in COPIES.items()}
    assert len(given) == len(weights)
    missing, unexpected = made.load_state_dict(given, strict=False)
    assert (missing, unexpected) == (["position"] if made.position is not None else [], [])
    with torch.no_grad():
        made.item_embedding.weight[0] = 0.0
        if made.position is not None:
            made.position.normal_(std=0.5)
    return made


def full_rows(n_items):
    """[6, L] without padding."""
    return torch.stack([torch.randperm(n_items - 1)[:L] + 1 for _ in range(6)])


def lengths(seq):
    return (seq > 0).sum(1)


@torch.no_grad()
def test_without_positions_it_is_recboles_on_full_rows(theirs):
    seq = full_rows(theirs.n_items)
    made = like(theirs, positions=False)
    torch.testing.assert_close(made(seq), theirs(seq, lengths(seq)), **CLOSE)
    scores = theirs.full_sort_predict({theirs.ITEM_SEQ: seq, theirs.ITEM_SEQ_LEN: lengths(seq)})
    torch.testing.assert_close(made.scores(made.query(seq))[:, 1:], scores[:, 1:], **CLOSE)
    assert scores.std() > 0.1


@torch.no_grad()
def test_recboles_sees_a_bag_and_ours_a_sequence(theirs):
    seq = full_rows(theirs.n_items)
    shuffled = seq[:, torch.randperm(L)]
    assert not torch.equal(seq, shuffled)
    torch.testing.assert_close(theirs(shuffled, lengths(seq)), theirs(seq, lengths(seq)), **CLOSE)
    made = like(theirs)
    assert ((made(shuffled) - made(seq)).abs().amax(1) > 1e-3).all()
    bag = like(theirs, positions=False)
    torch.testing.assert_close(bag(shuffled), bag(seq), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("positions", [True, False])
def test_padding_changes_recboles_vector_and_not_ours(theirs, positions):
    short = full_rows(theirs.n_items)[:, :3]
    padded = F.pad(short, (0, L - 3))
    theirs.max_seq_length = 3
    alone = theirs(short, lengths(short))
    theirs.max_seq_length = L
    assert ((theirs(padded, lengths(padded)) - alone).abs().amax(1) > 1e-3).all()
    made = like(theirs, positions=positions)
    with_long = torch.cat((padded, full_rows(theirs.n_items)))
    torch.testing.assert_close(made(with_long)[:6], made(short), **CLOSE)
    if not positions:
        torch.testing.assert_close(made(short), alone, **CLOSE)  # without padding they agree


def test_recboles_padding_is_a_random_vector_and_ours_is_zero(toy_path):
    assert torch.count_nonzero(build("SINE", toy_path).model.item_embedding.weight[0]) > 0
    ours = build("CorrectedSINE", toy_path).model.network
    assert torch.count_nonzero(ours.item_embedding.weight[0]) == 0


def test_the_regulariser_is_part_of_the_softmax_loss(theirs):
    seq = full_rows(theirs.n_items)
    target = torch.zeros_like(seq)
    target[:, -1] = torch.arange(1, 7)
    loss = {
        ratio: like(theirs, positions=False, reg_loss_ratio=ratio).loss(Batch(seq, target, target[:, -1]))
        for ratio in (0.0, 0.5)
    }
    logits = theirs(seq, lengths(seq)) @ theirs.item_embedding.weight.T
    torch.testing.assert_close(loss[0.0], F.cross_entropy(logits[:, 1:], target[:, -1] - 1), **CLOSE)
    covariance = theirs.calculate_reg_loss()
    assert covariance > 0.1
    torch.testing.assert_close(loss[0.5] - loss[0.0], 0.5 * covariance, rtol=1e-4, atol=1e-4)


def test_recboles_softmax_loss_ignores_the_regulariser(theirs):
    assert theirs.loss_type == "CE"
    seq = full_rows(theirs.n_items)
    batch = {theirs.ITEM_SEQ: seq, theirs.ITEM_SEQ_LEN: lengths(seq), theirs.POS_ITEM_ID: torch.arange(1, 7)}
    before, ratio = theirs.calculate_loss(batch).item(), theirs.reg_loss_ratio
    theirs.reg_loss_ratio = 100.0
    assert theirs.calculate_loss(batch).item() == before
    theirs.reg_loss_ratio = ratio


def test_the_covariance_by_hand():
    """Rows (1, -1, 0), (2, -2, 0): centred as they are; their covariance is 4 / 3, counted twice and halved."""
    made = from_yaml(
        SINENet, "CorrectedSINE", n_items=4, item_negatives=None, max_seq_length=2, hidden_size=3, prototype_size=2,
        interest_size=1, positions=False, loss_type="CE",
    )  # fmt: skip
    with torch.no_grad():
        made.prototype.copy_(torch.tensor([[2.0, 0.0, 1.0], [3.0, -1.0, 1.0]]))
    assert made.prototype_covariance().item() == pytest.approx((4 / 3) ** 2)


@torch.no_grad()
def test_only_the_nearest_prototypes_matter(theirs):
    seq = full_rows(theirs.n_items)[:1]
    made = like(theirs)
    before, used = made(seq), set()
    for i in range(len(made.prototype)):
        kept = made.prototype[i].clone()
        made.prototype[i] *= 0.9  # too little to change the order of the first three of fifty
        if not torch.equal(made(seq), before):
            used.add(i)
        made.prototype[i] = kept
    assert len(used) == made.interest_size == 3


def test_recboles_own_stays_under_its_name():
    assert get_model("SINE") is SINE
    assert get_model("CorrectedSINE").net is SINENet


def test_a_loss_at_every_position_is_refused(toy_path):
    with pytest.raises(ConfigError, match="train_layout=all does not suit CorrectedSINE, which trains under last"):
        build("CorrectedSINE", toy_path, train_layout="all")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("interest_size", 51, r"interest_size=51 is not in 1\.\.prototype_size=50"),
    ("tau_ratio", 0.0, "tau_ratio=0.0 should be above 0"),
    ("loss_type", "NLL", "loss_type='NLL' is not one of BCE, gBCE, SSM, CE"),
])  # fmt: skip
def test_values_out_of_range_are_refused(theirs, key, value, message):
    with pytest.raises(ValueError, match=message):
        like(theirs, **{key: value})
