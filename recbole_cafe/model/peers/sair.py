"""SAIR: self-attention with interest retrieval.

Wu, Li, Tian, CCET 2022. There is no released code, and the paper's formulas (1)-(12) were available to us as slides
print them; what they leave open is decided here and marked [R], our reading.

A SASRec-like encoder reads items, intents and positions. At every step the k rows of a learned pool of interests that
the state asks for most are added to it.

L positions of which N are real, D hidden size, V items, C intents, P interests in the pool, k of them retrieved. Id 0
is padding, rows are padded on the right.

[R] The pool is a table of its own, not the table of intents: the slides use two symbols, and regularise the pool as
SINE does its prototypes. [R] Residuals and LayerNorms of the blocks are SASRec's; the slides print neither residual.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import ItemNet, Negatives

INTEREST_WEIGHTS = ("interacted", "raw")


class InterestPool(nn.Module):
    """Retrieves interests for states (Eq. 4-10).

        Ca  = F C^T                                          [N, P]  what a state asks for                    (4)
        Ca' = Attention(Ca W^Q, Ca W^K, Ca W^V)              [N, P]  after the interests have interacted      (5)
        e   = sum_i W_i (C[idx_i] + F) = F + sum_i W_i C[idx_i], idx = top-k of Ca', W a softmax over these   (6-10)

    [R] The attention of (5) is over the time steps up to the present one, with P features and scores over sqrt(P): it
    multiplies Ca by P x P matrices from the right, which mix the interests. Attention over interests would use their
    relevance at all steps and so see the future.

    [R] W is taken from Ca', ``interacted``. The slides print Ca, ``raw``; but the choice of a top-k has no gradient, so
    that W^Q, W^K and W^V then have none at all and stay as they were drawn.

    Args:
        hidden_size: D. pool_size: P. n_interests: k, in 1..P.
        max_seq_length: L. dropout: of the attention weights of (5).
        interest_weights: ``interacted`` or ``raw``.
        std: standard deviation of the pool at the start.

    Raises:
        ValueError: k is not in 1..P, or an unknown interest_weights.
    """

    def __init__(self, *, hidden_size: int, pool_size: int, n_interests: int, max_seq_length: int, dropout: float,
                 interest_weights: str, std: float) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= n_interests <= pool_size:
            raise ValueError(f"n_interests={n_interests} is not in 1..pool_size={pool_size}")
        if interest_weights not in INTEREST_WEIGHTS:
            raise ValueError(f"interest_weights={interest_weights!r} is not one of {', '.join(INTEREST_WEIGHTS)}")
        self.n_interests, self.interest_weights = n_interests, interest_weights
        self.interests = nn.Parameter(torch.empty(pool_size, hidden_size))
        nn.init.normal_(self.interests, std=std)
        self.interaction = SelfAttention(
            hidden_size=pool_size, n_heads=1, max_seq_length=max_seq_length, dropout=dropout, output_projection=False,
            bias=False,
        )  # fmt: skip

    def forward(self, state: Tensor, packing: Packing) -> Tensor:
        """F [N, D] to e [N, D]."""
        weight, index = self.retrieve(state, packing)
        return state + torch.einsum("nk,nkd->nd", weight, self.interests[index])

    def retrieve(self, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """W and idx, [N, k] each. Of interests that are equally relevant the first in the pool is taken."""
        asked = state @ self.interests.T  # Ca
        interacted = self.interaction(asked, packing)  # Ca'
        index = interacted.sort(dim=1, descending=True, stable=True).indices[:, : self.n_interests]
        relevance = interacted if self.interest_weights == "interacted" else asked
        return relevance.gather(1, index).softmax(1), index

    def redundancy(self) -> Tensor:
        """L_d: half the squared covariances of different interests, taken over their D entries (Eq. 11). Scalar; grows
        with P^2."""
        centred = self.interests - self.interests.mean(1, keepdim=True)
        z = centred @ centred.T / centred.shape[1]
        return 0.5 * (z.square().sum() - z.diagonal().square().sum())


class SAIRNet(ItemNet):
    """Items with their intents, causal blocks, interests.

    Args:
        n_items: V.
        item2intent: [V] intent of each item; 0 for padding, C for an item without one.
        n_intents: C, padding included. The intent table has C + 1 rows, the last for items without an intent.
        item_negatives: draws the negatives of every `loss_type` but ``CE``.
        The rest: see props/model/SAIR.yaml.
    """

    def __init__(
        self,
        *,
        n_items: int,
        item2intent: Tensor,
        n_intents: int,
        item_negatives: Negatives | None,
        max_seq_length: int,
        hidden_size: int,
        inner_size: int,
        n_layers: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        initializer_range: float,
        pool_size: int,
        n_interests: int,
        interest_weights: str,
        interest_reg: float,
        loss_type: str,
        n_negatives: int,
        gbce_t: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            n_items=n_items, hidden_size=hidden_size, initializer_range=initializer_range, loss_type=loss_type,
            n_negatives=n_negatives, gbce_t=gbce_t, item_negatives=item_negatives, sparse_tables=sparse_tables,
        )  # fmt: skip
        self.interest_reg = interest_reg
        self.register_buffer("item2intent", item2intent, persistent=False)
        self.intent_embedding = PaddedEmbedding(n_intents + 1, hidden_size, std=initializer_range)
        attention = partial(
            SelfAttention, hidden_size=hidden_size, n_heads=n_heads, max_seq_length=max_seq_length,
            dropout=attn_dropout_prob,
        )  # fmt: skip
        self.encoder = SequenceEncoder(
            attention=attention, hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers,
            max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, hidden_act=hidden_act,
        )  # fmt: skip
        self.pool = InterestPool(
            hidden_size=hidden_size, pool_size=pool_size, n_interests=n_interests, max_seq_length=max_seq_length,
            dropout=attn_dropout_prob, interest_weights=interest_weights, std=initializer_range,
        )  # fmt: skip
        init_transformer(self, initializer_range)

    def states(self, item_seq: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """e of each real position. See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(item_seq > 0)
        return self.pool(self.encode(packing.pack(item_seq), packing), packing), packing

    def encode(self, items: Tensor, packing: Packing) -> Tensor:
        """F: items [N] to [N, D] (Eq. 1-3)."""
        x = self.item_embedding(items) + self.intent_embedding(self.item2intent[items])
        return self.encoder(x, packing)

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Loss of the next item (Eq. 12; [R]: the slides take the logarithm of inner products, read as the binary
        cross-entropy of their sigmoids) plus `interest_reg` times L_d. See :meth:`ItemNet.loss`."""
        loss = super().loss(item_seq, target, user)
        return loss + self.interest_reg * self.pool.redundancy() if self.interest_reg else loss


class SAIR(NetRecommender):
    """SAIR as RecBole sees it."""

    net = SAIRNet
