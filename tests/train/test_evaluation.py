"""Evaluation as a whole: what the trainer reports about a model whose scores are known."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import write_data_set
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from recbole.quick_start import run_recbole
from recbole.trainer import Trainer
from table_model import Table, ready
from torch import Tensor

from recbole_cafe import CaFe, Config
from recbole_cafe.experiment import by_protocol
from recbole_cafe.files import candidates as sampled
from recbole_cafe.ranking.ranks import ScoreError
from recbole_cafe.train.evaluation import RecBoleScorer
from recbole_cafe.train.metrics import ProtocolEvaluator, per_target

N_USERS, N_ITEMS, N_INTENTS, L = 60, 160, 14, 5
TOP = [1, 5, 10]


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int]]:
    """Sixty users with 6 to 14 clicks on 160 items, popular ones more often, stamps all different."""
    rng = np.random.default_rng(11)
    owner = np.repeat(np.arange(N_USERS), rng.integers(6, 15, N_USERS))
    items = np.minimum(N_ITEMS * rng.random(len(owner)) ** 2, N_ITEMS - 1).astype(int)
    items[:N_ITEMS] = rng.permutation(N_ITEMS)  # every item occurs
    stamps = rng.choice(2**20, len(owner), replace=False)
    return [(f"u{u}", f"i{i}", int(t)) for u, i, t in zip(owner, items, stamps, strict=True)]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory, clicks: list[tuple[str, str, int]]) -> str:
    intents = {f"i{i}": f"c{i % N_INTENTS}" for i in range(N_ITEMS)}
    return str(write_data_set(tmp_path_factory.mktemp("data"), "toy", clicks, intents))


@pytest.fixture
def make(data_path: str) -> Any:
    """(model, **settings) -> trainer, train, valid and test loader."""

    def prepared(model: Any, **settings: Any) -> tuple[Any, Any, Any, Any]:
        plain = {
            "data_path": data_path, "gpu_id": "", "show_progress": False, "topk": TOP, "valid_metric": "NDCG@10",
            "eval_mode": "full", "MAX_ITEM_LIST_LENGTH": L, "hidden_size": 8, "inner_size": 8, "n_layers": 1,
        }  # fmt: skip
        known = {k: v for k, v in (plain | settings).items() if v is not None}
        return ready(Config(model, "toy", config_dict=known))

    return prepared


def result_of(trainer: Any, test: Any) -> dict[str, float]:
    return dict(trainer.evaluate(test, load_best_model=False))


class Scores(Table, SequentialRecommender):
    pass


class GeneralScores(Table, GeneralRecommender):
    pass


class Constant(Scores):
    def draw(self, n_users: int, n_items: int) -> Tensor:
        return torch.full((n_users, n_items), 0.25)


class ItemByItem(Scores):
    full_sort_predict = SequentialRecommender.full_sort_predict  # raises NotImplementedError


class Broken(Scores):
    def draw(self, n_users: int, n_items: int) -> Tensor:
        table = super().draw(n_users, n_items)
        table[3, 7] = torch.nan
        return table


class Oracle(Table, CaFe):
    """A model of ours that knows the target's intent and nothing about items."""

    def catalogue(self) -> None:
        return None  # all scores have to be made

    def score_candidates(self, interaction: Any, items: Tensor, intents: Tensor | None = None) -> Tensor:
        of = self.intents.item2intent
        right = of[interaction[self.ITEM_ID]][:, None]
        chance = self.table[interaction[self.USER_ID][:, None], items]
        return ((of[items] if intents is None else intents) == right) + 0.5 * chance


class Preference(Oracle):
    """Likes some intents more than others, whoever asks."""

    def score_candidates(self, interaction: Any, items: Tensor, intents: Tensor | None = None) -> Tensor:
        return torch.sin((self.intents.item2intent[items] if intents is None else intents).double() * 7)


