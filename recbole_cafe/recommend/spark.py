"""Lists for histories of any number, on a cluster: Spark reads and groups, each executor has the bundle once.

The lists are those of :mod:`recbole_cafe.recommend.batch`, in a folder of files and in no order. The rows of a user
need not stand together.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recbole_cafe.errors import DataError, MachineError, OutputError, missing_package
from recbole_cafe.files.spark import spark_session
from recbole_cafe.recommend.batch import Summary, lists_of
from recbole_cafe.recommend.bundle import version_of
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.tables import (
    PARQUET,
    SEPARATORS,
    History,
    Shape,
    TableError,
    ending_of,
    in_time,
    seconds_of,
    shape_of,
    split_items,
    token_in,
)

# Of an error of ours in what Spark says of a task that failed
_TOLD = re.compile(r"^\S*\.(?:TableError|DataError|BundleError|ConfigError): (.*)$", re.MULTILINE)
_NOT_INSTALLED = re.compile(r"No module named '(recbole_cafe|torch|pyarrow|safetensors)")


def recommend_on_spark(folder: Path, histories: str, out: Path, options: Mapping[str, Any]) -> Summary:
    """:func:`recbole_cafe.recommend.batch.recommend_file` with Spark.

    On a cluster all executors have to reach `histories` and `out`, and have this package; `folder` is sent to them.

    Args:
        folder: of the bundle.
        histories: as for `recommend_file`; a folder of such files or a pattern, too. Rows of a user with equal times,
            or without any, are in the order in which Spark reads them: that of a single file.
        out: folder to make; its ending names the kind of the files in it.
        options: of :meth:`Recommender.recommend`.

    Raises:
        BundleError: see :func:`recbole_cafe.recommend.bundle.read`.
        MachineError: Spark is not installed here or where it runs, or does not start.
        TableError: a file of another form.
        OutputError: there is something in the place of the output already.
    """
    out = out.resolve()  # Spark may run in another folder
    histories = histories if "://" in histories else os.path.abspath(histories)
    ending_of(Path(histories))
    ending = ending_of(out)
    if out.exists():
        raise OutputError(f"{out} is there already; Spark makes a folder, give another --out")
    schema = lists_of([], Recommender.load(folder), options)[0].schema  # and says what is wrong with the options
    if ending in SEPARATORS and "reason" in schema.names:
        schema = schema.set(schema.names.index("reason"), pa.field("reason", pa.string()))
    seal = version_of(folder)
    # What a session was given it asks for until it ends, and somebody else's outlives this call
    work = tempfile.mkdtemp(prefix="recbole-cafe-")
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    try:
        session, is_foreign = spark_session("recbole-cafe recommend", {"spark.local.dir": work})
    except ImportError as error:
        raise missing_package(error, "spark") from error
    try:
        sent = Path(work) / f"recbole-cafe-{seal[:16]}"
        shutil.copytree(folder, sent)
        session.sparkContext.addFile(str(sent), recursive=True)
        return _run(session, histories, out, ending, schema, partial(_Task, sent.name, seal, dict(options)))
    finally:
        if not is_foreign:
            session.stop()


def _run(session: Any, histories: str, out: Path, ending: str, schema: pa.Schema, task: Any) -> Summary:
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException
    from pyspark.sql.pandas.types import from_arrow_schema

    counts = [session.sparkContext.accumulator(0) for _ in range(4)]
    try:
        grouped, shape = _grouped(session, histories)
        answer = task(histories, shape, schema, counts)
        lists = grouped.mapInArrow(answer, from_arrow_schema(schema))
        writer = lists.write
        if ending == PARQUET:
            writer.parquet(str(out))
        elif ending in SEPARATORS:
            writer.csv(str(out), header=True, sep=SEPARATORS[ending], escape='"', emptyValue="")
        else:
            writer.json(str(out), ignoreNullFields=False)
    except (PySparkException, Py4JJavaError) as error:
        shutil.rmtree(out, ignore_errors=True)  # begun, and of no use
        raise _told(error, histories) from error
    rows, n_histories, unknown, empty = (int(count.value) for count in counts)
    return Summary(n_histories, rows, unknown=unknown, empty=empty)


def _told(error: Exception, histories: str) -> Exception:
    """An error of ours, where Spark's is about one."""
    text = str(error)
    if ours := _TOLD.search(text):
        return TableError(ours[1])
    if _NOT_INSTALLED.search(text):
        return MachineError("Spark's executors lack this package, or what it needs; install it in the Python that they "
                            "run (PYSPARK_PYTHON), on every machine: pip install recbole-cafe")  # fmt: skip
    if "SparkOutOfMemoryError" in text or "OutOfMemoryError" in text:
        return MachineError(f"Spark has not enough memory: {' '.join(text.split())[:300]}")
    if "PATH_NOT_FOUND" in text:
        return TableError(f"there is no file {histories}")
    return TableError(f"{histories}: Spark cannot read it, or write what comes of it: {' '.join(text.split())[:500]}")


