"""recbole_cafe.layers.cloze: what is hidden, and what RecBole's BERT4Rec gets wrong."""

import pytest
import torch

from recbole_cafe.layers.cloze import Cloze

MASK, L = 99, 6


def cloze(ratio=0.5):
    return Cloze(mask_id=MASK, mask_ratio=ratio, max_seq_length=L)


def test_a_row_ends_with_the_item_after_the_history():
    """The user's last train item is read, and so may be hidden."""
    seq = torch.tensor([[3, 5, 0, 0], [7, 0, 0, 0]])
    both_layouts = torch.tensor([[5, 8, 0, 0], [9, 0, 0, 0]]), torch.tensor([[0, 8, 0, 0], [9, 0, 0, 0]])
    for target in both_layouts:
        assert cloze().rows(seq, target).tolist() == [[3, 5, 8, 0, 0], [7, 9, 0, 0, 0]]


def test_the_oldest_item_goes_only_when_the_row_is_full():
    seq = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 0], [1, 0, 0, 0, 0, 0]])
    assert cloze().question(seq).tolist() == [
        [2, 3, 4, 5, 6, MASK],
        [1, 2, 3, 4, 5, MASK],
        [1, MASK, 0, 0, 0, 0],
    ]
    assert cloze().question(seq[2:, :1]).tolist() == [[1, MASK]]  # a trimmed row grows


@pytest.mark.parametrize(("ratio", "counts"), [(0.2, [1, 1, 1, 1]), (0.5, [1, 1, 2, 3]), (0.6, [1, 1, 2, 3])])
def test_how_many_are_hidden(ratio, counts):
    """max(1, round(n p)), at most L p: of rows of 1, 2, 4 and 6 items (round to even: 2.5 -> 2; 6 x 0.6 -> 3)."""
    rows = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 5, 6]])
    for _ in range(5):
        hidden, answer = cloze(ratio).hide(rows)
        assert (hidden == MASK).sum(1).tolist() == counts
        assert torch.equal(answer > 0, hidden == MASK)
        assert torch.equal(torch.where(answer > 0, answer, hidden), rows)  # nothing else has changed


def test_every_real_position_is_hidden_equally_often_and_padding_never():
    rows = torch.tensor([[4, 5, 6, 7, 0, 0]]).expand(20_000, L)
    share = (cloze().hide(rows)[0] == MASK).double().mean(0)
    assert share[4:].sum() == 0
    assert (share[:4] - 0.5).abs().max() < 5 * 0.5 / 20_000**0.5  # the first one too: five standard errors


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_a_wrong_ratio_is_named(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio={ratio} is not between 0 and 1"):
        cloze(ratio)
