"""Gradients that may be sparse, clipped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """torch's clip_grad_norm_ for dense and sparse gradients together.

    Sparse gradients are coalesced first: the norm is that of the gradient, not of its summands.

    Args:
        parameters: whose gradients are clipped.
        max_norm: the largest norm of all of them together.
        norm_type: which norm, 2 for the Euclidean one.

    Returns:
        the total norm before clipping.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())  # shares the gradient's memory; values() does so only read-only
        else:
            values.append(parameter.grad)
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values, norm_type)), norm_type)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    if factor.device.type != "cpu" or factor < 1:  # a GPU would have to be waited for
        torch._foreach_mul_(values, factor)
    return total
