"""The runs of a benchmark as tasks of a Ray cluster.

A node needs this version of the package, and the data sets at the path they have here. It needs no folder of the
benchmark: a run is made in a temporary folder of its node, by the same process as on one machine, and its files come
back as the value of the task. What runs share, candidate lists and made intents, goes out through Ray's store.

Ray unpickles what its cluster sends: connect to clusters you trust.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import Any

from tqdm import tqdm

import recbole_cafe
from recbole_cafe.benchmark import store
from recbole_cafe.benchmark.engines import GRACE, Process
from recbole_cafe.errors import ConfigError, DataError, MachineError, UsageError, missing_package
from recbole_cafe.files.whole import write_json, written_whole

ANSWER = 30.0  # seconds a cluster has to answer
RESTARTS = 5  # of one run, after its node or worker was lost
POLL = 0.1  # seconds between looks at the process of a run
SHARED = {"candidates": "candidates_dir", "intents": "intents_dir"}  # folder beside the run -> key of the config
RUN = "run"


class Ray:
    """Tasks of a Ray cluster, on whichever node has room.

    Args:
        address: `auto` or HOST:PORT of a running cluster; None starts one on this machine and ends it afterwards.
        jobs: runs at a time; None for as many as the nodes have room for.
        threads: cores of each run.
        gpus: of each run, as a part of one or a whole number; 0 runs on the CPU. Must be given if the cluster has any.
        time_limit: minutes after which a run counts as failed and its process is ended; None for no limit.

    Raises:
        UsageError: an address of another form; `jobs` of 0.
    """

    def __init__(self, address: str | None = None, *, jobs: int | None = None, threads: int | None = None,
                 gpus: float | None = None, time_limit: float | None = None) -> None:  # fmt: skip
        if address is not None and not re.fullmatch(r"auto|[^\s:/]+:[0-9]{1,5}", address):
            raise UsageError(f"--address={address}: expected auto, or HOST:PORT as `ray start --head` prints it")
        if jobs == 0:
            raise UsageError("--jobs=0 runs everything in this process; with --engine=ray give at least 1, or none")
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise UsageError(f"--gpus={gpus:g}: more than one GPU for a run should be a whole number")
        self.address, self.jobs, self.threads, self.gpus = address, jobs, threads or 1, gpus
        self.time_limit = time_limit
        self._begun: list[Any] = []
        self._shared: tuple[frozenset[str], Any] = (frozenset(), None)

    def __enter__(self) -> Ray:
        self.ray = _import_ray()
        if self.address is not None:
            _check_answer(self.address)
        here = {} if self.address else {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
        self.ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **here)
        try:
            self._check_room()
        except ConfigError:
            self.ray.shutdown()
            raise
        # what has failed is not tried again by Ray: it cannot tell a lost node from a run that takes all memory
        self._task = self.ray.remote(make).options(num_cpus=self.threads, num_gpus=self.gpus or 0, max_retries=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self.ray.wait(self._begun, num_returns=len(self._begun), timeout=GRACE, fetch_local=False)
        self.ray.shutdown()  # ends what has not ended

    def room(self, n_running: int) -> bool:
        """Up to `jobs`, or what the nodes that are there now have cores and GPUs for."""
        return n_running < (self.jobs or max(1, self._slots()))

    def begin(self, spec: dict[str, Any]) -> Task:
        """Hand a run to the cluster."""
        return Task(self, spec)

    # Room -------------------------------------------------------------------------------------------------------------

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _slots(self) -> int:
        slots = 0
        for node in self._nodes():
            fit = node.get("CPU", 0) // self.threads
            slots += int(min(fit, node.get("GPU", 0) // self.gpus) if self.gpus else fit)
        return slots

    def _check_room(self) -> None:
        gpus = sum(node.get("GPU", 0) for node in self._nodes())
        if self.gpus is None and gpus:
            raise UsageError(f"the cluster has {gpus:g} GPU{'s' * (gpus != 1)}: say what a run gets of one, --gpus=1 "
                             "or a part such as --gpus=0.25; --gpus=0 runs on the CPU")  # fmt: skip
        if not self.jobs and not self._slots():  # with --jobs the cluster may be one that grows
            nodes = "; ".join(f"{n.get('CPU', 0):g} cores and {n.get('GPU', 0):g} GPUs" for n in self._nodes())
            raise ConfigError(f"no node has room for a run of --threads={self.threads} and --gpus={self.gpus or 0:g}: "
                              f"the nodes have {nodes or 'nothing'}; if nodes will join, give --jobs")  # fmt: skip

    # A run ------------------------------------------------------------------------------------------------------------

    def submit(self, spec: dict[str, Any]) -> Any:
        """Begin a task; returns Ray's reference to its value."""
        reference = self._task.remote(spec, _data_files(spec), self._sent(spec), self.threads, self.time_limit,
                                      recbole_cafe.__version__)  # fmt: skip
        self._begun.append(reference)
        return reference

    def forget(self, reference: Any) -> None:
        """A task has ended: free its value."""
        self._begun.remove(reference)

    def _sent(self, spec: dict[str, Any]) -> Any:
        """Reference to the files that runs share, in Ray's store once however many runs read them."""
        files = {f"{name}/{path.name}": path for name, key in SHARED.items()
                 for path in Path(spec["config_dict"][key]).glob("[!.]*") if path.is_file()}  # fmt: skip
        if self._shared[1] is None or self._shared[0] != files.keys():  # a name holds the fingerprint of the content
            self._shared = frozenset(files), self.ray.put({name: path.read_bytes() for name, path in files.items()})
        return self._shared[1]


