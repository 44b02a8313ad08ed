"""Losses over positions. N counts the positions that have a target; every loss is a mean over them.

``loss_type``, of items and of intents: ``BCE``, binary cross-entropy with uniform negatives; ``gBCE``, the same made
less sure of itself; ``SSM``, a softmax over the target and a sample of all ids; ``CE``, a softmax over all ids. The
two-level softmax, over intents and over the items inside each, is CaFePlus's (recbole_cafe.model.cafe_plus).
"""

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from recbole_cafe.errors import ConfigError

LOSSES = ("BCE", "gBCE", "SSM", "CE")
GBCE_T = 0.75  # what the paper of gBCE recommends
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


def gbce_loss(positive: Tensor, negative: Tensor, *, sampling_rate: float, t: float) -> Tensor:
    """Generalised binary cross-entropy (Petrov, Macdonald: "gSASRec", RecSys 2023, Eq. 6 and 10).

        - mean_t (beta ln sigmoid(r_t+) + sum_k ln(1 - sigmoid(r_tk-))) / (K + 1),   beta = 1 - t (1 - alpha)

    With few negatives of many, BCE learns probabilities far above the true ones; beta takes that back, all of it at
    t = 1, nothing at t = 0.

    Args:
        positive: [N] logits of the targets.
        negative: [N, K] logits of the negatives.
        sampling_rate: alpha, K over the number of ids that could be drawn.
        t: calibration in [0, 1].

    Returns:
        scalar.
    """
    beta = 1.0 - t * (1.0 - min(sampling_rate, 1.0))
    return -(beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1)).mean() / (negative.shape[1] + 1)


def sampled_softmax_loss(positive: Tensor, drawn: Tensor, log_expected: Tensor) -> Tensor:
    """Softmax over the target and drawn ids that stand for all others, each with the weight 1 / (K q).

        - mean_t (r_t - ln(exp r_t + sum_k exp(r_tk - ln(K q_k))))

    The sum inside is an unbiased estimate of the full one: the logQ correction of Bengio and Senecal (IEEE TNN 2008),
    without a correction of the target, which is not drawn.

    Args:
        positive: [N] logits of the targets.
        drawn: [N, K] logits of the drawn ids, -inf where the target was drawn.
        log_expected: [K] ln(K q), how often an id is expected among the K draws.

    Returns:
        scalar.
    """
    return (torch.cat((positive[:, None], drawn - log_expected), 1).logsumexp(1) - positive).mean()


def hinge_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Hinge loss with K sampled negatives per target: mean_t mean_k [margin - s_t+ + s_tk-]_+.

    Args:
        positive: [N] scores of the targets.
        negative: [N, K] scores of the negatives.
        margin: how far a target should be above a negative.

    Returns:
        scalar.
    """
    return F.relu(margin - positive[:, None] + negative).mean()


def linear_ce_loss(state: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-entropy of softmax(state weight^T + bias) without the [N, V] logits.

    Logits are made, used and dropped in blocks of rows, gradients in the same pass, so that the memory does not grow
    with N V. It is no slower than `F.cross_entropy(state @ weight.T)`, and faster where the logits exceed the cache.

    Args:
        state: [N, D].
        weight: [V, D].
        target: [N] in 0..V-1.
        bias: [V].

    Returns:
        scalar.
    """
    if state.dtype in (torch.float16, torch.bfloat16):
        state = state.float()  # a softmax over a catalogue is no place for eight bits
    with torch.autocast(device_type=state.device.type, enabled=False):
        loss: Tensor = _LinearCE.apply(  # type: ignore[no-untyped-call]  # PyTorch has not annotated it
            state, weight, target, bias
        )
    return loss


