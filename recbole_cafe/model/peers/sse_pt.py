"""SSE-PT: Sequential Recommendation Via Personalized Transformer.

Wu, Li, Hsieh, Sharpnack: "SSE-PT: Sequential Recommendation Via Personalized Transformer", RecSys 2020.
Authors' code: github.com/wuliwei9278/SSE-PT (read for comparison; nothing is taken from it).

SASRec on the concatenation of an item's and the user's vector, kept from over-fitting by stochastic shared embeddings
(SSE): in training, ids of items and users are swapped for random ones.

B users in the batch, L positions of which N are real, d_i item size, d_u user size, d = d_i + d_u, V items. Id 0 is
padding, rows are padded on the right (the authors' on the left: only the numbering of positions differs).

The relevance of item l at position t is [F_i ; F_u] . [v_l ; u] = F_i . v_l + F_u . u (Eq. 3). The second term is the
same for every item, so it can change no ranking, and a softmax over the items does not see it either. It is part of the
logits of BCE, where it is one more thing the user's vector learns from, and of nothing else: scores are F_i . v_l,
Eq. 3 less a constant of the row. (In that term the authors' code multiplies u by sqrt(d_u), as at the input; the paper
does not, and neither does this.)

SSE-PT++ trains on random windows of histories longer than L. Here train_layout=all already trains on all of such
a history, cut into windows with fixed places; `window_prob` moves each of them with that probability p_s, anew in each
epoch (recbole_cafe.data.sequences). The authors take one window per user and epoch: with p_s
a random one, else the last.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.sampling import swap_ids
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import ItemNet, Negatives

SSE_MODES = ("independent", "authors")


class SSEPTNet(ItemNet):
    """Items beside their user, causal blocks, one inner product.

    Args:
        n_items: V. n_users: users, padding included.
        item_negatives: draws the negatives of every `loss_type` but ``CE``.
        The rest: see props/model/SSEPT.yaml.

    Raises:
        ValueError: an unknown option, a probability outside 0..1, a negative user_size, or sse_mode ``authors`` with
            different p_input and p_output.
    """

    def __init__(
        self,
        *,
        n_items: int,
        n_users: int,
        item_negatives: Negatives | None,
        max_seq_length: int,
        hidden_size: int,
        user_size: int,
        inner_size: int,
        n_layers: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        residual: str,
        output_projection: bool,
        initializer_range: float,
        sse_mode: str,
        p_user: float,
        p_input: float,
        p_output: float,
        loss_type: str,
        n_negatives: int,
        gbce_t: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            n_items=n_items, hidden_size=hidden_size, initializer_range=initializer_range, loss_type=loss_type,
            n_negatives=n_negatives, gbce_t=gbce_t, item_negatives=item_negatives, sparse_tables=sparse_tables,
        )  # fmt: skip
        if user_size < 0:
            raise ValueError(f"user_size={user_size} should be at least 0")
        if sse_mode not in SSE_MODES:
            raise ValueError(f"sse_mode={sse_mode!r} is not one of {', '.join(SSE_MODES)}")
        for name, p in (("p_user", p_user), ("p_input", p_input), ("p_output", p_output)):
            if not 0.0 <= p <= 1.0:
                raise ValueError(f"{name}={p} is not a probability")
        if sse_mode == "authors" and p_input != p_output:
            raise ValueError(
                f"sse_mode='authors' swaps an input and its target in one event of probability p_input=p_output, got "
                f"p_input={p_input} and p_output={p_output}"
            )
        self.sse_mode, self.p_user, self.p_input, self.p_output = sse_mode, p_user, p_input, p_output
        self.hidden_size, width = hidden_size, hidden_size + user_size
        self.user_embedding = None
        if user_size:
            self.user_embedding = PaddedEmbedding(n_users, user_size, std=initializer_range, sparse=sparse_tables)
        attention = partial(
            SelfAttention, hidden_size=width, n_heads=n_heads, max_seq_length=max_seq_length,
            dropout=attn_dropout_prob, output_projection=output_projection,
        )  # fmt: skip
        self.encoder = SequenceEncoder(
            attention=attention, hidden_size=width, inner_size=inner_size, n_layers=n_layers,
            max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, residual=residual,
            hidden_act=hidden_act,
        )  # fmt: skip
        init_transformer(self, initializer_range)

    def states(self, item_seq: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """F = [F_i ; F_u] of each real position, [N, d]. See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(item_seq > 0)
        x = self.item_embedding(packing.pack(item_seq)) * math.sqrt(self.hidden_size)  # [N, d_i]
        if self.user_embedding is not None:
            u = self.user_embedding(user)  # [B, d_u]
            x = torch.cat((x, math.sqrt(u.shape[1]) * u[packing.row]), dim=1)  # Eq. 2
        return self.encoder(x, packing), packing

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Eq. 5 over every position that has a target. See :meth:`ItemNet.loss`; negatives avoid the items of the true
        user, whatever was swapped."""
        read, label, reader = self.shared(item_seq, target, user) if self.training else (item_seq, target, user)
        state, packing = self(read, reader)
        constant = None  # F_u . u of Eq. 3
        if self.user_embedding is not None:
            constant = (state[:, self.hidden_size :] * self.user_embedding(reader)[packing.row]).sum(-1)  # [N]
        return self.item_loss(self.query(state), packing.pack(label), user[packing.row], constant)

    def shared(self, item_seq: Tensor, target: Tensor, user: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stochastic shared embeddings: inputs, targets and users with some ids swapped for uniformly drawn ones.

        ``independent`` (paper): inputs, targets and users each with a probability of their own. ``authors`` (code): at
        each position, one event swaps input and target, each for a draw of its own; where it does not happen, the
        target follows what the next input has become.

        Args:
            item_seq, target: [B, L]. user: [B], one draw for a row, at its input and its output.
        """
        n_users = 2 if self.user_embedding is None else self.user_embedding.num_embeddings
        reader = swap_ids(user, self.p_user, n_users)
        if self.sse_mode == "independent":
            return swap_ids(item_seq, self.p_input, self.n_items), swap_ids(target, self.p_output, self.n_items), reader
        event = torch.rand(item_seq.shape, device=item_seq.device) < self.p_input
        read = torch.where(event, swap_ids(item_seq, 1.0, self.n_items), item_seq)
        following = target.clone()
        following[:, :-1] = torch.where(item_seq[:, 1:] > 0, read[:, 1:], target[:, :-1])
        label = torch.where(event, swap_ids(target, 1.0, self.n_items), following.where(target > 0, 0))
        return read, label, reader

    def query(self, state: Tensor) -> Tensor:
        """F_i, the part of F that an item is multiplied with. [N, d] to [N, d_i]."""
        return state[:, : self.hidden_size]


class SSEPT(NetRecommender):
    """SSE-PT as RecBole sees it."""

    net = SSEPTNet
    reads = ("item_seq", "user")