class Task:
    """A run on the cluster. One whose node or worker is lost is begun again, on another node if need be."""

    def __init__(self, engine: Ray, spec: dict[str, Any]) -> None:
        self.engine, self.spec, self.restarts = engine, spec, 0
        self.folder = Path(spec["folder"])
        self._reference = engine.submit(spec)

    def ended(self) -> bool:
        """Whether it has; then its files are in its folder."""
        ray = self.engine.ray
        if not ray.wait([self._reference], timeout=0)[0]:
            return False
        try:
            place, files = ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:  # the node is not fit for it
            self._leave_error(str(error.cause if isinstance(error.cause, (DataError, MachineError)) else error))
        except ray.exceptions.OutOfMemoryError as error:
            self._leave_error(str(error))
        except ray.exceptions.RayError as error:
            return self._lost(error)
        else:
            self._store(place, files)
        self.engine.forget(self._reference)
        return True

    def stop(self) -> None:
        """Cancel it; the engine waits for all that were cancelled, then ends them."""
        self.engine.ray.cancel(self._reference)

    def _lost(self, error: Exception) -> bool:
        self.engine.forget(self._reference)
        why = str(error).strip().splitlines()[0]
        if self.restarts == RESTARTS:
            self._leave_error(f"the run's node or worker was lost {RESTARTS + 1} times, the last time by {why}")
            return True
        self.restarts += 1
        run = self.spec["benchmark"]
        tqdm.write(f"{run['system']:<16} {run['dataset']:<16} seed {run['seed']}  LOST, begun again: {why}")
        self._reference = self.engine.submit(self.spec)
        return False

    def _leave_error(self, what: str) -> None:
        (self.folder / store.ERROR).write_text(f"{what}\n", encoding="utf-8")

    def _store(self, place: str, files: Mapping[str, bytes]) -> None:
        """Write a run's files where a process of this machine would have left them, result.json last."""
        config = self.spec["config_dict"]
        homes = {RUN: self.folder, **{name: Path(config[key]) for name, key in SHARED.items()}}
        for name, content in files.items():
            top, _, rest = name.partition("/")
            path = homes[top] / rest
            if name != f"{RUN}/{store.RESULT}" and not path.exists():
                with written_whole(path) as file:
                    file.write(content)
        if (result := files.get(f"{RUN}/{store.RESULT}")) is not None:
            moved = {os.path.join(place, top): str(home) for top, home in homes.items()}
            write_json(self.folder / store.RESULT, _moved(json.loads(result), moved))


