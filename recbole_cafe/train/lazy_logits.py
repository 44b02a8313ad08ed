"""The softmax losses of RecBole's models without their [B, V] logits.

RecBole's sequential models score the whole catalogue in training, `logits = matmul(state, table.T)`, and hand the
logits to `nn.CrossEntropyLoss`. Here that product stays a promise until somebody looks at it; a cross-entropy takes it
as it is (recbole_cafe.layers.losses.linear_ce_loss): the same loss and gradients without memory for B V numbers.
Whatever else a model does with its logits, it finds the tensor it expects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from recbole_cafe.layers.losses import linear_ce_loss

PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


class CatalogueLogits:
    """state weight^T, not yet multiplied. state: [B, D], weight: [V, D]."""

    def __init__(self, state: Tensor, weight: Tensor) -> None:
        self._state, self._weight = state, weight
        self._product: Tensor | None = None

    def tensor(self) -> Tensor:
        """[B, V]."""
        if self._product is None:
            self._product = torch.matmul(self._state, self._weight.T)
        return self._product

    @classmethod
    def __torch_function__(cls, func: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy and isinstance(args[0], cls) and _plain(args, kwargs):
            target = args[1] if len(args) > 1 else kwargs["target"]
            return linear_ce_loss(args[0]._state, args[0]._weight, target)
        return func(*map(_as_tensors, args), **{name: _as_tensors(value) for name, value in kwargs.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __add__(self, other: Any) -> Tensor:
        return self.tensor() + other

    def __sub__(self, other: Any) -> Tensor:
        return self.tensor() - other

    def __mul__(self, other: Any) -> Tensor:
        return self.tensor() * other

    def __truediv__(self, other: Any) -> Tensor:
        return self.tensor() / other

    def __neg__(self) -> Tensor:
        return -self.tensor()

    __radd__, __rmul__ = __add__, __mul__


def _as_tensors(value: Any) -> Any:
    """An argument with tensors in place of promises."""
    if isinstance(value, CatalogueLogits):
        return value.tensor()
    return type(value)(map(_as_tensors, value)) if type(value) in (list, tuple) else value


def _plain(args: tuple, kwargs: dict) -> bool:
    """Whether a call of cross_entropy is nn.CrossEntropyLoss()'s: a mean over one class index per row."""
    target = args[1] if len(args) > 1 else kwargs["target"]
    return (
        len(args) <= 2
        and kwargs.get("weight") is None
        and kwargs.get("reduction", "mean") == "mean"
        and not kwargs.get("label_smoothing")
        and target.dim() == 1
        and bool((target >= 0).all())  # nothing to ignore
    )


class PromisedLogits(TorchFunctionMode):
    """Within it, the product of states [B, D] and a whole table [V, D] of the model is a :class:`CatalogueLogits`.

    Args:
        model: its parameters of n_items rows are the tables.
        n_items: V, padding included.
    """

    def __init__(self, model: nn.Module, n_items: int) -> None:
        super().__init__()
        self.tables = {id(p): p for p in model.parameters() if p.dim() == 2 and len(p) == n_items}

    def __torch_function__(self, func: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in PRODUCTS and len(args) == 2 and not kwargs:
            state, other = args
            table = self.tables.get(id(other._base)) if isinstance(other, Tensor) else None
            if table is not None and state.dim() == 2 and other.shape == table.T.shape and state.shape[1] == len(other):
                return CatalogueLogits(state, table)
        return func(*args, **(kwargs or {}))
