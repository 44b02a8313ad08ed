"""Settings of a ranking that are chosen on the validation: what is chosen, when nothing is, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import write_data_set
from contract import build
from table_model import ready

from recbole_cafe import Config, run
from recbole_cafe.errors import ConfigError
from recbole_cafe.export import bundle_of
from recbole_cafe.files.result import Result
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.train.ranking_settings import LEAST_ROWS, Validation, choose, clear

# The search ----------------------------------------------------------------------------------------------------------

TRIED = {"a": (-1.0, 0.0, 1.0, 2.0), "b": (0.0, 1.0, 2.0)}
DEFAULT = {"a": 0.0, "b": 2.0}


def chosen(values: Any, default: Any, tried: Any) -> Any:
    """What is chosen where every other row decides."""
    return choose(lambda s: values(s)[::2], lambda s: values(s)[1::2], default, tried)


def test_it_climbs_to_the_best_settings() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    asked = []

    def values(settings: Any) -> np.ndarray:
        asked.append(dict(settings))
        return noise - (settings["a"] - 2) ** 2 - (settings["b"] - 1) ** 2

    choice = chosen(values, DEFAULT, TRIED)
    assert choice.chosen == {"a": 2.0, "b": 1.0} == choice.changes
    assert choice.default == DEFAULT
    for before, after in zip(choice.before, choice.after, strict=True):
        np.testing.assert_allclose(after - before, 5.0)  # 4 and 1 below the best before
    assert choice.evaluations == len({tuple(one.values()) for one in asked}) <= 7
    # none twice, and the rows that check are asked about the default and the two steps alone
    assert len(asked) == choice.evaluations + 3


def test_a_default_that_is_not_listed_is_where_it_begins() -> None:
    choice = chosen(lambda s: np.full(50, -abs(s["a"] - 0.4)), {"a": 0.4}, {"a": (0.0, 1.0)})
    assert choice.changes == {}
    assert choice.evaluations == 3


def test_what_only_one_half_likes_is_not_chosen() -> None:
    """The deciding half gains 1 by a = 1, the other loses 1."""
    choice = choose(lambda s: np.full(100, s["a"]), lambda s: np.full(100, -s["a"]), {"a": 0.0}, {"a": (0.0, 1.0)})
    assert choice.changes == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sizes", [(100, 0), (0, 100)])
def test_where_a_half_is_empty_nothing_is_chosen(sizes: tuple[int, int]) -> None:
    decides, checks = (lambda s, n=n: np.full(n, s["a"]) for n in sizes)
    choice = choose(decides, checks, {"a": 0.0}, {"a": (0.0, 1.0)})
    assert choice.changes == {}
    assert choice.evaluations == 1


def test_noise_mostly_changes_nothing_and_never_much() -> None:
    """Nine settings at random around one truth: seldom two independent halves agree."""
    changed = 0
    for seed in range(60):
        drawn: dict[tuple[float, ...], np.ndarray] = {}

        def values(settings: Any, drawn: Any = drawn, seed: int = seed) -> np.ndarray:
            key = tuple(settings.values())
            if key not in drawn:
                drawn[key] = np.random.default_rng([seed, len(drawn)]).normal(size=300)
            return drawn[key]

        changed += bool(chosen(values, DEFAULT, TRIED).changes)
    assert changed <= 9


def test_clear_is_above_one_standard_error() -> None:
    gain = np.array([1.0, 3.0, 1.0, 3.0])  # mean 2, standard error 1.1547 / 2
    assert clear(gain)
    assert not clear(gain - 2 + 0.57)
    assert clear(gain - 2 + 0.58)
    assert not clear(np.zeros(4))
    assert not clear(np.ones(1))


# What a setting gives ------------------------------------------------------------------------------------------------

VARIANTS = [
    ("CaFePlus", {}), ("CaFePlus", {"item_memory": False}), ("CaFePlus", {"item_net": False}),
    ("CaFePlus", {"repeats": "free", "evidence_exponent": 0.0}), ("CaFePlus", {"popularity_exponent": 1.0}),
    ("IntentBackoff", {}), ("IntentBackoff", {"use_intents": False}), ("IntentBackoff", {"repeats": "free"}),
]  # fmt: skip
OTHER = {"popularity_exponent": 0.7, "popularity_prior": 2.5, "prior": 4.0, "history_decay": 0.9,
         "rank_shrinkage": 3.0, "evidence_exponent": 0.6, "intent_prior": 8.0, "intent_history_decay": 0.6}  # fmt: skip


@pytest.mark.parametrize(("model", "settings"), VARIANTS)
def test_other_settings_give_what_a_model_built_with_them_gives(toy_path: Path, model: str, settings: Any) -> None:
    """And so does the spread of all items, up to a factor of each row."""
    assert_same_as_built(build(model, toy_path, **settings).enlarged(), model, toy_path, settings)


@pytest.mark.parametrize("softmax", ["levels", "items"])
def test_so_do_logits_that_float32_cannot_take_the_exponential_of(toy_path: Path, softmax: str) -> None:
    settings = {"softmax": softmax, "rank_shrinkage": 0.0}
    base = build("CaFePlus", toy_path, **settings)
    table = base.model.network.item_embedding.weight
    with torch.no_grad():
        table.mul_(500.0)
        logits = base.enlarged(1.0).model.network.read(base.batch()["item_id_list"]).vector[:, :-1] @ table.T
    assert 300 < logits.abs().max() < 1500  # more than 60 after a shrinkage of 3, too
    assert_same_as_built(base, "CaFePlus", toy_path, settings)


def assert_same_as_built(base: Any, model: str, toy_path: Path, settings: Any) -> None:
    """With other settings, a net says what one that is built with them and has the same weights says."""
    net, batch = base.model.network, base.batch()
    changed = {key: value for key, value in OTHER.items() if key in net.tried()}
    assert changed
    built = build(model, toy_path, **settings, ranking_settings=changed).enlarged()
    same = {key: value for key, value in net.state_dict().items() if key != "within"}
    built.model.network.load_state_dict(same, strict=False)
    with torch.no_grad():
        reading = net.read(batch["item_id_list"], batch["user_id"])
        for one in (net, built.model.network):
            expected = one.scores(one.query(batch["item_id_list"]))[:, 1:]
            if one is not net:
                net.rank_with(changed)
            torch.testing.assert_close(net.scores(net.asked(reading))[:, 1:], expected)
            spread = net.spread(reading)
            row = torch.arange(len(expected))[:, None].expand_as(expected)
            dense = spread.of(row, torch.arange(1, 1 + expected.shape[1]).expand_as(expected)).double()
            share = expected.sum(1, keepdim=True) / dense.sum(1, keepdim=True)  # it holds up to a factor of each row
            torch.testing.assert_close(dense * share, expected.double(), rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("model", ["CaFePlus", "IntentBackoff"])
@pytest.mark.parametrize(
    "settings",
    [{"eval_mode": "full"}, {"eval_mode": "full", "mask_history": True}, {"eval_mode": "pop10"},
     {"eval_mode": "authors3"}, {"eval_mode": "full", "valid_metric": "MRR"}],
)  # fmt: skip
def test_rows_have_the_values_that_an_evaluation_averages(toy_path: Path, model: str, settings: Any) -> None:
    trainer, _, valid, _ = ready(Config(model, "toy", config_dict={"data_path": str(toy_path), **settings}))
    metric = trainer.config["valid_metric"].lower()
    trainer.model.eval()
    with torch.no_grad():
        rows = Validation(trainer.model.network, trainer.evaluation, valid, trainer.protocols[0], metric, seed=1)
        settings = {key: trainer.config[key] for key in trainer.model.network.tried()}
        decide, check = (rows.measure(half)(settings) for half in rows.rows)
    values = np.concatenate((decide, check))
    assert len(values) == len(valid._dataset)
    assert values.mean() == pytest.approx(trainer.evaluate(valid, load_best_model=False)[metric], rel=1e-6)
    assert 0.3 < len(decide) / len(values) < 0.7


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def habits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Users keep to an intent, and take of its items the popular ones, whatever they took before.

    So P(v | h) = P(c | h) n(v) / n(c): among all items alpha = 1 is right, and alpha = 0 beside rivals that are drawn
    by popularity.
    """
    rng = np.random.default_rng(5)
    share = 1.0 / np.arange(1, 41)
    share /= share.sum()
    rows = []
    for user in range(500):
        intent = user % 5
        for step in range(8):
            now = intent if rng.random() < 0.8 else int(rng.integers(5))
            rows.append((f"u{user}", f"i{now}_{rng.choice(40, p=share)}", 1000 + step))
    intents = {f"i{c}_{i}": f"c{c}" for c in range(5) for i in range(40)}
    return str(write_data_set(tmp_path_factory.mktemp("habits"), "habits", rows, intents))


