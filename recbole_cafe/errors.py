"""What a user of the package is told when something of theirs, or of their machine's, cannot be right.

The command says these in one line. Any other exception is a bug of ours.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "the file would be larger than the system allows",
}
_CUT_OFF = "unexpected pos"  # torch's word


class ConfigError(ValueError):
    """A configuration that cannot be right. The message names the key, the value and what was expected."""


class DataError(ValueError):
    """The data do not fit what was asked for. The message names the file or field and what is there."""


class OutputError(OSError):
    """A place that cannot be written. The message names the file and the reason, such as a full disk."""


class MachineError(RuntimeError):
    """The machine lacks what the command needs: memory, a package, or a process that was ended from outside."""


class UsageError(ConfigError):
    """A command that is not typed as it has to be; exit status 2."""


OF_THE_USER = (
    ConfigError,
    DataError,
    OutputError,
    MachineError,
)  # anything else is a bug of ours


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A hint for the end of a message: the nearest of the names there are; empty if none is near.

    Args:
        name: what was given.
        known: the names there are. One that differs in upper and lower case alone is the nearest.
    """
    names = {str(one).lower(): str(one) for one in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]}?" if near else ""


def missing_package(error: ImportError, extra: str) -> MachineError:
    """The error for an optional package that is not installed.

    Args:
        error: of its import.
        extra: the extra of recbole-cafe that brings it.
    """
    return MachineError(f"{error}; install it with pip install 'recbole-cafe[{extra}]'")


def output_error(path: str | os.PathLike[str], error: BaseException) -> OutputError | None:
    """The error for a file that the disk had no room for; None if something else failed.

    Args:
        path: the file.
        error: what came while it was written. torch says "unexpected pos 64 vs 0" at the end of a file whose writing
            has failed; why it has may stand in the exceptions before.
    """
    before: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in before:
        before.append(seen)
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return OutputError(f"{os.fspath(path)} cannot be written: {_FULL[seen.errno]}")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and _CUT_OFF in str(error):
        return OutputError(f"{os.fspath(path)} cannot be written, probably because the disk is full ({error})")
    return None
