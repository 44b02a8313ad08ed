"""What metrics are made of: lists that end where the candidates end, scores of single candidates, metrics of a user's
own. Right values are computed by hand or by loops that know nothing of RecBole's classes."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import write_data_set
from recbole.evaluator import register
from recbole.evaluator.base_metric import AbstractMetric, LossMetric, TopkMetric
from recbole.evaluator.collector import DataStruct
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from recbole.utils import EvaluatorType
from table_model import Table, ready
from torch import Tensor

from recbole_cafe import CaFe, Config, run
from recbole_cafe.experiment import by_protocol
from recbole_cafe.ranking.ranks import Ranks, list_with_target
from recbole_cafe.train.metrics import ProtocolEvaluator

N_USERS, N_ITEMS, N_INTENTS, L = 12, 30, 5, 5
LISTS = ["ItemCoverage", "GiniIndex", "ShannonEntropy", "AveragePopularity", "TailPercentage"]
RANKED = ["Hit", "NDCG", "MRR", "Recall", "MAP", "Precision", "GAUC"]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve users with 5 to 18 clicks on 30 items, stamps all different; a label of 0.5 or 1 for each click."""
    rng = np.random.default_rng(5)
    owner = np.repeat(np.arange(N_USERS), rng.integers(5, 19, N_USERS))
    items = np.minimum(N_ITEMS * rng.random(len(owner)) ** 2, N_ITEMS - 1).astype(int)
    items[:N_ITEMS] = rng.permutation(N_ITEMS)  # every item occurs
    stamps = rng.choice(2**20, len(owner), replace=False)
    clicks = [(f"u{u}", f"i{i}", int(t), 0.5 + (t % 2) / 2) for u, i, t in zip(owner, items, stamps, strict=True)]
    intents = {f"i{i}": f"c{i % N_INTENTS}" for i in range(N_ITEMS)}
    header = "user_id:token\titem_id:token\ttimestamp:float\tlabel:float"
    return str(write_data_set(tmp_path_factory.mktemp("data"), "little", clicks, intents, header=header))


@pytest.fixture
def make(data_path: str) -> Any:
    """(model, **settings) -> trainer, train, valid and test loader."""

    def prepared(model: Any, **settings: Any) -> tuple[Any, Any, Any, Any]:
        plain = {
            "data_path": data_path, "gpu_id": "", "show_progress": False, "topk": [1, 5], "eval_mode": "full",
            "MAX_ITEM_LIST_LENGTH": L, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "metric_decimal_place": 12,
            "epochs": 1,
        }  # fmt: skip
        known = {k: v for k, v in (plain | settings).items() if v is not None}
        kind = known["metrics"][0]
        ranked = issubclass(register.metrics_dict[kind.lower()], TopkMetric) or kind in LISTS
        known.setdefault("valid_metric", f"{kind}@5" if ranked else kind)
        return ready(Config(model, "little", config_dict=known))

    return prepared


class Signed(Table):
    """Negative scores among them."""

    def draw(self, n_users: int, n_items: int) -> Tensor:
        return self.of(super().draw(n_users, n_items))

    def of(self, drawn: Tensor) -> Tensor:
        return drawn * 1.4 - 0.2


class Scores(Signed, SequentialRecommender):
    pass


class GeneralScores(Signed, GeneralRecommender):
    pass


class Steps(Scores):
    """Many candidates of a user score the same."""

    def of(self, drawn: Tensor) -> Tensor:
        return (drawn * 4).floor() / 4


class Constant(Scores):
    def of(self, drawn: Tensor) -> Tensor:
        return torch.full_like(drawn, 0.25)


class Probability(Scores):
    """A model whose scores of all items are only in the order of what it predicts, as RecBole's DMF."""

    def predict(self, interaction: Any) -> Tensor:
        return torch.sigmoid(super().predict(interaction))


class Unlikely(Scores):
    """Half of the items cannot be, which is a score of -inf."""

    def of(self, drawn: Tensor) -> Tensor:
        return drawn.masked_fill(drawn < 0.5, -torch.inf)


def candidates_of(trainer: Any, test: Any, protocol: str, mask: bool = False) -> list[tuple[int, int, list[int]]]:
    """User, target and candidates (the target first) of each row."""
    dataset = test._dataset
    users, targets = (dataset.inter_feat[field].tolist() for field in ("user_id", "item_id"))
    history = dataset.history_items(np.arange(len(dataset)))
    rows = []
    for user, target, past in zip(users, targets, history, strict=True):
        if protocol == "full":
            rivals = sorted(set(range(1, dataset.item_num)) - {target} - (set(past.tolist()) if mask else set()))
        else:
            rivals = [i for i in trainer.evaluation._candidates[protocol].negatives[user].tolist() if i]
        rows.append((user, target, [target, *rivals]))
    return rows