def settled(habits: str, **settings: Any) -> Result:
    plain = {"data_path": habits, "show_progress": False, "state": "WARNING", "popularity_exponent": 0.5, "prior": 1e3}
    return run("IntentBackoff", "habits", config_dict=plain | settings)


def test_the_protocol_decides_about_popularity(habits: str) -> None:
    full, pop = (settled(habits, eval_mode=mode, valid_metric="MRR@20") for mode in (["full"], ["pop100"]))
    assert full.config["ranking_settings"]["popularity_exponent"] >= 0.6
    assert pop.config["ranking_settings"]["popularity_exponent"] <= 0.3
    for result in (full, pop):
        said = result.ranking_settings
        assert said["valid"]["chosen"] > said["valid"]["default"] == pytest.approx(result.best_valid_score, rel=1e-6)
        assert {**said["default"], **result.config["ranking_settings"]} == said["chosen"]
        assert result.config["popularity_exponent"] == 0.5  # as it was given
        assert said["rows"] == 500
        assert said["evaluations"] <= 60


def test_what_was_chosen_is_in_the_checkpoint_the_result_and_the_bundle(habits: str, tmp_path: Path) -> None:
    result = settled(habits, eval_mode=["full", "pop100"], checkpoint_dir=str(tmp_path))
    config, model, _, train, valid, test = load_data_and_model(result.checkpoint)
    chosen = result.ranking_settings["chosen"]
    assert config["ranking_settings"] == result.config["ranking_settings"] != {}
    net = model.network
    assert {"prior": net.counts.prior, "popularity_exponent": net.popularity_exponent}.items() <= chosen.items()
    trainer, *_ = ready(Config("IntentBackoff", "habits", config_dict={
        "data_path": habits, "eval_mode": ["full", "pop100"], "prior": 1e3, "popularity_exponent": 0.5,
        "ranking_settings": config["ranking_settings"]}))  # fmt: skip
    assert trainer.evaluate(test, load_best_model=False)["ndcg@10"] == result.test_result["full"]["ndcg@10"]
    bundle = bundle_of(config, model, train._dataset, valid._dataset)
    assert chosen.items() <= bundle.settings.items()
    # to the end of a run, again
    again = settled(habits, eval_mode=["full", "pop100"], checkpoint_dir=str(tmp_path), resume_from=result.checkpoint)
    assert again.test_result == result.test_result
    assert again.ranking_settings["chosen"] == chosen


