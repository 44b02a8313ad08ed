"""What the companions' nets share: items scored by an inner product, learned as the next item or as a cloze.

B users in the batch, L positions of which N are real, D hidden size, V items. Id 0 is padding, rows are padded on the
right. A net of these says how positions become states; base.py makes a RecBole model of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.cloze import Cloze
from recbole_cafe.layers.embedding import PaddedEmbedding
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.losses import GBCE_T, LOSSES, check_loss, next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.ranking.catalogue import Catalogue

Negatives = Callable[..., Any]


class ItemNet(nn.Module):
    """States of positions to the next item, at every position that has a target.

    A subclass implements :meth:`states`, and :meth:`item_vectors` where an item's vector is not its embedding.

    Args:
        n_items: V, padding included.
        hidden_size: D.
        initializer_range: standard deviation of the item table at the start.
        loss_type: one of `losses` (recbole_cafe.layers.losses). n_negatives, gbce_t, item_negatives: for all but CE.
        n_special: further rows of the item table behind V, such as a mask. They are never scored.
        item_bias: each item has a bias.
        sparse_tables: gradients of the item table hold the rows a batch touched (not with CE, which touches all).

    Raises:
        ValueError: see :func:`recbole_cafe.layers.losses.check_loss`.
    """

    losses = LOSSES
    scores_intents = False  # whether the score of a candidate depends on its intent
    item_bias: Tensor | None

    def __init__(self, *, n_items: int, hidden_size: int, initializer_range: float, loss_type: str,
                 n_negatives: int = 1, gbce_t: float = GBCE_T, item_negatives: Negatives | None = None,
                 n_special: int = 0, item_bias: bool = False, sparse_tables: bool = False) -> None:  # fmt: skip
        super().__init__()
        check_loss(loss_type, n_negatives, gbce_t, self.losses)
        self.n_items, self.loss_type, self.n_negatives, self.gbce_t = n_items, loss_type, n_negatives, gbce_t
        self.item_negatives = item_negatives
        sparse = sparse_tables and loss_type != "CE"
        self.item_embedding = PaddedEmbedding(n_items + n_special, hidden_size, std=initializer_range, sparse=sparse)
        self.item_bias = nn.Parameter(torch.zeros(n_items)) if item_bias else None

    def states(self, item_seq: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """What each real position says about the item to predict there.

        Args:
            item_seq: [B, L]. user: [B], None for nets that do not read it.

        Returns:
            [N, D] and where the N positions are.
        """
        raise NotImplementedError

    def forward(self, item_seq: Tensor, user: Tensor | None = None) -> tuple[Tensor, Packing]:
        """:meth:`states`."""
        return self.states(item_seq, user)

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Loss of the next item.

        Args:
            item_seq: [B, L]. target: [B, L] the item that follows each position, 0 where there is none.
            user: [B], whose own items are no negatives.
        """
        state, packing = self(item_seq, user)
        item, owner = packing.pack(target), user[packing.row]
        return self.item_loss(state, item, owner)

    def item_loss(self, state: Tensor, item: Tensor, owner: Tensor, offset: Tensor | None = None) -> Tensor:
        """state: [N, D]; item, owner: [N], item 0 where there is no target; offset: see :func:`next_id_loss`."""
        wanted = item > 0
        if not wanted.all():
            state, item, owner = state[wanted], item[wanted], owner[wanted]
            offset = None if offset is None else offset[wanted]
        return self.target_loss(state, item, owner, offset)

    def target_loss(self, state: Tensor, item: Tensor, owner: Tensor, offset: Tensor | None = None) -> Tensor:
        """:meth:`item_loss` where every state has a target. Returns zero, still part of the graph, without states."""
        return next_id_loss(
            state, item, owner, self.item_embedding, loss_type=self.loss_type, n_ids=self.n_items,
            negatives=self.item_negatives, n_negatives=self.n_negatives, gbce_t=self.gbce_t, bias=self.item_bias,
            offset=offset,
        )  # fmt: skip

    # Scores: the inner product of a query and an item's vector --------------------------------------------------------

    def last(self, item_seq: Tensor, user: Tensor | None = None) -> tuple[Tensor, None]:
        """The query that the history of each row makes, [B, D'], and no terms of intents."""
        state, packing = self(item_seq, user)
        return self.query(packing.last(state)), None

    def query(self, state: Tensor) -> Tensor:
        """[B, D] to [B, D']: what :meth:`item_vectors` are multiplied with. A 1 picks up the items' bias."""
        return state if self.item_bias is None else torch.cat((state, torch.ones_like(state[:, :1])), dim=1)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """[..., D'] for given items, [V, D'] for all: the vector and, with `item_bias`, the bias."""
        if items is None:
            vectors, bias = self.item_embedding.weight[: self.n_items], self.item_bias
        else:
            vectors = self.item_embedding(items)
            bias = None if self.item_bias is None else self.item_bias[items]
        return vectors if bias is None else torch.cat((vectors, bias[..., None]), dim=-1)

    def scores(self, query: Tensor, _terms: None = None, items: Tensor | None = None,
               _intents: Tensor | None = None) -> Tensor:  # fmt: skip
        """Scores of every item, or of given candidates.

        Args:
            query: from :meth:`last`. items: [B, K] candidates; None for all V.

        Returns:
            [B, V] (column 0 is padding) or [B, K].
        """
        if items is None:
            return query @ self.item_vectors().T
        return torch.einsum("bd,bkd->bk", query, self.item_vectors(items))

    def catalogue(self) -> Catalogue:
        """The items as :mod:`recbole_cafe.ranking.catalogue` ranks them, with the present weights: one group."""
        return Catalogue.of_items(self.item_vectors().detach())


