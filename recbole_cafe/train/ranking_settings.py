"""Settings of a ranking that touch no weight, chosen on the validation once a model is trained.

Which exponent of popularity is best depends on the candidates, and how far counts and vectors are to be trusted on how
often the items have been seen: data and protocol decide, and the validation knows. A net says which settings it has and
which values are worth trying (:meth:`recbole_cafe.model.net.Net.tried`). What it reads in the histories does not depend
on them, so that it is read once, and a ranking under other settings takes a moment.

The search goes along one setting after the other, twice, from the settings of the YAML. Half of the users choose. The
other half has to agree, or it stays as it was: a step has to gain more than a standard error (of the paired difference)
on the first half and something on the second, and all steps together more than a standard error on the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recbole_cafe.files.candidates import Protocol
from recbole_cafe.model.net import Net, Reading
from recbole_cafe.ranking.ranks import Ranks, ScoreError, rank_of_target
from recbole_cafe.train.evaluation import Evaluation, Prepared

Settings = Mapping[str, float]

ROUNDS = 2  # along all settings
LEAST_ROWS = 100  # fewer say nothing
MOST_ROWS = 4000
FEWEST_ROWS = 500  # are read of a validation however large the catalogue is
WORK = 2**25  # rows times items that a ranking shall take on
TOGETHER = 2**22  # rows times items ranked at a time; fixed, so that nothing depends on the size of other batches


@dataclass(frozen=True)
class Choice:
    """What came out.

    Attributes:
        default: the settings to begin with.
        chosen: those to rank with, of the same keys.
        before: [N] values of the metric for the rows that were looked at, with the first.
        after: [N] with the second.
        evaluations: how many settings were tried.
    """

    default: dict[str, float]
    chosen: dict[str, float]
    before: np.ndarray
    after: np.ndarray
    evaluations: int

    @property
    def changes(self) -> dict[str, float]:
        """What is chosen otherwise."""
        return {key: value for key, value in self.chosen.items() if value != self.default[key]}


def choose(values: Callable[[Settings], np.ndarray], default: Settings, tried: Mapping[str, tuple[float, ...]],
           decides: np.ndarray) -> Choice:  # fmt: skip
    """Better settings than the default, if both halves of the rows say so.

    Args:
        values: of the metric for each row, [N], larger is better.
        default: key -> value.
        tried: key -> values to try; that of the default is tried in any case.
        decides: [N] bool, the rows that decide about a step; the others check.
    """
    known: dict[tuple[float, ...], np.ndarray] = {}

    def measured(settings: Settings) -> np.ndarray:
        key = tuple(settings[name] for name in default)
        if key not in known:
            known[key] = values(settings)
        return known[key]

    best = dict(default)
    for _ in range(ROUNDS):
        before = dict(best)
        for key in tried:
            found = _along(measured, best, key, sorted({*tried[key], best[key]}), decides)
            gain = measured(found) - measured(best)
            if clear(gain[decides]) and gain[~decides].mean() > 0:
                best = found
        if best == before:
            break
    if not clear((measured(best) - measured(default))[~decides]):
        best = dict(default)
    return Choice(dict(default), best, measured(default), measured(best), len(known))


def _along(measured: Callable[[Settings], np.ndarray], start: dict[str, float], key: str, listed: list[float],
           decides: np.ndarray) -> dict[str, float]:  # fmt: skip
    """The best settings of those that differ in one key, as far as a walk uphill from the start comes."""
    best = start
    for step in (1, -1):
        at = listed.index(best[key]) + step
        while 0 <= at < len(listed):
            there = {**best, key: listed[at]}
            if measured(there)[decides].mean() <= measured(best)[decides].mean():
                break
            best, at = there, at + step
        if best is not start:
            break
    return best


def clear(gain: np.ndarray) -> bool:
    """Whether a mean is above its standard error. gain: [N] paired differences."""
    if len(gain) < 2:
        return False
    return bool(gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)))


@dataclass
class _Rows:
    """Rows of the validation, and what their histories say."""

    reading: Reading
    prepared: Prepared


class Validation:
    """Rows of a validation, read once, to be ranked under any settings.

    Args:
        net: with the weights that rank.
        evaluation: of the run.
        loader: RecBole's loader of the validation.
        protocol: the candidates.
        metric: the run's `valid_metric`.
        seed: which rows, and which of them decide.

    Attributes:
        decides: [N] bool, half of the users.
    """

    def __init__(self, net: Net, evaluation: Evaluation, loader: Any, protocol: Protocol, metric: str, seed: int
                 ) -> None:  # fmt: skip
        self.net, self.evaluator, self.metric = net, evaluation.evaluator, metric
        dataset = loader._dataset
        users = dataset.inter_feat[dataset.uid_field].numpy()
        order = np.random.default_rng(seed).permutation(int(users.max(initial=0)) + 1)[users]  # users by lot
        most = min(MOST_ROWS, max(FEWEST_ROWS, WORK // dataset.item_num))
        index = np.sort(np.argsort(order, kind="stable")[:most])
        self.decides = order[index] % 2 == 0
        self.rows: list[_Rows] = []
        together = max(1, min(TOGETHER // dataset.item_num, 512))
        for first in range(0, len(index), together):
            prepared = evaluation.prepared(loader, protocol, index[first : first + together], phase="valid")
            self.rows.append(_Rows(net.read(prepared.history, prepared.user), prepared))

    def __call__(self, settings: Settings) -> np.ndarray:
        """The metric of each row under some settings. Returns [N]."""
        self.net.rank_with(settings)
        return self.evaluator.per_row(Ranks.cat([self._ranks(rows.reading, rows.prepared) for rows in self.rows]),
                                      self.metric)  # fmt: skip

    def _ranks(self, reading: Reading, given: Prepared) -> Ranks:
        """Where the targets of some rows stand.

        Raises:
            ScoreError: a score is NaN.
        """
        first = torch.zeros_like(given.target)
        if given.items is not None and given.intents is not None:
            scores = self.net.scores(self.net.asked(reading), given.items, given.intents)
            return rank_of_target(scores, first, given.items > 0)
        every, row = self.net.probabilities(reading), torch.arange(len(first), device=first.device)
        if bool(every.sum().isnan()):
            raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
        if given.items is not None:
            return rank_of_target(every[given.items, row[:, None]], first, given.items > 0)
        own = every[given.target, row]
        every[0] = -1  # no candidate
        for i, gone in enumerate(given.excluded or ()):
            every[gone, i] = -1
        every[given.target, row] = -1
        n_candidates = (every >= 0).sum(0) + 1 if given.excluded else first + len(every) - 1
        return Ranks((every > own).sum(0).cpu(), (every == own).sum(0).cpu(), n_candidates.cpu())


@torch.no_grad()
def chosen_on(validation: Validation, default: Settings) -> Choice:
    """Choose, and let the net rank with what was chosen.

    Args:
        validation: its rows.
        default: the settings to begin with.
    """
    net = validation.net
    choice = choose(validation, default, net.tried(), validation.decides)
    net.rank_with(choice.chosen)
    return choice


def told(choice: Choice, validation: Validation, protocol: str) -> dict[str, Any]:
    """A choice as a result and a log say it.

    Args:
        choice: what came out.
        validation: what it was chosen on.
        protocol: name of the candidates.
    """
    checks = ~validation.decides
    return {
        "default": choice.default,
        "chosen": choice.chosen,
        "metric": validation.metric,
        "protocol": protocol,
        "rows": len(choice.before),
        "valid": {"default": float(choice.before.mean()), "chosen": float(choice.after.mean())},
        "valid_of_the_half_that_checks": {
            "default": float(choice.before[checks].mean()), "chosen": float(choice.after[checks].mean())
        },
        "evaluations": choice.evaluations,
    }  # fmt: skip