def test_nothing_depends_on_the_size_of_batches(habits: str) -> None:
    results = [settled(habits, eval_mode=["full"], eval_batch_size=size) for size in (7, 4096)]
    first, second = (result.ranking_settings for result in results)
    assert first == second


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_args": {"split": {"LS": "test_only"}}}, "there is no validation"),
        ({"metrics": ["NDCG", "ItemCoverage"], "valid_metric": "ItemCoverage@10"}, "does not judge row by row"),
        ({"eval_mode": ["full"], "candidates": "recbole"}, "gives no ranks"),
    ],
)
def test_where_nothing_can_be_chosen_the_log_says_why(habits: str, settings: Any, said: str, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        result = settled(habits, state="INFO", **settings)
    assert result.ranking_settings == {}
    assert result.config["ranking_settings"] == "auto"
    log = "".join(path.read_text() for path in Path("log").rglob("*.log"))
    assert said in log + caplog.text


def test_few_rows_choose_nothing(habits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEAST_ROWS == 100
    monkeypatch.setattr("recbole_cafe.train.trainer.LEAST_ROWS", 501)
    assert settled(habits, eval_mode=["full"]).ranking_settings == {}


def test_fixed_stays(habits: str) -> None:
    result = settled(habits, ranking_settings="fixed", eval_mode=["full"])
    assert result.ranking_settings == {}
    assert result.config["ranking_settings"] == "fixed"


@pytest.mark.parametrize(
    ("value", "said"),
    [("always", "ranking_settings='always' should be auto, fixed, or a mapping"), ({"prior": "x"}, "prior"),
     ({"priory": 1.0}, "priory is no key of IntentBackoffNet"), ({"prior": -1.0}, "prior=-1.0 must be above 0")],
)  # fmt: skip
def test_what_it_cannot_be(habits: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settled(habits, ranking_settings=value)
