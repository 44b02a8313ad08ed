"""rectools_sasrec: the contract, and that what is trained is what RecTools itself would compute."""

import importlib.util

import pytest
import torch
from contract import ModelContract, build
from torch import nn
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch

needs_rectools = pytest.mark.skipif(
    importlib.util.find_spec("rectools") is None, reason="RecTools is not installed: pip install 'recbole-cafe[peers]'"
)


@needs_rectools
class TestRecToolsSASRec(ModelContract):
    model = "RecToolsSASRec"

    def test_a_future_item_does_not_change_an_earlier_state(self, fresh):
        """Other items after a position change nothing there. Fewer of them do: rows end at the right, and RecTools'
        attention reads the padding before them."""
        net, seq = fresh.model.network, fresh.batch()["item_id_list"]
        changed = seq.clone()
        last = (torch.arange(len(seq)), (seq > 0).sum(1) - 1)
        changed[last] = seq[last] % (fresh.model.n_items - 1) + 1
        with torch.no_grad():
            before, after = net(seq), net(changed)
        torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=1e-5, atol=1e-6)
        assert ((after - before)[:, -1].abs().amax(1) > 1e-4).all()

    def test_row_0_of_every_padded_table_stays_zero(self, learned):
        """RecTools draws row 0 too, but multiplies padding by zero before every block."""
        net = learned["all"].model.network
        seq = torch.tensor([[3, 4, 0, 0, 0, 0, 0, 0]])
        with torch.no_grad():
            before = net(seq)
            table = next(m for m in net.modules() if isinstance(m, nn.Embedding) and m.padding_idx == 0)
            table.weight[0] += 1.0
            torch.testing.assert_close(net(seq)[:, -2:], before[:, -2:], rtol=0, atol=0)


@needs_rectools
class TestRecToolsSASRecWithoutCategories(TestRecToolsSASRec):
    settings = {"use_intents": False}


@needs_rectools
@pytest.mark.parametrize("use_intents", [True, False])
def test_states_and_softmax_are_rectools_own(toy_path, use_intents):
    """RecTools' own forward on the same histories, written as RecTools pads them, gives the same logits and loss."""
    run = build("RecToolsSASRec", toy_path, use_intents=use_intents).enlarged()
    net, batch = run.model.network, run.batch()
    seq = batch["item_id_list"]
    x = torch.zeros_like(seq)
    for row, items in enumerate(seq.tolist()):
        known = [int(net.their_id[item]) for item in items if item]
        x[row, -len(known) :] = torch.tensor(known)
    with torch.no_grad():
        logits = net.theirs.torch_model({"x": x})[:, -1]  # [B, their ids]
        scores = net.scores(net.query(seq))
        known = net.their_id > 0
        torch.testing.assert_close(scores[:, known], logits[:, net.their_id[known]])
        assert (scores[:, ~known] < scores[:, known].min()).all()
        target = torch.zeros_like(seq)
        target[torch.arange(len(seq)), (seq > 0).sum(1) - 1] = batch["item_id"]
        wanted = net.their_id[batch["item_id"]]
        loss = F.cross_entropy(logits[wanted > 0], wanted[wanted > 0])
        torch.testing.assert_close(net.loss(Batch(seq, target, batch["user_id"])), loss)


@needs_rectools
def test_items_that_rectools_does_not_know_make_no_known_one_doubtful(toy_path):
    """Rounding that could hide in a logit of -1e6 is that item's own, not the catalogue's."""
    net = build("RecToolsSASRec", toy_path).model.network
    net.their_id[5] = 0
    catalogue = net.catalogue()
    query = net.query(torch.tensor([[3, 4, 0, 0, 0, 0, 0, 0]])).vector
    slack = catalogue.slack(query)[0, catalogue.item2intent]
    assert slack[5] > 0.1
    assert slack[4] < 1e-3


def test_without_rectools_the_error_says_what_to_install(toy_path, fresh_python):
    code = (
        "import sys; sys.modules['rectools'] = None\n"
        "from recbole_cafe import run\n"
        f"run('RecToolsSASRec', 'toy', config_dict={{'data_path': {str(toy_path)!r}, 'gpu_id': ''}})"
    )
    assert "install it with pip install 'recbole-cafe[peers]'" in fresh_python("-c", code).stderr
