"""Says when training diverges: the loss is worse than before the first step and nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

FACTOR = 2.0  # a loss so many times that of untrained weights is no noise


class Losses:
    """The loss of the first batch of a training, which untrained weights have, to compare those of its epochs with."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._batches = 0

    def watched(self, loss_func: Callable[..., Any]) -> Callable[..., Any]:
        """The same loss function, its calls counted and its first value kept; a tuple counts as its sum."""

        @wraps(loss_func)
        def loss(*arguments: Any) -> Any:
            value = loss_func(*arguments)
            self.saw(sum(value) if isinstance(value, tuple) else value)
            return value

        return loss

    def saw(self, value: Tensor) -> None:
        """Count a batch and keep the first one's loss."""
        if self._first is None:
            self._first = value.detach().clone()
        self._batches += 1

    def end_of_epoch(self, loss: float | tuple[float, ...]) -> str:
        """What is to be said about the epoch that has ended; empty if nothing is.

        Args:
            loss: the sum over its batches, of each part, as RecBole's `_train_epoch` returns it.
        """
        batches, self._batches = self._batches, 0
        if self._first is None or not batches:
            return ""
        mean, first = (sum(loss) if isinstance(loss, tuple) else loss) / batches, float(self._first)
        if first > 0 and mean > FACTOR * first:
            return f"training diverges: a mean loss of {mean:.6g}, where untrained weights had {first:.6g}"
        return ""
