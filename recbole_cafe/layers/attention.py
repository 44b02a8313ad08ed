"""Causal self-attention with global heads and local heads whose weights are re-scaled by distance and content.

B rows, L positions, N of the B x L positions real (not padding), D hidden size, M heads, H local heads, d = D / M.

A local head multiplies the weight of each key by theta (CaFe, Eq. 5; LOCKER, "adapt"):

    a_ij = theta_ij exp(s_ij) / sum_k theta_ik exp(s_ik) = softmax_j(s_ij + ln theta_ij)
    ln theta_ij = W (v_i + v_j + b_{i-j}) + const                                   (CaFe, Eq. 6)

Every term without the index j is the same for all keys of a query and cancels in the softmax, so the query
term, the bias (and LOCKER's user term) have no effect and no gradient. What is left,

    ln theta_ij ~ w . v_j + w . b_{i-j},

is an additive bias of shape [B, H, L, L], which is what `scaled_dot_product_attention` takes. The naive form
with all its terms lives in the tests, which hold the two equal.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.layers.packing import Packing

THETA_SOURCES = ("qk", "v")
ATTENTION_SCALES = ("hidden", "head")


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention over the past, some heads local.

    Args:
        hidden_size: D.
        n_heads: M, which must divide D.
        n_local_heads: how many of the heads are local, 0..M. They are the last ones.
        max_seq_length: L, the longest sequence (the distance table has L rows).
        dropout: probability with which an attention weight is dropped.
        theta_source: where the content term of ln theta comes from: ``qk``, the head's query and key
            projections, of which the key's remains (CaFe's paper), or ``v``, its value projection (CaFe's code).
        attn_scale: scores are divided by sqrt(D) (``hidden``: CaFe's paper) or sqrt(d) (``head``: its code).

    Raises:
        ValueError: D is not a multiple of M, H is not in 0..M, or an option has an unknown value.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        n_heads: int,
        n_local_heads: int = 0,
        max_seq_length: int,
        dropout: float = 0.0,
        theta_source: str = "qk",
        attn_scale: str = "head",
    ) -> None:
        super().__init__()
        if n_heads < 1 or hidden_size % n_heads:
            raise ValueError(f"hidden_size={hidden_size} is not a multiple of n_heads={n_heads}")
        if not 0 <= n_local_heads <= n_heads:
            raise ValueError(f"n_local_heads={n_local_heads} is not in 0..n_heads={n_heads}")
        if theta_source not in THETA_SOURCES:
            raise ValueError(f"theta_source={theta_source!r} is not one of {', '.join(THETA_SOURCES)}")
        if attn_scale not in ATTENTION_SCALES:
            raise ValueError(f"attn_scale={attn_scale!r} is not one of {', '.join(ATTENTION_SCALES)}")
        self.n_heads, self.n_local_heads = n_heads, n_local_heads
        self.head_size = hidden_size // n_heads
        self.dropout, self.theta_source = dropout, theta_source
        self.scale = 1.0 / math.sqrt(hidden_size if attn_scale == "hidden" else self.head_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        if n_local_heads:
            self.theta_weight = nn.Parameter(torch.empty(n_local_heads, self.head_size))
            self.distance = nn.Parameter(torch.empty(n_local_heads, max_seq_length, self.head_size))
            nn.init.normal_(self.theta_weight, std=0.02)
            nn.init.normal_(self.distance, std=0.02)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Attend within each row.

        No padding mask is needed: with right padding and causality a real position never sees a pad.

        Args:
            x: [N, D] the real positions of a batch. packing: where they are.

        Returns:
            [N, D]; a position depends on itself and on the earlier positions of its row only.
        """
        q, k, v = self.query(x), self.key(x), self.value(x)  # [N, D]
        groups = [self._attend(q[at], k[at], v[at]) for at in packing.groups]
        return self.output(torch.cat(groups)[packing.back])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rows of one length, [b, l, D] each. Returns [b * l, D]."""
        b, length, size = q.shape
        q, k, v = (t.view(b, length, self.n_heads, self.head_size).transpose(1, 2) for t in (q, k, v))  # [b, M, l, d]
        p = self.dropout if self.training else 0.0
        mask = self.log_mask(k if self.theta_source == "qk" else v) if self.n_local_heads else None
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None, scale=self.scale
        )
        return out.transpose(1, 2).reshape(b * length, size)

    def log_mask(self, content: Tensor) -> Tensor:
        """What is added to the scores: 0 for global heads, ln theta for local ones, -inf for the future.

        content: [b, M, l, d] projections. Returns [b, M, l, l].
        """
        length = content.shape[2]
        bias = self.log_theta(content)
        future = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
        plain = bias.new_zeros(len(bias), self.n_heads - self.n_local_heads, length, length)
        return torch.cat((plain, bias), dim=1).masked_fill(future, float("-inf"))

    def log_theta(self, content: Tensor) -> Tensor:
        """ln theta without the terms that cancel. content: [B, M, L, d] projections. Returns [B, H, L, L]."""
        L = content.shape[2]
        local = content[:, self.n_heads - self.n_local_heads :]  # [B, H, L, d]
        by_key = torch.einsum("bhjd,hd->bhj", local, self.theta_weight)
        by_distance = torch.einsum("hld,hd->hl", self.distance[:, :L], self.theta_weight)  # [H, L]
        steps = torch.arange(L, device=content.device)
        lag = (steps[:, None] - steps).clamp(min=0)  # [L, L] i - j; the future is masked later
        return by_key[:, :, None, :] + by_distance[:, lag]
