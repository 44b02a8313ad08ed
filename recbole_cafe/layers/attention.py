"""Self-attention with global heads and local heads, over the past or over the whole row.

B rows, L positions, N of the B x L positions real (not padding), D hidden size, M heads, H local heads, d = D / M.
Every model's attention over the positions of a row is this one; what makes a head local is in
:mod:`recbole_cafe.layers.local`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attend import attend, drop_weights, key_of
from recbole_cafe.layers.local import LOCALS, Local
from recbole_cafe.layers.packing import Lines, Packing

ATTENTION_SCALES = ("hidden", "head")


def masked_softmax(score: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the last axis where `allowed`, 0 elsewhere.

    Args:
        score: [..., n].
        allowed: bool, of a shape that broadcasts with it, with at least one True to sum over.

    Returns:
        [..., n].
    """
    return score.masked_fill(~allowed, float("-inf")).softmax(-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention, some heads local.

    Args:
        hidden_size: D.
        n_heads: M, which must divide D.
        n_local_heads: how many of the heads are local, 0..M. They are the last ones.
        max_seq_length: L, the longest sequence.
        dropout: probability with which an attention weight is dropped.
        attn_scale: scores are divided by sqrt(D) (``hidden``: CaFe's paper) or sqrt(d) (``head``: its code, BERT).
        causal: a position sees itself and the past; else all real positions of its row.
        local_options: `form`, a key of :data:`recbole_cafe.layers.local.LOCALS` (``theta`` if it is left out), and what
            that class takes besides.
        output_projection: the heads' outputs are mixed by a last matrix (SASRec's and SSE-PT's first code have none).
        bias: the projections add a bias.

    Raises:
        ConfigError: D is not a multiple of M, H is not in 0..M, or an option has an unknown value.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        n_heads: int,
        n_local_heads: int = 0,
        max_seq_length: int,
        dropout: float = 0.0,
        attn_scale: str = "head",
        causal: bool = True,
        local_options: Mapping[str, Any] | None = None,
        output_projection: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if n_heads < 1 or hidden_size % n_heads:
            raise ConfigError(f"hidden_size={hidden_size} is not a multiple of n_heads={n_heads}")
        if not 0 <= n_local_heads <= n_heads:
            raise ConfigError(f"n_local_heads={n_local_heads} is not in 0..n_heads={n_heads}")
        options = dict(local_options or {})
        form = options.pop("form", "theta")
        if form not in LOCALS:
            raise ConfigError(f"form={form!r} of the local heads is not one of {', '.join(LOCALS)}")
        if attn_scale not in ATTENTION_SCALES:
            raise ConfigError(f"attn_scale={attn_scale!r} is not one of {', '.join(ATTENTION_SCALES)}")
        self.n_heads, self.n_local_heads = n_heads, n_local_heads
        self.head_size = hidden_size // n_heads
        self.dropout, self.causal = dropout, causal
        self.scale = 1.0 / math.sqrt(hidden_size if attn_scale == "hidden" else self.head_size)
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size, bias=bias) for _ in range(3))
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias) if output_projection else nn.Identity()
        self.local: Local | None = None
        if n_local_heads:
            self.local = LOCALS[form](
                n_heads=n_local_heads, head_size=self.head_size, max_seq_length=max_seq_length, causal=causal,
                scale=self.scale, dropout=dropout, **options,
            )  # fmt: skip

    def forward(self, x: Tensor, packing: Packing, source: Tensor | None = None, query: Tensor | None = None) -> Tensor:
        """Attend within each row.

        Args:
            x: [N, D] the real positions of a batch.
            packing: where they are.
            source: [N, D] what queries and keys are made of, where that is not x (NOVA); values are made of x.
            query: [N, D] what queries are made of, where that is neither (SASRec's first code).

        Returns:
            [N, D]; with `causal`, a position depends on itself and on the earlier positions of its row only.
        """
        source = x if source is None else source
        q = self.query(source if query is None else query)
        k, v = self.key(source), self.value(x)  # [N, D]
        key = key_of(packing, self.dropout, training=self.training)
        if self.training and x.device.type == "cpu" and (self.local is None or self.local.is_bias):
            mixed: Tensor = self.output(self._in_lines(q, k, v, packing.lines, key))
            return mixed
        groups = [
            self._attend(q[at], k[at], v[at], real, None if key is None else key[at])
            for at, real in zip(packing.groups, packing.real_of_groups, strict=True)
        ]
        mixed = self.output(torch.cat(groups)[packing.back])
        return mixed

    @torch.no_grad()
    def weights(self, x: Tensor, packing: Packing, query: Tensor | None = None) -> list[Tensor]:
        """The attention weights, to look at.

        Args:
            x: see :meth:`forward`.
            packing: where the positions are.
            query: see :meth:`forward`.

        Returns:
            for each of `packing.groups` [b, M, l, l]: of each head, what each query position gives to each key
            position. Rows beyond the end of a history mean nothing.

        Raises:
            ConfigError: local heads of a form without weights.
        """
        q, k, v = self.query(x if query is None else query), self.key(x), self.value(x)  # [N, D]
        split, weights = self.n_heads - self.n_local_heads, []
        for at, real in zip(packing.groups, packing.real_of_groups, strict=True):
            b, length = at.shape
            heads = (t[at].view(b, length, self.n_heads, self.head_size).transpose(1, 2) for t in (q, k, v))
            q_at, k_at, v_at = heads  # [b, M, l, d]
            score = (q_at[:, :split] @ k_at[:, :split].transpose(-1, -2)) * self.scale
            allowed = real[:, None, None, :]
            if self.causal:
                allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            parts = [masked_softmax(score, allowed)]
            if self.local is not None:
                parts.append(self.local.weights(q_at[:, split:], k_at[:, split:], v_at[:, split:], real))
            weights.append(torch.cat(parts, dim=1))
        return weights

    def _in_lines(self, q: Tensor, k: Tensor, v: Tensor, lines: Lines, key: Tensor | None) -> Tensor:
        """The same as :meth:`_attend` of every group, for training on a CPU. [N, D] three times and [N] to [N, D]."""
        split, mixed = self.n_heads - self.n_local_heads, []
        laid = (lines.lay(x, self.n_heads) for x in (q * self.scale, k, v))
        for q_at, k_at, v_at, same, at in zip(*laid, lines.same, lines.position, strict=True):
            score = q_at @ k_at.transpose(-1, -2)  # [n, M, W, W]
            if self.local is not None:
                score[:, split:] += self.local.bias(k_at[:, split:], v_at[:, split:])
            weight = masked_softmax(score, (same.tril() if self.causal else same)[:, None])
            if key is not None:
                weight = drop_weights(weight, key[at.clamp(min=0)], self.dropout)
            mixed.append(weight @ v_at)  # [n, M, W, d]
        return lines.take_up(mixed)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None) -> Tensor:
        """Rows of one group, [b, l, D] each; real, key: [b, l]. Returns [b * l, D]."""
        b, length, size = q.shape
        q, k, v = (t.view(b, length, self.n_heads, self.head_size).transpose(1, 2) for t in (q, k, v))  # [b, M, l, d]
        split = self.n_heads - self.n_local_heads
        parts = []
        if split:
            mask = None if self.causal else real[:, None, None, :]  # a causal reader never sees padding on its right
            parts.append(attend(
                q[:, :split], k[:, :split], v[:, :split], mask=mask, causal=self.causal, scale=self.scale,
                key=key, p=self.dropout,
            ))  # fmt: skip
        if self.local is not None:
            parts.append(self.local(q[:, split:], k[:, split:], v[:, split:], real, key))
        return torch.cat(parts, dim=1).transpose(1, 2).reshape(b * length, size)
