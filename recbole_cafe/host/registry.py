"""Tells unmodified RecBole about our models, so that its own functions find them after `import recbole_cafe`.

RecBole looks a model up as `recbole.model.<kind>.<name>`, its trainer as an attribute of `recbole.trainer`, its data
set class as an attribute of `recbole.data.dataset`, and its defaults in the YAML files of its own folder. At the first
three places our names are answered for when they are asked for; for the last, one method of RecBole's Config is
extended. Spawned workers are started through a function of ours, which imports us there.

Our own modules import RecBole, and RecBole's import is when all this is done. So nothing here may import them before
RecBole asks for a model: they could be half imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from logging import getLogger
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from recbole_cafe.errors import ConfigError, did_you_mean
from recbole_cafe.host import hook
from recbole_cafe.model import MODELS

if TYPE_CHECKING:
    from recbole.config import Config as RecBoleConfig

    from recbole_cafe.model.base import NetRecommender

    Model = TypeVar("Model", bound=type[NetRecommender])

FACES = "recbole_cafe.model.faces"  # the module of our own models as RecBole sees them
ENTRY_POINTS = "recbole_cafe.models"  # of a package: name = "package.module:Class"
# What follows a model's name -> (module of RecBole's that is asked, our module, our class)
COMPANIONS = {
    "Trainer": ("recbole.trainer", "recbole_cafe.train.trainer", "NetTrainer"),
    "Dataset": ("recbole.data.dataset", "recbole_cafe.data.sequences", "NetDataset"),
}
KINDS = ("sequential", "general", "context_aware", "knowledge_aware")  # RecBole's folders of models

_registered: dict[str, type[NetRecommender]] = {}  # by register()
_reported: set[tuple[str, str]] = set()  # names of RecBole's own that were warned of


# RecBole is made to know us -------------------------------------------------------------------------------------------


def install() -> list[str]:
    """Repair RecBole and make it know our models. Harmless to repeat, and in any order with imports of RecBole.

    `import recbole_cafe` sees to it that this is called when RecBole is imported, so nobody needs to.

    Returns:
        The names of our models that RecBole knows now, without those of entry points. A name that RecBole itself has
        is left to RecBole, with a warning.
    """
    hook.watch_imports()
    importlib.import_module(hook.ROOT)
    from recbole_cafe.host import compat

    compat.apply()  # first: what is broken in RecBole's submodules is repaired before they are imported
    for name in hook.EXTENDED:
        if name in sys.modules:
            extend(sys.modules[name])
    return [name for name in [*MODELS, *_registered] if not _left_to_recbole(name)]


def extend(module: ModuleType) -> None:
    """Extend one module of RecBole's, if it is one of hook.EXTENDED. Harmless to repeat."""
    if module.__name__ == "recbole.config.configurator":
        _extend_config(module.Config)
    elif module.__name__ == "recbole.quick_start.quick_start":
        # RecBole's `run(nproc=N)` spawns a function of RecBole's, whose process then does not know our models.
        from recbole_cafe.host.workers import run_recboles

        vars(module)["run_recboles"] = run_recboles
    elif module.__name__ == "recbole.utils.case_study":
        from recbole_cafe.host import case_study

        case_study.extend(module)
    for suffix, (name, home, companion) in COMPANIONS.items():
        if module.__name__ == name:
            _answer(module, suffix, home, companion)
            for model in (*MODELS, *_registered):
                _left_to_recbole(model)  # warns


def _answer(module: ModuleType, suffix: str, home: str, companion: str) -> None:
    """Let a module of RecBole's have the attribute <Model><suffix> for each of our models (PEP 562).

    Args:
        module: recbole.trainer or recbole.data.dataset.
        suffix: Trainer or Dataset.
        home: our module that defines the class.
        companion: name of the class, the same for all our models.
    """

    def answer(attribute: str) -> object:
        if attribute.endswith(suffix) and is_known(attribute.removesuffix(suffix)):
            return getattr(importlib.import_module(home), companion)
        raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")

    vars(module)["__getattr__"] = answer


def _extend_config(config_class: type[RecBoleConfig]) -> None:
    """RecBole's Config reads our YAML files when, and only when, its model is one of ours."""
    original: Callable[[RecBoleConfig, str, type, str], None] = config_class._load_internal_config_dict
    if "extended_by_recbole_cafe" in vars(original):
        return

    @wraps(original)
    def load(self: RecBoleConfig, model: str, model_class: type, dataset: str) -> None:
        from recbole_cafe.config.config import add_layers
        from recbole_cafe.config.signature import is_ours

        original(self, model, model_class, dataset)
        if is_ours(model_class):
            add_layers(self, model_class, dataset)

    vars(load)["extended_by_recbole_cafe"] = True
    config_class._load_internal_config_dict = load


# Which models there are -----------------------------------------------------------------------------------------------


