"""A peer says that it needs intents exactly if it reads them when it is built."""

import pytest
import torch

from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.model import MODELS, net_class

PEERS = [name for name, net in MODELS.items() if ".peers." in net and name != "RecToolsSASRec"]


@pytest.mark.parametrize("model", PEERS)
def test_a_peer_needs_intents_exactly_if_it_reads_them(model):
    net = net_class(model)
    path, asked = props_dir() / "model" / f"{model}.yaml", []

    def intents():
        asked.append(True)
        return ItemIntents(torch.tensor([0, 1, 2, 1, 2, 3]), 3)

    pairs = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 3, 4])
    facts = DataFacts(n_items=6, n_users=3, max_seq_length=4, train_pairs=lambda: pairs, intents=intents)
    built = net(data=facts, **arguments_of(net, read_yaml(path), path))
    assert bool(asked) == built.needs_intents
    assert not built.scores_intents
