"""Recommendations from trained weights: in a program, from files, as a service. Needs neither RecBole nor pandas."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_cafe.recommend.bundle import BundleError
    from recbole_cafe.recommend.recommender import Recommender

__all__ = ["BundleError", "Recommender"]

_HOMES = {"BundleError": "recbole_cafe.recommend.bundle", "Recommender": "recbole_cafe.recommend.recommender"}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for (PEP 562): PyTorch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