# Metrics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "n"), [("full", N_ITEMS), ("pop100", 101), ("uni100", 101), ("pop7", 8)])
def test_a_constant_scorer_scores_chance(make: Any, mode: str, n: int) -> None:
    trainer, _, _, test = make(Constant, eval_mode=mode, metrics=["Hit", "NDCG", "MRR", "GAUC"])
    result = result_of(trainer, test)
    for k in TOP:
        seen = min(k, n)
        assert result[f"hit@{k}"] == pytest.approx(seen / n, rel=1e-12)
        assert result[f"ndcg@{k}"] == pytest.approx(sum(1 / np.log2(r + 1) for r in range(1, seen + 1)) / n, rel=1e-12)
        assert result[f"mrr@{k}"] == pytest.approx(sum(1 / r for r in range(1, seen + 1)) / n, rel=1e-12)
    assert result["mrr"] == pytest.approx(sum(1 / r for r in range(1, n + 1)) / n, rel=1e-12)
    assert result["gauc"] == pytest.approx(0.5, rel=1e-12)


def test_chance_in_figures(make: Any) -> None:
    trainer, _, _, test = make(Constant, eval_mode="pop100")
    result = result_of(trainer, test)
    assert result["hit@5"] == pytest.approx(5 / 101, abs=1e-15)
    assert result["ndcg@5"] == pytest.approx(2.9484591188793923 / 101, abs=1e-15)
    assert result["mrr"] == pytest.approx(5.1972785077386300 / 101, abs=1e-14)  # H_101 / 101


ALL_METRICS = [
    "Hit", "NDCG", "MRR", "Recall", "MAP", "Precision", "GAUC", "ItemCoverage", "GiniIndex", "ShannonEntropy",
    "AveragePopularity", "TailPercentage",
]  # fmt: skip


@pytest.mark.parametrize("model", [Scores, ItemByItem])
def test_metrics_are_recboles_when_there_are_no_ties(make: Any, model: type) -> None:
    settings = {"metrics": ALL_METRICS, "metric_decimal_place": 12}
    trainer, _, _, test = make(model, **settings)
    ours = result_of(trainer, test)
    trainer, _, _, test = make(model, candidates="recbole", **settings)
    recboles = result_of(trainer, test)
    ours = {key: value for key, value in ours.items() if not key.startswith("full_later/")}
    assert set(ours) - set(recboles) == {"mrr"}
    assert {key.split("@")[0] for key in recboles} == {name.lower() for name in ALL_METRICS}
    for key, value in recboles.items():
        # RecBole computes GAUC in float32
        assert ours[key] == pytest.approx(value, abs=1e-6 if key == "gauc" else 2e-12), key
    assert 0 < ours["hit@10"] < 1


def test_a_metric_is_its_mean_over_the_places_of_a_tie() -> None:
    rng = np.random.default_rng(0)
    above, tied = rng.integers(0, 12, 300), rng.integers(0, 4, 300) * rng.integers(0, 2, 300)
    config = {"metrics": ["Hit", "NDCG", "MRR", "Recall", "MAP", "Precision"], "topk": TOP, "metric_decimal_place": 4}
    by_hand = {
        "hit": lambda place, k: place < k,
        "recall": lambda place, k: place < k,
        "precision": lambda place, k: (place < k) / k,
        "ndcg": lambda place, k: (place < k) / np.log2(place + 2),
        "mrr": lambda place, k: (place < k) / (place + 1),
        "map": lambda place, k: (place < k) / (place + 1),  # one relevant item: its precision at its place
    }
    metrics = ProtocolEvaluator(config).metric_class
    assert set(metrics) == set(by_hand)
    for name, metric in metrics.items():
        values = per_target(metric, above, tied, np.full(300, 1000))
        assert list(values) == TOP
        for k in TOP:
            expected = [
                np.mean([by_hand[name](a + p, k) for p in range(t + 1)]) for a, t in zip(above, tied, strict=True)
            ]
            np.testing.assert_allclose(values[k], expected, rtol=1e-12, atol=1e-15)


