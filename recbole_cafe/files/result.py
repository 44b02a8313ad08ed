"""What a run gave, as a JSON file."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_cafe.files.whole import write_json


@dataclass
class Result:
    """What a run gave.

    Attributes:
        test_result: protocol -> metric -> value, not rounded.
        best_valid_result: metrics of the first protocol at the best epoch.
        validations_since_best: 0 if the last validation was the best so far, so that more epochs might have helped.
        seconds: wall-clock seconds of data, train and evaluation.
        peak_memory_mb: largest resident size of the process, in MiB.
        simulated: the data set is simulated.
    """

    model: str
    dataset: str
    seed: int
    simulated: bool
    test_result: dict[str, dict[str, float]]
    best_valid_score: float
    best_valid_result: dict[str, float]
    epochs: int
    validations_since_best: int
    seconds: dict[str, float]
    peak_memory_mb: float
    parameters: int
    data: dict[str, Any]
    candidates: dict[str, str]
    versions: dict[str, str]
    config: dict[str, Any]
    checkpoint: str
    command: list[str] = field(default_factory=lambda: list(sys.argv))

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(Path(path), asdict(self))

    def table(self) -> str:
        """The test result as a Markdown table, protocols as columns."""
        protocols = list(self.test_result)
        metrics = list(dict.fromkeys(m for values in self.test_result.values() for m in values))
        lines = ["| test | " + " | ".join(protocols) + " |", "|---|" + "---|" * len(protocols)]
        for metric in metrics:
            cells = [f"{self.test_result[p][metric]:.4f}" if metric in self.test_result[p] else "" for p in protocols]
            lines.append(f"| {metric} | " + " | ".join(cells) + " |")
        return "\n".join(lines)
