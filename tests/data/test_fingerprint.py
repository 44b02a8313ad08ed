"""Digests of data and split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy

from recbole_cafe import Config
from recbole_cafe.data.fingerprint import PARTS, difference
from recbole_cafe.experiment import create_dataset, data_preparation

CLICKS = [(f"u{u}", f"i{(3 * u + 2 * k) % 7}", 10 * k) for u in range(6) for k in range(5)]
INTENTS = {f"i{i}": "ab"[i % 2] for i in range(7)}

Digests = Callable[..., dict[str, str]]


@pytest.fixture
def digests(write_atomic: Callable[..., Path]) -> Digests:
    """Of CLICKS and INTENTS, or what is given in their place."""

    def of(clicks: Any = CLICKS, intents: Any = INTENTS, model: str = "CaFe", **settings: Any) -> dict[str, str]:
        folder = write_atomic("clicks", clicks, intents)
        given = {"data_path": str(folder), "gpu_id": "", "state": "WARNING", **settings}
        config = Config(model, "clicks", config_dict=given)
        return dict(data_preparation(config, create_dataset(config))[0]._dataset.digests)

    return of


def test_they_are_the_same_for_every_model_that_sees_the_same_data(digests: Digests) -> None:
    first = digests()
    assert set(first) == set(PARTS)
    assert digests(model="SASRec") == digests(model="BPR") == digests(train_layout="last") == first
    assert digests(seed=7, eval_mode="pop100", topk=[3], valid_metric="NDCG@3") == first


def test_they_say_what_differs(digests: Digests) -> None:
    first = digests()
    turned = CLICKS[-5:] + CLICKS[:-5]
    assert difference(first, digests(turned)) == (
        f"{PARTS['users']}, {PARTS['items']}, {PARTS['intents']}, {PARTS['interactions']}"
    )
    renamed = [(u, {"i3": "j3"}.get(i, i), t) for u, i, t in CLICKS]
    names = {{"i3": "j3"}.get(i, i): c for i, c in INTENTS.items()}
    assert difference(first, digests(renamed, names)) == PARTS["items"]
    assert difference(first, digests(intents={**INTENTS, "i2": "b"})) == PARTS["intents"]
    later = [(u, i, t + (u == "u5" and t == 40)) for u, i, t in CLICKS]
    assert difference(first, digests(later)) == PARTS["interactions"]
    without_validation = {"split": {"LS": "test_only"}, "group_by": "user", "order": "TO"}
    assert difference(first, digests(eval_args=without_validation)) == PARTS["split"]
    assert difference(first, first) == ""


def test_they_are_the_same_on_every_machine(toy_path: Path) -> None:
    """The toy data's, written down."""
    config = Config("CaFe", toy.NAME, config_dict={"data_path": str(toy_path), "gpu_id": "", "state": "WARNING"})
    digests = data_preparation(config, create_dataset(config))[0]._dataset.digests
    assert {name: digest[:12] for name, digest in digests.items()} == {
        "users": "4a4f3b9710be",
        "items": "dd9a7e438ea8",
        "intents": "4607c3fc29e4",
        "interactions": "f85734b3c276",
        "split": "bc350de60564",
    }
