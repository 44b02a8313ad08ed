"""One history at a time is answered as many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

import recbole_cafe
from recbole_cafe.export import export
from recbole_cafe.recommend import Recommender

TINY: dict[str, Any] = {
    "gpu_id": "", "show_progress": False, "epochs": 2, "state": "WARNING", "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH,
    "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "n_local_heads": 1,
    "eval_mode": "full", "INTENT_FIELD": "intent",
}  # fmt: skip


def trained(model: str, toy_path: Path, **settings: Any) -> Any:
    known = recbole_cafe.Config(model, "toy", config_dict={"data_path": str(toy_path)}).final_config_dict
    given = {key: value for key, value in TINY.items() if key in known} | {"data_path": str(toy_path)} | settings
    return recbole_cafe.run(model, "toy", config_dict=given)


def histories() -> list[list[str]]:
    """What twenty users took before their tests."""
    return [items[:-1] for items in list(toy.walks().values())[:20]]


@pytest.mark.parametrize("model", ["CaFe", "CaFePlus", "IntentBackoff"])
def test_one_by_one_is_as_all_at_once(model: str, toy_path: Path) -> None:
    export(trained(model, toy_path).checkpoint, "shop")
    asked = Recommender.load("shop")
    together = asked.recommend(histories(), 5)
    for row, history in enumerate(histories()):
        alone = asked.recommend([history], 5)
        mine = together.filter(np.array(together["user"]) == row)
        np.testing.assert_allclose(alone[asked.score_name], mine[asked.score_name], rtol=1e-5)
        assert alone["item"].to_pylist() == mine["item"].to_pylist()
