"""Work in a child of this process, so that this one stays without threads and open files, and can be forked again."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable


def be_quiet() -> None:
    """Of a child: what it prints is not this tool's output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")


def run_once(work: Callable[[], object]) -> None:
    """Do in a child what every case does, in an empty folder; then import here what it has imported."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        child = os.fork()
        if child == 0:
            os.close(reader)
            be_quiet()
            os.chdir(folder)
            work()
            with open(writer, "w") as pipe:
                pipe.write("\n".join(sys.modules))
            os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            names = pipe.read().splitlines()
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("an input without any mutation fails")
    for name in names:
        with contextlib.suppress(Exception):  # some are parts of others, and cannot be imported alone
            importlib.import_module(name)
