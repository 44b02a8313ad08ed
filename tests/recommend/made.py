"""Bundles made in memory from a list of interactions, without RecBole and without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.config.signature import signature_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.model import net_class
from recbole_cafe.recommend.bundle import Bundle, Interactions, Items, build, sorted_order

SMALL = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "n_local_heads": 1}
LENGTH = 6


def bundle_of(model: str, walks: Mapping[str, Sequence[str]], intent: Mapping[str, str], **settings: Any) -> Bundle:
    """A model with drawn weights and the counts of these interactions.

    Args:
        model: its name.
        walks: user -> items in order.
        intent: item -> intent, "" for none; the order of the items' ids.
        settings: keys of the model, beside those of its YAML.
    """
    tokens = list(intent)
    names = ["", *sorted({name for name in intent.values() if name})]
    number = {name: i for i, name in enumerate(names)} | {"": len(names)}
    item2intent = torch.tensor([0, *(number[name] for name in intent.values())])
    place = {token: i for i, token in enumerate(tokens, 1)}
    rows = [(u, place[item]) for u, items in enumerate(walks.values()) for item in items]
    users, items = torch.tensor(rows).T
    facts = DataFacts(
        n_items=len(tokens) + 1, n_users=len(walks), max_seq_length=LENGTH, train_pairs=lambda: (users, items),
        intents=lambda: ItemIntents(item2intent, len(names)),
    )  # fmt: skip
    keys = read_yaml(props_dir() / "overall.yaml") | read_yaml(props_dir() / "model" / f"{model}.yaml")
    keys = {key: keys[key] for key in signature_of(net_class(model)).keys}
    keys |= {key: value for key, value in {**SMALL, **settings}.items() if key in keys}
    torch.manual_seed(5)
    net = build(model, keys, facts, Path("in memory"))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    seen = torch.bincount(items, minlength=len(tokens) + 1)
    token = pa.array(tokens, pa.string())
    known = Items(token, item2intent, seen, pa.array(names, pa.string()), None, sorted_order(token))
    user_tokens = np.repeat(list(walks), [len(items) for items in walks.values()]).tolist()
    interactions = Interactions(pa.array(user_tokens, pa.string()), items.numpy())
    return Bundle(model, keys, LENGTH, net.eval().requires_grad_(False), known, lambda: interactions)
