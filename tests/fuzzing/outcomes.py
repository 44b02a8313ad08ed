"""How a case ends, and what an error of the package has to say to count as clear."""

from __future__ import annotations

import logging
import re
import traceback
from pathlib import Path

from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.files.atomic import AtomicFileError
from recbole_cafe.prepare.raw import PrepareError
from recbole_cafe.train.checkpoint import CheckpointError, UnsafeCheckpointError

CLEAR = (ConfigError, DataError, AtomicFileError, PrepareError, CheckpointError, UnsafeCheckpointError)


class Failure(Exception):
    """What is wrong, as (outcome, detail)."""


def check(condition: object, detail: str, outcome: str = "silent") -> None:
    if not condition:
        raise Failure(outcome, detail)


def short(value: object, length: int = 300) -> str:
    text = ascii(value) if not isinstance(value, str) else value
    return text if len(text) <= length else text[: length - 3] + "..."


class Log(logging.Handler):
    """The texts that were logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []
        root = logging.getLogger()
        root.handlers, root.level = [self], logging.INFO

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def has(self, name: str, number: int) -> bool:
        return any(name in text and re.search(rf"(?<![\w.]){number:,}(?![\w.])", text) for text in self.texts)


def first_difference(read: list[str], wanted: list[str]) -> str:
    at = next((at for at, pair in enumerate(zip(read, wanted, strict=False)) if pair[0] != pair[1]), None)
    lengths = f"{len(read)} values, not {len(wanted)}"
    return lengths if at is None else f"{short(read[at], 60)!r} at {at}, not {short(wanted[at], 60)!r} ({lengths})"


def clear_text(error: Exception, names: list[str]) -> str:
    """The message of an error that is clear; a failure if it is not."""
    if isinstance(error, Failure):
        raise error
    text = short(" ".join(str(error).split()), 600)
    told = f"{type(error).__name__}: {text}"
    check(not isinstance(error, MemoryError), told, "memory")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    check(isinstance(error, CLEAR), f"{told} ({Path(frame.filename).name}:{frame.lineno})", "raw error")
    check(any(name in text for name in names), f"{told}: names none of {', '.join(names)}", "unclear error")
    return told
