"""CaFe: Coarse-to-Fine Sparse Sequential Recommendation.

Li, Zhao, Li, Chan, Faloutsos, Karypis, Pantel, McAuley: "Coarse-to-Fine Sparse Sequential Recommendation",
SIGIR 2022, arXiv:2204.01839.
Authors' code: github.com/JiachengLi1995/CAFE (read for comparison; nothing is taken from it).

B users in the batch, L positions of which N are real, D hidden size, V items, C intents. Id 0
is padding, rows are padded on the right.

Where the paper and its code differ, the paper is the default and the code an option: `joint` (Eq. 10's product or a
sum of logits), `theta_source` (Eq. 6 from query and key or from value projections), `attn_scale` (sqrt(D) or
sqrt(D / heads)), `residual` (x or LN(x)). The authors' script passes no local heads at all: `n_local_heads: 0`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.local import THETA_SOURCES
from recbole_cafe.layers.losses import check_loss, next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.scoring import JOINTS, intent_terms, joint_score
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import Negatives
from recbole_cafe.ranking.catalogue import Catalogue


class Towers(nn.Module):
    """An encoder of the items and one of their intents.

    Args: see props/model/CaFe.yaml, and :class:`CaFeNet` for what the data know.
        sparse: gradients of the item table hold the rows a batch touched.
    """

    def __init__(self, *, n_items: int, item2intent: Tensor, n_intents: int, max_seq_length: int, hidden_size: int,
                 inner_size: int, n_layers: int, n_heads: int, n_local_heads: int, hidden_dropout_prob: float,
                 attn_dropout_prob: float, hidden_act: str, theta_source: str, attn_scale: str, residual: str,
                 initializer_range: float, sparse: bool, intent_tower: bool = True) -> None:  # fmt: skip
        super().__init__()
        if theta_source not in THETA_SOURCES:
            raise ValueError(f"theta_source={theta_source!r} is not one of {', '.join(THETA_SOURCES)}")
        self.n_intents = n_intents
        self.register_buffer("item2intent", item2intent, persistent=False)
        attention = partial(
            SelfAttention, hidden_size=hidden_size, n_heads=n_heads, max_seq_length=max_seq_length,
            dropout=attn_dropout_prob, attn_scale=attn_scale,
        )  # fmt: skip
        encoder = partial(
            SequenceEncoder, hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers,
            max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, residual=residual,
            hidden_act=hidden_act,
        )  # fmt: skip
        theta = {"n_local_heads": n_local_heads, "local_options": {"source": theta_source}}
        self.item_embedding = PaddedEmbedding(n_items, hidden_size, std=initializer_range, sparse=sparse)
        self.item_encoder = encoder(attention=partial(attention, **theta))
        self.intent_embedding = self.intent_encoder = None
        if intent_tower:
            self.intent_embedding = PaddedEmbedding(n_intents + 1, hidden_size, std=initializer_range)
            self.intent_encoder = encoder(attention=attention)  # theta = 1: plain SASRec
        init_transformer(self, initializer_range)

    def forward(self, item_seq: Tensor) -> tuple[Tensor, Tensor | None, Packing]:
        """item_seq: [B, L]. Returns the fused states R and the intent states R^c of the real positions, [N, D] each,
        and where these are."""
        packing = Packing(item_seq > 0)
        items = packing.pack(item_seq)  # [N]
        fine = self.item_encoder(self.item_embedding(items), packing)  # [N, D] items: fine, sparse
        if self.intent_encoder is None:
            return fine, None, packing
        intents = self.item2intent[items]  # [N]
        coarse = self.intent_encoder(self.intent_embedding(intents), packing)  # [N, D] intents: coarse, dense
        return fine + coarse, coarse, packing  # Eq. 7


class CaFeNet(Towers):
    """The two towers and their joint.

    Args:
        n_items: V, padding included.
        item2intent: [V] intent of each item; 0 for padding, C for an item without one.
        n_intents: C, padding included. The intent table has C + 1 rows, the last for items without an intent.
        item_negatives, intent_negatives: draw the negatives of every `loss_type` but ``CE``.
        The rest: see props/model/CaFe.yaml, one line per key.
    """

    def __init__(
        self,
        *,
        n_items: int,
        item2intent: Tensor,
        n_intents: int,
        item_negatives: Negatives | None,
        intent_negatives: Negatives | None,
        max_seq_length: int,
        hidden_size: int,
        inner_size: int,
        n_layers: int,
        n_heads: int,
        n_local_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        theta_source: str,
        attn_scale: str,
        residual: str,
        initializer_range: float,
        intent_tower: bool,
        intent_loss: bool,
        joint: str,
        loss_type: str,
        n_negatives: int,
        gbce_t: float,
        sparse_tables: bool,
    ) -> None:
        if joint not in JOINTS:
            raise ValueError(f"joint={joint!r} is not one of {', '.join(JOINTS)}")
        check_loss(loss_type, n_negatives, gbce_t)
        if not intent_tower and (intent_loss or joint != "item"):
            raise ValueError(
                f"intent_tower=False needs intent_loss=False and joint='item' (there is no intent relevance to train "
                f"or to score with), got intent_loss={intent_loss} and joint={joint!r}"
            )
        super().__init__(
            n_items=n_items, item2intent=item2intent, n_intents=n_intents, max_seq_length=max_seq_length,
            hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers, n_heads=n_heads,
            n_local_heads=n_local_heads, hidden_dropout_prob=hidden_dropout_prob, attn_dropout_prob=attn_dropout_prob,
            hidden_act=hidden_act, theta_source=theta_source, attn_scale=attn_scale, residual=residual,
            initializer_range=initializer_range, intent_tower=intent_tower,
            sparse=sparse_tables and loss_type != "CE",  # CE touches every row anyway
        )  # fmt: skip
        self.joint, self.loss_type, self.n_negatives, self.gbce_t = joint, loss_type, n_negatives, gbce_t
        self.intent_loss = intent_loss
        self.item_negatives, self.intent_negatives = item_negatives, intent_negatives

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Eq. 9, over every position that has a target.

        Args:
            item_seq: [B, L]. target: [B, L] the item that follows each position, 0 where there is none.
            user: [B], whose own items and intents are no negatives.

        Returns:
            scalar: the item tower's loss plus, with `intent_loss`, the intent tower's.
        """
        fused, coarse, packing = self(item_seq)
        item, owner = packing.pack(target), user[packing.row]  # [N]
        wanted = item > 0
        loss = self._tower_loss(fused, item, owner, wanted, self.item_embedding, self.item_negatives)
        if self.intent_loss:
            intent = self.item2intent[item]
            wanted = wanted & (intent < self.n_intents)  # an item without intent teaches the tower nothing
            loss = loss + self._tower_loss(coarse, intent, owner, wanted, self.intent_embedding, self.intent_negatives)
        return loss

    def _tower_loss(self, state: Tensor, target: Tensor, owner: Tensor, wanted: Tensor, table: PaddedEmbedding,
                    negatives: Negatives | None) -> Tensor:  # fmt: skip
        """state: [N, D]; target, owner, wanted: [N]. Relevance is the inner product with the table's row (Eq. 8)."""
        if not wanted.all():
            state, target, owner = state[wanted], target[wanted], owner[wanted]
        n_ids = self.n_intents if table is self.intent_embedding else None  # "no intent" is no class
        return next_id_loss(
            state, target, owner, table, loss_type=self.loss_type, n_ids=n_ids, negatives=negatives,
            n_negatives=self.n_negatives, gbce_t=self.gbce_t,
        )  # fmt: skip

    def last(self, item_seq: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the last position says: its fused state [B, D] and the intent terms [B, C + 1] (None for ``item``)."""
        fused, coarse, packing = self(item_seq)
        state = packing.last(fused)
        if self.joint == "item":
            return state, None
        return state, intent_terms(packing.last(coarse) @ self.intent_embedding.weight.T, self.joint)

    def intent_probabilities(self, item_seq: Tensor) -> Tensor:
        """What comes next, coarsely: a softmax of the intents' relevance. With ``loss_type="CE"`` the tower learns just
        that; other losses order the intents and promise no probabilities.

        Args:
            item_seq: [B, L].

        Returns:
            [B, C + 1], 0 for padding and for "no intent".

        Raises:
            ValueError: the model has no intent tower.
        """
        _, coarse, packing = self(item_seq)
        if coarse is None:
            raise ValueError("intent_tower=False: there is no tower that tells what is wanted next")
        logits = packing.last(coarse) @ self.intent_embedding.weight.T
        logits[:, [0, self.n_intents]] = -torch.inf
        return logits.softmax(1)

    def scores(self, state: Tensor, terms: Tensor | None, items: Tensor | None = None,
               intents: Tensor | None = None) -> Tensor:  # fmt: skip
        """The joint score (Eq. 10) of every item, or of given candidates.

        Args:
            state, terms: from :meth:`last`.
            items: [B, K] candidates; None for all V.
            intents: [B, K] intents to score the candidates with, instead of their own (only `authors100` does).

        Returns:
            [B, V] (column 0 is padding) or [B, K].
        """
        if items is None:
            logit = state @ self.item_embedding.weight.T
            intent_term = None if terms is None else terms[:, self.item2intent]
        else:
            logit = torch.einsum("bd,bkd->bk", state, self.item_embedding(items))
            own = self.item2intent[items] if intents is None else intents
            intent_term = None if terms is None else terms.gather(1, own)
        return joint_score(logit, intent_term, self.joint)

    def catalogue(self) -> Catalogue:
        """The items as :mod:`recbole_cafe.ranking.catalogue` ranks them, with the present weights."""
        return Catalogue(self.item_embedding.weight.detach(), self.item2intent, self.joint, self.n_intents)


class CaFe(NetRecommender):
    """CaFe as RecBole sees it."""

    net = CaFeNet
