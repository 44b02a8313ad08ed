"""Run docs/notebook.ipynb from top to bottom and keep what it wrote: `python docs/_site/notebook.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebook.ipynb"


def executed(folder: str | Path) -> Any:
    """The notebook with its outputs; what it writes goes to a folder.

    Args:
        folder: where it runs.

    Raises:
        CellExecutionError: a cell that fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
    )
    return client.execute()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(folder), NOTEBOOK)
