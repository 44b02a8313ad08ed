"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil

from recbole_cafe.errors import OutputError, output_error

# Files ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `path` when the block ends, and leaves nothing behind when it fails.

    The folder of `path` is made if needed; what was at `path` stays until then.

    Args:
        path: the file to write.

    Yields:
        The file, open for writing and reading.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temporary = _temporary(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        file = open(temporary, "x+b")  # noqa: SIM115  closed below, where its errors mean something else
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it counts, should the power fail
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if refused := output_error(path, error):
            raise refused from error
        raise


def finite(content: object) -> object:
    """Content for JSON, which has no form for NaN and the infinities: None, `null`, in place of each.

    Args:
        content: of dicts, lists, tuples and values.
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: object) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file to write.
        content: a number that is not finite is written as null, what else JSON has no form for as text.
    """
    with written_whole(path) as file:
        file.write((json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n").encode())


# Folders --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(folder: Path, *, replace: bool, check: Callable[[], None]) -> Iterator[Path]:
    """Make a folder beside `folder` that takes its place when the block ends, and goes when it fails.

    Whatever fails, `folder` is the old one or the new one. On Linux the two change places in one step. Elsewhere it
    takes two renames; if the process is killed in the microseconds between them, the old folder stands whole beside its
    place, and whoever looks for it next (`restore`) puts it back.

    Args:
        folder: resolved path of the folder to write.
        replace: whether a folder that holds something may be replaced.
        check: raises if `folder` may not be written. Called at first, and again before the folder takes its place:
            writing took time, and another process may have been there.

    Yields:
        The temporary folder to write to.

    Raises:
        OutputError: the disk is full.
    """
    check()
    with beside(folder, "tmp") as temporary:
        try:
            yield temporary
            for path in temporary.iterdir():
                with open(path, "rb") as file:  # on the disk before it counts, should the power fail
                    os.fsync(file.fileno())
        except OSError as error:
            if not isinstance(error, OutputError) and (refused := output_error(folder, error)):
                raise refused from error
            raise
        check()
        _put_in_place(temporary, folder, replace)


@contextlib.contextmanager
def beside(folder: Path, ending: str) -> Iterator[Path]:
    """Make a hidden temporary folder beside `folder`, removed when the block ends.

    Args:
        folder: need not exist.
        ending: of the temporary folder's name.

    Yields:
        The temporary folder.
    """
    _sweep(folder.parent)
    temporary = _temporary(folder, ending)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore(folder: str | Path) -> None:
    """Put back the old folder if a replacement was killed between its two renames; else do nothing."""
    folder = Path(folder).resolve()
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())


def _temporary(path: Path, ending: str) -> Path:
    """A hidden name beside `path`. It holds host and process, so that what a killed process leaves can be told."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{ending}")


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left under names of `_temporary`. Those of other hosts stay: who knows."""
    temporary = re.compile(rf"\..+\.{_host()}-(\d+)-[0-9a-f]{{8}}\.\w+")
    for path in folder.glob(".*"):
        if (match := temporary.fullmatch(path.name)) and not psutil.pid_exists(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _put_in_place(temporary: Path, folder: Path, replace: bool) -> None:
    old = _old(folder)
    if folder.exists() and replace and _exchange(temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
        return
    if folder.exists() and replace:
        shutil.rmtree(old, ignore_errors=True)  # of a process killed after its second rename: `folder` is whole
        os.replace(folder, old)
    elif folder.exists():
        folder.rmdir()  # empty, or it fails: another process has just put a folder there
    try:
        os.replace(temporary, folder)
    except BaseException:
        restore(folder)
        raise
    if replace:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (Linux's renameat2); False where that cannot be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(cwd, os.fsencode(one), cwd, os.fsencode(other), exchange) == 0)
