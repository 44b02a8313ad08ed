"""Gradients that may be sparse, clipped."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
import torch.distributed
from torch import Tensor, nn


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0,
                   in_parts: Collection[Tensor] = ()) -> Tensor:  # fmt: skip
    """torch's clip_grad_norm_ for dense and sparse gradients together.

    Sparse gradients are coalesced first: the norm is that of the gradient, not of its summands.

    Args:
        parameters: whose gradients are clipped.
        max_norm: the largest norm of all of them together.
        norm_type: which norm, 2 for the Euclidean one.
        in_parts: those of them of which each process holds other rows; all processes have to clip together then.

    Returns:
        the total norm before clipping.
    """
    values, shared = [], {id(weight) for weight in in_parts}
    at_home: list[bool] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        at_home.append(id(parameter) in shared)
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())  # shares the gradient's memory; values() does so only read-only
        else:
            values.append(parameter.grad)
    norms = torch.stack(torch._foreach_norm(values, norm_type))
    if shared:
        others = torch.tensor(at_home, device=norms.device)
        part = torch.linalg.vector_norm(norms[others], norm_type) if any(at_home) else norms.new_zeros(())
        everyones = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyones, part)
        norms = torch.cat((norms[~others], torch.stack(everyones)))
    total = torch.linalg.vector_norm(norms, norm_type)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    if factor.device.type != "cpu" or factor < 1:  # a GPU would have to be waited for
        torch._foreach_mul_(values, factor)
    return total