def test_values_are_whole_and_mrr_has_no_cut_off(make: Any) -> None:
    trainer, _, _, test = make(Scores, eval_mode=["full", "pop100"], metrics=["NDCG", "Hit", "MRR", "GAUC"])
    result = result_of(trainer, test)
    for name, prefix in (("full", ""), ("pop100", "pop100/")):
        rank = 1 + trainer.evaluation.ranks[name].above.double()
        assert (trainer.evaluation.ranks[name].tied == 0).all()
        assert result[f"{prefix}mrr"] == pytest.approx(float((1 / rank).mean()), rel=1e-12)
        assert result[f"{prefix}mrr@5"] == pytest.approx(float(((1 / rank) * (rank <= 5)).mean()), rel=1e-12)
        assert result[f"{prefix}mrr"] > result[f"{prefix}mrr@10"] > result[f"{prefix}mrr@5"]
        hits = int((rank <= 10).sum())
        assert result[f"{prefix}hit@10"] == pytest.approx(hits / N_USERS, rel=1e-12)
        rivals = 100 if prefix else N_ITEMS - 1
        assert result[f"{prefix}gauc"] == pytest.approx(1 - float((rank - 1).mean()) / rivals, rel=1e-9)
        for key in ("gauc", "mrr", "ndcg@10"):
            assert result[f"{prefix}{key}"] != round(result[f"{prefix}{key}"], 4)
    assert all(type(value) is float for value in result.values())


def test_nan_scores_stop_the_evaluation(make: Any) -> None:
    trainer, _, _, test = make(Broken)
    with pytest.raises(ScoreError, match="the model's scores contain NaN"):
        result_of(trainer, test)


def test_nothing_to_evaluate_is_none(make: Any) -> None:
    trainer, *_ = make(Scores)
    assert trainer.evaluate(None) is None


# Full ranking ---------------------------------------------------------------------------------------------------------


def expected_ranks(test: Any, table: Tensor, clicks: list[tuple[str, str, int]], mask: bool) -> dict[str, int]:
    """Rank of each user's last item among all items, those of his history left out if `mask`."""
    dataset, of = test._dataset, defaultdict(list)
    for user, item, _ in sorted(clicks, key=lambda click: click[2]):
        of[user].append(dataset.token2id("item_id", item))
    ranks = {}
    for user, (*history, target) in of.items():
        row = table[dataset.token2id("user_id", user)].tolist()
        rivals = set(range(1, dataset.item_num)) - {target} - (set(history) if mask else set())
        ranks[user] = sum(row[item] > row[target] for item in rivals)
    return ranks


TIED = {  # user -> items and days; the last is the test target, the one before it that of validation
    "a": [("i0", 1), ("i1", 1), ("i2", 4), ("i3", 4)],  # not later
    "b": [("i1", 1), ("i2", 2), ("i3", 2), ("i4", 9)],  # later
    "c": [("i2", 3), ("i3", 5), ("i4", 5), ("i5", 5)],  # not later
    "d": [("i3", 2), ("i4", 2), ("i5", 6), ("i0", 7)],  # later
}


def tied_data(folder: Path, of: dict[str, list[tuple[str, int]]]) -> str:
    clicks = [(user, item, 86_400 * day) for user, items in of.items() for item, day in items]
    return str(write_data_set(folder, "toy", clicks, {f"i{i}": "c" for i in range(6)}))


@pytest.mark.parametrize("order", ["file", "random"])
@pytest.mark.parametrize("model", [Scores, GeneralScores])
def test_later_targets_are_the_ranks_of_their_users(make: Any, tmp_path: Path, model: type, order: str) -> None:
    """Of four users two have a target on a later day than the item before, whatever the order inside a day."""
    data = {"data_path": tied_data(tmp_path, TIED), "tie_order": order, "tie_seed": 3}
    trainer, _, valid, test = make(
        model, metrics=["Hit", "MRR", "ItemCoverage"], topk=[1, 3], valid_metric="MRR@3", **data
    )
    flat = trainer.evaluate(test, load_best_model=False)
    users = test._dataset.id2token("user_id", test._dataset.inter_feat["user_id"].numpy())
    above = dict(zip(users, trainer.evaluation.ranks["full"].above.tolist(), strict=True))
    assert (above.keys(), trainer.evaluation.n_targets) == (set("abcd"), {"full": 4, "full_later": 2})
    assert dict(zip(users, trainer.evaluation.later.tolist(), strict=True)) == {
        "a": False,
        "b": True,
        "c": False,
        "d": True,
    }
    assert {key: value for key, value in flat.items() if key.startswith("full_later/")} == {
        "full_later/hit@1": sum(above[u] < 1 for u in "bd") / 2,
        "full_later/hit@3": sum(above[u] < 3 for u in "bd") / 2,
        "full_later/mrr@1": sum(above[u] < 1 for u in "bd") / 2,
        "full_later/mrr@3": pytest.approx(sum((above[u] < 3) / (above[u] + 1) for u in "bd") / 2, rel=1e-12),
        "full_later/mrr": pytest.approx(sum(1 / (above[u] + 1) for u in "bd") / 2, rel=1e-12),
    }  # fmt: skip
    if order == "file":  # validation: a's and d's targets are later
        ranks = dict(trainer.evaluate(valid, load_best_model=False))
        assert "full_later/mrr" in ranks and trainer.evaluation.n_targets["full_later"] == 2


