"""Softmax attention whose dropout belongs to the positions, see recbole_cafe.layers.draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_cafe.layers.draws import kept, mixed
from recbole_cafe.layers.dropout import once
from recbole_cafe.layers.packing import Packing

PAIR = 0x2545F4914F6CDD1D  # odd; parts what a position is as a query from what it is as a key


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False,
           key: Tensor | None = None, p: float = 0.0, first_head: int = 0) -> Tensor:  # fmt: skip
    """softmax(q k^T scale + mask) v.

    Args:
        q: [b, H, l, d].
        k: [b, H, l, d].
        v: [b, H, l, d'].
        scale: of the scores.
        mask: bool, True where a query may look, or added to the scores; of a shape that broadcasts with [b, H, l, l].
        causal: no query looks at later positions.
        key: [b, l] random numbers of the positions, for dropout of the weights; None drops nothing.
        p: probability with which a weight is dropped.
        first_head: which of all heads the first one here is.

    Returns:
        [b, H, l, d'].
    """
    if key is None or p == 0.0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    score = (q @ k.transpose(-1, -2)).mul_(scale)
    if causal:
        mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
    if mask is not None:
        score = score.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else score + mask
    return drop_weights(score.softmax(-1), key, p, first_head) @ v


def drop_weights(weight: Tensor, key: Tensor, p: float, first_head: int = 0) -> Tensor:
    """Weights without some: a weight's number depends on its two positions, wherever they are laid.

    Args:
        weight: [b, H, l, l].
        key: [b, l], see :func:`attend`.
        p: see :func:`attend`.
        first_head: see :func:`attend`.

    Returns:
        [b, H, l, l].
    """
    pair = mixed(key * PAIR)[:, None, :] ^ key[:, :, None]
    keep, scale = kept(pair + first_head, weight.shape[1], p)  # [b, l, l, H]: four heads share a draw
    return weight * keep.permute(0, 3, 1, 2).to(weight.dtype).mul_(scale)


def key_of(packing: Packing, p: float, *, training: bool) -> Tensor | None:
    """Random numbers of the positions, [N], for :func:`attend`; None where nothing is dropped."""
    if not training or p == 0.0:
        return None
    return once(packing.keys, len(packing.row), packing.row.device)
