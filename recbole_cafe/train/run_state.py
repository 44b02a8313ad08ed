"""What a run needs beside its weights to go on as if it had never been broken off.

The last state of a run stands beside its checkpoint (`NAME.pth`, the best weights so far) as `NAME.last`, a checkpoint
too, from the start of an epoch; it goes when the run is done. So a `.last` file is an unfinished run. The process that
writes it holds a lock on `NAME.running`.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from recbole_cafe.config.neutral import NEUTRAL
from recbole_cafe.data.fingerprint import difference
from recbole_cafe.data.time_order import ExactOrderMixin
from recbole_cafe.errors import ConfigError
from recbole_cafe.train import checkpoint
from recbole_cafe.train.checkpoint import CheckpointError, part_of

LAST, RUNNING = ".last", ".running"
# Keys a run may be continued with another value of. Both values are logged.
MAY_CHANGE = frozenset(
    ["average_from", "epochs", "stopping_step", "learning_rate", "weight_decay", "eval_batch_size", "ranking_settings"]
)


class SaveEvery:
    """When the last state is due.

    Args:
        value: of the key `save_every`: a number of epochs, minutes as in ``10min``, 0 for never.

    Raises:
        ConfigError: neither.
    """

    def __init__(self, value: Any) -> None:
        text = "1" if value is None else str(value)
        match = re.fullmatch(r"(\d+)(min)?", text)
        if not match or isinstance(value, bool):
            raise ConfigError(f"save_every={value!r} should be a number of epochs, minutes as in 10min, or 0 for never")
        number = int(match[1])
        self.never = number == 0
        self._epochs = 0 if match[2] else number
        self._seconds = 60.0 * number if match[2] else 0.0
        self._saved_at = monotonic()

    def due(self, epoch: int) -> bool:
        """Whether the state is to be written before an epoch, the first being 0."""
        if self.never:
            return False
        if self._epochs:
            return epoch % self._epochs == 0
        return monotonic() - self._saved_at >= self._seconds

    def saved(self) -> None:
        """Count the time from now."""
        self._saved_at = monotonic()


# Random streams -------------------------------------------------------------------------------------------------------


def random_state(loaders: Sequence[Any]) -> dict[str, Any]:
    """The state of every random stream of this process.

    Args:
        loaders: RecBole's; each has a generator that orders its rows.
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "loaders": [loader.generator.get_state() for loader in loaders],
    }


def set_random_state(state: Mapping[str, Any], loaders: Sequence[Any]) -> None:
    """Restore what :func:`random_state` gave.

    Raises:
        CheckpointError: it is none.
    """
    try:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
        for loader, part in zip(loaders, state["loaders"], strict=True):
            loader.generator.set_state(part.cpu())
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the state of the random streams cannot be restored: {error}") from error


# Settings -------------------------------------------------------------------------------------------------------------


def changed_settings(saved: Mapping[str, Any], config: Any) -> dict[str, tuple[Any, Any]]:
    """Keys that change numbers and differ, with their values there and here.

    A key that only one of the two has came or went with a version of this package.

    Args:
        saved: config of a checkpoint.
        config: of this run.
    """
    there, here = checkpoint.encode(dict(saved)), checkpoint.plain_config(config)
    return {key: (there[key], here[key]) for key in sorted(set(there) & set(here) - NEUTRAL) if there[key] != here[key]}


def refuse_other_settings(changed: Mapping[str, tuple[Any, Any]], path: str | Path) -> None:
    """Raise ConfigError unless all that has changed may.

    Args:
        changed: from :func:`changed_settings`.
        path: the checkpoint.
    """
    if wrong := [f"{key}={here!r}, there {there!r}" for key, (there, here) in changed.items() if key not in MAY_CHANGE]:
        raise ConfigError(
            f"{path} is of a run with other settings: {'; '.join(wrong)}. A run goes on with the settings it began "
            f"with; only {', '.join(sorted(MAY_CHANGE))} may change"
        )


# Data -----------------------------------------------------------------------------------------------------------------


def digests_of(loader: Any) -> Mapping[str, str] | None:
    """The digests of the data behind a loader; None for a data set of RecBole's own class."""
    dataset = loader._dataset
    return dataset.digests if isinstance(dataset, ExactOrderMixin) else None


def refuse_other_data(state: Mapping[str, Any], digests: Mapping[str, str] | None, path: str | Path) -> None:
    """Raise CheckpointError unless a checkpoint is of these data; one of an earlier version does not say.

    Args:
        state: the checkpoint.
        digests: of the data.
        path: the checkpoint's file.
    """
    saved = state.get("data")
    if saved is None or digests is None:
        return
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: data should be a dict of digests, found {type(saved).__name__}")
    if differs := difference(saved, digests):
        raise CheckpointError(f"{path} was trained on other data. What differs: {differs}")


# Files ----------------------------------------------------------------------------------------------------------------


def last_of(best: str | Path) -> Path:
    """Where the last state stands, given the file of the best weights."""
    return Path(best).with_suffix(LAST)


def best_of(last: str | Path) -> Path:
    """The file of the best weights, given that of the last state."""
    return Path(last).with_suffix(".pth")


def checkpoint_to_resume(path: str | Path) -> Path:
    """The file that `resume_from` names.

    Raises:
        ConfigError: it is not there.
    """
    if not Path(path).is_file():
        raise ConfigError(f"resume_from={path}: there is no such file")
    return Path(path)


class Lock:
    """Says that a run is being written by a living process, whoever asks; it ends with the process.

    Args:
        best: file of the run's best weights.
    """

    def __init__(self, best: str | Path) -> None:
        self._path = Path(best).with_suffix(RUNNING)
        self._handle: int | None = None

    def take(self) -> bool:
        """Whether this process has it now."""
        if self._handle is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def give_back(self) -> None:
        """Let others have it, and remove its file."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def find_unfinished(config: Any, digests: Mapping[str, str] | None) -> Path | None:
    """The newest last state in `checkpoint_dir` of a run with these settings and data that no process is writing.

    Args:
        config: of this run.
        digests: of its data.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    folder = Path(config["checkpoint_dir"])
    names = folder.glob(f"{config['model']}-{config['dataset']}-*{LAST}") if folder.is_dir() else []
    for path in sorted(names, key=lambda name: name.stat().st_mtime_ns, reverse=True):
        state = checkpoint.load(path, map_location="cpu", mmap=True)  # a look; what is used is verified later
        if state.get("data") != digests or changed_settings(part_of(state, "config", dict, path), config):
            continue
        lock = Lock(path)
        if lock.take():
            lock.give_back()
            return path
    return None
