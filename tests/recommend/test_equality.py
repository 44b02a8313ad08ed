"""A bundle says what the trained model says: the rank of the test target is the evaluation's, for all models served."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

import recbole_cafe
from recbole_cafe.errors import ConfigError
from recbole_cafe.export import export
from recbole_cafe.files.ranks import load_ranks
from recbole_cafe.model import MODELS, net_class
from recbole_cafe.recommend import Recommender

TINY: dict[str, Any] = {
    "gpu_id": "", "show_progress": False, "epochs": 2, "state": "WARNING", "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH,
    "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "n_local_heads": 1,
    "eval_mode": "full", "INTENT_FIELD": "intent",
}  # fmt: skip
REFUSED = ("AttRec", "RKSA", "RecToolsSASRec", "SSEPT")
SERVED = [name for name in MODELS if name not in REFUSED]


def trained(model: str, toy_path: Path, **settings: Any) -> Any:
    known = recbole_cafe.Config(model, "toy", config_dict={"data_path": str(toy_path)}).final_config_dict
    given = {key: value for key, value in TINY.items() if key in known} | {"data_path": str(toy_path)} | settings
    return recbole_cafe.run(model, "toy", config_dict=given, ranks_file="ranks.npz")


def before_the_test() -> tuple[dict[str, list[str]], dict[str, str]]:
    """The history and the target of each user's test."""
    walks = toy.walks()
    return {user: items[:-1] for user, items in walks.items()}, {user: items[-1] for user, items in walks.items()}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("model", ["CaFe", "CaFePlus", "IntentBackoff"])
def test_the_rank_of_the_test_target_is_the_evaluations(model: str, mask: bool, toy_path: Path) -> None:
    compare(model, toy_path, mask_history=mask)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in SERVED if "peers" in MODELS[name]])
def test_the_same_for_every_peer(model: str, toy_path: Path) -> None:
    compare(model, toy_path)


def compare(model: str, toy_path: Path, **settings: Any) -> None:
    result = trained(model, toy_path, **settings)
    export(result.checkpoint, "shop")
    asked = Recommender.load("shop")
    users, ranks = load_ranks("ranks.npz")
    histories, targets = before_the_test()
    of = ranks["full"]
    n = asked.items.n - 1
    table = asked.recommend([histories[u] for u in users], n, exclude_seen=settings.get("mask_history", False))
    columns = [table[name].to_pylist() for name in ("user", "rank", "item", asked.score_name)]
    place = {(row, item): (rank, score) for row, rank, item, score in zip(*columns, strict=True)}
    scores = [
        np.array([s for r, s in zip(columns[0], columns[3], strict=True) if r == row]) for row in range(len(users))
    ]
    for row, user in enumerate(users):
        if (row, targets[user]) not in place:  # taken before: with masked histories it is no item of the list
            assert settings.get("mask_history") and targets[user] in histories[user]
            continue
        rank, score = place[row, targets[user]]
        assert of.above[row] < rank <= of.above[row] + of.tied[row] + 1
        assert of.above[row] == (scores[row] > score).sum()


@pytest.mark.parametrize("model", ["CaFe", "CaFePlus", "IntentBackoff"])
def test_one_by_one_is_as_all_at_once(model: str, toy_path: Path) -> None:
    export(trained(model, toy_path).checkpoint, "shop")
    asked = Recommender.load("shop")
    histories = list(before_the_test()[0].values())[:20]
    together = asked.recommend(histories, 5)
    for row, history in enumerate(histories):
        alone = asked.recommend([history], 5)
        mine = together.filter(np.array(together["user"]) == row)
        np.testing.assert_allclose(alone[asked.score_name], mine[asked.score_name], rtol=1e-5)
        assert alone["item"].to_pylist() == mine["item"].to_pylist()


@pytest.mark.parametrize("model", ["AttRec", "RKSA", "SSEPT"])
def test_a_model_that_knows_users_alone_is_refused(model: str, toy_path: Path) -> None:
    result = trained(model, toy_path, epochs=1)
    with pytest.raises(ConfigError, match=f"{model} cannot be exported: its query reads the user"):
        export(result.checkpoint, "shop")
    assert not Path("shop").exists()


def test_every_model_is_either_served_or_refused() -> None:
    assert set(REFUSED) <= set(MODELS)
    for name in SERVED:
        with contextlib.suppress(ImportError):
            assert not net_class(name).not_served
