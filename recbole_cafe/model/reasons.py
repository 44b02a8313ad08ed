"""What a score is made of, as a net says it. P pairs of a history and an item; S items of the history; PyTorch only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_cafe.model.counts import CountSettings, TransitionCounts

TINY = 1e-300


@dataclass(frozen=True)
class Reasons:
    """Numbers that add up to the scores of P pairs.

    A probability is ``amount.sum(1) + weight * intent_probability * share_in_intent``; a joint score
    ``item_relevance + intent_relevance``. What a model does not have is None.

    Attributes:
        counted: what a count is, as a part of a sentence.
        source: [P, S] items of the history, newest first, 0 for none.
        count: [P, S] how often the item was counted after the source, as the table weighs it, before discounts.
        amount: [P, S] what that adds to the probability.
        weight: [P] the share of the probability that goes through the intents.
        intent_probability: [P] P(c | h) of the item's intent.
        share_in_intent: [P] P(v | c, h).
        popularity_share: [P] what (3) of the model would give the item inside its intent by popularity alone.
        item_relevance: [P] the item's part of the joint score.
        intent_relevance: [P] the intent's part.
    """

    counted: str = ""
    source: Tensor | None = None
    count: Tensor | None = None
    amount: Tensor | None = None
    weight: Tensor | None = None
    intent_probability: Tensor | None = None
    share_in_intent: Tensor | None = None
    popularity_share: Tensor | None = None
    item_relevance: Tensor | None = None
    intent_relevance: Tensor | None = None


def of_counts(counts: CountSettings, table: TransitionCounts | None, newest: Tensor, row: Tensor, item: Tensor,
              added: Tensor, *, n_items: int) -> Reasons:  # fmt: skip
    """What each item of the history has added to the probabilities of given items, in proportion to a_i c*(u_i, v).

    Args:
        counts: how they were counted and are looked up.
        table: None if nothing is remembered.
        newest: [B, L] items, newest first, 0 for none.
        row: [P] rows of `newest`.
        item: [P]; a pair of row and item at most once.
        added: [P] what all of them together have added.
        n_items: V.
    """
    lookup = counts.lookup
    sources = newest[:, : lookup.length]
    value = torch.zeros(len(row), sources.shape[1], dtype=torch.float64, device=newest.device)
    if table is not None and len(row):
        asked, order = torch.sort(row * n_items + item)
        for i, source in enumerate(sources.unbind(1)):
            of, successor, count = table.of(source)
            key = of * n_items + successor
            at = torch.searchsorted(asked, key).clamp(max=len(asked) - 1)
            hit = asked[at] == key
            value[order[at[hit]], i] = count[hit]
    decay = lookup.decay ** torch.arange(sources.shape[1], dtype=torch.float64, device=newest.device)
    part = value * decay
    return Reasons(
        counted=counts.counted,
        source=sources[row],
        count=_undiscounted(value, counts.discount),
        amount=part * (added / part.sum(1).clamp(min=TINY))[:, None],
    )


def _undiscounted(count: Tensor, discount: float) -> Tensor:
    """c from c* = c - D min(c, 1). Any shape; a count that was discounted to nothing stays 0."""
    if discount >= 1:
        return torch.where(count > 0, count + discount, 0.0)
    return torch.where(count >= 1 - discount, count + discount, count / (1 - discount)).where(count > 0, 0.0)
