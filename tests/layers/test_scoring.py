"""recbole_cafe.layers.scoring: Eq. 10, in logarithms."""

import pytest
import torch

from recbole_cafe.layers.scoring import JOINTS, intent_terms, joint_score


def score(item, intent, joint):
    """Score of a candidate with item logit r^v and intent logit r^c (the intent term of a known intent)."""
    logits = torch.zeros(1, 4)
    logits[0, 1] = intent
    return joint_score(torch.tensor(float(item)), intent_terms(logits, joint)[0, 1], joint).item()


def test_product_is_the_log_of_the_product_of_sigmoids():
    item, intent = torch.randn(50, dtype=torch.float64) * 3, torch.randn(1, 52, dtype=torch.float64) * 3
    got = joint_score(item, intent_terms(intent, "product")[0, 1:51], "product")
    torch.testing.assert_close(got, (item.sigmoid() * intent[0, 1:51].sigmoid()).log())


def test_log_sigmoid_sum_and_product_of_sigmoids_rank_the_same():
    item, intent = torch.randn(8, 200, dtype=torch.float64) * 4, torch.randn(8, 202, dtype=torch.float64) * 4
    got = joint_score(item, intent_terms(intent, "product")[:, 1:201], "product")
    product = item.sigmoid() * intent[:, 1:201].sigmoid()
    assert torch.equal(got.argsort(1), product.argsort(1))


def test_sum_and_product_do_not_rank_alike():
    """(r^c, r^v) = (10, 0) against (4, 4): 10 > 8, but .50 < .96."""
    assert score(0, 10, "sum") == 10
    assert score(4, 4, "sum") == 8
    assert torch.tensor(score(0, 10, "product")).exp().item() == pytest.approx(0.5, abs=1e-3)
    assert torch.tensor(score(4, 4, "product")).exp().item() == pytest.approx(0.9644, abs=1e-4)


def test_the_item_alone_ignores_the_intent():
    item = torch.randn(3)
    assert torch.equal(joint_score(item, None, "item"), item)


def test_logits_whose_product_underflows_still_rank():
    """sigmoid(-60)^2 is 7.7e-53, below float32's smallest number; so is sigmoid(-70) sigmoid(-60)."""
    better, worse = torch.tensor([-60.0, -60.0]), torch.tensor([-70.0, -60.0])
    assert (better.sigmoid().prod() == 0) & (worse.sigmoid().prod() == 0)
    assert score(*better.tolist(), "product") > score(*worse.tolist(), "product")
    assert score(-60, -60, "product") == pytest.approx(-120)


@pytest.mark.parametrize("joint", ["product", "sum"])
def test_no_intent_gets_the_mean_probability_of_the_intents(joint):
    logits = torch.tensor([[99.0, 1.0, -2.0, 4.0, -77.0], [-99.0, 0.0, 0.0, 0.0, 55.0]])  # padding, 3 intents, none
    terms = intent_terms(logits, joint)
    known = torch.nn.functional.logsigmoid(logits[:, 1:4]) if joint == "product" else logits[:, 1:4]
    assert terms.shape == (2, 5)
    assert torch.equal(terms[:, 1:4], known)
    wanted = logits[:, 1:4].sigmoid().mean(1).log() if joint == "product" else known.mean(1)
    torch.testing.assert_close(terms[:, 4], wanted)
    assert (known.amin(1) <= terms[:, 4] + 1e-6).all()
    assert (terms[:, 4] <= known.amax(1) + 1e-6).all()


def test_without_any_intent_no_intent_is_zero():
    assert intent_terms(torch.randn(2, 2), "sum")[:, -1].tolist() == [0.0, 0.0]


def test_an_unknown_joint_is_named():
    assert JOINTS == ("product", "sum", "item")
    with pytest.raises(ValueError, match="joint='max' is not one of product, sum, item"):
        joint_score(torch.zeros(1), torch.zeros(1), "max")
