"""The columns that keys name: each is loaded, and of a type that the key can be about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recbole.utils import FeatureType

from recbole_cafe.config.checks import check_interval
from recbole_cafe.errors import ConfigError, did_you_mean

NUMBERS = (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
SEQUENCES = (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
# Key -> the types of the columns it names. RecBole passes over a column that it does not know, or fails at it late.
KEYS: dict[str, tuple[FeatureType, ...]] = {
    "val_interval": (FeatureType.FLOAT, FeatureType.TOKEN),
    "threshold": NUMBERS[:1],
    "numerical_features": NUMBERS,
    "discretization": NUMBERS,
    "normalize_field": NUMBERS,
    "seq_len": SEQUENCES,
    "preload_weight": TOKENS[:1],
    "alias_of_user_id": TOKENS,
    "alias_of_item_id": TOKENS,
}


def check_columns(config: Any, types: Mapping[str, FeatureType], name: str) -> None:
    """Raise unless every column that a key names is loaded and of a type that the key is about.

    Args:
        config: the configuration, its values checked by :mod:`recbole_cafe.config.checks`.
        types: column -> type, of the columns that are loaded.
        name: of the data set.

    Raises:
        ConfigError: naming key, column and type, and what was expected.
    """
    for key, expected in KEYS.items():
        for column in config[key] or ():
            if column not in types:
                raise _missing(key, column, types, name)
            if types[column] not in expected:
                raise ConfigError(f"{key} names {column!r}, a column of type {types[column].value} of {name}; "
                                  f"expected {' or '.join(kind.value for kind in expected)}")  # fmt: skip
    for column, kept in (config["val_interval"] or {}).items():
        if types[column] == FeatureType.FLOAT:
            check_interval(f"val_interval: {column}", kept)
        elif not isinstance(kept, (list, tuple)):
            raise ConfigError(f"val_interval: {column}={kept!r} should be a list of the tokens to keep: {column} is a "
                              f"token column of {name}")  # fmt: skip
    for key, column in _listed(config):
        if column not in types:
            raise _missing(key, column, types, name)


def _listed(config: Any) -> Iterator[tuple[str, str]]:
    """(key, column) of the columns that `load_col` and `unused_col` list.

    Without the columns that `load_col` is given in any case, of which those that matter are asked for by name later.
    """
    always = {config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "INTENT_FIELD")}
    for key in ("load_col", "unused_col"):
        for file, columns in (config[key] or {}).items():
            for column in () if columns == "*" else columns or ():
                if column not in always:
                    yield f"{key}: {file}", column


def _missing(key: str, column: str, types: Mapping[str, FeatureType], name: str) -> ConfigError:
    hint = did_you_mean(column, types) or f"; loaded are {', '.join(types)} (see load_col)"
    return ConfigError(f"{key} names {column!r}, and {name} has no such column loaded{hint}")
