"""RecBole's metric classes fed with ranks: exact over ties, not rounded."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.distributed
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_cafe.ranking.ranks import Ranks, expectation


class ProtocolEvaluator(Evaluator):
    """RecBole's Evaluator fed with ranks: its metric classes, exact over ties, not rounded, plus untruncated MRR."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for metric in self.metric_class.values():
            metric.decimal_place = 12

    def evaluate_ranks(self, ranks: Ranks, top: Tensor | None, collected: DataStruct) -> OrderedDict:
        """Metrics of N targets.

        Args:
            ranks: of the targets.
            top: [N, K] ids of each row's best candidates, for the metrics that need them.
            collected: what RecBole's collector took from the train data.

        Returns:
            metric -> float; ``mrr`` without a cut-off is added when MRR is asked for and all ranks are exact.
        """
        above, tied = ranks.above.numpy(), ranks.tied.numpy()
        result: OrderedDict = OrderedDict()
        for name, metric in self.metric_class.items():
            if isinstance(metric, TopkMetric) and metric.metric_need == ["rec.topk"]:
                for k, value in per_target(metric, above, tied).items():
                    result[f"{name}@{k}"] = exact_mean(value)
                if name == "mrr" and ranks.limit is None:
                    longest = int(ranks.n_candidates.max())
                    result["mrr"] = exact_mean(expectation(1.0 / np.arange(1, longest + 1), above, tied))
            else:
                result.update({k: float(v) for k, v in metric.calculate_metric(_struct(ranks, top, collected)).items()})
        return result


def exact_mean(values: np.ndarray) -> float:
    """The mean, the sum rounded once.

    NumPy's differs in the last bit with the memory layout, and the best epoch is decided by unrounded values.
    """
    return math.fsum(values) / len(values)


def per_target(metric: TopkMetric, above: np.ndarray, tied: np.ndarray) -> dict[int, np.ndarray]:
    """A RecBole top-k metric for each target, with one positive per row.

    Such a metric depends only on the place of the positive, so RecBole's own class is asked once for every place.

    Args:
        metric: the metric.
        above: [N] items above each target.
        tied: [N] items that score the same.

    Returns:
        cut-off -> [N].
    """
    places = max(metric.topk)
    hit_at_place = np.eye(places, dtype=bool)  # row p: the positive is at place p
    one = np.ones(places, dtype=np.int64)
    wants_length = len(inspect.signature(metric.metric_info).parameters) > 1
    # [places, places]: value of metric@(k+1) for the positive at place p
    value = metric.metric_info(hit_at_place, one) if wants_length else metric.metric_info(hit_at_place)
    return {k: expectation(value[:, k - 1], above, tied) for k in metric.topk}


def _struct(ranks: Ranks, top: Tensor | None, collected: DataStruct) -> DataStruct:
    struct = DataStruct()
    for key, value in collected._data_dict.items():
        struct.set(key, value)
    n = ranks.n_candidates[:, None]
    struct.set("rec.meanrank", torch.cat((1 + ranks.mean_rank[:, None], n, torch.ones_like(n)), dim=1))
    if top is not None:
        struct.set("rec.items", top)
    return struct