def register(model_class: Model, yaml: str | Path | None = None) -> Model:
    """Make a model of your own known by its class name, to RecBole and to recbole_cafe.

    Its checkpoints can be loaded wherever this has been called, so call it in the module that defines the class; as a
    decorator, too. A package can instead name its models in the entry-point group `recbole_cafe.models`; then they are
    known without being imported first.

    Args:
        model_class: a subclass of NetRecommender, e.g. of CaFe. A class of the same name that was registered earlier
            is replaced.
        yaml: its settings. Without it, <Model>.yaml beside the module that defines the class; if there is none, the
            file of the first base class that has one.

    Returns:
        The class.

    Raises:
        TypeError: not a subclass of NetRecommender.
        ConfigError: RecBole or recbole_cafe has a model of that name, or the file `yaml` is missing.
    """
    from recbole_cafe.config.props import set_model_yaml

    _check_class(model_class)
    name = model_class.__name__
    if name in MODELS:
        raise ConfigError(f"recbole_cafe has its own {name} ({FACES}.{name}): give {model_class!r} another name")
    if place := taken_by_recbole(name):
        raise ConfigError(f"RecBole has its own {name} ({place}): give {model_class!r} another name")
    if yaml is not None:
        set_model_yaml(model_class, yaml)
    _registered[name] = model_class
    sys.modules.pop(f"{hook.MODELS_OF_RECBOLE}.{name.lower()}", None)  # made for an earlier class of this name
    return model_class


def model_class(name: str) -> type[NetRecommender]:
    """Return our model of a name: registered, one of recbole_cafe's, or of an entry point.

    Raises:
        ConfigError: no such model, or an entry point that cannot be right.
    """
    if name in _registered:
        return _registered[name]
    if name in MODELS:
        shipped: type[NetRecommender] = getattr(importlib.import_module(FACES), name)
        return shipped
    if name not in (points := _entry_points()):
        raise ConfigError(f"recbole_cafe knows no model {name}")
    loaded: type[NetRecommender] = points[name].load()
    try:
        _check_class(loaded)
    except TypeError as error:
        raise ConfigError(f"entry point {name} = {points[name].value!r}: {error}") from None
    if loaded.__name__ != name:
        raise ConfigError(f"entry point {name} = {points[name].value!r}: it should have the name of the class")
    return loaded


def is_known(name: str) -> bool:
    """Whether a name means a model of ours to RecBole: we know it, and RecBole has none of that name."""
    if name in MODELS or name in _registered:
        return not _left_to_recbole(name)
    return bool(name) and taken_by_recbole(name) is None and name in _entry_points()


def names_in_module(leaf: str) -> list[str]:
    """Our models that RecBole looks for in a module of this name, which is their name in lower case."""
    names = [name for name in (*MODELS, *_registered) if name.lower() == leaf]
    names = names or [name for name in _entry_points() if name.lower() == leaf]
    return [name for name in names if is_known(name)]


def recboles_own(kind: str) -> list[str]:
    """Names of RecBole's own models of a kind, read from its files without importing it; none without RecBole.

    Args:
        kind: ``sequential``, ``general``, ``context_aware`` or ``knowledge_aware``.
    """
    spec = importlib.util.find_spec(hook.ROOT)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    names = []
    for path in sorted((root / "model" / f"{kind}_recommender").glob("*.py")):
        classes = [n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
        names += [name for name in classes if name.lower() == path.stem]
    return sorted(names)


def unknown_model(name: str) -> ConfigError:
    """The error for a name that no model has, in RecBole's words, with the nearest name that one has."""
    of_recbole = [own for kind in KINDS for own in recboles_own(kind)]
    hint = did_you_mean(name, [*MODELS, *_registered, *_entry_points(), *of_recbole])
    return ConfigError(f"`model_name` [{name}] is not the name of an existing model{hint or '.'}")


def taken_by_recbole(name: str) -> str | None:
    """Return where RecBole itself defines a model, trainer or data set class of this name; None if nowhere."""
    module_name = f"{hook.ROOT}.model"
    if module_name in sys.modules:
        roots = [Path(root) for root in sys.modules[module_name].__path__]
    else:
        roots = [Path(root) / "model" for root in importlib.import_module(hook.ROOT).__path__]
    for root in roots:
        for path in sorted(root.glob(f"*/{name.lower()}.py")):
            return str(path)
    alias = sys.modules.get(f"{hook.MODELS_OF_RECBOLE}.{name.lower()}")
    if alias is not None and not (alias.__spec__ and isinstance(alias.__spec__.loader, hook.ModelLoader)):
        return alias.__name__
    for suffix, (module_name, home, companion) in COMPANIONS.items():
        attributes = vars(sys.modules[module_name]) if module_name in sys.modules else {}
        value = attributes.get(f"{name}{suffix}")
        if value is not None and (value.__module__, value.__qualname__) != (home, companion):
            return f"{module_name}.{name}{suffix}"
    return None


def _left_to_recbole(name: str) -> bool:
    """Whether RecBole has a model of the name of one of ours; says so once."""
    place = taken_by_recbole(name)
    if place is None:
        return False
    if (name, place) not in _reported:
        _reported.add((name, place))
        home = FACES if name in MODELS else _registered[name].__module__
        getLogger("recbole_cafe").warning(
            f"RecBole has its own {name} ({place}); the name means RecBole's. Ours is {home}.{name}: pass the class "
            f"instead of the name"
        )
    return True


def _entry_points() -> dict[str, EntryPoint]:
    """The models that installed packages name. Read anew each time, since it is asked for unknown names only."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _check_class(model: object) -> None:
    """Raise TypeError unless this is a model on our contract."""
    from recbole_cafe.model.base import NetRecommender

    if not (isinstance(model, type) and issubclass(model, NetRecommender)):
        raise TypeError(f"{model!r} is not a subclass of recbole_cafe.model.base.NetRecommender")
