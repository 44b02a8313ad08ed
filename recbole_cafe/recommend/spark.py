"""Lists for more histories than a machine has time for: the same rows as :mod:`recbole_cafe.recommend.batch`, by Spark.

Histories are grouped and ordered by Spark; its Python workers get them as Arrow batches (`mapInArrow`) and ask a bundle
that each executor is sent once and each worker opens once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recbole_cafe.errors import OutputError, missing_package
from recbole_cafe.files.spark import spark_session
from recbole_cafe.recommend.bundle import version_of
from recbole_cafe.recommend.histories import COLUMNS, read_histories
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.tables import TableError, ending_of

_opened: dict[str, Recommender] = {}  # of this worker, by seal


def recommend_on_spark(folder: Path, histories: str, out: Path, options: Mapping[str, Any]) -> int:
    """Write the lists for histories that Spark reads.

    Args:
        folder: of the bundle.
        histories: a file, a folder of files or a pattern, whose names end in .csv, .jsonl or .parquet; columns as for
            :func:`recbole_cafe.recommend.batch.recommend_file`. Rows of a user may stand anywhere.
        out: folder to write, of files in the form that its name ends in. Its rows are in no order.
        options: of :meth:`Recommender.recommend`.

    Returns:
        how many rows were written.

    Raises:
        BundleError: see :func:`recbole_cafe.recommend.bundle.read`.
        ConfigError, DataError: options that cannot be right.
        TableError: histories without the columns.
        OutputError: there is something in `out`'s place.
        MachineError: Spark is missing or does not start.
    """
    ending = ending_of(out)
    if out.exists():
        raise OutputError(f"{out} is there already; give another place")
    source = ending_of(Path(histories))
    none = Recommender.load(folder).recommend([], **options)  # now, and not in every worker, if it cannot be
    schema = none.schema.set(none.schema.get_field_index("user"), pa.field("user", pa.string()))
    try:
        session, is_foreign = spark_session("recbole-cafe recommend", {"spark.sql.shuffle.partitions": "16"})
        from pyspark.sql import functions as F
        from pyspark.sql.pandas.types import from_arrow_schema
    except ImportError as error:
        raise missing_package(error, "spark") from error
    try:
        session.sparkContext.addFile(os.fspath(folder.resolve()), recursive=True)
        grouped = _grouped(_read(session, histories, source), histories)
        asked = _Asked(folder.resolve().name, version_of(folder), dict(options))
        lists = grouped.mapInArrow(asked, from_arrow_schema(schema))
        if ending == ".csv" and "reason" in lists.columns:
            lists = lists.withColumn("reason", F.col("reason.text"))
        writer = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[ending]
        lists.write.format(writer).option("header", True).save(os.fspath(out.resolve()))
        written = session.read.format(writer).option("header", True).load(os.fspath(out.resolve()))
        return int(written.count())
    finally:
        if not is_foreign:
            session.stop()


class _Asked:
    """What a worker does with its batches. It is sent to it, so it holds names alone."""

    def __init__(self, name: str, seal: str, options: dict[str, Any]) -> None:
        self.name, self.seal, self.options = name, seal, options

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Histories to lists."""
        recommender = self._recommender()
        for batch in batches:
            given = read_histories(batch["items"].to_pylist(), recommender.lookup)
            table = recommender.lists(given, **self.options)
            place = table.column_names.index("user")
            names = batch["user"].take(table["user"].combine_chunks())
            yield from table.set_column(place, "user", names).combine_chunks().to_batches()

    def _recommender(self) -> Recommender:
        if self.seal not in _opened:
            import torch
            from pyspark import SparkFiles

            torch.set_num_threads(1)  # a worker a core
            _opened.clear()
            _opened[self.seal] = Recommender.load(SparkFiles.get(self.name))
        return _opened[self.seal]


def _read(session: Any, histories: str, source: str) -> Any:
    try:
        if source == ".csv":
            return session.read.option("header", True).csv(histories)
        return session.read.parquet(histories) if source == ".parquet" else session.read.json(histories)
    except Exception as error:  # Spark's own, of which there are many
        if type(error).__name__ != "AnalysisException":
            raise
        raise TableError(f"{histories} cannot be read: {str(error).splitlines()[0]}") from error


def _grouped(table: Any, histories: str) -> Any:
    """A row of user and items for each user."""
    from pyspark.sql import functions as F

    def column(name: str) -> str | None:
        present = [alias for alias in COLUMNS[name] if alias in table.columns]
        if len(present) > 1:
            raise TableError(f"{histories}: both columns {' and '.join(present)}; expected one")
        return present[0] if present else None

    user, item, time = (column(name) for name in ("user", "item", "time"))
    if user is None or (item is None and "items" not in table.columns):
        raise TableError(f"{histories}: expected the columns user and item, or user and items; there are "
                         f"{', '.join(table.columns)}")  # fmt: skip
    name = F.col(user).cast("string").alias("user")
    if "items" in table.columns:
        listed = dict(table.dtypes)["items"].startswith("array")
        items = F.col("items").cast("array<string>") if listed else F.split(F.trim(F.col("items")), r"\s+")
        return table.select(name, F.coalesce(items, F.array().cast("array<string>")).alias("items"))
    when = F.lit(0.0) if time is None else F.col(time).cast("double")
    rows = table.select(name, F.struct(
        when.alias("time"), F.monotonically_increasing_id().alias("place"), F.col(item).cast("string").alias("item"),
    ).alias("taken"))  # fmt: skip
    in_order = F.sort_array(F.collect_list("taken"))
    return rows.groupBy("user").agg(in_order.alias("taken")).select("user", F.col("taken.item").alias("items"))
