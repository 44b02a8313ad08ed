"""Data that the processes of one machine hold together: one of them reads, the others map what it has read.

The large arrays of what was read are written to files, which every process maps into its memory (NumPy's `.npy` files,
copied where a process writes into them). The system holds each page once, however many processes read it, and can drop
it when memory is short. The files go as soon as all have mapped them.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from recbole_cafe.errors import MachineError, OutputError

MAPPED_FROM = 2**16  # bytes of an array that gets a file of its own
LOOK = 0.05  # seconds between two looks for what the first process has read
Made = TypeVar("Made")


def read_once(config: Any, make: Callable[[], Made]) -> Made:
    """What is read from files, by the first process of each machine alone.

    All processes have to call it together. In a single process it is `make()`.

    Args:
        config: RecBole's Config; it is each process's own also inside what was made.
        make: how it is read. Its result can be pickled; it travels in a folder that only this user can open.

    Returns:
        the result, whose large arrays all processes of a machine have in common.

    Raises:
        MachineError: the process that reads has failed; it says why itself.
        OutputError: there is no room for the arrays where temporary files are (TMPDIR).
    """
    if config["single_spec"]:
        return make()
    reads, places = config["local_rank"] == 0, [(0, "")] * torch.distributed.get_world_size()
    own = tempfile.mkdtemp(prefix="recbole-cafe-") if reads else ""
    torch.distributed.all_gather_object(places, (config["offset"], own))
    here = [name for offset, name in places if offset == config["offset"]]  # of this machine
    folder = Path(max(here))
    try:
        if len(here) == 1:
            return make()
        if reads:
            _write(make, config, folder)
        else:
            _wait(folder)
        with (folder / "data").open("rb") as file:
            result: Made = _Reader(file, config).load()
        if not reads:
            (folder / f"mapped-{config['local_rank']}").touch()
        while reads and len(list(folder.glob("mapped-*"))) < len(here) - 1:
            time.sleep(LOOK)
    finally:
        if reads:
            shutil.rmtree(folder, ignore_errors=True)
    return result


def _write(make: Callable[[], Any], config: Any, folder: Path) -> None:
    made = make()
    try:
        with (folder / "unfinished").open("wb") as file:
            _Writer(file, config, folder).dump(made)
    except OSError as error:
        raise OutputError(f"{folder}, where processes share what one of them read: {error}; TMPDIR may name a place "
                          f"with more room") from error  # fmt: skip
    (folder / "unfinished").rename(folder / "data")


def _wait(folder: Path) -> None:
    """Reading may take longer than processes wait for each other elsewhere (`group_timeout`)."""
    while not (folder / "data").exists():
        if not folder.exists():
            time.sleep(1)  # its own message first
            raise MachineError("the process that reads the data for this machine has failed; its message says why")
        time.sleep(LOOK)


class _Writer(pickle.Pickler):
    """Pickles, but for the config and for large arrays, which get files of their own."""

    def __init__(self, file: Any, config: Any, folder: Path) -> None:
        super().__init__(file, protocol=5)
        self._config, self._folder, self._n = config, folder, 0

    def persistent_id(self, obj: Any) -> str | None:
        return "config" if obj is self._config else None

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and not obj.dtype.hasobject and obj.nbytes >= MAPPED_FROM:
            return _mapped, (self._stored(obj),)
        plain = type(obj) is Tensor and obj.layout == torch.strided and obj.device.type == "cpu"
        if plain and obj.nbytes >= MAPPED_FROM:
            return _mapped_tensor, (self._stored(obj.numpy()),)
        return NotImplemented

    def _stored(self, array: np.ndarray) -> str:
        path = self._folder / f"{self._n}.npy"
        self._n += 1
        np.save(path, array, allow_pickle=False)
        return str(path)


class _Reader(pickle.Unpickler):
    """Reads what :class:`_Writer` of this run has written."""

    def __init__(self, file: Any, config: Any) -> None:
        super().__init__(file)
        self._config = config

    def persistent_load(self, pid: str) -> Any:  # noqa: ARG002 - there is one
        return self._config


def _mapped(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)


def _mapped_tensor(path: str) -> Tensor:
    return torch.from_numpy(_mapped(path))
