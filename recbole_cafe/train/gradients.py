"""Gradients that may be sparse: clipped, and averaged over processes."""

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


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; of a sparse one, only the touched rows travel."""
    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # another process may have one
        if not parameter.grad.is_sparse:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad.div_(world)
            continue
        gradient = parameter.grad.coalesce()
        rows, value = _everyones(gradient.indices()[0]), _everyones(gradient.values() / world)
        parameter.grad = torch.sparse_coo_tensor(rows[None], value, parameter.shape).coalesce()


def _everyones(own: Tensor) -> Tensor:
    """All processes' rows, one after another; their number may differ.

    Args:
        own: [R, ...] of this process.
    """
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padded = torch.cat((own, own.new_zeros(max(sizes) - len(own), *own.shape[1:])))
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
