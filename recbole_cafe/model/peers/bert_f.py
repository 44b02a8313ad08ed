"""BERT-F: BERT4Rec that reads the intents as FDSA does.

Named in one sentence of CaFe (Li et al., SIGIR 2022, Section 4.1): an extension of BERT4Rec that takes intents in as
FDSA does. No formula and no code are published, so everything beyond that sentence is our reading: one encoder for the
sequence of items, one for the sequence of intents, both outputs side by side through one linear layer (FDSA; its
attention over feature fields is the identity for one field), and the cloze loss of items alone. No loss on intents and
no intent in the score: that is what separates it from CaFe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ClozeNet, MaskedIntents
from recbole_cafe.model.settings import EncoderSettings


class FusedClozeNet(ClozeNet):
    """Two encoders side by side, fused by one linear layer: H = LN([H^v; H^c] W + b).

    Args:
        data: what the data know.
        item_encoder: the encoder of the items, [N, D] to [N, D].
        intent_encoder: that of the intents.
        hidden_size: D.
        initializer_range: standard deviation of the weights at the start.
        share_position: one position table for both (RecBole's FDSA).
        mask_ratio: share of a row's items that is hidden in training.

    Raises:
        ConfigError: positions to share, and an encoder has none.
    """

    needs_intents = True

    def __init__(
        self,
        *,
        data: DataFacts,
        item_encoder: SequenceEncoder,
        intent_encoder: SequenceEncoder,
        hidden_size: int,
        initializer_range: float,
        share_position: bool,
        mask_ratio: float,
    ) -> None:
        super().__init__(data=data, mask_ratio=mask_ratio, hidden_size=hidden_size, initializer_range=initializer_range)
        self.intents = MaskedIntents(data=data, hidden_size=hidden_size, initializer_range=initializer_range)
        self.item_encoder, self.intent_encoder = item_encoder, intent_encoder
        if share_position:
            if item_encoder.position is None or intent_encoder.position is None:
                raise ConfigError("share_position=True needs encoders with positions at the input; set it to False")
            intent_encoder.position = item_encoder.position
        self.fusion = nn.Linear(2 * hidden_size, hidden_size)
        self.fusion_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        init_transformer(self, initializer_range)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        items = packing.pack(history)  # [N]
        fine = self.item_encoder(self.item_embedding(items), packing)  # [N, D]
        coarse = self.intent_encoder(self.intents(items), packing)  # [N, D]
        return self.fusion_norm(self.fusion(torch.cat((fine, coarse), dim=1))), packing


class BERTFNet(FusedClozeNet):
    """Two of BERT4Rec's encoders.

    Args:
        data: what the data know.
        encoder: blocks of both.
        share_position: one position table for both.
        mask_ratio: share of a row's items that is hidden in training.
    """

    def __init__(self, *, data: DataFacts, encoder: EncoderSettings, share_position: bool, mask_ratio: float) -> None:
        super().__init__(
            data=data, hidden_size=encoder.hidden_size, initializer_range=encoder.initializer_range,
            mask_ratio=mask_ratio, share_position=share_position,
            item_encoder=encoder.make_bert(data.max_seq_length), intent_encoder=encoder.make_bert(data.max_seq_length),
        )  # fmt: skip
