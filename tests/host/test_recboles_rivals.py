"""RecBole's own FEARec and CORE run under our protocol."""

from pathlib import Path

import pytest
import torch
import toy
from contract import QUIET, build
from recbole.utils import get_model

from recbole_cafe import Config, run
from recbole_cafe.config.config import known_keys

AUTHORS_FLAGS = {  # of FEARec; RecBole's YAML leaves out the first three, and with them every contrast
    "contrast": "us_x", "tau": 1, "sim": "dot", "global_ratio": 0.6, "dual_domain": True, "spatial_ratio": 0.1,
    "std": True, "fredom": True, "fredom_type": "us_x", "topk_factor": 10, "MAX_ITEM_LIST_LENGTH": 50,
}  # fmt: skip


@pytest.mark.parametrize("flags", [{}, AUTHORS_FLAGS])
def test_fearec_finds_other_histories_of_the_same_target(flags: dict[str, object], toy_path: Path) -> None:
    """It looks them up among the rows of the train split, which here are positions in the interactions."""
    made = build("FEARec", toy_path, hidden_size=16, inner_size=16, **flags)
    batch = made.batch("train")
    column = made.train._dataset.inter_feat[made.model.ITEM_SEQ]
    assert torch.equal(column, batch[made.model.ITEM_SEQ])
    torch.manual_seed(1)
    made.model.train()
    made.model.calculate_loss(batch[:64]).backward()
    assert made.model.item_embedding.weight.grad.abs().max() > 0


def test_a_benchmark_may_set_what_fearecs_yaml_leaves_out() -> None:
    config = Config("FEARec", toy.NAME)
    assert {"contrast", "tau", "sim", "global_ratio"} <= known_keys(config, config.model_class)
    assert "contrast" not in known_keys(config, get_model("SASRec"))


@pytest.mark.parametrize("model", ["FEARec", "CORE"])
def test_they_learn_the_toy_data(model: str, toy_path: Path) -> None:
    """CORE's query is a mean of the history's items, which it therefore ranks first."""
    given = {
        **QUIET, "data_path": str(toy_path), "epochs": 12, "learning_rate": 0.005, "train_batch_size": 64,
        "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "eval_mode": ["full", "pop5"], "eval_step": 4,
        "mask_history": True,
    }  # fmt: skip
    result = run(model, toy.NAME, config_dict=given).test_result
    assert result["full"]["mrr"] > 0.8
    assert result["pop5"]["mrr"] >= result["full"]["mrr"]
