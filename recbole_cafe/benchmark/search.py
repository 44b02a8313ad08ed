"""Which settings to try next.

Optuna proposes; it keeps nothing. A search that starts again is rebuilt from the runs that are on disk. RecBole's
HyperTuning would not do: it needs hyperopt, which needs pkg_resources (gone from setuptools 82), and ray; it keeps its
trials in memory, so a kill costs all of them; and it runs RecBole's own trainer under RecBole's own evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_cafe.errors import missing_package

MOST_REPEATS = 50  # proposals of points that are taken, before the first free one is taken instead


class Search:
    """The search of one cell.

    Args:
        space: key -> values.
        points: hash -> point, all of the product of `space`.
        n_trials: how many points to try.
        sampler: grid (in random order) or tpe.
        seed: of the sampler.
        finished: hash -> validation score, higher is better, of the points that have been run.
        begun: hashes of points that were begun and not finished: tpe tries them first.
    """

    def __init__(self, space: Mapping[str, list[Any]], points: Mapping[str, Mapping[str, Any]], *, n_trials: int,
                 sampler: str, seed: int, finished: Mapping[str, float],
                 begun: Iterable[str] = ()) -> None:  # fmt: skip
        try:
            import optuna
        except ImportError as error:
            raise missing_package(error, "benchmark") from error

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self.n_trials = n_trials
        self.scores = dict(finished)
        self.failed: set[str] = set()
        self.running: dict[str, Any] = {}  # hash -> Optuna's trial
        # Optuna wants plain values; a value may be a list
        choices = {key: [json.dumps(value) for value in values] for key, values in space.items()}
        self._hash = {_key(point): digest for digest, point in points.items()}
        self._texts = {digest: {k: json.dumps(v) for k, v in point.items()} for digest, point in points.items()}
        self._spread = {k: optuna.distributions.CategoricalDistribution(v) for k, v in choices.items()}
        self.grid = sampler == "grid"
        if self.grid:
            optimiser = optuna.samplers.GridSampler(choices, seed=seed)
        else:  # the seed moves on with what is done, else a search that starts again proposes its first points again
            optimiser = optuna.samplers.TPESampler(seed=seed + len(self.scores), constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=optimiser)
        self._todo: list[str] = []
        if self.grid:  # its order depends on the seed alone
            order = [self._ask()[0] for _ in range(n_trials)]
            self.scores = {digest: self.scores[digest] for digest in order if digest in self.scores}
            self._todo = [digest for digest in order if digest not in self.scores]
        else:
            for digest, score in self.scores.items():
                self._study.add_trial(optuna.trial.create_trial(
                    params=self._texts[digest], distributions=self._spread, value=score
                ))  # fmt: skip
            for digest in begun:
                if digest in points and digest not in self.scores:
                    self._study.enqueue_trial(self._texts[digest])

    @property
    def n_left(self) -> int:
        """Points that are still to be begun."""
        return max(0, self.n_trials - len(self.scores) - len(self.failed) - len(self.running))

    @property
    def over(self) -> bool:
        """Every point has been run or has failed."""
        return not self.n_left and not self.running

    def ask(self) -> str | None:
        """The point to run next, None if none is left."""
        if not self.n_left:
            return None
        if self.grid:
            digest = self._todo.pop(0)
            self.running[digest] = None
            return digest
        taken = self.scores.keys() | self.failed | self.running.keys()
        for _ in range(MOST_REPEATS):
            digest, trial = self._ask()
            if digest not in taken:
                self.running[digest] = trial
                return digest
            if digest in self.scores:
                self._study.tell(trial, self.scores[digest])
            else:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        digest = next(d for d in self._hash.values() if d not in taken)
        self._study.enqueue_trial(self._texts[digest])
        self.running[digest] = self._ask()[1]
        return digest

    def tell(self, digest: str, score: float | None) -> None:
        """The validation score of a point, None if its run failed."""
        trial = self.running.pop(digest)
        if score is None:
            self.failed.add(digest)
        else:
            self.scores[digest] = score
        if trial is not None:
            state = self._optuna.trial.TrialState
            self._study.tell(trial, score, state=state.FAIL if score is None else state.COMPLETE)

    def _ask(self) -> tuple[str, Any]:
        trial = self._study.ask(self._spread)
        return self._hash[_key({k: json.loads(v) for k, v in trial.params.items()})], trial


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)
