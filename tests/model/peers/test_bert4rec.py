"""recbole_cafe.model.peers.bert4rec: the contract, and each defect of RecBole's that it must not have."""

import pytest
import torch
from contract import ModelContract
from recbole.model.sequential_recommender.bert4rec import BERT4Rec
from small import EXACT, L, V, histories, scores, small

from recbole_cafe.data.batch import Batch
from recbole_cafe.model.peers.bert4rec import BERT4RecNet


class TestCorrectedBERT4Rec(ModelContract):
    model = "CorrectedBERT4Rec"
    causal = False
    settings = {"mask_ratio": 0.4}
    layouts = {"last": 20}
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003}


def net(**settings):
    return small(BERT4RecNet, "CorrectedBERT4Rec", **settings)


def test_the_oldest_item_of_a_short_history_counts():
    """RecBole's reconstruct_test_data drops the first column even where the row is not full."""
    made, seq = net(), histories()[1:2]
    changed = seq.clone()
    changed[0, 0] = 11
    assert (scores(made, seq) - scores(made, changed)).abs().max() > 1e-3
    full = histories()[:1].clone()
    before = scores(made, full)
    full[0, 0] = 11  # of a full history and its mask, the last L are read
    torch.testing.assert_close(scores(made, full), before, **EXACT)


def test_recboles_own_forgets_it():
    """The difference in RecBole's own class, whose helper needs nothing but these attributes."""
    theirs = BERT4Rec.__new__(BERT4Rec)
    torch.nn.Module.__init__(theirs)
    theirs.mask_token, theirs.max_seq_length = V, L
    seen = theirs.reconstruct_test_data(torch.tensor([[7, 0, 0, 0, 0, 0]]), torch.tensor([1]))
    assert 7 not in seen.tolist()[0]
    ours = net().cloze.question(torch.tensor([[7, 0, 0, 0, 0, 0]]))
    assert ours.tolist()[0] == [7, V, 0, 0, 0, 0]


def test_the_last_train_item_is_a_label(monkeypatch):
    """Hide every item: the label of the last position is the item that follows the row."""
    made = net()
    monkeypatch.setattr(made.cloze, "hide", lambda rows: (torch.where(rows > 0, V, 0), rows))
    seen = []
    monkeypatch.setattr(made, "target_loss", lambda state, item, owner: seen.append(item) or state.sum())
    made.loss(Batch(torch.tensor([[3, 5, 0]]), torch.tensor([[5, 9, 0]]), torch.tensor([1])))
    assert seen[0].tolist() == [3, 5, 9]  # the first position too


def test_mask_and_padding_are_no_classes():
    made = net()
    state, item = torch.randn(3, 8, dtype=torch.float64), torch.tensor([1, 4, 19])
    before = made.target_loss(state, item, item)
    with torch.no_grad():
        made.item_embedding.weight[[0, V]] += 100.0
    torch.testing.assert_close(made.target_loss(state, item, item), before, **EXACT)
    assert scores(net()).shape == (4, V)


def test_the_answer_stands_where_train_rows_end():
    """Positions count from the end: the hidden item of any history has the position of the last train item."""
    made = net()
    _, packing = made(made.cloze.question(histories()))
    assert packing.last(packing.from_end).tolist() == [0, 0, 0, 0]
    assert packing.from_end[packing.row == 0].tolist() == [5, 4, 3, 2, 1, 0]


def test_both_sides_are_read():
    made = net()
    rows = torch.tensor([[3, V, 8, 1]])
    before = made(rows)[0][1]
    for place in (0, 3):
        changed = rows.clone()
        changed[0, place] = 11
        assert (made(changed)[0][1] - before).abs().max() > 1e-3


def test_a_wrong_ratio_is_named():
    with pytest.raises(ValueError, match=r"mask_ratio=1\.5 is not between 0 and 1"):
        net(mask_ratio=1.5)
