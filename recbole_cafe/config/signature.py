"""A net's constructor as the list of its model's keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recbole_cafe.errors import ConfigError


def arguments_of(net: Callable[..., Any], config: Any, provided: Mapping[str, Callable[[], Any]],
                 source: Path) -> dict[str, Any]:  # fmt: skip
    """The keyword arguments of a net's constructor: from the config, or from what data and host know.

    The signature is the list of a model's keys, so a key can neither be forgotten nor die unread.

    Args:
        provided: name -> function giving what is not configured (`n_items`, ...); only called when asked for.
        source: the model's YAML file, for messages.

    Raises:
        ConfigError: the YAML lacks a key of the signature, or the constructor refuses a value.
    """
    names = [p.name for p in inspect.signature(net).parameters.values() if p.kind is p.KEYWORD_ONLY]
    missing = [n for n in names if n not in provided and n not in config]
    if missing:
        raise ConfigError(f"{source}: no value for {', '.join(missing)}, which {net.__name__} needs")
    return {n: provided[n]() if n in provided else config[n] for n in names}


def net_keys(model_class: type) -> set[str]:
    """Names in the signature of the net of one of our models."""
    return set(inspect.signature(model_class.net).parameters)


# What NetRecommender provides to a net: no keys of a config.
HOST_KNOWS = frozenset(
    [
        "n_items",
        "n_users",
        "max_seq_length",
        "item2intent",
        "n_intents",
        "item_negatives",
        "intent_negatives",
        "train_pairs",
    ]
)