def _moved(value: Any, moved: Mapping[str, str]) -> Any:
    """A result whose paths on the node become those here."""
    if isinstance(value, dict):
        return {key: _moved(entry, moved) for key, entry in value.items()}
    if isinstance(value, list):
        return [_moved(entry, moved) for entry in value]
    for there, here in moved.items():
        if isinstance(value, str) and (value == there or value.startswith(there + "/")):
            return here + value[len(there) :]
    return value


# The cluster ----------------------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    # reports go to nobody, and `uv run` shall not make Ray send the working folder to the nodes
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a run without a GPU sets gpu_id itself
    try:
        import ray
    except ImportError as error:
        raise missing_package(error, "ray") from error
    return ray


def _check_answer(address: str) -> None:
    """Connect in a process that can be ended: where nobody answers, Ray itself waits minutes and ends the process.

    Raises:
        ConfigError: naming the address and what Ray says.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--address={address}: nothing answers there ({error})") from error
    code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--address={address}: no Ray cluster answers there within {ANSWER:g} seconds") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["Ray ended without a word"]
        raise ConfigError(f"--address={address}: {said[-1]}")


# On a node ------------------------------------------------------------------------------------------------------------


def _data_files(spec: dict[str, Any]) -> dict[str, int]:
    """The files of a run's data set with their bytes."""
    folder = _data_folder(spec)
    return {path.name: path.stat().st_size for path in sorted(folder.glob(f"{spec['dataset']}.*")) if path.is_file()}


def _data_folder(spec: dict[str, Any]) -> Path:
    return Path(spec["config_dict"]["data_path"], spec["dataset"])


def _check_node(spec: dict[str, Any], files: Mapping[str, int], version: str) -> None:
    """Raise unless this node has the driver's version of the package, and its data set.

    Raises:
        MachineError: another version.
        DataError: a file that is missing or of another size; names node and path.
    """
    node = socket.gethostname()
    if recbole_cafe.__version__ != version:
        raise MachineError(f"node {node} has recbole-cafe {recbole_cafe.__version__}, this benchmark {version}")
    here = _data_files(spec)
    for name, size in files.items():
        if here.get(name) != size:
            path = _data_folder(spec) / name
            what = "is not there" if name not in here else f"has {here[name]} bytes, not {size}"
            raise DataError(f"node {node}: {path} {what}; every node needs the data sets at the path they have on the "
                            "machine of the command: copy them there, or share the folder")  # fmt: skip


def make(spec: dict[str, Any], files: Mapping[str, int], shared: Mapping[str, bytes], threads: int,
         time_limit: float | None, version: str) -> tuple[str, dict[str, bytes]]:  # fmt: skip
    """Make a run on this node.

    Args:
        spec: see :func:`recbole_cafe.benchmark.worker.execute`.
        files: of the data set with their bytes, as on the machine of the driver.
        shared: candidate lists and made intents there are already, `folder/name` -> content.
        threads: of the process.
        time_limit: in minutes; None for no limit.
        version: of the driver's package.

    Returns:
        the temporary folder, and what the run left in it: `folder/name` -> content.

    Raises:
        MachineError: see :func:`_check_node`.
        DataError: see :func:`_check_node`.
    """
    import ray

    _check_node(spec, files, version)
    with tempfile.TemporaryDirectory(prefix="recbole-cafe-") as name:
        place = Path(name).resolve()
        for folder in (RUN, *SHARED):
            (place / folder).mkdir()
        for entry, content in shared.items():
            (place / entry).write_bytes(content)
        config = {**spec["config_dict"], **{key: str(place / folder) for folder, key in SHARED.items()},
                  "gpu_id": ",".join(map(str, ray.get_gpu_ids()))}  # fmt: skip
        process = Process({**spec, "folder": str(place / RUN), "config_dict": config}, threads, time_limit)
        try:
            while not process.ended():
                sleep(POLL)
        except BaseException:  # cancelled
            process.stop()
            raise
        left = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
        return str(place), {name: path.read_bytes() for name, path in left.items() if name not in shared}
