"""Several processes: who is in the group, and how a group is started on this machine.

A group is started by `torchrun`, by SLURM's `srun`, or by :func:`launch`, which is torchrun's own launcher. Each
process finds its place in the environment, the same way for all three.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_cafe.errors import ConfigError, MachineError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
ONE_STORE_EACH = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
FIRST_PORT, PORTS = 20000, 20000  # of SLURM's jobs, which name none


@dataclass(frozen=True)
class Place:
    """A process's place in its group.

    Attributes:
        rank: among all processes.
        world_size: how many there are.
        local_rank: among those of its machine.
        address: of the machine of rank 0.
        port: where it is met.
        elastic: a launcher starts lost processes again.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: str
    elastic: bool = False

    def keys(self) -> dict[str, Any]:
        """The place in RecBole's keys."""
        return {
            "local_rank": self.local_rank, "world_size": self.world_size, "nproc": self.local_rank + 1,
            "offset": self.rank - self.local_rank, "ip": self.address, "port": self.port,
        }  # fmt: skip


def place_here(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place, as torchrun or srun has written it into the environment; None without a group.

    Raises:
        ConfigError: the environment says one part and not another, or no number where one is expected.
    """
    if "TORCHELASTIC_RUN_ID" in environment or all(name in environment for name in ("RANK", "WORLD_SIZE")):
        given = _numbers(environment, TORCHRUN)
        return Place(given[0], given[1], given[2], environment["MASTER_ADDR"], environment["MASTER_PORT"],
                     "TORCHELASTIC_RUN_ID" in environment)  # fmt: skip
    # a batch script has tasks and no step; there is one process, which nobody waits for
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        rank, world, local, *_ = _numbers(environment, SLURM)
        address = environment.get("MASTER_ADDR") or first_node(environment["SLURM_STEP_NODELIST"])
        port = environment.get("MASTER_PORT") or str(FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS)
        return Place(rank, world, local, address, port)
    return None


def meets_lost_ones(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether processes that torchrun starts again may look for each other where lost ones were, and wait in vain."""
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS") or 0)
    return restarts > 0 and environment.get(ONE_STORE_EACH) != "1"


def _numbers(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, the first three of the names, once all names are there."""
    if missing := [name for name in names if not environment.get(name)]:
        raise ConfigError(f"the environment is that of one process of several, but without {', '.join(missing)}")
    numbers = []
    for name in names[:3]:
        if not environment[name].isdecimal():
            raise ConfigError(f"{name}={environment[name]!r} in the environment is not a whole number")
        numbers.append(int(environment[name]))
    rank, world, local = numbers
    if not local <= rank < world:
        raise ConfigError(f"{names[0]}={rank}, {names[1]}={world}, {names[2]}={local} in the environment do not fit")
    return rank, world, local


def first_node(nodes: str) -> str:
    """The first name of SLURM's list of nodes, such as ``gpu[03-05,9],login``: ``gpu03``.

    Raises:
        ConfigError: it is no such list.
    """
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r} in the environment names no node")
    return "".join(part or "" for part in match.groups())


def launch(function: Callable[..., Any], *arguments: Any, nproc: int, world_size: int, offset: int, ip: str, port: str,
           max_restarts: int) -> None:  # fmt: skip
    """Run a function in several processes of this machine, as `torchrun` does.

    A process that ends with an error takes the others with it; all are started again, up to `max_restarts` times.

    Args:
        function: of a module, so that a new process can import it.
        arguments: its arguments, which can be pickled.
        nproc: processes of this machine.
        world_size: of all machines, each with `nproc`.
        offset: rank of this machine's first process.
        ip: of the first machine.
        port: where it is met; "0" for any, on one machine.
        max_restarts: how often.

    Raises:
        ConfigError: the machines do not have `nproc` processes each, or have no port to meet at.
        MachineError: a process was ended from outside.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed.
        KeyboardInterrupt: the launcher was told to end.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if world_size % nproc or offset % nproc or not 0 <= offset < world_size:
        raise ConfigError(
            f"nproc={nproc}, world_size={world_size}, group_offset={offset}: each machine should have nproc processes"
        )
    machines = world_size // nproc
    if machines > 1 and not 0 < int(port) < 65536:
        raise ConfigError(f"port={port} with {machines} machines: all should be told the same port, from 1 to 65535")
    alone = machines == 1
    config = LaunchConfig(
        min_nodes=machines, max_nodes=machines, nproc_per_node=nproc, run_id="recbole-cafe", start_method="spawn",
        rdzv_backend="c10d" if alone else "static", rdzv_endpoint=f"{'localhost' if alone else ip}:{port}",
        rdzv_configs={} if alone else {"rank": offset // nproc}, max_restarts=max_restarts, monitor_interval=0.2,
    )  # fmt: skip
    # PyTorch keeps one store for all attempts, in which processes that are started again may find where lost ones were
    os.environ.setdefault(ONE_STORE_EACH, "1")
    # it logs each failure with its traceback; what is to be said is raised here
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, function)(*arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise MachineError(
                f"process {failure.local_rank} of {nproc} ended by {failure.signal_name()}"
                f"{'; the system may have run out of memory' if failure.signal_name() == 'SIGKILL' else ''}"
            ) from None
        raise
