"""LOCKER-F: LOCKER that reads the intents as FDSA does.

Named in one sentence of CaFe (Li et al., SIGIR 2022, Section 4.1), as BERT-F is; what is our reading there
(recbole_cafe.model.peers.bert_f) is so here, with LOCKER's blocks in place of BERT4Rec's.
"""

from __future__ import annotations

from dataclasses import replace

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.model.peers.bert_f import FusedClozeNet
from recbole_cafe.model.peers.locker import LocalityForms
from recbole_cafe.model.settings import EncoderSettings

INTENT_ENCODERS = ("same", "plain")


class LOCKERFNet(FusedClozeNet):
    """LOCKER's encoder for the items and one for the intents, ``same`` or ``plain``, without local heads.

    Args:
        data: what the data know.
        encoder: blocks of both.
        locality: the local heads.
        intent_encoder: ``same`` or ``plain``.
        share_position: one position table for both.
        mask_ratio: share of a row's items that is hidden in training.

    Raises:
        ConfigError: an unknown intent_encoder.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        locality: LocalityForms,
        intent_encoder: str,
        share_position: bool,
        mask_ratio: float,
    ) -> None:
        if intent_encoder not in INTENT_ENCODERS:
            raise ConfigError(f"intent_encoder={intent_encoder!r} is not one of {', '.join(INTENT_ENCODERS)}")
        of_intents = locality if intent_encoder == "same" else replace(locality, local_type="plain")
        super().__init__(
            data=data, hidden_size=encoder.hidden_size, initializer_range=encoder.initializer_range,
            mask_ratio=mask_ratio, share_position=share_position,
            item_encoder=locality.make(encoder, data.max_seq_length, cloze=True),
            intent_encoder=of_intents.make(encoder, data.max_seq_length, cloze=True),
        )  # fmt: skip
