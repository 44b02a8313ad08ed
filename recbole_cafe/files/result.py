"""What a run gave, as a JSON file."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recbole_cafe.errors import DataError
from recbole_cafe.files.whole import write_json

_LATER: dict[str, Any] = {
    "validations_since_best": None,
    "digests": {},
    "final": False,
    "n_targets": {},
    "later_unknown": "the version that wrote the result did not measure them",
    "ranking_settings": {},
    "curve": [],
}  # keys that older results lack -> their value there


@dataclass
class Result:
    """What a run gave.

    Attributes:
        model: name of the model.
        dataset: name of the data set.
        seed: of the run.
        simulated: the data set is simulated.
        test_result: protocol -> metric -> value, not rounded; null for a metric that is not defined there (NaN).
            `full` has a view beside it, `full_later`: the same ranks, of the targets that are strictly later than the
            item before.
        best_valid_score: value of the validation metric at the best epoch; null if nothing was validated.
        best_valid_result: metrics of the first protocol at the best epoch; empty if nothing was validated.
        epochs: that were trained.
        validations_since_best: 0 if the last validation was the best so far, so that more epochs might have
            helped; None in results of versions that did not write it.
        seconds: wall-clock seconds of data, train and evaluation.
        peak_memory_mb: largest resident size of the process, in MiB.
        parameters: numbers that were trained.
        data: counts of the data set.
        candidates: protocol -> checksum of its sampled candidates.
        digests: of users, items, intents, interactions and split (recbole_cafe.data.fingerprint); equal on all
            machines. Empty in results of versions that did not write it.
        versions: of Python and of packages, and the device.
        config: every key of the configuration.
        checkpoint: file of the best weights, with `final` of the last ones; empty if they were not kept.
        final: all interactions were trained on, so that there is no validation and no test.
        ranking_settings: with `ranking_settings: auto` the settings of the ranking to begin with and those that were
            chosen, and how the validation was with them; else empty.
        curve: for each epoch `epoch` (from 1), `loss` (mean over its batches; null if nothing is learned) and `score`
            (of the validation metric; null if it was not validated). Empty in results of versions that did not write
            it.
        command: the command line.
        n_targets: protocol or view -> targets that were ranked. Empty in results of versions that did not write it,
            and where RecBole evaluated.
        later_unknown: why there is no `full_later`; empty if there is, if no target is later, or without `full`.
    """

    model: str
    dataset: str
    seed: int
    simulated: bool
    test_result: dict[str, dict[str, float | None]]
    best_valid_score: float | None
    best_valid_result: dict[str, float | None]
    epochs: int
    validations_since_best: int | None
    seconds: dict[str, float]
    peak_memory_mb: float
    parameters: int
    data: dict[str, Any]
    candidates: dict[str, str]
    digests: dict[str, str]
    versions: dict[str, str]
    config: dict[str, Any]
    checkpoint: str
    final: bool = False
    ranking_settings: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float | None]] = field(default_factory=list)
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    n_targets: dict[str, int] = field(default_factory=dict)
    later_unknown: str = ""

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all.

        Args:
            path: the file to write.
        """
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote.

        Args:
            path: the file. Keys that are not those of a result are passed over: a benchmark adds its own.

        Raises:
            DataError: no such file, one that is no JSON object, or a key that is missing or of another type.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable result file ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
        return cls.of(content, path)

    @classmethod
    def of(cls, content: Mapping[str, Any], path: str | Path) -> Result:
        """Make a result of what a JSON file holds.

        Args:
            content: the JSON object.
            path: where it comes from, for errors.

        Raises:
            DataError: a key that is missing or of another type.
        """
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for one in fields(cls):
            if one.name not in content and one.name not in _LATER:
                raise DataError(f"{path}: no key {one.name!r}, expected a result of recbole-cafe")
            value = content.get(one.name, _LATER.get(one.name))
            if fault := _fault(value, hints[one.name], one.name):
                raise DataError(f"{path}: {fault}")
            values[one.name] = value
        return cls(**values)

    @property
    def best_epochs(self) -> int | None:
        """Epochs after which validation was best, all of them where nothing was validated; None if it is not known."""
        if self.best_valid_score is None:
            return None if self.best_valid_result else self.epochs
        if self.validations_since_best is None:
            return None
        step = min(int(self.config["eval_step"]), int(self.config["epochs"]))
        return step * (self.epochs // step - self.validations_since_best) if step > 0 else self.epochs

    def table(self) -> str:
        """Format the test result as a Markdown table, protocols as columns; one line for a `final` run."""
        if self.final:
            kept = f"weights in {self.checkpoint}" if self.checkpoint else "weights not kept"
            return (
                f"final: {self.model} after {self.epochs} epoch{'s' * (self.epochs != 1)} on all "
                f"{self.data['interactions']} interactions of {self.dataset}, nothing held out; {kept}"
            )
        protocols = list(self.test_result)
        metrics = list(dict.fromkeys(m for values in self.test_result.values() for m in values))
        lines = ["| test | " + " | ".join(protocols) + " |", "|---|" + "---|" * len(protocols)]
        for metric in metrics:
            values = [self.test_result[p].get(metric) for p in protocols]
            cells = ["" if value is None else f"{value:.4f}" for value in values]
            lines.append(f"| {metric} | " + " | ".join(cells) + " |")
        if self.n_targets:
            lines.append("| targets | " + " | ".join(str(self.n_targets.get(p, "")) for p in protocols) + " |")
        if "full" in protocols and self.later_unknown:
            lines.append(f"\nfull_later: unknown, {self.later_unknown}")
        return "\n".join(lines)


def _fault(value: object, hint: Any, key: str) -> str | None:
    """What is wrong with a value of JSON, by the type it shall have; None when it is good."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return None
    if kind is types.UnionType:
        faults = [_fault(value, part, key) for part in parts]
        return None if None in faults else f"{key} is {value!r}, expected {hint}"
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        return f"{key} is {value!r}, expected {hint if parts else hint.__name__}"
    faults = []
    if isinstance(value, dict):
        faults = [_fault(part, parts[1], f"{key}.{name}") for name, part in value.items()]
    elif isinstance(value, list):
        faults = [_fault(part, parts[0], f"{key}[{i}]") for i, part in enumerate(value)]
    return next(filter(None, faults), None)
