"""Tells unmodified RecBole about our models, so that its own functions find them after `import recbole_cafe`.

RecBole looks a model up as `recbole.model.<kind>.<name>`, its trainer as an attribute of `recbole.trainer`, its data
set class as an attribute of `recbole.data.dataset`, and its defaults in the YAML files of its own folder. Names are
added at the first three places; for the last, one method of RecBole's Config is extended. Spawned workers are started
through a function of ours, which imports us there.
"""

from __future__ import annotations

import importlib
import sys
from functools import wraps
from logging import getLogger
from pathlib import Path

import recbole.data.dataset
import recbole.model
import recbole.trainer
from recbole.config import Config as RecBoleConfig

from recbole_cafe.config.config import add_layers
from recbole_cafe.config.signature import is_ours
from recbole_cafe.data.sequences import NetDataset
from recbole_cafe.model import MODELS
from recbole_cafe.train.trainer import NetTrainer

PARENT = "recbole.model.sequential_recommender"


def register() -> list[str]:
    """Add our models to RecBole. Harmless to repeat, and in any order with imports of RecBole.

    Returns:
        the names registered. A name that RecBole itself has is left to RecBole, with a warning.
    """
    _extend_config()
    _replace_worker()
    names = []
    for name, module_name in MODELS.items():
        module = importlib.import_module(module_name)
        if taken := taken_by_recbole(name, module_name):
            getLogger("recbole_cafe").warning(
                f"RecBole has its own {name} ({taken}); the name means RecBole's. Ours is {module_name}.{name}: pass "
                f"the class instead of the name"
            )
            continue
        sys.modules[f"{PARENT}.{name.lower()}"] = module  # find_spec and import_module look there first
        setattr(recbole.trainer, f"{name}Trainer", NetTrainer)
        setattr(recbole.data.dataset, f"{name}Dataset", NetDataset)
        names.append(name)
    return names


def taken_by_recbole(name: str, module_name: str) -> str | None:
    """Where RecBole itself defines a model, trainer or data set class of this name; None if nowhere."""
    for root in recbole.model.__path__:
        for path in sorted(Path(root).glob(f"*/{name.lower()}.py")):
            return str(path)
    alias = sys.modules.get(f"{PARENT}.{name.lower()}")
    if alias is not None and alias.__name__ != module_name:
        return alias.__name__
    for module, attribute, our_class in (
        (recbole.trainer, f"{name}Trainer", NetTrainer),
        (recbole.data.dataset, f"{name}Dataset", NetDataset),
    ):
        if getattr(module, attribute, our_class) is not our_class:
            return f"{module.__name__}.{attribute}"
    return None


def _replace_worker() -> None:
    """RecBole's `run(nproc=N)` spawns a function of RecBole's, whose process then does not know our models."""
    import recbole.quick_start.quick_start as stock

    from recbole_cafe.host.workers import run_recboles

    stock.run_recboles = run_recboles


def _extend_config() -> None:
    """RecBole's Config reads our YAML files when, and only when, its model is one of ours."""
    original = RecBoleConfig._load_internal_config_dict
    if getattr(original, "extended_by_recbole_cafe", False):
        return

    @wraps(original)
    def load(self: RecBoleConfig, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        if is_ours(model_class):
            add_layers(self, model_class, dataset)

    load.extended_by_recbole_cafe = True
    RecBoleConfig._load_internal_config_dict = load
