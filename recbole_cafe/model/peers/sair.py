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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.settings import EncoderSettings, LossSettings

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
        ConfigError: k is not in 1..P, or an unknown interest_weights.
    """

    def __init__(self, *, hidden_size: int, pool_size: int, n_interests: int, max_seq_length: int, dropout: float,
                 interest_weights: str, std: float) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= n_interests <= pool_size:
            raise ConfigError(f"n_interests={n_interests} is not in 1..pool_size={pool_size}")
        if interest_weights not in INTEREST_WEIGHTS:
            raise ConfigError(f"interest_weights={interest_weights!r} is not one of {', '.join(INTEREST_WEIGHTS)}")
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
        """L_d: half the squared covariances of different interests, taken over their D entries (Eq. 11).

        Scalar; grows with P^2.
        """
        centred = self.interests - self.interests.mean(1, keepdim=True)
        z = centred @ centred.T / centred.shape[1]
        return 0.5 * (z.square().sum() - z.diagonal().square().sum())


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The pool of interests, see :class:`InterestPool`.

    Attributes:
        pool_size: P.
        n_interests: k.
        interest_weights: ``interacted`` or ``raw``.
        interest_reg: weight of L_d.
    """

    pool_size: int
    n_interests: int
    interest_weights: str
    interest_reg: float


class SAIRNet(ItemNet):
    """Items with their intents, causal blocks, interests.

    Args:
        data: what the data know. The intent table has C + 1 rows, the last for items without an intent.
        encoder: the blocks.
        loss: how the next item is learned.
        pool: the interests.
        sparse_tables: gradients of the item table hold the rows a batch touched.
    """

    item2intent: Tensor
    needs_intents = True

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        loss: LossSettings,
        pool: PoolSettings,
        sparse_tables: bool,
    ) -> None:
        size, std = encoder.hidden_size, encoder.initializer_range
        super().__init__(data=data, loss=loss, hidden_size=size, initializer_range=std, sparse_tables=sparse_tables)
        self.interest_reg = pool.interest_reg
        self.register_buffer("item2intent", data.item2intent, persistent=False)
        self.intent_embedding = PaddedEmbedding(data.n_intents + 1, size, std=std)
        self.encoder = encoder.make(data.max_seq_length)
        self.pool = InterestPool(
            hidden_size=size, pool_size=pool.pool_size, n_interests=pool.n_interests,
            max_seq_length=data.max_seq_length, dropout=encoder.attn_dropout_prob,
            interest_weights=pool.interest_weights, std=std,
        )  # fmt: skip
        init_transformer(self, std)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """e of each real position. See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        return self.pool(self.encode(packing.pack(history), packing), packing), packing

    def encode(self, items: Tensor, packing: Packing) -> Tensor:
        """F: items [N] to [N, D] (Eq. 1-3)."""
        state: Tensor = self.encoder(self.embedded(items), packing)
        return state

    def embedded(self, items: Tensor) -> Tensor:
        """Items [N] with their intents, [N, D]."""
        embedded: Tensor = self.item_embedding(items) + self.intent_embedding(self.item2intent[items])
        return embedded

    @torch.no_grad()
    def first_attention(self, history: Tensor) -> tuple[Packing, dict[str, list[Tensor]]]:
        """What the first block attends to, the paper's heat map.

        Args:
            history: [B, L].

        Returns:
            where the real positions are, and "items with their intents" -> weights as
            :meth:`recbole_cafe.layers.attention.SelfAttention.weights` gives them.
        """
        packing = Packing(history > 0)
        weights = self.encoder.first_weights(self.embedded(packing.pack(history)), packing)
        return packing, {"items with their intents": weights}

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the next item (Eq. 12) plus `interest_reg` times L_d.

        [R] The slides take the logarithm of inner products, read as the binary cross-entropy of their sigmoids. See
        :meth:`ItemNet.loss`.
        """
        loss = super().loss(batch)
        return loss + self.interest_reg * self.pool.redundancy() if self.interest_reg else loss