# Lists ----------------------------------------------------------------------------------------------------------------


def test_lists_end_where_the_candidates_end_by_hand() -> None:
    """Three users with 3, 1 and 2 candidates: items 1, 2, 3; item 2; items 3, 1. The target is first, first, second.

    In the train data item 1 occurs 9 times and item 2 three times; V = 5.
    """
    config = {"metrics": [*LISTS, *RANKED], "topk": [1, 2, 4], "metric_decimal_place": 4, "tail_ratio": 0.5}
    ranks = Ranks(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), torch.tensor([3, 1, 2]))
    lists = torch.tensor([[1, 2, 3, 0], [2, 0, 0, 0], [3, 1, 0, 0]])
    collected = DataStruct()
    collected.set("data.num_items", 5)
    collected.set("data.count_items", Counter({1: 9, 2: 3}))
    result = ProtocolEvaluator(config).evaluate_ranks(ranks, {"rec.items": lists}, collected)
    ln = math.log
    of_five = -(2 * 0.4 * ln(0.4) + 0.2 * ln(0.2)) / 3  # 1, 2; 2; 3, 1
    expected = {
        "averagepopularity@1": (9 + 3 + 0) / 3,
        "averagepopularity@2": ((9 + 3) / 2 + 3 + (0 + 9) / 2) / 3,
        "averagepopularity@4": ((9 + 3 + 0) / 3 + 3 + (0 + 9) / 2) / 3,
        "tailpercentage@1": (0 + 1 + 0) / 3,  # the tail is item 2
        "tailpercentage@2": (1 / 2 + 1 + 0) / 3,
        "tailpercentage@4": (1 / 3 + 1 + 0) / 3,
        "itemcoverage@1": 3 / 5,
        "itemcoverage@2": 3 / 5,
        "itemcoverage@4": 3 / 5,
        "shannonentropy@1": ln(3) / 3,
        "shannonentropy@2": of_five,
        "shannonentropy@4": ln(3) / 3,  # each twice
        "giniindex@1": (0 * 1 + 2 * 1 + 4 * 1) / 3 / 5,
        "giniindex@2": (0 * 1 + 2 * 2 + 4 * 2) / 5 / 5,
        "giniindex@4": (0 * 2 + 2 * 2 + 4 * 2) / 6 / 5,
        "precision@1": 2 / 3,
        "precision@2": (1 / 2 + 1 + 1 / 2) / 3,
        "precision@4": (1 / 3 + 1 + 1 / 2) / 3,
        "hit@1": 2 / 3,
        "hit@4": 1.0,
        "recall@4": 1.0,
        "mrr@4": (1 + 1 + 1 / 2) / 3,
        "map@4": (1 + 1 + 1 / 2) / 3,
        "ndcg@4": (1 + 1 + 1 / math.log2(3)) / 3,
        "gauc": (1 + 0) / 2,  # a user without rivals is in no pair
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-11)


def naive_lists(rows: list[tuple[int, int, list[int]]], table: Tensor, count: dict[int, int], k: int,
                n_items: int) -> dict[str, float]:  # fmt: skip
    """The five metrics of lists by their definitions."""
    lists = [sorted(items, key=lambda i: -float(table[user, i]))[:k] for user, _, items in rows]
    tail = sorted(count, key=lambda i: (count[i], i))[: max(int(len(count) * 0.1), 1)]
    listed = Counter(i for one in lists for i in one)
    total = sum(listed.values())
    places = range(n_items - len(listed) + 1, n_items + 1)
    return {
        f"averagepopularity@{k}": np.mean([np.mean([count.get(i, 0) for i in one]) for one in lists]),
        f"tailpercentage@{k}": np.mean([np.mean([i in tail for i in one]) for one in lists]),
        f"itemcoverage@{k}": len(listed) / n_items,
        f"shannonentropy@{k}": -sum(n / total * math.log(n / total) for n in listed.values()) / len(listed),
        f"giniindex@{k}": sum((2 * i - n_items - 1) * n for i, n in zip(places, sorted(listed.values()), strict=True))
        / total
        / n_items,
    }


