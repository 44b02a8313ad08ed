"""A net's constructor as the list of its model's keys.

A keyword-only argument of a net is `data`, what the data know; or a settings dataclass, whose fields are keys; or a key
itself. The YAML is flat: the union of all of them. So a key can neither be forgotten nor die unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeGuard, get_type_hints

from recbole_cafe.errors import ConfigError

DATA = "data"  # the argument that no key gives


class HasNet:
    """A model class that is made around a net of ours.

    Attributes:
        net: the net's class.
    """

    net: Any


def is_ours(model_class: type) -> TypeGuard[type[HasNet]]:
    """Whether a model class is built on our contract."""
    return issubclass(model_class, HasNet)


@dataclass(frozen=True)
class Signature:
    """What the constructor of a net takes.

    Attributes:
        keys: names of all keys.
        settings: argument -> its settings dataclass.
        plain: arguments that are keys themselves.
        takes_data: whether it takes `data`.
    """

    keys: frozenset[str]
    settings: Mapping[str, type]
    plain: tuple[str, ...]
    takes_data: bool


def signature_of(net: Callable[..., Any], source: Path | None = None) -> Signature:
    """The keys of a net.

    Args:
        net: its class.
        source: the model's YAML file, for messages.

    Raises:
        ConfigError: two arguments claim one key.
    """
    parameters = [p.name for p in signature(net).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    constructor = net.__init__ if isinstance(net, type) else net  # type: ignore[misc]  # the class's own
    hints = get_type_hints(constructor)
    settings = {name: hints[name] for name in parameters if is_dataclass(hints.get(name))}
    plain = tuple(name for name in parameters if name not in settings and name != DATA)
    claimed: dict[str, str] = {}
    for argument, key in [(a, f.name) for a, kind in settings.items() for f in fields(kind)] + [(p, p) for p in plain]:
        if key in claimed:
            where = source or net.__name__
            raise ConfigError(f"{where}: key {key} is claimed by {claimed[key]} and by {argument} of {net.__name__}")
        claimed[key] = argument
    return Signature(frozenset(claimed), settings, plain, DATA in parameters)


def chosen_settings(config: Any) -> dict[str, Any]:
    """What `ranking_settings` puts in place of keys of the net: what was chosen after a training.

    Args:
        config: as :func:`arguments_of`.
    """
    if "ranking_settings" not in config:  # RecBole's Config has no `get`
        return {}
    value = config["ranking_settings"]
    return value if isinstance(value, dict) else {}


def net_settings(net: Callable[..., Any], config: Any) -> dict[str, Any]:
    """The keys of a net, as it ranks with them.

    Args:
        net: its class.
        config: as :func:`arguments_of`.

    Raises:
        ConfigError: `ranking_settings` has a key that the net has not.
    """
    keys, chosen = signature_of(net).keys, chosen_settings(config)
    if unknown := sorted(set(chosen) - keys):
        raise ConfigError(f"ranking_settings={chosen!r}: {', '.join(unknown)} is no key of {net.__name__}")
    return {key: chosen.get(key, config[key]) for key in sorted(keys)}


def net_keys(model_class: type[HasNet]) -> set[str]:
    """The keys of the net of one of our models."""
    return set(signature_of(model_class.net).keys)


def arguments_of(net: Callable[..., Any], config: Any, source: Path) -> dict[str, Any]:
    """The keyword arguments of a net's constructor but `data`, from the config.

    Args:
        net: its class.
        config: anything that has keys, such as RecBole's Config.
        source: the model's YAML file, for messages.

    Raises:
        ConfigError: the YAML lacks a key, or two arguments claim one.
        ConfigError: a settings dataclass refuses a value.
    """
    keys = signature_of(net, source)
    if missing := sorted(key for key in keys.keys if key not in config):
        raise ConfigError(f"{source}: no value for {', '.join(missing)}, which {net.__name__} needs")
    given = net_settings(net, config)
    settings = {name: kind(**{f.name: given[f.name] for f in fields(kind)}) for name, kind in keys.settings.items()}
    return {**settings, **{name: given[name] for name in keys.plain}}
