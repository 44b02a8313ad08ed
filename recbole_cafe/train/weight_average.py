"""The mean of the weights over epochs (stochastic weight averaging)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**24  # numbers swapped at a time: 64 MB


class WeightAverage:
    """The mean of a model's weights over the ends of epochs: stochastic weight averaging (Izmailov et al., UAI 2018).

    The model holds either the weights that are trained or their mean, this object the other: one copy of the weights.

    Args:
        parameters: of the model.

    Attributes:
        count: epochs in the mean.
        shown: whether the model holds the mean.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.other: list[Tensor] = []
        self.count = 0
        self.shown = False

    @torch.no_grad()
    def add(self) -> None:
        """Take in the trained weights and show the mean."""
        self.train()
        self.count += 1
        if self.count == 1:
            self.other = [parameter.detach().clone() for parameter in self.parameters]
        for mean, parameter in zip(self.other, self.parameters, strict=True):
            mean.lerp_(parameter, 1 / self.count)
        self._swap()

    def train(self) -> None:
        """Give the model its trained weights back."""
        if self.shown:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """By value: optimisers, and cuDNN's flat weights of recurrent layers, know the tensors by their place."""
        for other, parameter in zip(self.other, self.parameters, strict=True):
            for hidden, shown in zip(other.view(-1).split(CHUNK), parameter.view(-1).split(CHUNK), strict=True):
                kept = hidden.clone()
                hidden.copy_(shown)
                shown.copy_(kept)
        self.shown = not self.shown

    def state_dict(self) -> dict[str, Any]:
        """What the model does not hold: the trained weights, while it shows the mean."""
        return {"count": self.count, "trained": self.other if self.shown else []}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; the model has the mean already.

        Args:
            state: from :meth:`state_dict`.
        """
        self.count, self.other = state["count"], list(state["trained"])
        self.shown = bool(self.other)
