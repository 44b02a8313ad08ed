"""BERT-F: BERT4Rec that reads the intents as FDSA does.

Named in one sentence of CaFe (Li et al., SIGIR 2022, Section 4.1): an extension of BERT4Rec that takes intents in as
FDSA does. No formula and no code are published, so everything beyond that sentence is our reading: one encoder for the
sequence of items, one for the sequence of intents, both outputs side by side through one linear layer (FDSA; its
attention over feature fields is the identity for one field), and the cloze loss of items alone. No loss on intents and
no intent in the score: that is what separates it from CaFe.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import ClozeNet, MaskedIntents, bert_encoder


class FusedClozeNet(ClozeNet):
    """Two encoders side by side, fused by one linear layer: H = LN([H^v; H^c] W + b).

    Args:
        item_encoder, intent_encoder: [N, D] to [N, D]. share_position: one position table for both (RecBole's FDSA).
        item2intent, n_intents: see :class:`MaskedIntents`. The rest: see :class:`ClozeNet`.

    Raises:
        ValueError: positions to share, and an encoder has none.
    """

    def __init__(self, *, item_encoder: SequenceEncoder, intent_encoder: SequenceEncoder, share_position: bool,
                 item2intent: Tensor, n_intents: int, hidden_size: int, initializer_range: float,
                 **common: object) -> None:  # fmt: skip
        super().__init__(
            hidden_size=hidden_size, initializer_range=initializer_range, loss_type="CE", item_bias=True, **common
        )
        self.intents = MaskedIntents(
            item2intent=item2intent, n_intents=n_intents, hidden_size=hidden_size, initializer_range=initializer_range
        )
        self.item_encoder, self.intent_encoder = item_encoder, intent_encoder
        if share_position:
            if item_encoder.position is None or intent_encoder.position is None:
                raise ValueError("share_position=True needs encoders with positions at the input; set it to False")
            intent_encoder.position = item_encoder.position
        self.fusion = nn.Linear(2 * hidden_size, hidden_size)
        self.fusion_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        init_transformer(self, initializer_range)

    def states(self, item_seq: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(item_seq > 0)
        items = packing.pack(item_seq)  # [N]
        fine = self.item_encoder(self.item_embedding(items), packing)  # [N, D]
        coarse = self.intent_encoder(self.intents(items), packing)  # [N, D]
        return self.fusion_norm(self.fusion(torch.cat((fine, coarse), dim=1))), packing


class BERTFNet(FusedClozeNet):
    """Two of BERT4Rec's encoders. Arguments: see props/model/BERTF.yaml."""

    def __init__(
        self,
        *,
        n_items: int,
        item2intent: Tensor,
        n_intents: int,
        max_seq_length: int,
        hidden_size: int,
        inner_size: int,
        n_layers: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        share_position: bool,
        mask_ratio: float,
        initializer_range: float,
    ) -> None:
        encoder = partial(
            bert_encoder,
            hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers, n_heads=n_heads,
            max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob,
            attn_dropout_prob=attn_dropout_prob, hidden_act=hidden_act,
        )  # fmt: skip
        super().__init__(
            n_items=n_items, item2intent=item2intent, n_intents=n_intents, hidden_size=hidden_size,
            initializer_range=initializer_range, mask_ratio=mask_ratio, max_seq_length=max_seq_length,
            item_encoder=encoder(), intent_encoder=encoder(), share_position=share_position,
        )  # fmt: skip


class BERTF(NetRecommender):
    """BERT-F as RecBole sees it."""

    net = BERTFNet
