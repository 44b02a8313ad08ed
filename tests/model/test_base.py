"""recbole_cafe.model.base: what the data know reaches the net; targets of both layouts."""

import pytest
import torch
import toy
from contract import build
from recbole.data.dataset import SequentialDataset

from recbole_cafe import Config
from recbole_cafe.data.batch import next_items
from recbole_cafe.data.intents import item_intents
from recbole_cafe.model.faces import CaFe

SEQ = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]])
LENGTH, ITEM = torch.tensor([3, 1, 4]), torch.tensor([9, 10, 11])


def test_with_layout_all_every_position_predicts_the_next_item():
    expected = [[6, 7, 9, 0], [10, 0, 0, 0], [2, 3, 4, 11]]
    assert next_items(SEQ, LENGTH, ITEM, "all").tolist() == expected


def test_with_layout_last_the_last_position_predicts_the_target():
    expected = [[0, 0, 9, 0], [10, 0, 0, 0], [0, 0, 0, 11]]
    assert next_items(SEQ, LENGTH, ITEM, "last").tolist() == expected
    assert SEQ[0].tolist() == [5, 6, 7, 0]  # the batch is not written to


@pytest.mark.parametrize("layout", ["all", "last"])
def test_negatives_are_never_the_users_own_train_items(toy_path, layout):
    run = build("CaFe", toy_path, train_layout=layout)
    users, items = run.train._dataset.user_items()
    own = set(zip(users.tolist(), items.tolist(), strict=True))
    user, catalogue = torch.arange(1, run.train._dataset.user_num), range(1, run.model.n_items)
    target = torch.ones_like(user)
    drawn = run.model.network.item_negatives(user, target, 2000)
    for row in range(0, len(user), 10):
        u = int(user[row])
        free = {i for i in catalogue if (u, i) not in own}
        assert set(drawn[row].tolist()) == free  # the held-out items among them: training knows nothing of these


def test_intent_negatives_are_none_of_the_intents_of_the_users_train_items(toy_path):
    run = build("CaFe", toy_path)
    users, items = run.train._dataset.user_items()
    intents = item_intents(run.config, run.train._dataset)
    own = {}
    for user, intent in zip(users.tolist(), intents.item2intent[items].tolist(), strict=True):
        own.setdefault(user, set()).add(intent)
    known = set(range(1, intents.n_intents))
    assert len(known) == 4
    owners = torch.tensor(sorted(own))
    drawn = run.model.network.intent_negatives(owners, torch.full_like(owners, 2), 200)
    kinds = set()
    for user, row in zip(owners.tolist(), drawn.tolist(), strict=True):
        kinds.add(len(own[user] & known))
        assert set(row) == (known - own[user] or known - {2})  # who has all intents gets any but the target
    assert kinds >= {1, 2, 3, 4}


def test_no_negatives_are_prepared_that_nobody_draws(toy_path):
    assert build("CaFe", toy_path, loss_type="CE").model.network.item_negatives is None
    assert build("CaFe", toy_path, loss_type="CE").model.network.intent_negatives is None
    assert build("CaFe", toy_path, intent_loss=False, joint="item").model.network.intent_negatives is None


def test_the_net_gets_what_the_data_know(toy_path):
    run = build("CaFe", toy_path)
    network, dataset = run.model.network, run.train._dataset
    assert run.model.n_items == dataset.item_num == 1 + 27  # 24 on the ring, 3 nobody takes, padding
    assert network.item_embedding.num_embeddings == 28
    assert network.n_intents == 1 + 4
    tokens = dataset.field2id_token
    for i in range(1, 28):
        intent = toy.intent(tokens["item_id"][i])
        at = int(network.item2intent[i])
        assert at == 5 if intent == "" else tokens["intent"][at] == intent
    assert int(network.item2intent[0]) == 0


def test_a_data_set_with_prefix_copies_is_refused(toy_path):
    config = Config("CaFe", "toy", config_dict={"data_path": str(toy_path), "gpu_id": "", "state": "WARNING"})
    stock = SequentialDataset(config)
    with pytest.raises(TypeError, match="needs a recbole_cafe NetDataset, got SequentialDataset"):
        CaFe(config, stock)
