"""The Spark that a command runs on: the one that is configured, or a session on this machine."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from recbole_cafe.errors import MachineError

_CONFIGURED = ("PYSPARK_GATEWAY_PORT", "SPARK_CONF_DIR", "SPARK_REMOTE")  # somebody else says where Spark runs


def spark_session(name: str, local: Mapping[str, str]) -> tuple[Any, bool]:
    """The active session, the one that spark-submit or SPARK_CONF_DIR describe, or one on this machine.

    Args:
        name: of the application.
        local: settings of a session on this machine.

    Returns:
        the session, and whether it was somebody else's before, who will want to keep it.

    Raises:
        ImportError: there is no pyspark.
        MachineError: Spark does not start.
    """
    # Spark warns of pandas 3, of which it does less here than it fears for
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(name)
    is_foreign = SparkSession.getActiveSession() is not None
    if not is_foreign and not any(map(os.environ.get, _CONFIGURED)):
        for key, value in {
            "spark.ui.enabled": "false", "spark.driver.host": "localhost", "spark.driver.bindAddress": "127.0.0.1",
            "spark.executorEnv.PYTHONPATH": search_path(), **local,
        }.items():  # fmt: skip
            builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:  # Java is missing or too old; Py4J has no class of its own for it
        raise MachineError(f"Spark does not start: {error}; it needs Java 17 (JAVA_HOME)") from error
    session.sparkContext.setLogLevel("ERROR")
    return session, is_foreign


def search_path() -> str:
    """Where this process finds its modules, so that a worker on this machine finds the same ones."""
    return os.pathsep.join(filter(None, sys.path))