@pytest.mark.parametrize("mask", [False, True])
def test_cut_offs_beyond_the_candidates_are_metrics_of_all_candidates(make: Any, mask: bool) -> None:
    top, modes = [1, 5, 20, 200], ["full", "pop7", "uni25"]  # some users have not 25 items outside their own
    trainer, train, _, test = make(Scores, metrics=[*LISTS, *RANKED], topk=top, eval_mode=modes, mask_history=mask)
    results = by_protocol(trainer.evaluate(test, load_best_model=False), modes)
    count = dict(train._dataset.item_counter)
    for mode in modes:
        rows = candidates_of(trainer, test, mode, mask)
        sizes = {len(items) for *_, items in rows}
        assert len(sizes) > 1 if mode == "uni25" or (mask and mode == "full") else len(sizes) == 1
        for k in top:
            expected = naive_lists(rows, trainer.model.table, count, k, N_ITEMS + 1)
            assert {key: results[mode][key] for key in expected} == pytest.approx(expected, abs=1e-11), mode
            of = trainer.evaluation.ranks[mode]
            hits = [(a < k) / min(k, n) for a, n in zip(of.above.tolist(), of.n_candidates.tolist(), strict=True)]
            assert results[mode][f"precision@{k}"] == pytest.approx(np.mean(hits), rel=1e-12)
        assert results[mode]["hit@200"] == results[mode]["recall@200"] == 1.0
        assert results[mode]["mrr@200"] == pytest.approx(results[mode]["mrr"], rel=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_lists_of_a_catalogue_end_where_those_of_scores_do(
    make: Any, monkeypatch: pytest.MonkeyPatch, mask: bool
) -> None:
    trainer, _, _, test = make(CaFe, metrics=[*LISTS, *RANKED], topk=[1, 5, 29, 40], mask_history=mask)
    ranked = dict(trainer.evaluate(test, load_best_model=False))
    monkeypatch.setattr(type(trainer.model), "catalogue", lambda _self: None)
    assert ranked == pytest.approx(dict(trainer.evaluate(test, load_best_model=False)), abs=1e-11)


def test_a_candidate_of_score_minus_infinity_is_listed_before_padding(make: Any) -> None:
    trainer, _, _, test = make(Unlikely, metrics=["ItemCoverage"], topk=[5, 40], mask_history=True)
    result = trainer.evaluate(test, load_best_model=False)
    candidates = {i for *_, items in candidates_of(trainer, test, "full", mask=True) for i in items}
    assert result["itemcoverage@40"] == pytest.approx(len(candidates) / (N_ITEMS + 1), rel=1e-12)


def test_recbole_is_not_asked_for_longer_lists_than_it_makes(make: Any) -> None:
    for model, mode, metric, k, most in (
        ("CaFe", "full", "Hit", 31, 30),
        (Scores, "pop7", "Hit", 31, 30),
        (Scores, "pop7", "ItemCoverage", 9, 8),
    ):
        settings = {"metrics": [metric], "topk": [5, k], "eval_mode": mode, "candidates": "recbole"}
        trainer, train, valid, _ = make(model, **settings)
        with pytest.raises(
            ValueError, match=rf"topk=\[5, {k}\]: candidates=recbole makes lists of at most {most} items"
        ):
            trainer.fit(train, valid)
        assert trainer.epochs_run == 0
        trainer, train, valid, test = make(model, **settings | {"topk": [5, most]})
        trainer.fit(train, valid)
        assert f"{metric.lower()}@{most}" in trainer.evaluate(test)


def test_the_target_is_listed_at_its_place() -> None:
    items = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [6, 5, 7, 8], [5, 6, 7, 8], [5, 9, 0, 0], [9, 0, 0, 0]])
    target = torch.tensor([9, 9, 5, 5, 9, 9])
    place = torch.tensor([0, 3, 2, 3, 1, 0])
    assert list_with_target(items, target, place).tolist() == [
        [9, 5, 6], [5, 6, 7], [6, 7, 5], [6, 7, 8], [5, 9, 0], [9, 0, 0],
    ]  # fmt: skip


# Scores ---------------------------------------------------------------------------------------------------------------


def naive_values(rows: list[tuple[int, int, list[int]]], score: Any) -> dict[str, float]:
    """AUC over all pairs of a target and a drawn item, whoever's; the others over all scored items."""
    targets = [score(user, target) for user, target, _ in rows]
    others = [score(user, item) for user, _, items in rows for item in items[1:]]
    pairs = [(t > o) + (t == o) / 2 for t in targets for o in others]
    error = np.array([*(1 - t for t in targets), *others])
    likely = np.array([*np.clip(targets, 1e-15, 1 - 1e-15), *(1 - np.clip(others, 1e-15, 1 - 1e-15))])
    return {
        "auc": np.mean(pairs),
        "mae": np.abs(error).mean(),
        "rmse": math.sqrt((error**2).mean()),
        "logloss": -np.log(likely).mean(),
    }


