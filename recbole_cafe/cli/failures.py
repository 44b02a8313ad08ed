"""How the command says what went wrong: one line for what a user can mend, the traceback for a bug of ours."""

from __future__ import annotations

import os
import sys
import traceback

from recbole_cafe.environment import report_to, version_line
from recbole_cafe.errors import OF_THE_USER, UsageError, output_error


def tell(error: Exception) -> int:
    """Say on standard error what went wrong.

    The environment variable RECBOLE_CAFE_TRACEBACK shows the traceback of every failure.

    Args:
        error: what ended the command.

    Returns:
        the exit status: 2 for a command that is not typed as it has to be, else 1.
    """
    line = one_line(error)
    if line is None or os.environ.get("RECBOLE_CAFE_TRACEBACK"):
        traceback.print_exception(error)
    print(f"recbole-cafe: {line or bug_note()}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def one_line(error: Exception) -> str | None:
    """An error of the user's or the machine's, in one line; None if it is a bug of ours.

    Args:
        error: any exception.
    """
    if isinstance(error, UsageError):
        return _flat(error)
    if isinstance(error, OF_THE_USER):
        return f"{type(error).__name__}: {_flat(error)}"
    if full := output_error(error.filename if isinstance(error, OSError) and error.filename else "a file", error):
        return f"OutputError: {_flat(full)}"
    if isinstance(error, OSError) and error.errno and error.filename:  # the system's answer about a file
        return f"{type(error).__name__}: {os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; it need not be loaded
        return f"MachineError: there is not enough memory ({_flat(error)}); smaller batches need less"
    return None


def bug_note() -> str:
    """What stands below the traceback of a bug."""
    return (
        "this is a bug of recbole-cafe, not a fault of what you typed or of your data (unless the lines above end in "
        f"code of your own). Please report it, with those lines and the command, {report_to()}\n{version_line()}"
    )


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
