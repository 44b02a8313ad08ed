"""Says when training diverges: the loss is worse than before the first step and nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

FACTOR = 2.0  # a loss so many times that of untrained weights is no noise


class Losses:
    """The losses of a training, batch by batch, beside that of the first batch, which untrained weights have."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._sum: Tensor | None = None
        self._batches = 0

    def watched(self, loss_func: Callable[..., Any]) -> Callable[..., Any]:
        """The same loss function, its values taken note of; a tuple counts as its sum, as in RecBole."""

        @wraps(loss_func)
        def loss(*arguments: Any) -> Any:
            value = loss_func(*arguments)
            with torch.no_grad():
                total = sum(part.detach() for part in value) if isinstance(value, tuple) else value.detach()
                self._first = total.clone() if self._first is None else self._first
                self._sum = total if self._sum is None else self._sum + total
                self._batches += 1
            return value

        return loss

    def end_of_epoch(self) -> str:
        """What is to be said about the epoch that has ended; empty if nothing is."""
        if self._sum is None or self._first is None:
            return ""
        mean, first = float(self._sum) / self._batches, float(self._first)
        self._sum, self._batches = None, 0
        if first > 0 and mean > FACTOR * first:
            return f"training diverges: a mean loss of {mean:.6g}, where untrained weights had {first:.6g}"
        return ""