VALUES = ["AUC", "LogLoss", "MAE", "RMSE"]


@pytest.mark.parametrize("model", [Scores, GeneralScores, Steps])
def test_value_metrics_are_of_the_stored_candidates_of_each_protocol(make: Any, model: type) -> None:
    modes = ["pop7", "uni25"]
    trainer, _, valid, test = make(model, metrics=VALUES, eval_mode=modes, eval_batch_size=5)
    results = by_protocol(trainer.evaluate(test, load_best_model=False), modes)
    table = trainer.model.table.double()
    for mode in modes:
        rows = candidates_of(trainer, test, mode)
        expected = naive_values(rows, lambda user, item: float(table[user, item]))
        assert results[mode] == pytest.approx(expected, rel=1e-5)  # scores are float32
        assert results[mode]["auc"] == pytest.approx(expected["auc"], abs=1e-12)
    assert results["pop7"] != results["uni25"]
    assert set(trainer.evaluation.candidate_digests) == set(modes)
    assert set(trainer.evaluation.ranks) == set(modes)
    assert list(trainer.evaluate(valid, load_best_model=False)) == ["auc", "logloss", "mae", "rmse"]


def test_value_metrics_are_of_what_a_model_predicts(make: Any) -> None:
    trainer, _, _, test = make(Probability, metrics=VALUES, eval_mode="pop7")
    result = dict(trainer.evaluate(test, load_best_model=False))
    table = trainer.model.table.double().sigmoid()
    rows = candidates_of(trainer, test, "pop7")
    assert result == pytest.approx(naive_values(rows, lambda user, item: float(table[user, item])), rel=1e-5)


