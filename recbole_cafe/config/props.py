"""The YAML files of props/: where they are, reading them, and the presets in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.literals import ConfigLoader
from recbole_cafe.files.places import PACKAGE

SYSTEM_KEYS = ("model", "search")  # what a system of a benchmark file holds beside settings of its model


def props_dir() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    for folder in (PACKAGE / "props", PACKAGE.parent / "props"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise ConfigError(f"the YAML files of recbole_cafe are missing: neither {PACKAGE}/props nor {PACKAGE.parent}/props")


def model_yaml(model_class: type) -> Path:
    """props/model/<Model>.yaml of a model class or of the first of its bases that has one."""
    for cls in model_class.__mro__:
        path = props_dir() / "model" / f"{cls.__name__}.yaml"
        if path.is_file():
            return path
    raise ConfigError(f"{model_class.__name__} has no YAML: {props_dir()}/model/{model_class.__name__}.yaml is missing")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of keys.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=ConfigLoader)  # noqa: S506 - a SafeLoader
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
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(known)}")
    return {"model": content.get("model", "CaFe"), **systems[system]}
