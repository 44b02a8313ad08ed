"""Losses over positions. N counts the positions that have a target; every loss is a mean over them."""

from torch import Tensor
from torch.nn import functional as F


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


def ce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the softmax over ids 1.. (id 0, padding, is no class).

    Args:
        logits: [N, V], column 0 is ignored.
        target: [N] ids in 1..V-1.
    """
    return F.cross_entropy(logits[:, 1:], target - 1)
