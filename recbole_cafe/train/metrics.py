"""RecBole's metric classes fed with ranks, lists and scores: exact over ties, not rounded.

A list has min(k, candidates) items: what is not there is not counted. Of RecBole's own classes we know what they
average, so they are asked in a way that is exact over ties and over lists of different lengths. A class of a user's own
is given what its `metric_need` names, and its `calculate_metric` is called as RecBole calls it.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import AbstractMetric, TopkMetric
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.metrics import (
    MAP,
    MRR,
    NDCG,
    AveragePopularity,
    GiniIndex,
    Hit,
    ItemCoverage,
    Precision,
    Recall,
    ShannonEntropy,
    TailPercentage,
)
from torch import Tensor

from recbole_cafe.ranking.ranks import Ranks, expectation

PER_TARGET = (Hit, NDCG, MRR, Recall, MAP, Precision)  # depend only on the place of the target
PER_LIST = (AveragePopularity, TailPercentage)  # means over the lists
POOLED = (ItemCoverage, ShannonEntropy, GiniIndex)  # of all lists as one
DECIMALS = 12


class ProtocolEvaluator(Evaluator):
    """RecBole's Evaluator fed with ranks: its metric classes, exact over ties, not rounded, plus untruncated MRR.

    Attributes:
        needs: what the metrics need besides ranks, of RecBole's names (``rec.items``, ...).
        own_lists: metrics of a user's own that need ``rec.items``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for metric in self.metric_class.values():
            metric.decimal_place = DECIMALS
        fed = {name: metric for name, metric in self.metric_class.items() if type(metric) not in PER_TARGET}
        self.needs = frozenset(need for metric in fed.values() for need in metric.metric_need)
        self.own_lists = [
            name for name, m in fed.items() if "rec.items" in m.metric_need and type(m) not in PER_LIST + POOLED
        ]

    def evaluate_ranks(self, ranks: Ranks, rows: dict[str, Tensor], collected: DataStruct) -> OrderedDict:
        """Metrics of N targets.

        Args:
            ranks: of the targets.
            rows: what else the metrics need of the rows, by RecBole's names; ``rec.items`` are [N, max(topk)] ids, best
                first, 0 where a row has no more candidates.
            collected: what RecBole's collector took from the train data.

        Returns:
            metric -> float; ``mrr`` without a cut-off is added when MRR is asked for and all ranks are exact.
        """
        n_candidates = ranks.n_candidates.numpy()
        struct = _struct(ranks, rows, collected)
        result: OrderedDict = OrderedDict()
        for name, metric in self.metric_class.items():
            if type(metric) in PER_TARGET:
                result.update(_of_targets(name, metric, ranks))
            elif type(metric) in PER_LIST + POOLED:
                for k in metric.topk:
                    result[f"{name}@{k}"] = self._of_lists(metric, k, struct, n_candidates)
            else:
                result.update({k: float(v) for k, v in metric.calculate_metric(struct).items()})
        return result

    def of_ranks(self, ranks: Ranks) -> OrderedDict:
        """Those metrics that are means over targets and need their ranks alone: for some of the targets of a run.

        Args:
            ranks: of the targets, one at least.

        Returns:
            metric -> float, as :meth:`evaluate_ranks` gives it.
        """
        result: OrderedDict = OrderedDict()
        for name, metric in self.metric_class.items():
            if type(metric) in PER_TARGET:
                result.update(_of_targets(name, metric, ranks))
        return result

    def judges_rows(self, name: str) -> bool:
        """Whether a metric (``ndcg@10``) is a mean of values that depend on the place of a row's target alone."""
        return type(self.metric_class[name.partition("@")[0]]) in PER_TARGET

    def per_row(self, ranks: Ranks, name: str) -> np.ndarray:
        """One metric of each target.

        Args:
            ranks: of N targets; exact ones for ``mrr`` without a cut-off.
            name: of a metric that :meth:`judges_rows`, as in a result.

        Returns:
            [N], whose :func:`exact_mean` is the metric.
        """
        above, tied, n_candidates = ranks.above.numpy(), ranks.tied.numpy(), ranks.n_candidates.numpy()
        metric, at, k = name.partition("@")
        if not at:
            return expectation(1.0 / np.arange(1, int(n_candidates.max()) + 1), above, tied)
        return per_target(self.metric_class[metric], above, tied, n_candidates)[int(k)]

    def _of_lists(self, metric: AbstractMetric, k: int, struct: DataStruct, n_candidates: np.ndarray) -> float:
        """RecBole's formula over lists of min(k, candidates) items.

        Its classes take a matrix, that is lists of one length. So means over lists are taken length by length, and
        what is computed from all lists together is given one list of all their items.
        """
        items = struct.get("rec.items")
        lengths = torch.from_numpy(np.minimum(n_candidates, k))
        if type(metric) in POOLED:
            listed = torch.arange(items.shape[1]) < lengths[:, None]
            return self._of_matrix(metric, items[listed][None, :], struct)
        return math.fsum(
            self._of_matrix(metric, items[lengths == n, :n], struct) * (int((lengths == n).sum()) / len(lengths))
            for n in lengths.unique().tolist()
        )

    def _of_matrix(self, metric: AbstractMetric, items: Tensor, struct: DataStruct) -> float:
        """The metric of lists of one length, [N, n]."""
        length = items.shape[1]
        settings = {"metric_decimal_place": DECIMALS, "topk": [length], "tail_ratio": self.config["tail_ratio"]}
        of_lists = DataStruct()
        of_lists._data_dict.update(struct._data_dict)
        of_lists.set("rec.items", items)
        (value,) = type(metric)(settings).calculate_metric(of_lists).values()
        return float(value)


