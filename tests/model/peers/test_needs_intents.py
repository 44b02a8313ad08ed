"""A peer says that it needs intents exactly if it reads them when it is built."""

import importlib

import pytest
import torch

from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.facts import DataFacts, ItemIntents

PEERS = {
    "AttRec": "att_rec", "BERTF": "bert_f", "BSARec": "bsa_rec", "CorrectedBERT4Rec": "bert4rec",
    "CorrectedSINE": "sine", "DIFSR": "dif_sr", "HCRNN": "hcrnn", "LOCKER": "locker", "LOCKERF": "locker_f",
    "NOVA": "nova", "RKSA": "rksa", "SAIR": "sair", "SSEPT": "sse_pt", "WEARec": "wea_rec",
}  # fmt: skip


@pytest.mark.parametrize("model", PEERS)
def test_a_peer_needs_intents_exactly_if_it_reads_them(model):
    net = getattr(importlib.import_module(f"recbole_cafe.model.peers.{PEERS[model]}"), model).net
    path, asked = props_dir() / "model" / f"{model}.yaml", []

    def intents():
        asked.append(True)
        return ItemIntents(torch.tensor([0, 1, 2, 1, 2, 3]), 3)

    pairs = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 3, 4])
    facts = DataFacts(n_items=6, n_users=3, max_seq_length=4, train_pairs=lambda: pairs, intents=intents)
    built = net(data=facts, **arguments_of(net, read_yaml(path), path))
    assert bool(asked) == built.needs_intents
    assert not built.scores_intents
