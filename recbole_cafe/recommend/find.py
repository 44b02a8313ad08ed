"""Items by a part of their name, as they are typed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_cafe.recommend.recommender import Recommender


def find(recommender: Recommender, text: str, k: int) -> pa.Table:
    """Items whose token or title has a text in it, upper and lower case alike.

    Args:
        recommender: whose items.
        text: to look for; empty for all.
        k: at most so many.

    Returns:
        a table: item, intent. First the item of that very token, then those whose token or title begins with the text,
        then those in which a word does, then others; inside each the ones that were taken most.
    """
    items = recommender.items
    text = text.strip()
    names = [items.token] + ([items.title] if items.title is not None else [])
    if text:
        has = [pc.fill_null(pc.match_substring(name, text, ignore_case=True), False) for name in names]
        place = np.flatnonzero(np.logical_or.reduce([np.asarray(one) for one in has]))
    else:
        place = np.arange(items.n - 1)
    seen = items.seen.numpy()[1:][place]
    group = np.full(len(place), 3)
    if text:
        for name in names:
            near = name.take(pa.array(place))
            word = pc.match_substring(near, f" {text}", ignore_case=True)
            begins = pc.starts_with(near, text, ignore_case=True)
            for value, fits in ((2, word), (1, begins)):
                group = np.where(pc.fill_null(fits, False), np.minimum(group, value), group)
        if own := int(recommender.lookup.ids([text])[0]):
            group[place == own - 1] = 0
    order = np.lexsort((place, -seen, group))[:k]
    return table_of(recommender, place[order])


def table_of(recommender: Recommender, place: np.ndarray) -> pa.Table:
    """Items by their place in the catalogue, from 0. place: [n]."""
    items = recommender.items
    intent = recommender.intent_tokens(items.intent[1:][place])
    return pa.table({"item": items.token.take(pa.array(place)), "intent": intent})


def known(recommender: Recommender, tokens: Sequence[str]) -> pa.Table:
    """Those of some tokens that are items, as :func:`find` gives them."""
    ids = recommender.lookup.ids(tokens)
    return table_of(recommender, ids[ids > 0] - 1)
