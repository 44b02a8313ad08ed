"""Where the expressions of `pipeline` run: DuckDB on this machine, or Spark.

Both read the raw files with the same Python code (`raw`), write the same rows to Parquet and run the same Ibis
expressions on them, so their results agree to the byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from recbole_cafe.errors import ConfigError, MachineError, OutputError, missing_package
from recbole_cafe.files.spark import search_path, spark_session
from recbole_cafe.prepare import raw
from recbole_cafe.prepare.raw import PrepareError
from recbole_cafe.prepare.tasks import run_task, run_task_or_tell

ENGINES = ("duckdb", "spark")
SMALL = 1 << 25  # bytes of raw files that this process reads itself
_BATCH = 1 << 16
_OF_THE_DISK = re.compile("IO Error|No space left|quota|File too large|Could not (write|read|sync)|Input/output error")
_NOT_INSTALLED = (
    "Spark's executors lack this package; install it in the Python that they run (PYSPARK_PYTHON), on every machine: "
    "pip install recbole-cafe"
)


class Engine(Protocol):
    """What the pipeline needs."""

    def stage(self, tasks: Sequence[dict[str, Any]], show: bool) -> list[dict[str, Any]]:
        """Run the tasks of `tasks.run_task`; their results in order."""

    def read(self, pattern: str, name: str) -> Any:
        """Return an Ibis table of Parquet files."""

    def keep(self, expression: Any, name: str) -> Any:
        """Compute an Ibis table once; the name may be used again, for a table that replaces the old one."""

    def table(self, expression: Any) -> pa.Table:
        """Return all rows of a small table."""

    def batches(self, expression: Any) -> Iterator[pa.RecordBatch]:
        """Yield the rows of an ordered table, never all at once."""

    def close(self) -> None:
        """Let go of what is held."""


def connect(engine: str, work: Path, *, memory: str, threads: int) -> Engine:
    """Start an engine.

    Args:
        engine: one of `ENGINES`.
        work: folder for what does not fit into memory.
        memory: that it may use, as in "2GB".
        threads: that it may use.

    Raises:
        MachineError: the engine is not installed.
        ConfigError: it does not start with this memory and these threads.
        OutputError: the work folder cannot be written.
        PrepareError: Spark does not start.
    """
    try:
        return (DuckDB if engine == "duckdb" else Spark)(work, memory=memory, threads=threads)
    except ImportError as error:
        extra = "prepare" if engine == "duckdb" else "spark"
        raise missing_package(error, extra) from error


class DuckDB:
    """One machine, out of core: memory is bounded, the rest goes to disk."""

    def __init__(self, work: Path, *, memory: str, threads: int) -> None:
        """Start; see `connect`."""
        import duckdb
        import ibis

        self.work, self.memory, self.threads = work, memory, threads
        spill = work / "spill"
        spill.mkdir()
        try:
            self.connection = ibis.duckdb.connect(
                work / "work.duckdb", threads=threads, memory_limit=memory, temp_directory=str(spill)
            )
        except duckdb.IOException as error:
            raise _cannot_write(work, error) from None
        except duckdb.Error as error:
            raise ConfigError(
                f"--memory={memory} --threads={threads}: DuckDB does not start with these ({_flat(error)}); expected a "
                "size such as 2GB and at least one thread"
            ) from None
        self._run("SET preserve_insertion_order = false")
        self._run("SET enable_progress_bar = false")
        self._generation = 0
        self._kept: dict[str, str] = {}  # table of this session -> its name with the generation

    def stage(self, tasks: Sequence[dict[str, Any]], show: bool) -> list[dict[str, Any]]:
        """See `Engine`."""
        sizes = [raw.size_of(task["path"]) for task in tasks]
        total = None if None in sizes else sum(sizes)  # type: ignore[arg-type]
        small = any(task["path"].startswith("memory://") for task in tasks) or (total is not None and total < SMALL)
        with tqdm(total=total, desc="read", unit="B", unit_scale=True, disable=not show) as bar:
            if small:
                return [_in_process(task, bar) for task in tasks]
            return _in_workers(tasks, self.work, self.threads, bar)

    def read(self, pattern: str, name: str) -> Any:
        """See `Engine`."""
        with self._limits():
            return self.connection.read_parquet(pattern, table_name=name)

    def keep(self, expression: Any, name: str) -> Any:
        """See `Engine`."""
        self._generation += 1  # the expression may read the table that it replaces
        with self._limits():
            table = self.connection.create_table(f"{name}_{self._generation}", expression)
        if name in self._kept:
            self._run(f'DROP TABLE "{self._kept[name]}"')
        self._kept[name] = f"{name}_{self._generation}"
        return table

    def table(self, expression: Any) -> pa.Table:
        """See `Engine`."""
        with self._limits():
            return self.connection.to_pyarrow(expression)

    def batches(self, expression: Any) -> Iterator[pa.RecordBatch]:
        """See `Engine`."""
        with self._limits():
            batches = iter(self.connection.to_pyarrow_batches(expression, chunk_size=_BATCH))
        while True:
            with self._limits():  # not around the yield, or it would take what the reader of the batches fails at
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _run(self, statement: str) -> None:
        with self._limits():
            self.connection.raw_sql(statement)

    @contextlib.contextmanager
    def _limits(self) -> Iterator[None]:
        """Name the option by which a user changes what DuckDB has run out of. Any other error of it is a bug of ours.

        DuckDB's class says what it did when it failed, not why: a full disk is an IOException, a TransactionException
        at a commit, or a FatalException of the statement after it, and Arrow's OSError among batches.

        Raises:
            MachineError: too little memory.
            OutputError: a disk that is full or cannot be read back.
        """
        import duckdb

        try:
            yield
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error):
                raise MachineError(f"--memory={self.memory} is too little: {_flat(error)}") from None
            if isinstance(error, (duckdb.IOException, OSError)) or _OF_THE_DISK.search(str(error)):
                raise _cannot_write(self.work, error) from None
            raise

    def close(self) -> None:
        """See `Engine`."""
        import duckdb

        with contextlib.suppress(duckdb.Error):  # on a full disk; its tables go in any case
            self.connection.disconnect()


class Spark:
    """A cluster, or this machine: spark-submit and SPARK_CONF_DIR decide, else it is a session on this machine.

    On a cluster the raw files and the work folder must be reachable from every executor, and this package must be
    installed there.
    """

    def __init__(self, work: Path, *, memory: str, threads: int) -> None:
        """Start; see `connect`."""
        import ibis

        local = {
            "spark.master": f"local[{threads}]", "spark.local.dir": str(work / "spill"),
            "spark.driver.memory": memory.replace("GB", "g").replace("MB", "m"),
            "spark.sql.shuffle.partitions": str(4 * threads),
        }  # fmt: skip
        self.session, self._is_foreign = spark_session("recbole-cafe prepare", local)
        self.connection = ibis.pyspark.connect(self.session)
        self.work, self._generation = work, 0
        self._kept: dict[str, Path] = {}  # table of this session -> its folder

    def stage(self, tasks: Sequence[dict[str, Any]], show: bool) -> list[dict[str, Any]]:
        """See `Engine`."""
        del show  # Spark has a bar of its own
        for task in tasks:
            raw.size_of(task["path"])  # a missing file is named before anything starts
        rows = self.session.sparkContext.parallelize(list(tasks), len(tasks)).map(run_task_or_tell)
        try:
            results = rows.collect()
        except Exception as error:  # Py4J has no class of its own for it
            if re.search(r"No module named '(recbole_cafe|pyarrow|numpy|tqdm)", str(error)):
                raise PrepareError(_NOT_INSTALLED) from error
            raise
        return [_checked(result) for result in results]

    def read(self, pattern: str, name: str) -> Any:
        """See `Engine`."""
        return self.connection.read_parquet(pattern, table_name=name)

    def keep(self, expression: Any, name: str) -> Any:
        """See `Engine`."""
        self._generation += 1
        path = self.work / f"{name}-{self._generation}"
        self.connection.to_parquet(expression, str(path))
        if name in self._kept:
            shutil.rmtree(self._kept[name], ignore_errors=True)
        self._kept[name] = path
        return self.connection.read_parquet(str(path), table_name=f"{name}_{self._generation}")

    def table(self, expression: Any) -> pa.Table:
        """See `Engine`."""
        return self.connection.to_pyarrow(expression)

    def batches(self, expression: Any) -> Iterator[pa.RecordBatch]:
        """See `Engine`."""
        self._generation += 1
        path = self.work / f"sorted-{self._generation}"
        self.connection.to_parquet(expression, str(path))
        for part in sorted(path.glob("part-*.parquet")):  # ranges of the order, in order
            yield from pq.ParquetFile(part).iter_batches(_BATCH)

    def close(self) -> None:
        """See `Engine`."""
        if not self._is_foreign:
            self.session.stop()


def _cannot_write(work: Path, error: Exception) -> OutputError:
    return OutputError(f"--work: DuckDB cannot write or read back its tables in {work}: {_flat(error)}")


def _flat(error: Exception) -> str:
    return " ".join(str(error).split("Possible solutions")[0].split())


# Reading on this machine ----------------------------------------------------------------------------------------------


def _in_process(task: dict[str, Any], bar: tqdm) -> dict[str, Any]:
    begin = bar.n
    return run_task(task, lambda n_bytes: bar.update(begin + n_bytes - bar.n))


def _in_workers(tasks: Sequence[dict[str, Any]], work: Path, threads: int, bar: tqdm) -> list[dict[str, Any]]:
    """Each task in a process of its own, at most `threads` at a time; the largest files first."""
    files = []
    for number, task in enumerate(tasks):
        files.append(work / f"task-{number}.json")
        files[-1].write_text(json.dumps(task), encoding="utf-8")
    waiting = sorted(range(len(tasks)), key=lambda i: raw.size_of(tasks[i]["path"]) or 0)
    running: dict[int, subprocess.Popen[bytes]] = {}
    results: dict[int, dict[str, Any]] = {}
    environment = os.environ | {"PYTHONPATH": search_path()}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, threads):
                number = waiting.pop()
                command = [sys.executable, "-m", "recbole_cafe.prepare.tasks", str(files[number])]
                running[number] = subprocess.Popen(command, env=environment)
            for number, process in list(running.items()):
                if process.poll() is not None:
                    results[number] = _checked(_result(files[number], process.returncode))
                    del running[number]
            read = sum(result["bytes"] or 0 for result in results.values()) + sum(
                map(_progress, map(files.__getitem__, running))
            )
            bar.update(max(0, read - bar.n))
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return [results[number] for number in range(len(tasks))]


def _progress(task: Path) -> int:
    try:
        return int(Path(f"{task}.progress").read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0


def _result(task: Path, code: int) -> dict[str, Any]:
    path = Path(f"{task}.result")
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    what = json.loads(task.read_text(encoding="utf-8"))["path"]
    return {"error": f"{what}: the process that read it ended with code {code}"}


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise PrepareError(result["error"])
    return result
