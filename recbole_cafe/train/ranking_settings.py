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
from recbole_cafe.ranking.ranks import Ranks, rank_of_target
from recbole_cafe.train.evaluation import Evaluation, Prepared

Settings = Mapping[str, float]
Measure = Callable[[Settings], np.ndarray]  # the metric of some rows

ROUNDS = 2  # along all settings
LEAST_ROWS = 100  # fewer say nothing
MOST_ROWS = 4000
FEWEST_ROWS = 500  # are read of a validation however large the catalogue is
WORK = 2**25  # rows times items that a ranking shall take on
# Choosing shall take less than one epoch, so a small training allows less of it: each interaction of the training
WORK_OF_ONE = 3 * 2**8  # of that work, and
ROWS_OF_ONE = 1 / 25  # of a row,
FREE_ROWS = 1500  # but so many rows are allowed in any case
TOGETHER = 2**22  # rows times items ranked at a time; fixed, so that nothing depends on the size of other batches


@dataclass(frozen=True)
class Choice:
    """What came out.

    Attributes:
        default: the settings to begin with.
        chosen: those to rank with, of the same keys.
        before: values of the metric with the first, of the rows that decide, [N], and of those that check, [M].
        after: the same with the second.
        evaluations: how many settings were tried.
    """

    default: dict[str, float]
    chosen: dict[str, float]
    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]
    evaluations: int

    @property
    def changes(self) -> dict[str, float]:
        """What is chosen otherwise."""
        return {key: value for key, value in self.chosen.items() if value != self.default[key]}


def choose(decides: Measure, checks: Measure, default: Settings, tried: Mapping[str, tuple[float, ...]]) -> Choice:
    """Better settings than the default, if both halves of the rows say so.

    Args:
        decides: the metric for each row of the half that decides about a step, [N], larger is better.
        checks: the same of the other half, [M].
        default: key -> value.
        tried: key -> values to try; that of the default is tried in any case.
    """
    decides, known = _remembered(decides, tuple(default))
    checks, _ = _remembered(checks, tuple(default))
    best = dict(default)
    if not (len(decides(default)) and len(checks(default))):  # few users, who all fell into one half
        tried = {}
    for _ in range(ROUNDS):
        before = dict(best)
        for key in tried:
            found = _along(decides, best, key, sorted({*tried[key], best[key]}))
            if clear(decides(found) - decides(best)) and (checks(found) - checks(best)).sum() > 0:
                best = found
        if best == before:
            break
    if not clear(checks(best) - checks(default)):
        best = dict(default)
    before, after = ((decides(settings), checks(settings)) for settings in (default, best))
    return Choice(dict(default), best, before, after, len(known))


def _remembered(measure: Measure, keys: tuple[str, ...]) -> tuple[Measure, dict[tuple[float, ...], np.ndarray]]:
    """The same, asked once about each settings, and what it said."""
    known: dict[tuple[float, ...], np.ndarray] = {}

    def asked(settings: Settings) -> np.ndarray:
        values = tuple(settings[key] for key in keys)
        if values not in known:
            known[values] = measure(settings)
        return known[values]

    return asked, known


def _along(measured: Measure, start: dict[str, float], key: str, listed: list[float]) -> dict[str, float]:
    """The best settings of those that differ in one key, as far as a walk uphill from the start comes."""
    best = start
    for step in (1, -1):
        at = listed.index(best[key]) + step
        while 0 <= at < len(listed):
            there = {**best, key: listed[at]}
            if measured(there).mean() <= measured(best).mean():
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
        rows: those of half of the users, which decide, and those of the others, which check.
    """

    def __init__(self, net: Net, evaluation: Evaluation, loader: Any, protocol: Protocol, metric: str, seed: int
                 ) -> None:  # fmt: skip
        self.net, self.evaluator, self.metric = net, evaluation.evaluator, metric
        dataset = loader._dataset
        users = dataset.inter_feat[dataset.uid_field].numpy()
        order = np.random.default_rng(seed).permutation(int(users.max(initial=0)) + 1)[users]  # users by lot
        trained = int(dataset.inter_feat[dataset.item_list_length_field].sum())  # nearly: what the histories hold
        work = max(FEWEST_ROWS, min(WORK, WORK_OF_ONE * trained) // dataset.item_num)
        most = min(MOST_ROWS, work, max(FREE_ROWS, int(ROWS_OF_ONE * trained)))
        index = np.sort(np.argsort(order, kind="stable")[:most])
        together = max(1, min(TOGETHER // dataset.item_num, 512))
        decides = order[index] % 2 == 0
        self.rows: tuple[list[_Rows], list[_Rows]] = ([], [])
        for rows, of_half in zip(self.rows, (index[decides], index[~decides]), strict=True):
            for first in range(0, len(of_half), together):
                prepared = evaluation.prepared(loader, protocol, of_half[first : first + together], phase="valid")
                rows.append(_Rows(net.read(prepared.history, prepared.user), prepared))

    def measure(self, rows: list[_Rows]) -> Measure:
        """The metric of each of some rows, under some settings."""

        def measured(settings: Settings) -> np.ndarray:
            if not rows:
                return np.zeros(0)
            self.net.rank_with(settings)
            ranks = Ranks.cat([self._ranks(some.reading, some.prepared) for some in rows])
            return self.evaluator.per_row(ranks, self.metric)

        return measured

    def _ranks(self, reading: Reading, given: Prepared) -> Ranks:
        """Where the targets of some rows stand.

        Raises:
            ScoreError: a score is NaN.
        """
        if given.items is not None and given.intents is not None:
            scores = self.net.scores(self.net.asked(reading), given.items, given.intents)
            return rank_of_target(scores, torch.zeros_like(given.target), given.items > 0)
        spread = self.net.spread(reading)
        return spread.rank(given.target, given.excluded) if given.items is None else spread.rank_among(given.items)


@torch.no_grad()
def chosen_on(validation: Validation, default: Settings) -> Choice:
    """Choose, and let the net rank with what was chosen.

    Args:
        validation: its rows.
        default: the settings to begin with.
    """
    net = validation.net
    decides, checks = (validation.measure(rows) for rows in validation.rows)
    choice = choose(decides, checks, default, net.tried())
    net.rank_with(choice.chosen)
    return choice


def told(choice: Choice, validation: Validation, protocol: str) -> dict[str, Any]:
    """A choice as a result and a log say it.

    Args:
        choice: what came out.
        validation: what it was chosen on.
        protocol: name of the candidates.
    """
    halves = {"default": choice.before, "chosen": choice.after}
    return {
        "default": choice.default,
        "chosen": choice.chosen,
        "metric": validation.metric,
        "protocol": protocol,
        "rows": sum(len(half) for half in choice.before),
        "valid": {name: _mean(np.concatenate(values)) for name, values in halves.items()},
        "valid_of_the_half_that_checks": {name: _mean(values[1]) for name, values in halves.items()},
        "evaluations": choice.evaluations,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.sum() / max(1, len(values)))