def _grouped(session: Any, histories: str) -> tuple[Any, Shape]:
    """A row for each user: the token, and what he has: [items], or [(time, place, item)]."""
    from pyspark.sql import functions as F

    ending = ending_of(Path(histories))
    if ending == PARQUET:
        table = session.read.parquet(histories)
    elif ending in SEPARATORS:
        table = session.read.csv(histories, header=True, sep=SEPARATORS[ending], escape='"', mode="FAILFAST")
    else:
        table = session.read.json(histories, mode="FAILFAST")
    shape = shape_of(Path(histories), table.columns)
    user = F.col(f"`{shape.user}`").cast("string").alias("user")
    if shape.items:
        items = F.col(f"`{shape.items}`")
        is_text = table.schema[shape.items].dataType.simpleString() == "string"
        whole = items if is_text else items.cast("array<string>")
        rows = table.select(user, F.struct(whole.alias("items")).alias("row"))
    else:
        time = F.col(f"`{shape.time}`") if shape.time else F.lit(0)
        item = F.col(f"`{shape.item}`").cast("string")
        place = F.monotonically_increasing_id()
        rows = table.select(user, F.struct(time.alias("time"), place.alias("place"), item.alias("item")).alias("row"))
    return rows.groupBy("user").agg(F.collect_list("row").alias("rows")), shape


class _Task:
    """What an executor does with its users. It is sent to the executors, so it holds plain things alone."""

    def __init__(self, name: str, seal: str, options: dict[str, Any], path: str, shape: Shape, schema: pa.Schema,
                 counts: list[Any]) -> None:  # fmt: skip
        self.name, self.seal, self.options, self.path = name, seal, options, path
        self.shape, self.schema, self.counts = shape, schema, counts

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The lists of users, a batch at a time."""
        from pyspark import SparkFiles

        recommender = _loaded(SparkFiles.get(self.name), self.seal)
        for batch in batches:
            users, rows = batch.column(0).to_pylist(), batch.column(1).to_pylist()
            part = [self._history(user, own) for user, own in zip(users, rows, strict=True)]
            table, done = lists_of(part, recommender, self.options)
            if "reason" in self.schema.names and pa.types.is_string(self.schema.field("reason").type):
                text = pc.struct_field(table["reason"], "text")
                table = table.set_column(table.column_names.index("reason"), "reason", text)
            for count, number in zip(self.counts, (done.rows, done.histories, done.unknown, done.empty), strict=True):
                count.add(number)
            yield from table.combine_chunks().to_batches()

    def _history(self, user: Any, rows: list[dict[str, Any]]) -> History:
        token = token_in(user, f"{self.path}: column {self.shape.user}")
        where = f"{self.path}: user {token!r:.80}"
        if self.shape.items:
            if len(rows) > 1:
                raise TableError(f"{where} has {len(rows)} rows, expected one with all of his items")
            listed = rows[0]["items"]
            return History(token, split_items("" if listed is None else listed, f"{where}, column items"), where)
        rows = sorted(rows, key=lambda row: row["place"])
        items = [token_in(row["item"], f"{where}, column {self.shape.item}") for row in rows]
        if self.shape.time:
            items = in_time(items, [seconds_of(row["time"], f"{where}, column {self.shape.time}") for row in rows])
        return History(token, items, where)


@lru_cache(maxsize=1)
def _loaded(folder: str, seal: str) -> Recommender:
    """The bundle, opened once in each process that asks it.

    Raises:
        DataError: it is another one than was sent.
    """
    import torch

    torch.set_num_threads(1)  # Spark runs a process on each core
    if version_of(folder) != seal:
        raise DataError(f"{folder} is another bundle than was sent")
    return Recommender.load(folder)
