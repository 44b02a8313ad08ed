"""Losses over positions. N counts the positions that have a target; every loss is a mean over them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

LOSSES = ("BCE", "CE")
BLOCK = 2**21  # logits held at a time: 8 MB of float32, which a processor's cache can hold


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy with K sampled negatives per target (CaFe, Eq. 9, with K = 1).

        - mean_t ln sigmoid(r_t+) - mean_t mean_k ln(1 - sigmoid(r_tk-))

    Args:
        positive: [N] logits of the targets.
        negative: [N, K] logits of the negatives.

    Returns:
        scalar.
    """
    return -F.logsigmoid(positive).mean() - F.logsigmoid(-negative).mean()


def hinge_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Hinge loss with K sampled negatives per target: mean_t mean_k [margin - s_t+ + s_tk-]_+.

    Args:
        positive: [N] scores of the targets. negative: [N, K] scores of the negatives.

    Returns:
        scalar.
    """
    return F.relu(margin - positive[:, None] + negative).mean()


def linear_ce_loss(state: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-entropy of softmax(state weight^T + bias) without the [N, V] logits.

    Logits are made, used and dropped in blocks of rows, gradients in the same pass, so that the memory does not grow
    with N V. It is no slower than `F.cross_entropy(state @ weight.T)`, and faster where the logits exceed the cache.

    Args:
        state: [N, D]. weight: [V, D]. target: [N] in 0..V-1. bias: [V].
    """
    if state.dtype in (torch.float16, torch.bfloat16):
        state = state.float()  # a softmax over a catalogue is no place for eight bits
    with torch.autocast(device_type=state.device.type, enabled=False):
        return _LinearCE.apply(state, weight, target, bias)


class _LinearCE(torch.autograd.Function):
    """d/dlogits of the mean cross-entropy is (softmax - one-hot) / N, which is known as soon as the logits are."""

    @staticmethod
    def forward(ctx: FunctionCtx, state: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        n, wanted = len(state), any(ctx.needs_input_grad)
        total = state.new_zeros(())
        grads = [torch.empty_like(state), torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)]
        rows = max(1, BLOCK // len(weight))
        for i in range(0, n, rows):
            x, t = state[i : i + rows], target[i : i + rows, None]
            logits = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)  # [r, V]
            largest = logits.amax(1, keepdim=True)
            total -= (logits.gather(1, t) - largest).sum()
            p = logits.sub_(largest).exp_()
            norm = p.sum(1, keepdim=True)
            total += norm.log().sum()
            if not wanted:
                continue
            p.div_(norm * n)
            p.scatter_add_(1, t, torch.full_like(t, -1.0 / n, dtype=p.dtype))
            torch.mm(p, weight, out=grads[0][i : i + rows])
            grads[1].addmm_(p.T, x)
            if bias is not None:
                grads[2] += p.sum(0)
        if wanted:
            ctx.save_for_backward(*grads[: 2 if bias is None else 3])
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [g * grad for g in ctx.saved_tensors] + [None]
        return grads[0], grads[1], None, grads[2]


def next_id_loss(state: Tensor, target: Tensor, owner: Tensor, table: nn.Embedding, *, loss_type: str,
                 n_ids: int | None = None, negatives: Callable[[Tensor, Tensor, int], Tensor] | None = None,
                 n_negatives: int = 1, bias: Tensor | None = None, offset: Tensor | None = None) -> Tensor:  # fmt: skip
    """The loss of a tower whose relevance is the inner product of a state with an id's vector (CaFe, Eq. 8 and 9).

    Args:
        state: [N, D]. target: [N] ids from 1. owner: [N] users, whose own ids are no negatives.
        table: vectors of the ids; 0 is padding. n_ids: ids are 0..n_ids-1, further rows (masks, "none") are no classes.
        loss_type: ``BCE`` with `n_negatives` drawn by `negatives`, or ``CE``, a softmax over all ids but 0.
        bias: [n_ids] added to the ids' logits.
        offset: [N] added to all logits of a row. A softmax does not see it, so CE does not read it.

    Returns:
        scalar; zero, and still part of the graph, without targets.
    """
    if not len(state):
        return state.sum()
    if loss_type == "CE":
        n = table.num_embeddings if n_ids is None else n_ids
        return linear_ce_loss(state, table.weight[1:n], target - 1, None if bias is None else bias[1:n])
    negative = negatives(owner, target, n_negatives)  # [N, K]
    positive_logit = (state * table(target)).sum(-1)
    negative_logit = torch.einsum("nd,nkd->nk", state, table(negative))
    if bias is not None:
        positive_logit, negative_logit = positive_logit + bias[target], negative_logit + bias[negative]
    if offset is not None:
        positive_logit, negative_logit = positive_logit + offset, negative_logit + offset[:, None]
    return bce_loss(positive_logit, negative_logit)
