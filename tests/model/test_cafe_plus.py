"""recbole_cafe.model.cafe_plus: probabilities, the memory beside the networks, sums over intents."""

import numpy as np
import pytest
import torch
from contract import ModelContract, build, with_all_targets

from recbole_cafe.data.batch import Batch
from recbole_cafe.model import cafe_plus
from recbole_cafe.model.cafe_plus import IntentItems, reweighted
from recbole_cafe.model.counts import newest_first


class TestCaFePlus(ModelContract):
    model = "CaFePlus"
    layouts = {"all": 14}

    @pytest.mark.parametrize(
        "settings",
        [{}, {"item_memory": False}, {"item_net": False},
         {"repeats": "free"}, {"popularity_exponent": -1.0}, {"popularity_exponent": 1.0},
         {"evidence_exponent": 0.0}, {"evidence_exponent": 2.0}, {"softmax": "levels"},
         {"softmax": "items", "item_net": False}],
    )  # fmt: skip
    def test_probabilities_sum_to_one(self, toy_path, settings):
        scores = self.build(toy_path, **settings).enlarged().scores()[:, 1:]
        assert (scores >= 0).all()
        torch.testing.assert_close(scores.sum(1), torch.ones(len(scores)), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("softmax", ["levels", "items"])
    @pytest.mark.parametrize("settings", [{}, {"item_net": False}, {"popularity_exponent": -1.0}])
    def test_an_intents_items_share_its_probability(self, toy_path, settings, softmax):
        """Where nothing but (2) and (3) speaks, P(c | h) is the sum over the items of c."""
        run = self.build(toy_path, item_memory=False, repeats="free", softmax=softmax, **settings).enlarged()
        network, batch = run.model.network, run.batch()
        scores = run.scores()[:, 1:]
        with torch.no_grad():
            direct = network.intent_probabilities(batch["item_id_list"])
        summed = torch.zeros_like(direct).index_add(1, network.item2intent[1:], scores)
        torch.testing.assert_close(direct, summed, rtol=1e-4, atol=1e-6)

    def test_it_begins_as_intent_backoff(self, toy_path):
        """Before training the networks say nothing: counts, backed off to the popularity of intents. IntentBackoff
        does the same where the intents of a history weigh nothing beside their popularity."""
        settings = {"popularity_exponent": 0.3, "MAX_ITEM_LIST_LENGTH": 8}
        plus = self.build(toy_path, evidence_exponent=0.0, softmax="levels", **settings)
        counts = build("IntentBackoff", toy_path, intent_prior=1e9, **settings)
        with torch.no_grad():
            plus.model.network.intent_embedding.weight.zero_()
            plus.model.network.item_embedding.weight.zero_()
        torch.testing.assert_close(plus.scores()[:, 1:], counts.scores()[:, 1:].float(), rtol=1e-4, atol=1e-6)

    def test_the_networks_have_a_word_in_the_evidence(self, toy_path):
        """With tau between two items that both have evidence and no other part: ratios change by (Q / Q')^tau."""
        plain, half, off = (
            self.build(toy_path, repeats="free", **settings).enlarged()
            for settings in ({"item_memory": False}, {"evidence_exponent": 0.5}, {"evidence_exponent": 0.0})
        )
        for run in (half, off):
            run.model.network.load_state_dict(plain.model.network.state_dict(), strict=False)
        with torch.no_grad():
            newest = newest_first(half.batch()["item_id_list"])
            mass, rest = half.model.network.items.masses(newest, half.model.network.counts.lookup)
        q, with_tau, without = (run.scores()[:, 1:].double() for run in (plain, half, off))
        left = (rest / mass)[:, None] * q
        evidence, tilted = without - left, with_tau - left
        expected = evidence * q**0.5
        expected = expected * (evidence.sum(1) / expected.sum(1).clamp(min=1e-30))[:, None]
        torch.testing.assert_close(tilted, expected, rtol=1e-3, atol=1e-6)
        assert (tilted - evidence).abs().max() > 1e-3

    @pytest.mark.parametrize("item_net", [True, False])
    def test_the_softmax_over_all_items_is_what_is_trained_and_ranked(self, toy_path, item_net):
        """(4), item by item: the loss is -ln of it, and so is what ranks where nothing else speaks."""
        run = self.build(
            toy_path, softmax="items", item_net=item_net, item_memory=False, repeats="free", popularity_exponent=1.0,
            intent_loss_weight=0.0, hidden_dropout_prob=0.0, attn_dropout_prob=0.0,
        ).enlarged()  # fmt: skip
        network, batch = run.model.network, run.batch()
        history, target = batch["item_id_list"], batch["item_id"]
        fused, coarse, packing = network(history)
        says = packing.last(fused if item_net else coarse).double()
        n = network.inside.seen.double()
        logits = torch.full((len(history), network.n_items), -torch.inf, dtype=torch.float64)
        for v in range(1, network.n_items):
            intent = int(network.item2intent[v])
            vector = network.intent_embedding.weight[intent].double()
            if item_net:
                vector = vector + network.item_embedding.weight[v].double()
            logits[:, v] = says @ vector + network.intent_bias[intent] + (n[v] + 1).log()
        expected = logits.softmax(1)
        torch.testing.assert_close(run.scores().double(), expected, rtol=1e-4, atol=1e-7)
        last = torch.zeros_like(history)
        last[torch.arange(len(history)), (history > 0).sum(1) - 1] = target
        network.eval()
        loss = network.loss(Batch(history, last, batch["user_id"]))
        of_target = expected[torch.arange(len(target)), target].log()
        torch.testing.assert_close(loss.double(), -of_target.mean(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("few", "often", "softmax"), [(10**6, 0.1, "items"), (3, 0.1, "levels"), (10**6, 10**6, "levels")]
    )
    def test_auto_takes_the_softmax_over_all_items_where_they_are_few_and_frequent(
        self, toy_path, monkeypatch, few, often, softmax
    ):
        monkeypatch.setattr(cafe_plus, "FEW", few)
        monkeypatch.setattr(cafe_plus, "OFTEN", often)
        assert self.build(toy_path, softmax="auto").model.network.softmax == softmax

    @pytest.mark.parametrize("settings", [{}, {"item_net": False}, {"item_memory": False}])
    def test_the_catalogue_ranks_as_the_scores_do(self, toy_path, settings):
        run = self.build(toy_path, popularity_exponent=0.3, **settings).enlarged()
        scores = run.scores()
        scores[:, 0] = 0
        _, best = run.model.catalogue().top(run.model.query(run.batch()), 5)
        torch.testing.assert_close(best.exp().float(), scores.topk(5).values, rtol=1e-4, atol=1e-6)

    def test_training_is_that_of_the_networks_alone(self, toy_path):
        with_memory, without = (self.build(toy_path, item_memory=memory).enlarged() for memory in (True, False))
        parameters = dict(with_memory.model.network.named_parameters())
        assert parameters.keys() == dict(without.model.network.named_parameters()).keys()
        without.model.network.load_state_dict(with_memory.model.network.state_dict(), strict=False)
        losses = []
        for run in (with_memory, without):
            torch.manual_seed(1)  # of dropout and of the samples of large intents
            losses.append(run.model.calculate_loss(with_all_targets(run.model, run.batch())).item())
        assert losses[0] == losses[1]
        assert losses[0] > 0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"softmax": "all"}, "softmax='all'"),
         ({"repeats": "never"}, "repeats='never'"), ({"n_in_intent": 0}, "n_in_intent=0"),
         ({"prior": 0.0}, "prior=0.0"), ({"window": 0}, "window=0"),
         ({"shrinkage": -1.0}, "shrinkage=-1.0"),
         ({"rank_shrinkage": -1.0}, "rank_shrinkage=-1.0"),
         ({"evidence_exponent": -1.0}, "evidence_exponent=-1.0")],
    )  # fmt: skip
    def test_a_setting_out_of_its_range_is_refused(self, toy_path, settings, message):
        with pytest.raises(ValueError, match=message):
            self.build(toy_path, **settings)