@pytest.mark.parametrize(
    ("days", "why"), [([1, 2, 3, 4], "the stamps are positions in an order, not times"), ([5, 5, 5, 5], "")]
)
def test_without_later_targets_nothing_is_made_up(make: Any, tmp_path: Path, days: list[int], why: str) -> None:
    clicks = [(user, item, day) for user, items in TIED.items() for (item, _), day in zip(items, days, strict=True)]
    data_path = str(write_data_set(tmp_path, "toy", clicks, {f"i{i}": "c" for i in range(6)}))
    trainer, _, _, test = make(Scores, data_path=data_path)
    assert not any(key.startswith("full_later") for key in result_of(trainer, test))
    assert trainer.evaluation.later_unknown.startswith(why) and bool(trainer.evaluation.later_unknown) == bool(why)
    assert trainer.evaluation.n_targets.get("full_later") == (None if why else 0)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("model", [Scores, GeneralScores])
def test_history_is_a_candidate_unless_masked(make: Any, clicks: Any, model: type, mask: bool) -> None:
    trainer, _, _, test = make(model, mask_history=mask, eval_batch_size=7)
    result_of(trainer, test)
    expected = expected_ranks(test, trainer.model.table, clicks, mask)
    users = test._dataset.id2token("user_id", test._dataset.inter_feat["user_id"].numpy())
    assert dict(zip(users, trainer.evaluation.ranks["full"].above.tolist(), strict=True)) == expected
    sizes = set(trainer.evaluation.ranks["full"].n_candidates.tolist())
    assert sizes == {N_ITEMS} if not mask else max(sizes) < N_ITEMS - 3
    assert expected != expected_ranks(test, trainer.model.table, clicks, not mask)


def test_sequential_and_general_models_are_ranked_on_the_same_rows(make: Any) -> None:
    results = []
    for model in (Scores, GeneralScores):
        trainer, _, _, test = make(model, eval_mode=["full", "pop20"], mask_history=True)
        results.append(result_of(trainer, test))
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_sasrec_scores_what_recbole_says(make: Any, data_path: str) -> None:
    """The same weights, evaluated by RecBole's run_recbole and by us."""
    settings = {
        "data_path": data_path, "gpu_id": "", "show_progress": False, "topk": TOP, "valid_metric": "NDCG@10",
        "metrics": ["NDCG", "Hit", "MRR", "Recall"], "MAX_ITEM_LIST_LENGTH": L, "hidden_size": 8, "inner_size": 8,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "epochs": 2, "train_batch_size": 64,
        "learning_rate": 0.01,
    }  # fmt: skip
    stock = run_recbole(model="SASRec", dataset="toy", config_dict=dict(settings))["test_result"]
    (saved,) = Path("saved").glob("SASRec-*.pth")
    trainer, _, _, test = make("SASRec", metrics=settings["metrics"], n_layers=None)
    ours = trainer.evaluate(test, model_file=str(saved))
    assert {key: round(ours[key], 4) for key in stock} == pytest.approx(dict(stock), abs=1e-9)
    assert 0 < stock["hit@10"] < 1


# Protocols ------------------------------------------------------------------------------------------------------------


