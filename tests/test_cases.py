"""Small inputs that failed for users, whole: what is read and run from them. Kept outside the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_cafe import Config, run
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.train import checkpoint
from recbole_cafe.train.checkpoint import CheckpointError

PARTS = {"benchmark_filename": ["train", "valid", "test"]}
ALIAS = {"alias_of_item_id": ["item_id_list"]}


@pytest.fixture
def settings(shared_cases: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def of(**more: Any) -> dict[str, Any]:
        return {"data_path": str(shared_cases), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1, "gpu_id": "",
                "show_progress": False, "state": "WARNING", "eval_mode": "full", **more}  # fmt: skip

    return of


@pytest.mark.parametrize(
    ("name", "model", "keys", "sizes"),
    [
        ("bench0", "CaFe", {"train_layout": "last"}, [150, 30, 30]),  # each user's first is in the histories alone
        ("bench0", "CaFePlus", {"train_layout": "last"}, [150, 30, 30]),
        ("bench0", "SASRec", {}, [150, 30, 30]),
        ("bench0", "BPR", {}, [180, 30, 30]),
        ("bench", "CaFe", ALIAS, [150, 30, 30]),
        ("bench", "CaFePlus", ALIAS, [150, 30, 30]),
        ("bench", "SASRec", ALIAS, [150, 30, 30]),
    ],
)
def test_presplit(
    name: str, model: str, keys: dict[str, Any], sizes: list[int], settings: Callable[..., dict[str, Any]]
) -> None:
    given = settings(**PARTS, **keys)
    config = Config(model, name, config_dict=given)
    loaders = data_preparation(config, create_dataset(config))
    assert [len(loader._dataset) for loader in loaders] == sizes
    result = run(model, name, config_dict=given)
    assert 0 <= result.test_result["full"]["ndcg@10"] <= 1


def test_a_checkpoint_of_the_same_tokens_with_other_ids(settings: Callable[..., dict[str, Any]]) -> None:
    file = run("CaFe", "base", config_dict=settings()).checkpoint
    before = Path(file).read_bytes()
    with pytest.raises(CheckpointError, match=r"trained on other data\. What differs: the users .*, the items"):
        run("CaFe", "other", config_dict=settings(resume_from=file, epochs=2))
    state = checkpoint.load(file)
    state["config"]["dataset"], state["config"]["data_path"] = (
        "other",
        str(Path(state["config"]["data_path"]).parent / "other"),
    )
    checkpoint.save(file + "2", state)
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_data_and_model(file + "2")
    assert Path(file).read_bytes() == before


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_lists_for_users_of_one_and_two_interactions(model: str, settings: Callable[..., dict[str, Any]]) -> None:
    from recbole.utils.case_study import full_sort_topk

    config = Config(model, "onetwo", config_dict=settings())
    train, _, test = data_preparation(config, create_dataset(config))
    network = config.model_class(config, train._dataset)
    users = torch.arange(1, test.dataset.user_num)
    scores, items = full_sort_topk(users.numpy(), network, test, k=5)
    assert scores.shape == items.shape == (len(users), 5)
    assert torch.isfinite(scores).all() and (items > 0).all()