class _Context(FunctionCtx):
    """What autograd hands to a function; PyTorch does not declare these two."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _LinearCE(torch.autograd.Function):
    """d/dlogits of the mean cross-entropy is (softmax - one-hot) / N, which is known as soon as the logits are."""

    @staticmethod
    def forward(ctx: _Context, state: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        n, needs_grad = len(state), any(ctx.needs_input_grad)
        total = state.new_zeros(())
        of_state, of_weight = torch.empty_like(state), torch.zeros_like(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        rows = max(1, BLOCK // len(weight))
        for i in range(0, n, rows):
            x, t = state[i : i + rows], target[i : i + rows, None]
            logits = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)  # [r, V]
            largest = logits.amax(1, keepdim=True)
            total -= (logits.gather(1, t) - largest).sum()
            p = logits.sub_(largest).exp_()
            norm = p.sum(1, keepdim=True)
            total += norm.log().sum()
            if not needs_grad:
                continue
            p.div_(norm * n)
            p.scatter_add_(1, t, torch.full_like(t, -1.0 / n, dtype=p.dtype))
            torch.mm(p, weight, out=of_state[i : i + rows])
            of_weight.addmm_(p.T, x)
            if of_bias is not None:
                of_bias += p.sum(0)
        if needs_grad:
            ctx.save_for_backward(of_state, of_weight, *([] if of_bias is None else [of_bias]))
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_state, of_weight, *of_bias = (g * grad for g in ctx.saved_tensors)
        return of_state, of_weight, None, of_bias[0] if of_bias else None


def check_loss(loss_type: str, n_negatives: int, gbce_t: float, losses: Sequence[str] = LOSSES) -> None:
    """Refuse settings that no loss of these has.

    Args:
        loss_type: see the module.
        n_negatives: negatives of a target, or of all targets for ``SSM``.
        gbce_t: calibration of ``gBCE``.
        losses: the accepted ones.

    Raises:
        ConfigError: naming the key.
    """
    if loss_type not in losses:
        raise ConfigError(f"loss_type={loss_type!r} is not one of {', '.join(losses)}")
    if loss_type != "CE" and n_negatives < 1:
        raise ConfigError(f"n_negatives={n_negatives} must be at least 1 for loss_type={loss_type!r}")
    if not 0.0 <= gbce_t <= 1.0:
        raise ConfigError(f"gbce_t={gbce_t} must be in [0, 1]: 0 is BCE, 1 takes all of its overconfidence back")


def next_id_loss(state: Tensor, target: Tensor, owner: Tensor, table: nn.Embedding | Callable[[Tensor], Tensor],
                 *, loss_type: str, n_ids: int | None = None, every: Callable[[], Tensor] | None = None,
                 negatives: nn.Module | None = None, n_negatives: int = 1, gbce_t: float = GBCE_T,
                 bias: Tensor | None = None, offset: Tensor | None = None) -> Tensor:  # fmt: skip
    """The loss of a tower whose relevance is the inner product of a state with an id's vector (CaFe, Eq. 8 and 9).

    Args:
        state: [N, D].
        target: [N] ids from 1.
        owner: [N] users, whose own ids are no negatives.
        table: vectors of the ids, an nn.Embedding or, with `every`, a function; 0 is padding.
        n_ids: ids are 0..n_ids-1, further rows (masks, "none") are no classes; by default all of the embedding's rows.
        loss_type: see the module.
        every: all ids' vectors, where they are not the embedding's weight.
        negatives: what draws negatives: an :class:`recbole_cafe.layers.sampling.ExclusiveSampler` for ``BCE`` and
            ``gBCE``, a :class:`recbole_cafe.layers.sampling.PopularitySampler` for ``SSM``. ``CE`` needs none.
        n_negatives: how many are drawn for each target, or, for ``SSM``, for all targets together.
        gbce_t: of gBCE.
        bias: [n_ids] added to the ids' logits.
        offset: [N] added to all logits of a row. A softmax does not see it, so SSM and CE do not read it.

    Returns:
        scalar; zero, and still part of the graph, without targets.

    Raises:
        TypeError: the table is no embedding, and `n_ids` or `every` does not say what it cannot; or a loss with
            negatives has nothing that draws them.
    """
    if not len(state):
        return state.sum()
    n = _embedding(table).num_embeddings if n_ids is None else n_ids
    if loss_type == "CE":
        weight = _embedding(table).weight if every is None else every()
        return linear_ce_loss(state, weight[1:n], target - 1, None if bias is None else bias[1:n])
    if negatives is None:
        raise TypeError(f"loss_type={loss_type!r} needs something that draws its negatives")
    if loss_type == "SSM":
        drawn, log_expected = negatives(n_negatives)  # [K] each
        of_target, of_drawn = table(torch.cat((target, drawn))).split((len(target), len(drawn)))
        positive_logit = (state * of_target).sum(-1)
        if bias is not None:
            positive_logit = positive_logit + bias[target]
        logit = state @ of_drawn.T
        if bias is not None:
            logit = logit + bias[drawn]
        return sampled_softmax_loss(positive_logit, logit.masked_fill(drawn == target[:, None], -inf), log_expected)
    # target and negatives together: a lookup in a large table costs more than what is done with its rows
    ids = torch.cat((target[:, None], negatives(owner, target, n_negatives)), 1)  # [N, 1 + K]
    logit = torch.einsum("nd,nkd->nk", state, table(ids))
    if bias is not None:
        logit = logit + bias[ids]
    if offset is not None:
        logit = logit + offset[:, None]
    positive_logit, negative_logit = logit[:, 0], logit[:, 1:]
    if loss_type == "gBCE":
        return gbce_loss(positive_logit, negative_logit, sampling_rate=n_negatives / (n - 2), t=gbce_t)
    return bce_loss(positive_logit, negative_logit)


def _embedding(table: nn.Embedding | Callable[[Tensor], Tensor]) -> nn.Embedding:
    if not isinstance(table, nn.Embedding):
        raise TypeError("a table that is a function needs n_ids and, with loss_type='CE', every")
    return table