def test_several_protocols_in_one_run(make: Any) -> None:
    trainer, _, valid, test = make(Scores, eval_mode=["uni20", "full", "pop20"], metrics=["NDCG", "MRR"])
    flat = trainer.evaluate(test, load_best_model=False)
    names = [f"{metric}@{k}" for metric in ("ndcg", "mrr") for k in TOP]
    plain = [*names, "mrr"]
    assert list(flat) == [*plain, *(f"{mode}/{key}" for mode in ("full", "full_later", "pop20") for key in plain)]
    nested = by_protocol(flat, ["uni20", "full", "pop20"])
    assert list(nested) == ["uni20", "full", "pop20", "full_later"]
    assert [list(values) for values in nested.values()] == [plain] * 4
    assert nested["uni20"]["mrr"] == flat["mrr"]
    assert nested["pop20"]["ndcg@5"] == flat["pop20/ndcg@5"]
    assert set(trainer.evaluation.ranks) == {"uni20", "full", "pop20"}
    assert nested["full"]["mrr"] < min(nested["uni20"]["mrr"], nested["pop20"]["mrr"])  # 160 candidates, not 21

    trainer, _, valid, _ = make(Scores, eval_mode=["uni20", "full", "pop20"], metrics=["NDCG", "MRR"])
    assert list(trainer.evaluate(valid, load_best_model=False)) == plain
    assert trainer.evaluation.ranks == {}  # those of the test only
    assert set(trainer.evaluation.candidate_digests) == {"uni20"}


def test_a_protocol_gives_the_same_alone_and_in_company(make: Any) -> None:
    together, _, _, test = make(Scores, eval_mode=["full", "pop20", "uni20"])
    result = by_protocol(together.evaluate(test, load_best_model=False), ["full", "pop20", "uni20"])
    for name in ("full", "pop20", "uni20"):
        alone, _, _, test = make(Scores, eval_mode=name)
        assert by_protocol(result_of(alone, test), [name])[name] == result[name]


@pytest.mark.parametrize("size", [1, 7, 59, 1000])
def test_the_batch_size_changes_nothing(make: Any, size: int) -> None:
    modes = ["full", "pop20", "authors10"]
    results = []
    for batch in (size, 1024):
        trainer, _, _, test = make(Preference, eval_mode=modes, eval_batch_size=batch, mask_history=True)
        results.append(
            (result_of(trainer, test), {name: vars(ranks) for name, ranks in trainer.evaluation.ranks.items()})
        )
    assert results[0][0] == results[1][0]
    for name in modes:
        for key in ("above", "tied", "n_candidates"):
            assert torch.equal(results[0][1][name][key], results[1][1][name][key])


def test_authors_prints_its_warning_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer, _, valid, test = make(Oracle, eval_mode=["authors10", "pop10"])
    trainer.evaluate(valid, load_best_model=False)
    trainer.evaluate(test, load_best_model=False)
    told = [r for r in caplog.records if "authors10: each negative is scored with a random intent" in r.getMessage()]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING
    assert "it does NOT measure recommendation" in " ".join(told[0].getMessage().split())
    caplog.clear()
    trainer, _, _, test = make(Oracle, eval_mode=["pop10", "full"])
    trainer.evaluate(test, load_best_model=False)
    assert "random intent" not in caplog.text


def test_an_oracle_of_intents_wins_under_authors_only(make: Any) -> None:
    trainer, _, _, test = make(Oracle, eval_mode=["authors12", "pop12", "full"])
    result = by_protocol(trainer.evaluate(test, load_best_model=False), ["authors12", "pop12", "full"])
    assert result["authors12"]["hit@1"] == 1.0
    assert result["authors12"]["mrr"] == 1.0
    # under pop it is as good as the share of negatives with another intent: chance among those with the same
    table = trainer.evaluation._candidates["pop12"].negatives
    dataset, of = test._dataset, trainer.model.intents.item2intent.numpy()
    users, target = dataset.inter_feat["user_id"].numpy(), dataset.inter_feat["item_id"].numpy()
    same = (of[table[users]] == of[target][:, None]).sum(1)
    assert (trainer.evaluation.ranks["pop12"].above.numpy() <= same).all()
    assert result["pop12"]["hit@1"] < 0.8
    assert result["full"]["hit@1"] < 0.3


