"""A model whose scores are a table, so that what an evaluation should give can be computed from it; and its trainer."""

from __future__ import annotations

from typing import Any

import torch
from recbole.utils import InputType, get_trainer, init_seed
from torch import Tensor, nn

from recbole_cafe import Config
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.train.trainer import trainer_class


def ready(config: Config) -> tuple[Any, Any, Any, Any]:
    """Trainer, train, valid and test loader of a configuration, as `recbole_cafe.run` makes them."""
    init_seed(1, True)
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(2, True)
    network = config.model_class(config, train._dataset)
    trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, network)
    trainer.eval_collector.data_collect(train)
    return trainer, train, valid, test


class Table:
    """Scores from a table with one row per user and one column per item, drawn once."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.weight = nn.Parameter(torch.zeros(1))
        self.table = self.draw(dataset.user_num, dataset.item_num)

    def draw(self, n_users: int, n_items: int) -> Tensor:
        return torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(3))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.table[interaction[self.USER_ID]]

    def predict(self, interaction: Any) -> Tensor:
        return self.table[interaction[self.USER_ID], interaction[self.ITEM_ID]]

    def calculate_loss(self, interaction: Any) -> Tensor:
        return self.weight.sum()
