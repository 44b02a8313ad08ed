"""RecBole's lists for users of one's choice, for those without a test row too.

RecBole looks for the users' rows in the test split; a user of one or two interactions has none there, and the answer is
silently a row short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from recbole_cafe.data.sequences import SequenceDataset


class _Rows:
    """What `full_sort_scores` asks of a data set, for rows that have been found already.

    Args:
        dataset: of the test split.
        users: [B] ids.
    """

    def __init__(self, dataset: SequenceDataset, users: torch.Tensor) -> None:
        self._rows = dataset.of_users(users)
        self.uid_field, self.item_num = dataset.uid_field, dataset.item_num
        self.inter_feat = {self.uid_field: torch.arange(len(users))}
        self.get_item_feature = dataset.get_item_feature

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]


def extend(module: ModuleType) -> None:
    """Let `full_sort_scores`, and `full_sort_topk` with it, answer for every user. Harmless to repeat.

    Args:
        module: recbole.utils.case_study.
    """
    stock: Callable[..., Any] = module.full_sort_scores
    if "extended_by_recbole_cafe" in vars(stock):
        return

    @wraps(stock)
    def full_sort_scores(uid_series: Any, model: Any, test_data: Any, device: Any = None) -> torch.Tensor:
        dataset = test_data.dataset
        if not isinstance(dataset, SequenceDataset):
            return stock(uid_series, model, test_data, device)
        users = torch.as_tensor(np.asarray(uid_series))
        rows = SimpleNamespace(dataset=_Rows(dataset, users), is_sequential=True)
        return stock(np.arange(len(users)), model, rows, device)

    vars(full_sort_scores)["extended_by_recbole_cafe"] = True
    vars(module)["full_sort_scores"] = full_sort_scores