ITEMS_ALONE = [
    ("SASRec", {"n_layers": None}),  # RecBole's
    ("BPR", {"n_layers": None}),
    ("CaFe", {"joint": "item"}),  # reads intents, and scores items alone
    ("CaFe", {"joint": "item", "intent_tower": False, "intent_loss": False}),
    ("CorrectedBERT4Rec", {}),  # ours, and knows no intents
    ("RecToolsSASRec", {"inner_size": None, "use_intents": False}),
    ("RecToolsSASRec", {"inner_size": None, "use_intents": True}),
]


@pytest.mark.parametrize(("model", "settings"), ITEMS_ALONE, ids=str)
def test_authors_is_pop_for_a_model_without_intents_in_its_score(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, model: str, settings: dict[str, Any]
) -> None:
    """It says so, and draws no random intents, of which a large catalogue has many."""
    if model == "RecToolsSASRec":
        pytest.importorskip("rectools")
    monkeypatch.setattr(sampled, "other_intents", _no_draw)
    trainer, _, _, test = make(model, eval_mode=["authors5", "pop5"], **settings)
    result = by_protocol(trainer.evaluate(test, load_best_model=False), ["authors5", "pop5"])
    assert result["authors5"] == result["pop5"]
    notice = f"authors5: the score of {model} does not depend on the candidates' intents, so that this is pop5"
    assert len([r for r in caplog.records if notice in r.getMessage()]) == 1
    assert "random intent" not in caplog.text


def _no_draw(*arguments: Any, **settings: Any) -> None:
    raise AssertionError("random intents were drawn")


