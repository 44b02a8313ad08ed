"""Dropout that is cheap on a CPU, and the same however many processes share a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_cafe.layers.draws import Keys, current, kept


class Dropout(nn.Dropout):
    """nn.Dropout by the random numbers of :mod:`recbole_cafe.layers.draws`.

    PyTorch's CPU dropout draws one Bernoulli variable per element, which took a third of a training step here. These
    take sixteen bits per element, and the kept elements are scaled by the probability that is actually used.
    """

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """Drop elements while training.

        Args:
            x: [N, ..., D].
            keys: [N] whose numbers are taken; by default those of the step's rows, if there are N, or else PyTorch's.

        Returns:
            [N, ..., D].
        """
        if not self.training or self.p == 0.0:
            return x
        wide = x.flatten(1) if x.dim() > 1 else x[:, None]
        return drop(wide, once(keys, len(x), x.device), self.p).view_as(x)


def once(keys: Keys | None, n: int, device: torch.device) -> Tensor:
    """Numbers for one use, see :meth:`Dropout.forward`. Returns [n] int64."""
    if keys is None and (draws := current()) is not None and len(draws.rows) == n:
        keys = draws.for_rows
    if keys is None:
        return torch.empty(n, dtype=torch.int64, device=device).random_()
    return keys.once()


def drop(x: Tensor, key: Tensor, p: float) -> Tensor:
    """x without some elements, see :func:`recbole_cafe.layers.draws.kept`. x: [..., n], key: [...]."""
    keep, scale = kept(key, x.shape[-1], p)
    return x * keep.to(x.dtype).mul_(scale)
