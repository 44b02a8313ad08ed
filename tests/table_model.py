"""A model whose scores are a table, so that what an evaluation should give can be computed from it."""

from __future__ import annotations

from typing import Any

import torch
from recbole.utils import InputType
from torch import Tensor, nn


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
