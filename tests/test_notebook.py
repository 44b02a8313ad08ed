"""The notebook: it runs from top to bottom, and is kept with what it wrote."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    values = {"NOTEBOOK_EPOCHS": "1", "NOTEBOOK_USERS": "[0,25]", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    notebook = runpy.run_path(str(ROOT / "docs/_site/notebook.py"))["executed"](tmp_path)
    wrote = "".join(str(output) for cell in notebook["cells"] for output in cell.get("outputs", ()))
    assert "full ndcg@10" in wrote and "because you took" in wrote


def test_the_notebook_is_kept_with_what_it_wrote() -> None:
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert "/home/" not in json.dumps(notebook) and "/tmp" not in json.dumps(notebook)