def test_evidence_is_weighted_within_its_row():
    """Row 0: 3 and 1 with weights 1 and 2 become 3 : 2 with the sum 4. One item keeps its value, whatever has
    none beside it; a row without evidence has none."""
    row = torch.tensor([0, 0, 1, 1, 3])
    value = torch.tensor([3.0, 1.0, 5.0, 0.0, 0.0], dtype=torch.float64)
    log_weight = torch.tensor([0.0, np.log(2), -2000.0, 0.0, 0.0], dtype=torch.float64)
    got = reweighted(value, log_weight, row, n_rows=5)
    assert got.tolist() == pytest.approx([2.4, 1.6, 5.0, 0.0, 0.0])


ITEMS = IntentItems(torch.tensor([0, 1, 2, 1, 1, 3, 1]), 4, torch.arange(7.0))  # intent 1: 1 3 4 6


def test_a_small_intent_is_taken_as_it_is():
    items, weight = ITEMS.some(torch.tensor([1, 2]), 5)
    assert sorted(items[0, :4].tolist()) == [1, 3, 4, 6]
    assert items[1, 0] == 2
    assert weight.tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]


def test_a_sample_of_a_large_intent_stands_for_all_of_it():
    """Two draws of four items weigh two each; on average a sum over them is the sum over all."""
    torch.manual_seed(0)
    items, weight = ITEMS.some(torch.ones(20000, dtype=torch.long), 2)
    assert (weight == 2).all()
    assert (items * weight).sum(1).mean().item() == pytest.approx(1 + 3 + 4 + 6, rel=0.02)


def test_sums_over_intents_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    logit = torch.from_numpy(rng.normal(size=(5, 7)) * 30).float()
    expected = torch.zeros(5, 4)
    for intent, items in {1: [1, 3, 4, 6], 2: [2], 3: [5]}.items():
        expected[:, intent] = logit[:, items].logsumexp(1)
    for budget in (5, 10, 1000):
        monkeypatch.setattr("recbole_cafe.ranking.blocks.CELLS", budget)
        torch.testing.assert_close(ITEMS.log_sums(lambda items: logit.T[items], 5), expected)


def test_the_newest_comes_first():
    assert newest_first(torch.tensor([[1, 2, 0], [4, 5, 6]])).tolist() == [[2, 1, 0], [6, 5, 4]]