def test_what_a_model_declares_decides(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, whose score does depend on intents, so that the values show what was used."""
    trainer, _, _, test = make("CaFe", eval_mode=["authors10", "pop10"])
    result = by_protocol(trainer.evaluate(test, load_best_model=False), ["authors10", "pop10"])
    assert result["authors10"] != result["pop10"]
    trainer.model.network.scores_intents = False
    monkeypatch.setattr(sampled, "other_intents", _no_draw)
    items_alone = by_protocol(trainer.evaluate(test, load_best_model=False), ["authors10", "pop10"])
    assert items_alone["authors10"] == items_alone["pop10"] == result["pop10"]


def test_recboles_models_are_asked_through_the_adapter(make: Any) -> None:
    trainer, _, _, test = make("SASRec", n_layers=None)
    scorer = trainer.scorer
    assert isinstance(scorer, RecBoleScorer) and scorer is trainer.evaluation.scorer
    assert (scorer.learns, scorer.scores_intents, scorer.scores_candidates) == (True, False, False)
    assert scorer.catalogue() is None
    batch = test._dataset[np.arange(4)]
    with pytest.raises(TypeError, match="SASRec has no query"):
        scorer.query(batch)
    with pytest.raises(TypeError, match="SASRec scores no intents"):
        _ = scorer.intents
    trainer.model.eval()
    items = torch.tensor([[3, 1], [2, 2], [5, 9], [1, 4]])
    with torch.no_grad():
        everything = trainer.model.full_sort_predict(batch)
        torch.testing.assert_close(scorer.score_candidates(batch, items), everything.gather(1, items))
    ours = make("CaFe")[0]
    assert ours.scorer is ours.model and ours.scorer.scores_candidates


def test_authors_needs_enough_intents(make: Any) -> None:
    trainer, _, _, test = make("CaFe", eval_mode="authors14")
    with pytest.raises(ValueError, match=r"authors14 .* needs at least 15 intents, there are 14"):
        result_of(trainer, test)


# Candidates -----------------------------------------------------------------------------------------------------------


def test_candidates_are_the_same_for_every_model(make: Any) -> None:
    digests, paths = set(), set()
    for model, settings in (("CaFe", {}), ("SASRec", {}), ("BPR", {"n_layers": None}), (Scores, {})):
        trainer, _, _, test = make(model, eval_mode=["pop20", "authors10" if model == "CaFe" else "full"], **settings)
        trainer.evaluate(test, load_best_model=False)
        digests.add(trainer.evaluation.candidate_digests["pop20"])
        paths.add(trainer.evaluation._candidates["pop20"].path)
    assert len(digests) == len(paths) == 1


def test_candidates_are_never_the_users_and_the_same_in_validation_and_test(make: Any, clicks: Any) -> None:
    trainer, _, valid, test = make(Oracle, eval_mode="pop20")
    seen: dict[str, dict[int, list[int]]] = {}
    score = trainer.model.score_candidates

    def watched(interaction: Any, items: Tensor, intents: Tensor | None = None) -> Tensor:
        assert intents is None
        assert torch.equal(items[:, 0], interaction["item_id"])
        seen[phase].update(zip(interaction["user_id"].tolist(), items[:, 1:].tolist(), strict=True))
        return score(interaction, items)

    trainer.model.score_candidates = watched
    for phase, loader in (("valid", valid), ("test", test)):
        seen[phase] = {}
        trainer.evaluate(loader, load_best_model=False)
    assert seen["valid"] == seen["test"]
    assert len(seen["test"]) == N_USERS
    dataset = test._dataset
    for user, items in seen["test"].items():
        own = {dataset.token2id("item_id", item) for u, item, _ in clicks if u == dataset.id2token("user_id", user)}
        assert len(set(items) - own - {0}) == 20
    assert len(list(Path("saved/candidates").iterdir())) == 1


def test_candidates_are_kept_in_the_folder_asked_for(make: Any) -> None:
    results = []
    for seed in (1, 2, 1):
        trainer, _, _, test = make(
            Scores, eval_mode="pop20", candidates_dir="kept", candidates_seed=seed, seed=9 + seed
        )
        results.append((result_of(trainer, test), trainer.evaluation.candidate_digests["pop20"]))
    assert results[0] == results[2]
    assert results[0] != results[1]
    assert len(list(Path("kept").glob("toy-pop20-seed?-*.npz"))) == len(list(Path("kept").iterdir())) == 2
    assert not Path("saved/candidates").exists()


def test_a_damaged_file_of_candidates_stops_the_run(make: Any) -> None:
    trainer, _, _, test = make(Scores, eval_mode="pop20")
    result_of(trainer, test)
    (path,) = Path("saved/candidates").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    trainer, _, _, test = make(Scores, eval_mode="pop20")
    with pytest.raises(ValueError, match="not a readable candidates file"):
        result_of(trainer, test)


def test_users_with_too_few_eligible_items_are_logged(make: Any, caplog: pytest.LogCaptureFixture, clicks: Any) -> None:
    trainer, _, _, test = make(Scores, eval_mode="uni150")
    result_of(trainer, test)
    own = defaultdict(set)
    for user, item, _ in clicks:
        own[user].add(item)
    eligible = {user: N_ITEMS - len(items) for user, items in own.items()}
    short = sum(n < 150 for n in eligible.values())
    assert 0 < short < N_USERS
    assert f"uni150: {short} users have fewer than 150 items outside their own; for them all of those" in caplog.text
    users = test._dataset.id2token("user_id", test._dataset.inter_feat["user_id"].numpy())
    assert trainer.evaluation.ranks["uni150"].n_candidates.tolist() == [1 + min(150, eligible[user]) for user in users]


def test_each_history_is_encoded_once(make: Any) -> None:
    trainer, _, _, test = make("CaFe", eval_mode=["pop100", "full"], eval_batch_size=16)
    encoded: list[int] = []
    trainer.model.network.item_encoder.register_forward_hook(lambda _m, args, _out: encoded.append(len(args[1].length)))
    trainer.evaluate(test, load_best_model=False)
    assert encoded == [16, 16, 16, 12] * 2  # rows of histories, once for each protocol


def test_cafe_scores_candidates_as_it_scores_all_items(make: Any) -> None:
    trainer, _, _, test = make("CaFe", eval_mode="pop20")
    result_of(trainer, test)
    dataset = test._dataset
    batch = dataset[np.arange(len(dataset))]
    everything = trainer.model.full_sort_predict(batch)
    negatives = torch.from_numpy(trainer.evaluation._candidates["pop20"].negatives[batch["user_id"].numpy()])
    own = everything.gather(1, batch["item_id"][:, None])
    above = (everything.gather(1, negatives) > own).sum(1)
    assert (
        above - trainer.evaluation.ranks["pop20"].above
    ).abs().max() <= 1  # float32 may round a near tie the other way
    assert (above == trainer.evaluation.ranks["pop20"].above).float().mean() > 0.95


# RecBole's own --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "pop10", "uni10"])
@pytest.mark.parametrize("model", [Scores, GeneralScores])
def test_recboles_candidates_are_recboles(make: Any, mode: str, model: type) -> None:
    # a general model's negatives may not repeat its train items, as RecBole has it
    settings = {"repeatable": False} if model is GeneralScores else {}
    trainer, _, _, test = make(model, eval_mode=mode, candidates="recbole", **settings)
    stock = Trainer(trainer.config, trainer.model)
    stock.eval_collector = trainer.eval_collector
    results = []
    for one in (trainer, stock):
        np.random.seed(4)
        results.append(dict(one.evaluate(test, load_best_model=False)))
    assert results[0] == results[1]
    assert "mrr" not in results[0]
    assert all(value == round(value, 4) for value in results[0].values())
    assert trainer.evaluation.ranks == {}
    assert not Path("saved/candidates").exists()


def test_parts_of_a_test_are_joined_in_the_order_of_the_rows(make: Any) -> None:
    trainer, _, _, test = make(Scores, eval_batch_size=9)
    result_of(trainer, test)
    whole, _, _, test = make(Scores)
    result_of(whole, test)
    for key in ("above", "tied", "n_candidates"):
        assert torch.equal(getattr(trainer.evaluation.ranks["full"], key), getattr(whole.evaluation.ranks["full"], key))


# Means of weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_with_average_from_the_mean_of_the_epochs_is_evaluated_and_saved(make: Any, model: str, tmp_path: Path) -> None:
    """The same training, looked at after each epoch: what is saved is the mean over epochs 2 to 4, and a run that is
    broken off after the third and resumed ends with it too."""
    same = {  # no draw: one batch, no dropout, no negatives
        "train_batch_size": 4096, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "loss_type": "CE",
        "learning_rate": 0.01, "train_neg_sample_args": None, "checkpoint_dir": str(tmp_path),
    }  # fmt: skip
    plain, train, *_ = make(model, epochs=4, **same)
    weights: list[dict[str, Tensor]] = []
    for epoch in range(4):
        plain._train_epoch(train, epoch)
        weights.append({name: w.detach().clone() for name, w in plain.model.named_parameters()})
    mean = {name: sum(w[name] for w in weights[1:]) / 3 for name in weights[0]}

    def is_mean(trainer: Any) -> bool:
        return all(torch.allclose(w, mean[name], atol=1e-5) for name, w in trainer.model.named_parameters())

    whole, train, _, test = make(model, epochs=4, average_from=2, **same)
    whole.fit(train, None, show_progress=False)
    assert is_mean(whole)
    assert not any(torch.allclose(mean[name], weights[-1][name], atol=1e-4) for name in mean if "item_emb" in name)
    of_mean = result_of(whole, test)

    first, train, *_ = make(model, epochs=3, average_from=2, **same)
    first.fit(train, None, show_progress=False)
    without, train, *_ = make(model, epochs=4, **same)  # resumed without a mean: from the weights that were trained
    without.resume_checkpoint(first.saved_model_file)
    for name, weight in without.model.named_parameters():
        assert torch.allclose(weight, weights[2][name], atol=1e-5)
    second, train, _, test = make(model, epochs=4, average_from=2, **same)
    second.resume_checkpoint(first.saved_model_file)
    second.fit(train, None, show_progress=False)
    assert is_mean(second)
    second.eval_collector.data_collect(train)
    assert dict(second.evaluate(test, load_best_model=True)) == pytest.approx(of_mean, abs=1e-6)
