"""What reads results loads neither PyTorch nor RecBole, in effect and not in its own import lines alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "recbole_cafe"
# The package itself is left out of the question by a package of the same name that is empty.
PROGRAM = """
import importlib, sys, types
package = types.ModuleType("recbole_cafe")
package.__path__ = [{path!r}]
sys.modules["recbole_cafe"] = package
importlib.import_module("recbole_cafe.benchmark.{module}")
print(*sorted({{"torch", "recbole", "matplotlib"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    "module",
    [
        "layout",
        "store",
        "packed",
        "stats",
        "results",
        "wording",
        "charts",
        "html_report",
        "report",
        "pages",
        "figures",
        "slices",
    ],
)
def test_a_module_that_reads_results_is_light(module: str) -> None:
    program = PROGRAM.format(path=str(PACKAGE), module=module)
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
