"""New items and new interactions for a trained model: counts as if they were made anew, networks as they are."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.layers.embedding import tables_given_later
from recbole_cafe.recommend.bundle import MANIFEST, Bundle, Interactions, Items, build, sorted_order
from recbole_cafe.recommend.histories import Lookup, as_arrow, column_of, text_of, times_of

_logger = logging.getLogger("recbole_cafe.recommend")


def with_items(bundle: Bundle, given: Any) -> Bundle:
    """The bundle with items that nobody has taken yet.

    Args:
        bundle: of a model that counts.
        given: a table of item and, where they have them, intent and title. An intent that is unknown to the model
            counts as none, which is reported.

    Raises:
        ConfigError: the model has no place for items it was not trained on, or the bundle no interactions.
        DataError: a column that is missing or wrong, an item that is there twice, or is known with another intent.
    """
    what, items = "new items", bundle.items
    table = as_arrow(given, what)
    token = text_of(column_of(table, "item", what), "item", what)
    intent = _intents_of(table, items, what)
    known = Lookup(items).ids(token.to_pylist())
    asked = items.intent.numpy()[known]
    if len(wrong := np.flatnonzero((known > 0) & (asked != intent) & ("intent" in table.column_names))):
        row = int(wrong[0])
        raise DataError(f"{what}: row {row}, item {token[row].as_py()!r} is known with the intent "
                        f"{_name(items, asked[row])}, found {_name(items, intent[row])}")  # fmt: skip
    new = np.flatnonzero(known == 0)
    if len(new) < len(known):
        _logger.info(f"{what}: {len(known) - len(new)} of {len(known)} items are known already")
    place = pa.array(new)
    tokens = pa.concat_arrays([items.token, token.take(place)])
    title = items.title
    if title is not None:
        column = column_of(table, "title", what, needed=False)
        more = pa.nulls(len(new), pa.string()) if column is None else _texts(column).take(place)
        title = pa.concat_arrays([title, more])
    elif "title" in table.column_names:
        _logger.warning(f"{what}: the bundle has no titles; the column title is left out")
    more_items = Items(
        token=tokens,
        intent=torch.cat((items.intent, torch.from_numpy(intent[new]))),
        seen=torch.cat((items.seen, torch.zeros(len(new), dtype=torch.long))),
        intents=items.intents, title=title, order=sorted_order(tokens),
    )  # fmt: skip
    return _rebuilt(bundle, more_items, _interactions(bundle))


def with_interactions(bundle: Bundle, given: Any) -> Bundle:
    """The bundle with interactions that are later than all it knows of their users.

    Transition counts, popularity and the rate of repeats become what they are when they are made of all interactions;
    weights that were learned stay.

    Args:
        bundle: of a model that counts.
        given: a table of user, item and, unless its rows are in order, time. Unknown items are left out, counted and
            reported: :func:`with_items` makes them known.

    Raises:
        ConfigError: the model does not count, or the bundle has no interactions.
        DataError: a column that is missing or wrong.
    """
    what, old = "new interactions", _interactions(bundle)
    table = as_arrow(given, what)
    user = text_of(column_of(table, "user", what), "user", what)
    item = Lookup(bundle.items).ids(text_of(column_of(table, "item", what), "item", what).to_pylist())
    time = column_of(table, "time", what, needed=False)
    order = np.arange(len(item)) if time is None else np.argsort(times_of(time, what), kind="stable")
    order = order[item[order] > 0]
    if len(order) < len(item):
        _logger.warning(f"{what}: {len(item) - len(order)} of {len(item)} are with unknown items; left out")
    users = pa.concat_arrays([old.user, user.take(pa.array(order))])
    items = np.concatenate((old.item, item[order].astype(old.item.dtype)))
    by_user = np.argsort(np.asarray(users.dictionary_encode().indices), kind="stable")
    joined = Interactions(users.take(pa.array(by_user)), items[by_user])
    seen = torch.bincount(torch.from_numpy(joined.item.astype(np.int64)), minlength=bundle.items.n)
    return _rebuilt(bundle, replace(bundle.items, seen=seen), joined)


def _interactions(bundle: Bundle) -> Interactions:
    if not bundle.net.counts_transitions:
        raise ConfigError(f"{bundle.model} does not count what follows what: it learns of new items and interactions "
                          f"by training alone; CaFePlus and IntentBackoff can take them in")  # fmt: skip
    if bundle.interactions is None:
        raise ConfigError("the bundle was exported without interactions, so that its counts cannot be continued")
    return bundle.interactions()


def _rebuilt(bundle: Bundle, items: Items, interactions: Interactions) -> Bundle:
    """The model built anew from these facts, with the parameters that were learned."""
    user = torch.from_numpy(np.asarray(interactions.user.dictionary_encode().indices).astype(np.int64))
    item = torch.from_numpy(interactions.item.astype(np.int64))
    facts = DataFacts(
        n_items=items.n, n_users=int(user.max()) + 1 if len(user) else 1,
        max_seq_length=bundle.max_seq_length, train_pairs=lambda: (user, item),
        intents=lambda: ItemIntents(items.intent, len(items.intents)),
    )  # fmt: skip
    with tables_given_later():
        net = build(bundle.model, bundle.settings, facts, Path(MANIFEST))
    state = net.state_dict()
    learned = dict(bundle.net.named_parameters())
    state |= {name: _extended(learned[name], value.shape) for name, value in net.named_parameters()}
    net.load_state_dict(state, assign=True)
    about = {**bundle.about, "updates": int(bundle.about.get("updates", 0)) + 1}
    return Bundle(bundle.model, bundle.settings, bundle.max_seq_length, net.eval().requires_grad_(False), items,
                  lambda: interactions, about)  # fmt: skip


def _extended(learned: Tensor, shape: torch.Size) -> Tensor:
    """A learned parameter; a table of items gets a row of zeros for each new one, which is what has never been seen."""
    if learned.shape == shape:
        return learned
    rows = learned.new_zeros(shape[0] - learned.shape[0], *learned.shape[1:])
    return torch.cat((learned, rows))


def _intents_of(table: pa.Table, items: Items, what: str) -> np.ndarray:
    """[n] ids of the column intent, C where there is none."""
    without = len(items.intents)
    column = column_of(table, "intent", what, needed=False)
    if column is None:
        return np.full(len(table), without, dtype=np.int64)
    texts = _texts(column)
    ids = np.asarray(pc.fill_null(pc.index_in(texts, value_set=items.intents.slice(1)), -1)).astype(np.int64) + 1
    unknown = np.flatnonzero((ids == 0) & (np.asarray(pc.fill_null(texts, "")) != ""))
    if len(unknown):
        first = texts[int(unknown[0])].as_py()
        _logger.warning(f"{what}: the intents of {len(unknown)} of {len(table)} items are unknown to the model, the "
                        f"first is {first!r}; they count as items without one")  # fmt: skip
    return np.where(ids == 0, without, ids)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, with its nulls."""
    cells = column.cast(pa.string()).combine_chunks()
    return pa.concat_arrays(cells.chunks) if isinstance(cells, pa.ChunkedArray) else cells


def _name(items: Items, intent: int) -> str:
    return repr(items.intents[int(intent)].as_py()) if intent < len(items.intents) else "none"
