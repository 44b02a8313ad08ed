"""recbole_cafe.model.peers.bert_f and locker_f: two encoders side by side, intents read, never scored."""

import pytest
import torch
from contract import ModelContract
from small import EXACT, C, V, hidden_intents_do_not_matter, histories, scores, small
from torch import nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.model.peers.bert_f import BERTFNet
from recbole_cafe.model.peers.locker_f import LOCKERFNet

NETS = {"BERTF": BERTFNet, "LOCKERF": LOCKERFNet}


class TestBERTF(ModelContract):
    model = "BERTF"
    causal = False
    settings = {"mask_ratio": 0.4}
    layouts = {"last": 24}
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003}


class TestLOCKERF(ModelContract):
    model = "LOCKERF"
    causal = False
    layouts = {"last": 20}
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003}


@pytest.fixture(params=NETS)
def made(request):
    return small(NETS[request.param], request.param)


def test_the_intent_of_a_hidden_item_changes_nothing(made):
    hidden_intents_do_not_matter(made)


def test_the_question_hides_the_intent_too(made):
    rows = made.cloze.question(histories())
    assert made.intents.item2intent[rows[1]].tolist() == [*made.intents.item2intent[histories()[1, :3]], C + 1, 0, 0]


def test_without_its_half_of_the_fusion_the_intent_encoder_is_silent(made):
    """W = [I; 0], b = 0 and no LayerNorm: the state is the item encoder's, and no gradient reaches the intents."""
    with torch.no_grad():
        made.fusion.weight.copy_(torch.cat((torch.eye(8), torch.zeros(8, 8)), dim=1))
        made.fusion.bias.zero_()
    made.fusion_norm = nn.Identity()
    state, packing = made(histories())
    items = packing.pack(histories())
    torch.testing.assert_close(state, made.item_encoder(made.item_embedding(items), packing), **EXACT)
    made.loss(Batch(histories(), target(), torch.arange(4))).backward()
    assert torch.count_nonzero(made.intents.embedding.weight.grad) == 0


def target():
    following = torch.zeros_like(histories())
    following[:, :-1] = histories()[:, 1:]
    following[torch.arange(4), (histories() > 0).sum(1) - 1] = torch.tensor([2, 3, 4, 1])
    return following


def test_intents_are_learned_through_the_items_loss(made):
    made.loss(Batch(histories(), target(), torch.arange(4))).backward()
    assert made.intents.embedding.weight.grad.abs().max() > 1e-4
    assert not made.scores_intents


def test_with_one_intent_they_tell_nothing(made):
    """All items of one intent: exchanging two items' intents changes nothing."""
    made.intents.item2intent[1:V] = 1
    before = scores(made)
    made.intents.item2intent[[8, 9]] = made.intents.item2intent[[9, 8]]
    torch.testing.assert_close(scores(made), before, **EXACT)
    made.intents.item2intent[8] = 2
    assert (scores(made) - before).abs().max() > 1e-3


def test_positions_are_shared_or_not():
    shared, own = (small(BERTFNet, "BERTF", share_position=share) for share in (True, False))
    assert shared.item_encoder.position is shared.intent_encoder.position
    assert own.item_encoder.position is not own.intent_encoder.position
    with pytest.raises(ValueError, match="share_position=True needs encoders with positions at the input"):
        small(LOCKERFNet, "LOCKERF", share_position=True)
    assert small(LOCKERFNet, "LOCKERF", share_position=True, local_type="conv").item_encoder.position is not None


def test_the_intents_encoder_of_locker_f():
    def local_heads(encoder):
        return [block.attention.n_local_heads for block in encoder.blocks]

    same, plain = (small(LOCKERFNet, "LOCKERF", intent_encoder=kind) for kind in ("same", "plain"))
    assert local_heads(same.intent_encoder) == local_heads(same.item_encoder) == [3, 3]
    assert local_heads(plain.intent_encoder) == [0, 0]
    assert plain.intent_encoder.position is not None
    with pytest.raises(ValueError, match="intent_encoder='none' is not one of same, plain"):
        small(LOCKERFNet, "LOCKERF", intent_encoder="none")
