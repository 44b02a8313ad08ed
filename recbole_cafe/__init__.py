"""recbole-cafe: CaFe and its companions for RecBole.

Importing this package is light: neither PyTorch nor RecBole is loaded. RecBole is made to know our models when it is
imported, or at once where it already is (:func:`install`). What current Python, NumPy, pandas, PyTorch and setuptools
break in RecBole 1.2 is repaired at the same moment (recbole_cafe.host.compat; RECBOLE_CAFE_COMPAT=0 switches the
repairs off). The public names are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if "torch" not in sys.modules:
    # Threads of PyTorch wait for each other by spinning. On a machine that does something else as well they spin in
    # each other's way (load 5 on 2 cores: minutes for an epoch that takes 3 s); a short spin costs nothing where they
    # are alone (2.9 s either way) and lets go otherwise. OpenMP reads this once, when PyTorch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from recbole_cafe.host.hook import watch

if TYPE_CHECKING:
    from recbole_cafe.config.config import Config
    from recbole_cafe.errors import ConfigError
    from recbole_cafe.experiment import run
    from recbole_cafe.files.result import Result
    from recbole_cafe.host.registry import install, register
    from recbole_cafe.host.workers import objective_function
    from recbole_cafe.model.faces import CaFe

__all__ = [
    "CaFe", "Config", "ConfigError", "Result", "__version__", "install", "objective_function", "register", "run",
]  # fmt: skip

# public name -> module that defines it
_HOMES = {
    "CaFe": "recbole_cafe.model.faces",
    "Config": "recbole_cafe.config.config",
    "ConfigError": "recbole_cafe.errors",
    "Result": "recbole_cafe.files.result",
    "install": "recbole_cafe.host.registry",
    "objective_function": "recbole_cafe.host.workers",
    "register": "recbole_cafe.host.registry",
    "run": "recbole_cafe.experiment",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


watch()
