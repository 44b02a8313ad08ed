"""Which data a run has seen, as digests that are the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from recbole.utils import FeatureType
from torch import Tensor

from recbole_cafe.data.rows import ROW

_ROWS = 1 << 18  # at a time
PARTS = {
    "users": "the users or their ids",
    "items": "the items or their ids",
    "intents": "the intents of the items",
    "interactions": "the interactions or their order",
    "split": "which interactions are for validation and test",
}


def fingerprint(dataset: Any, parts: Sequence[Any]) -> dict[str, str]:
    """Compute sha256 digests of a data set and its split.

    Args:
        dataset: of a class of ours, in exact time order.
        parts: train, valid and test, before train rows become windows.

    Returns:
        a digest for each key of `PARTS`; no `intents` where none are loaded.
    """
    users, items = dataset.uid_field, dataset.iid_field
    found = {"users": _of_tokens(dataset, users), "items": _of_tokens(dataset, items)}
    intents = dataset.config["INTENT_FIELD"]
    if (
        intents
        and dataset.item_feat is not None
        and intents in dataset.item_feat
        and dataset.field2type[intents] in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
    ):
        found["intents"] = _of_tokens(dataset, intents, dataset.item_feat[intents])
    if dataset.flat is not None:
        pairs = digest_of(dataset.flat[users], dataset.flat[items])
        found["interactions"] = hashlib.sha256((pairs + dataset.time_digest).encode()).hexdigest()
        found["split"] = digest_of(*(np.sort(part.inter_feat[ROW]) for part in parts[1:]))
    else:
        feats = [part.inter_feat for part in parts]
        found["interactions"] = digest_of(*(feat[name] for feat in feats for name in sorted(feat.interaction)))
        found["split"] = digest_of(np.array([len(feat) for feat in feats]))
    return found


def difference(saved: Mapping[str, str], present: Mapping[str, str]) -> str:
    """Say in which parts two fingerprints differ, as the end of a sentence; empty if in none."""
    return ", ".join(text for name, text in PARTS.items() if saved.get(name) != present.get(name))


def _of_tokens(dataset: Any, field: str, column: Tensor | None = None) -> str:
    tokens = np.asarray(dataset.field2id_token[field])
    digest = hashlib.sha256()
    for start in range(0, len(tokens), _ROWS):  # a token holds no line break
        digest.update("".join(f"{token}\n" for token in tokens[start : start + _ROWS].tolist()).encode())
    if column is not None:
        _update(digest, column)
    return digest.hexdigest()


def digest_of(*columns: Any) -> str:
    """Compute the sha256 of tensors or arrays of numbers, in hexadecimal."""
    digest = hashlib.sha256()
    for column in columns:
        _update(digest, column)
    return digest.hexdigest()


def _update(digest: Any, column: Any) -> None:
    """Take in the shape and the numbers of a tensor or array: whole ones as int64, others as float64."""
    values = np.asarray(column)
    digest.update(np.array(values.shape, dtype="<i8").tobytes())
    kind = "<f8" if values.dtype.kind == "f" else "<i8"
    for start in range(0, len(values), _ROWS):
        digest.update(values[start : start + _ROWS].astype(kind).tobytes())