def test_value_metrics_are_recboles_on_recboles_candidates(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's whole evaluation, its loader made to draw our stored negatives."""
    trainer, _, _, test = make("CaFe", metrics=VALUES, eval_mode="pop7")
    ours = dict(trainer.evaluate(test, load_best_model=False))
    negatives = trainer.evaluation._candidates["pop7"].negatives
    assert (negatives[1:] > 0).all()
    stock, _, _, test = make("CaFe", metrics=VALUES, eval_mode="pop7", candidates="recbole")
    monkeypatch.setattr(
        type(test._sampler),
        "sample_by_user_ids",
        lambda _s, users, _i, _n: torch.from_numpy(negatives[users].T.ravel()),
    )
    assert ours == pytest.approx(dict(stock.evaluate(test, load_best_model=False)), rel=1e-6)


def test_a_run_with_auc_has_values_for_each_protocol_in_its_file(data_path: str) -> None:
    settings = {
        "data_path": data_path, "gpu_id": "", "show_progress": False, "epochs": 2, "metrics": ["AUC", "LogLoss"],
        "valid_metric": "LogLoss", "eval_mode": ["pop7", "uni5"], "hidden_size": 8, "inner_size": 8, "n_layers": 1,
    }  # fmt: skip
    run("CaFe", "little", config_dict=settings, result_file="result.json")
    result = json.loads(Path("result.json").read_text())
    assert {mode: list(values) for mode, values in result["test_result"].items()} == {
        "pop7": ["auc", "logloss"], "uni5": ["auc", "logloss"],
    }  # fmt: skip
    assert set(result["candidates"]) == {"pop7", "uni5"}
    assert result["best_valid_score"] == result["best_valid_result"]["logloss"]


def test_gauc_is_the_share_of_pairs_in_the_right_order(make: Any) -> None:
    trainer, _, _, test = make(Steps, metrics=["GAUC"], eval_mode=["uni25", "full"], valid_metric="GAUC")
    results = by_protocol(trainer.evaluate(test, load_best_model=False), ["uni25", "full"])
    for mode in results:
        of_users = []
        for user, target, items in candidates_of(trainer, test, mode):
            row = trainer.model.table[user]
            of_users.append(
                np.mean([float(row[target] > row[i]) + float(row[target] == row[i]) / 2 for i in items[1:]])
            )
        assert results[mode] == {"gauc": pytest.approx(np.mean(of_users), rel=1e-12)}


# Metrics of a user's own ----------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a metric class where RecBole registers its own."""

    def add(metric: type) -> type:
        name = metric.__name__.lower()
        monkeypatch.setitem(register.metrics_dict, name, metric)
        monkeypatch.setitem(register.metric_information, name, metric.metric_need)
        monkeypatch.setitem(register.metric_types, name, metric.metric_type)
        return metric

    return add


class Witness(AbstractMetric):
    """Keeps what it is given."""

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.topk", "rec.items", "rec.score", "rec.meanrank", "data.label", "data.num_items"]
    seen: dict[str, Any] = {}

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        type(self).seen = {need: dataobject.get(need) for need in self.metric_need}
        return {"witness": 1.0}


class HitAtOdd(TopkMetric):
    """A hit counts at places 1, 3, 5, ...; its mean is not that of a function of RecBole's."""

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        hits, n_targets = self.used_info(dataobject)
        assert set(n_targets) == {1}
        return {f"hitatodd@{k}": float(hits[:, :k:2].any(axis=1).mean()) for k in self.topk}


class Popular(AbstractMetric):
    """A list metric, of which nobody knows what to do with lists of different lengths."""

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.items", "data.count_items"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        count = dataobject.get("data.count_items")
        return {"popular": float(np.mean([count[i] for i in dataobject.get("rec.items").flatten().tolist()]))}


class Squared(LossMetric):
    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        return self.output_metric("squared", dataobject)

    def metric_info(self, preds: np.ndarray, trues: np.ndarray) -> float:
        return float(((preds - trues) ** 2).mean())


class Labelled(AbstractMetric):
    metric_type = EvaluatorType.RANKING
    metric_need = ["data.label"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        return {"labelled": float(dataobject.get("data.label").mean())}


class Dreamt(AbstractMetric):
    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.dream", "rec.topk"]


@pytest.mark.parametrize("model", [Scores, Steps, "CaFe"])
@pytest.mark.parametrize("mode", ["pop7", "full"])
def test_a_metric_of_ones_own_gets_what_it_needs(make: Any, registered: Any, model: Any, mode: str) -> None:
    registered(Witness)
    columns = {"inter": ["user_id", "item_id", "timestamp", "label"]}
    settings = {"metrics": ["Witness", "Hit", "GAUC"], "valid_metric": "Witness", "eval_mode": mode, "topk": [3, 5]}
    trainer, _, _, test = make(model, load_col=columns, eval_batch_size=5, **settings)
    result = dict(trainer.evaluate(test, load_best_model=False))
    seen, rows = Witness.seen, candidates_of(trainer, test, mode)
    assert result["witness"] == 1.0
    assert seen["data.num_items"] == N_ITEMS + 1
    assert seen["rec.score"].shape == (N_USERS, N_ITEMS + 1)
    n = len(rows[0][2])
    everything = trainer.model.full_sort_predict(test._dataset[np.arange(N_USERS)]).detach()
    for row, (_, target, items) in enumerate(rows):
        scores, listed = seen["rec.score"][row], seen["rec.items"][row].tolist()
        assert sorted(torch.nonzero(scores > -torch.inf).flatten().tolist()) == sorted(items)
        torch.testing.assert_close(scores[items], everything[row, items])
        assert sorted(scores[items].tolist(), reverse=True)[:5] == pytest.approx(scores[listed].tolist(), abs=1e-6)
        assert len(set(listed)) == 5
        assert seen["rec.topk"][row].tolist() == [*(int(i == target) for i in listed), 1]
        above, tied = (int((o(scores[items], scores[target])).sum()) for o in (torch.gt, torch.eq))
        assert seen["rec.meanrank"][row].tolist() == pytest.approx([above + (tied + 1) / 2, n, 1], abs=1)
    if mode == "full":  # RecBole's: the column of the interactions
        assert torch.equal(seen["data.label"], test._dataset.inter_feat["label"])
    else:
        assert seen["data.label"].tolist() == [1.0, *[0.0] * 7] * N_USERS
    if model is Scores:
        assert float(seen["rec.topk"][:, :5].sum(1).double().mean()) == pytest.approx(result["hit@5"], abs=1e-12)


def test_a_top_k_metric_of_ones_own_is_asked_as_recbole_asks_it(make: Any, registered: Any) -> None:
    registered(HitAtOdd)
    trainer, _, _, test = make(Scores, metrics=["HitAtOdd", "MRR"], eval_mode=["full", "uni25"], topk=[1, 5, 40])
    result = by_protocol(trainer.evaluate(test, load_best_model=False), ["full", "uni25"])
    for mode in ("full", "uni25"):
        values, above = result[mode], trainer.evaluation.ranks[mode].above
        for k in (1, 5, 40):
            assert values[f"hitatodd@{k}"] == pytest.approx(float(((above < k) & (above % 2 == 0)).double().mean()))
    trainer, train, valid, _ = make(Scores, metrics=["HitAtOdd"])
    trainer.fit(train, valid)  # early stopping by it
    assert trainer.best_valid_score == trainer.best_valid_result["hitatodd@5"]


def test_a_tie_is_broken_by_lot_and_always_the_same(make: Any, registered: Any) -> None:
    registered(Witness)
    at = []
    for seed in range(40):
        trainer, _, _, test = make(
            Constant, metrics=["Witness"], eval_mode="pop7", topk=[2, 5], candidates_seed=seed, load_col=None
        )
        trainer.evaluate(test, load_best_model=False)
        first = Witness.seen["rec.topk"][:, :5]
        trainer.evaluate(test, load_best_model=False)
        assert torch.equal(first, Witness.seen["rec.topk"][:, :5])
        at.append(first.double().mean(0))
    # 480 draws of one place in eight: the standard error is 0.015
    assert torch.stack(at).mean(0).tolist() == pytest.approx([1 / 8] * 5, abs=0.05)


def test_a_value_metric_of_ones_own(make: Any, registered: Any) -> None:
    registered(Squared)
    trainer, _, _, test = make(Scores, metrics=["RMSE", "Squared"], eval_mode="pop7")
    result = trainer.evaluate(test, load_best_model=False)
    assert result["squared"] == pytest.approx(result["rmse"] ** 2, rel=1e-5)


def test_what_a_metric_of_ones_own_cannot_get_is_said_before_training(make: Any, registered: Any) -> None:
    for metric in (Dreamt, Popular, Labelled):
        registered(metric)
    with pytest.raises(ValueError, match=r"metrics=\['Dreamt'\]: Dreamt needs rec\.dream, which nobody collects"):
        make(Scores, metrics=["Dreamt"])

    popular = {"metrics": ["Popular"], "valid_metric": "Popular"}
    for settings, protocol, least in (
        ({"topk": [5, 9], "eval_mode": "pop7"}, "pop7", 8),
        ({"topk": [5, 31]}, "full", 30),
    ):
        trainer, train, valid, _ = make(Scores, **popular, **settings)
        with pytest.raises(ValueError, match=rf"the metrics popular need lists .* of {settings['topk'][-1]} items, "
                                             rf"under {protocol} there is a row with {least} candidates"):  # fmt: skip
            trainer.fit(train, valid)
        assert trainer.epochs_run == 0
    for settings in ({"topk": [5, 29], "mask_history": True}, {"topk": [5, 25], "eval_mode": "uni25"}):
        trainer, train, valid, test = make(Scores, **popular, **settings)
        sizes = [len(items) for *_, items in _with_table(trainer, test, settings)]
        with pytest.raises(ValueError, match=f"there is a row with {min(sizes)} candidates"):
            trainer.check(test)
    trainer, _, _, test = make(Scores, topk=[5, 8], eval_mode="pop7", **popular)
    trainer.check(test)
    assert trainer.evaluate(test, load_best_model=False)["popular"] > 0

    labelled = {"metrics": ["Labelled"], "valid_metric": "Labelled"}
    trainer, train, valid, _ = make(Scores, load_col={"inter": ["user_id", "item_id", "timestamp"]}, **labelled)
    with pytest.raises(ValueError, match=r"metrics=\['Labelled'\]: one needs data\.label, under full the column "
                                         r"LABEL_FIELD='label' of the interactions"):  # fmt: skip
        trainer.fit(train, valid)


def _with_table(trainer: Any, test: Any, settings: dict[str, Any]) -> list[tuple[int, int, list[int]]]:
    protocol = trainer.protocols[0]
    if protocol.distribution is not None:
        trainer.evaluation._table(test._dataset, protocol)
    return candidates_of(trainer, test, protocol.name, settings.get("mask_history", False))


def test_too_many_scores_to_keep_are_refused(make: Any, registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(Witness)
    monkeypatch.setattr("recbole_cafe.train.evaluation.SCORE_TABLE", N_USERS * N_ITEMS)
    trainer, train, valid, _ = make(Scores, metrics=["Witness"], eval_mode="pop7")
    with pytest.raises(ValueError, match=r"needs rec\.score, the scores of all 30 items for 12 rows"):
        trainer.fit(train, valid)
