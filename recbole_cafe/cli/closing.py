"""What `run` says at its end: what it took, where the files are, and the command that most people type next."""

from __future__ import annotations

import shlex

from recbole_cafe.files.result import Result
from recbole_cafe.model import MODELS, net_class


def closing(result: Result, result_file: str | None = None, bundle: str | None = None) -> list[str]:
    """The lines of a closing summary.

    Args:
        result: of the run.
        result_file: where it was written, if it was.
        bundle: where the model was exported to, if it was.
    """
    took = duration(sum(result.seconds.values()))
    epochs = f"{result.epochs} epoch{'s' * (result.epochs != 1)}"
    line = f"{result.model} on {result.dataset}: {epochs} in {took}"
    if result.best_valid_score is not None:
        after = f" after epoch {result.best_epochs}" if result.best_epochs else ""
        line += f", best validation {result.config['valid_metric']} {result.best_valid_score:.4f}{after}"
    lines = [line]
    places = {"weights": result.checkpoint, "result": result_file, "bundle": bundle}
    if any(places.values()):
        lines.append("; ".join(f"{what} in {where}" for what, where in places.items() if where))
    return lines + [f"next: {command}" for command in next_commands(result, result_file, bundle)]


def next_commands(result: Result, result_file: str | None = None, bundle: str | None = None) -> list[str]:
    """What can be done with a run, the likeliest first; nothing where nothing was kept.

    Args:
        result: see :func:`closing`.
        result_file: see :func:`closing`.
        bundle: see :func:`closing`.
    """
    if bundle:
        return [f"recbole-cafe serve {shlex.quote(bundle)}"]
    commands = []
    if result.checkpoint and result.model in MODELS and not net_class(result.model).not_served:
        folder = shlex.quote(f"{result.model}-{result.dataset}")
        commands.append(f"recbole-cafe export {shlex.quote(result.checkpoint)} --out={folder}")
    if result_file and not result.final and result.best_epochs:
        commands.append(f"recbole-cafe run --final_from={shlex.quote(result_file)}  # on all interactions, for use")
    return commands


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 2 h 4 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
