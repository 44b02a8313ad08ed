"""A training that diverges says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from recbole_cafe import run
from recbole_cafe.errors import ConfigError
from recbole_cafe.train.divergence import Losses


def train(model: str, toy_path: Path, **settings: Any) -> None:
    keys = {"data_path": str(toy_path), "epochs": 2, "gpu_id": "", "show_progress": False, "train_batch_size": 16,
            "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "eval_mode": "full"}  # fmt: skip
    run(model, toy.NAME, config_dict=keys | settings)


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_a_large_learning_rate_is_named(model: str, toy_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(model, toy_path, learning_rate=10.0)
    assert "training diverges: a mean loss of" in caplog.text
    assert "lower learning_rate=10.0" in caplog.text


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_a_sound_training_says_nothing(model: str, toy_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(model, toy_path)
    assert "diverge" not in caplog.text


def test_a_loss_that_is_no_number_ends_the_training(toy_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"training has diverged: the loss is (nan|inf) in epoch \d; lower learning_ra"
    ):
        train("CaFe", toy_path, learning_rate=1e30)


def test_the_mean_of_an_epoch_is_compared_with_the_first_batch() -> None:
    losses = Losses()
    values = iter([1.0, 3.0, 1.0, 3.1, (1.0, 1.5)])

    def loss() -> Any:
        value = next(values)
        return tuple(map(torch.tensor, value)) if isinstance(value, tuple) else torch.tensor(value)

    watched = losses.watched(loss)
    watched(), watched()
    assert losses.end_of_epoch(4.0) == ""  # a mean of 2 is twice the first, not more
    watched(), watched()
    assert losses.end_of_epoch(4.1) == "training diverges: a mean loss of 2.05, where untrained weights had 1"
    watched()
    assert losses.end_of_epoch((1.0, 1.5)) == "training diverges: a mean loss of 2.5, where untrained weights had 1"
    assert losses.end_of_epoch(0.0) == ""
