"""One process of a machine reads, the others map what it has read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from recbole_cafe.data.mapped import read_once
from recbole_cafe.errors import DataError, MachineError
from recbole_cafe.processes import launch

N = 100_000


def config_of(rank: int) -> dict[str, Any]:
    return {"single_spec": False, "local_rank": rank, "offset": 0}


def files_mapped(folder: str) -> int:
    """How many files of a folder, gone or not, this process has mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[5] for line in maps if folder in line})


def reading_together(folder: str) -> None:
    """In one of two processes."""
    os.environ["TMPDIR"] = folder
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    config = config_of(rank)

    def made() -> dict[str, Any]:
        assert rank == 0, "the others do not read"
        ids = np.arange(N)
        tensor = torch.arange(N)
        return {"ids": ids, "same": ids, "tensor": tensor, "text": np.array(["a", "bc"] * N), "config": config,
                "small": np.ones(2), "objects": np.array([None, "x"], dtype=object)}  # fmt: skip

    result = read_once(config, made)
    assert result["config"] is config
    assert result["same"] is result["ids"]
    assert np.array_equal(result["ids"], np.arange(N)) and torch.equal(result["tensor"], torch.arange(N))
    assert result["text"][3] == "bc" and result["objects"].tolist() == [None, "x"]
    assert files_mapped(folder) == 3, "the three large arrays"
    result["ids"][5] = rank + 100  # of one's own
    torch.distributed.barrier()
    assert result["ids"][5] == rank + 100
    assert list(Path(folder).iterdir()) == []
    torch.distributed.barrier()  # or the other has begun anew

    def fails() -> None:
        raise DataError("no such user")

    with pytest.raises(DataError if rank == 0 else MachineError, match="no such user" if rank == 0 else "has failed"):
        read_once(config, fails)
    if rank == 0:
        assert list(Path(folder).iterdir()) == []
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_one_process_reads_and_all_have_it(tmp_path: Path) -> None:
    launch(reading_together, str(tmp_path), nproc=2, world_size=2, offset=0, ip="localhost", port="0", max_restarts=0)


def test_a_single_process_just_reads() -> None:
    assert read_once({"single_spec": True}, lambda: "read") == "read"