def bert_encoder(*, hidden_size: int, inner_size: int, n_layers: int, n_heads: int, max_seq_length: int,
                 hidden_dropout_prob: float, attn_dropout_prob: float, hidden_act: str,
                 positions: str | None = "end") -> SequenceEncoder:  # fmt: skip
    """BERT4Rec's blocks: attention to both sides, LayerNorm after each part, positions counted from the end."""
    attention = partial(
        SelfAttention, hidden_size=hidden_size, n_heads=n_heads, max_seq_length=max_seq_length,
        dropout=attn_dropout_prob, causal=False,
    )  # fmt: skip
    return SequenceEncoder(
        attention=attention, hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers,
        max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, hidden_act=hidden_act,
        arrangement="post", positions=positions,
    )  # fmt: skip


class MaskedIntents(nn.Module):
    """Vectors of the items' intents for a cloze: the intent of a hidden item is hidden too.

    Were it visible, training would learn from the very thing that is unknown at inference: what is wanted next.

    Args:
        item2intent: [V], 0 for padding, C for an item without intent. n_intents: C. The table has C + 2 rows, the last
            for hidden items; the items' mask has id V.
        hidden_size: D. initializer_range: see :class:`ItemNet`.
    """

    def __init__(self, *, item2intent: Tensor, n_intents: int, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        of_mask = torch.tensor([n_intents + 1], device=item2intent.device)
        self.register_buffer("item2intent", torch.cat((item2intent, of_mask)), persistent=False)
        self.embedding = PaddedEmbedding(n_intents + 2, hidden_size, std=initializer_range)

    def forward(self, items: Tensor) -> Tensor:
        """items: [N] in 0..V. Returns [N, D]."""
        return self.embedding(self.item2intent[items])


class ClozeNet(ItemNet):
    """States of hidden positions to the hidden items, read from both sides (recbole_cafe.layers.cloze).

    Args:
        mask_ratio: share of a row's items that is hidden in training. None: learn the next item instead, as
            :class:`ItemNet` does; the subclass then has to be causal.
        max_seq_length: L.
        The rest: see :class:`ItemNet`. The item table has one more row, the mask, with id V.
    """

    def __init__(self, *, mask_ratio: float | None, max_seq_length: int, n_items: int, **common: object) -> None:
        super().__init__(n_items=n_items, n_special=1, **common)
        self.cloze = None
        if mask_ratio is not None:
            self.cloze = Cloze(mask_id=n_items, mask_ratio=mask_ratio, max_seq_length=max_seq_length)

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Mean loss of the hidden items of rows that end with the item after the history. See :meth:`ItemNet.loss`."""
        if self.cloze is None:
            return super().loss(item_seq, target, user)
        rows, answer = self.cloze.hide(self.cloze.rows(item_seq, target))
        state, packing = self(rows, user)
        return self.item_loss(state, packing.pack(answer), user[packing.row])

    def item_loss(self, state: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """See :class:`ItemNet`; only states that have a target are transformed."""
        wanted = item > 0
        return super().item_loss(self.transform(state[wanted]), item[wanted], owner[wanted])

    def last(self, item_seq: Tensor, user: Tensor | None = None) -> tuple[Tensor, None]:
        """The query at a mask put after the history; see :meth:`ItemNet.last`."""
        state, packing = self(item_seq if self.cloze is None else self.cloze.question(item_seq), user)
        return self.query(self.transform(packing.last(state))), None

    def transform(self, state: Tensor) -> Tensor:
        """What stands between a state and the scores; nothing here. [N, D] to [N, D]."""
        return state
