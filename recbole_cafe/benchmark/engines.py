"""What makes the runs: an engine begins them, and says of each when it has ended.

Local is one machine; `recbole_cafe.benchmark.on_ray` is a cluster. Whatever the engine, a run leaves its files in its
folder: result.json, ranks.npz and log.txt, or error.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Protocol

from recbole_cafe.benchmark import store, worker
from recbole_cafe.errors import ConfigError

GRACE = 5.0  # seconds a worker gets to end when asked to
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(Protocol):
    """A run that has begun."""

    def ended(self) -> bool:
        """Whether it has; then all its files are in its folder."""

    def stop(self) -> None:
        """End it now."""


class Engine(AbstractContextManager[Any], Protocol):
    """Something that makes runs."""

    def room(self, n_running: int) -> bool:
        """Whether one more run can begin beside so many."""

    def begin(self, spec: dict[str, Any]) -> Job:
        """Begin a run; `spec` as for :func:`recbole_cafe.benchmark.worker.execute`, its folder is empty."""


class Local:
    """Processes of this machine.

    Args:
        jobs: processes at a time; 0 runs everything in this process, for tests and debugging.
        threads: of each process; default: the cores divided by `jobs`.
        time_limit: minutes after which a run counts as failed and its process is ended; None for no limit.

    Raises:
        ConfigError: a time limit without processes.
    """

    def __init__(self, jobs: int = 1, threads: int | None = None, time_limit: float | None = None) -> None:
        if jobs == 0 and time_limit is not None:
            raise ConfigError("a time limit needs processes that can be ended: jobs of at least 1")
        self.jobs, self.time_limit = jobs, time_limit
        self.threads = threads or max(1, len(os.sched_getaffinity(0)) // max(1, jobs))

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def room(self, n_running: int) -> bool:
        """Up to `jobs`."""
        return n_running < max(1, self.jobs)

    def begin(self, spec: dict[str, Any]) -> Job:
        """Begin a process; with 0 jobs make the run here and come back when it has ended."""
        return Process(spec, self.threads, self.time_limit) if self.jobs else Here(spec)


class Here:
    """A run in this process, over as soon as it is made."""

    def __init__(self, spec: dict[str, Any]) -> None:
        worker.attempt_here(spec)

    def ended(self) -> bool:
        """It has."""
        return True

    def stop(self) -> None:
        """Nothing is left to end."""


class Process:
    """A worker: a fresh Python with the module path of this one."""

    def __init__(self, spec: dict[str, Any], threads: int, time_limit: float | None = None) -> None:
        self.time_limit, self._end = time_limit, None if time_limit is None else perf_counter() + 60 * time_limit
        self.folder = Path(spec["folder"])
        self._log: IO[bytes] = (self.folder / store.LOG).open("wb")
        path = [os.path.abspath(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from recbole_cafe.benchmark.worker import main; main()"
        env = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
        # in a session of its own, so that Ctrl-C reaches this process alone, which then ends the workers
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=self._log,
                                         stderr=subprocess.STDOUT, cwd=self.folder, env=env,
                                         start_new_session=True)  # fmt: skip
        with suppress(BrokenPipeError):  # it could not even start; log.txt says why
            self._process.stdin.write(json.dumps(spec).encode() + b"\n")
            self._process.stdin.flush()  # and stays open: when it closes, the worker ends

    def ended(self) -> bool:
        """Whether it has. One that died without a word, or is beyond the time limit, gets an error.txt."""
        status = self._process.poll()
        if status is None:
            if self._end is None or perf_counter() < self._end:
                return False
            self.stop()
            self._leave_error(f"the run took longer than the time limit of {self.time_limit:g} minutes")
            return True
        self._close()
        if status != 0 and not (self.folder / store.ERROR).is_file():
            cause = f"signal {-status}" if status < 0 else f"exit status {status}"
            hint = " (signal 9: the system may have run out of memory)" if status == -9 else ""
            self._leave_error(f"the process of the run ended by {cause}{hint}")
        return True

    def _leave_error(self, what: str) -> None:
        log = (self.folder / store.LOG).read_text(encoding="utf-8", errors="replace")
        (self.folder / store.ERROR).write_text(f"{what}; its log ends with\n\n{log[-4000:]}", encoding="utf-8")

    def stop(self) -> None:
        """End it now."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self._log.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
