"""What a model learns from: histories, and the item to predict at each of their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Training rows. B rows of up to L positions, padded on the right with 0.

    Attributes:
        history: [B, L] items.
        target: [B, L] the item that follows each position, 0 where there is none to learn.
        user: [B].
    """

    history: Tensor
    target: Tensor
    user: Tensor


def next_items(history: Tensor, length: Tensor, item: Tensor, train_layout: str) -> Tensor:
    """The item to predict at each position.

    Args:
        history: [B, L].
        length: [B] positions of each row, at least 1.
        item: [B] the item after the last position.
        train_layout: ``all``, a target at every position, or ``last``, RecBole's prefix rows.

    Returns:
        [B, L], 0 where there is no target.
    """
    target = torch.zeros_like(history)
    if train_layout == "all":
        target[:, :-1] = history[:, 1:]
    target[torch.arange(len(history), device=history.device), length - 1] = item
    return target
