"""The YAML files of props/: where they are, reading them, and the presets in them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from recbole_cafe.errors import ConfigError, did_you_mean
from recbole_cafe.files.literals import load_yaml
from recbole_cafe.files.places import PACKAGE

SYSTEM_KEYS = ("model", "search")  # what a system of a benchmark file holds beside settings of its model


def props_dir() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    for folder in (PACKAGE / "props", PACKAGE.parent / "props"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise ConfigError(f"the YAML files of recbole_cafe are missing: neither {PACKAGE}/props nor {PACKAGE.parent}/props")


_YAML_OF: dict[type, Path] = {}  # of models that were registered with a file of their own


def set_model_yaml(model_class: type, path: str | Path) -> None:
    """Let a model class have its settings in a file of any name and place.

    Raises:
        ConfigError: there is no such file.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f"the YAML of {model_class.__name__} is missing: no file {path}")
    _YAML_OF[model_class] = file


def model_yaml(model_class: type) -> Path:
    """Return the YAML file of a model class, or of the first of its bases that has one.

    A class has the file it was registered with, or <Model>.yaml beside the module that defines it, or
    props/model/<Model>.yaml.

    Raises:
        ConfigError: neither the class nor a base has one.
    """
    for cls in model_class.__mro__:
        if cls in _YAML_OF:
            return _YAML_OF[cls]
        for folder in (*_folder_of(cls), props_dir() / "model"):
            path = folder / f"{cls.__name__}.yaml"
            if path.is_file():
                return path
    name = model_class.__name__
    raise ConfigError(
        f"{name} has no YAML: {props_dir()}/model/{name}.yaml is missing, and so is one beside its module"
    )


def known_models() -> list[str]:
    """Names of the models that have a YAML, and of RecBole's, which are read from its files without importing them."""
    names = {path.stem for path in (props_dir() / "model").glob("*.yaml")} | {model.__name__ for model in _YAML_OF}
    for folder in importlib.import_module("recbole.model").__path__:
        for path in Path(folder).glob("*_recommender/*.py"):
            classes = re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            names.update(name for name in classes if name.lower() == path.stem)
    return sorted(names)


def _folder_of(cls: type) -> list[Path]:
    """The folder of the module that defines a class; none for what was typed into an interpreter or is built in."""
    module = sys.modules.get(cls.__module__)
    file = vars(module).get("__file__") if module is not None else None
    return [Path(file).resolve().parent] if file else []


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds a {type(content).__name__}, expected `key: value` lines")
    return content


def preset(name: str) -> dict[str, Any]:
    """The settings of one system of a benchmark file, e.g. ``table3/base`` of props/benchmark/table3.yaml.

    Raises:
        ConfigError: no such file or system; lists those that exist.
    """
    return {key: value for key, value in _system(name).items() if key not in SYSTEM_KEYS}


def preset_model(name: str) -> str:
    """The model of a preset.

    Raises:
        ConfigError: as :func:`preset`.
    """
    return str(_system(name)["model"])


def _system(name: str) -> dict[str, Any]:
    """A system of a benchmark file, its model filled in."""
    folder = props_dir() / "benchmark"
    file, _, system = name.partition("/")
    path = folder / f"{file}.yaml"
    content = read_yaml(path) if path.is_file() else {}
    systems = content.get("systems", {})
    if system not in systems:
        known = [f"{p.stem}/{s}" for p in sorted(folder.glob("*.yaml")) for s in read_yaml(p).get("systems", {})]
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(known)}{did_you_mean(name, known)}")
    return {"model": content.get("model", "CaFe"), **systems[system]}