def _of_targets(name: str, metric: TopkMetric, ranks: Ranks) -> dict[str, float]:
    """One of PER_TARGET, averaged; ``mrr`` without a cut-off beside MRR."""
    above, tied, n_candidates = ranks.above.numpy(), ranks.tied.numpy(), ranks.n_candidates.numpy()
    result = {f"{name}@{k}": exact_mean(of) for k, of in per_target(metric, above, tied, n_candidates).items()}
    if type(metric) is MRR and ranks.limit is None:
        longest = int(n_candidates.max())
        result["mrr"] = exact_mean(expectation(1.0 / np.arange(1, longest + 1), above, tied))
    return result


def exact_mean(values: np.ndarray) -> float:
    """The mean, the sum rounded once.

    NumPy's differs in the last bit with the memory layout, and the best epoch is decided by unrounded values.
    """
    return math.fsum(values) / len(values)


def per_target(
    metric: TopkMetric, above: np.ndarray, tied: np.ndarray, n_candidates: np.ndarray
) -> dict[int, np.ndarray]:
    """A top-k metric of RecBole's for each target, with one positive per row.

    Such a metric depends only on the place of the positive and, as precision does, on the length of the list, so
    RecBole's own class is asked once for every place and length.

    Args:
        metric: one of PER_TARGET.
        above: [N] items above each target.
        tied: [N] items that score the same.
        n_candidates: [N] candidates, the target included; a list is min(k, candidates) long.

    Returns:
        cut-off -> [N].
    """
    places = max(metric.topk)
    hit_at_place = np.eye(places, dtype=bool)  # row p: the positive is at place p
    one = np.ones(places, dtype=np.int64)
    wants_length = len(inspect.signature(metric.metric_info).parameters) > 1
    # [places, places]: value of metric@(k+1) for the positive at place p
    value = metric.metric_info(hit_at_place, one) if wants_length else metric.metric_info(hit_at_place)
    values = {}
    for k in metric.topk:
        values[k] = expectation(value[:, k - 1], above, tied)
        for n in np.unique(n_candidates[n_candidates < k]):
            short = n_candidates == n
            values[k][short] = expectation(value[:, n - 1], above[short], tied[short])
    return values


def _struct(ranks: Ranks, rows: dict[str, Tensor], collected: DataStruct) -> DataStruct:
    """What RecBole's metric classes read, under its names."""
    struct = DataStruct()
    n = ranks.n_candidates[:, None]
    mean_rank = torch.cat((1 + ranks.mean_rank[:, None], n, torch.ones_like(n)), dim=1)
    struct._data_dict.update({**collected._data_dict, "rec.meanrank": mean_rank, **rows})
    return struct
