"""LOCKER-F: LOCKER that reads the intents as FDSA does.

Named in one sentence of CaFe (Li et al., SIGIR 2022, Section 4.1), as BERT-F is; what is our reading there
(recbole_cafe.model.peers.bert_f) is so here, with LOCKER's blocks in place of BERT4Rec's.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.peers.bert_f import FusedClozeNet
from recbole_cafe.model.peers.locker import locker_encoder

INTENT_ENCODERS = ("same", "plain")


class LOCKERFNet(FusedClozeNet):
    """LOCKER's encoder for the items and one for the intents, ``same`` or ``plain``, without local heads.

    Arguments: see props/model/LOCKERF.yaml.

    Raises:
        ValueError: an unknown intent_encoder or local_type.
    """

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
        n_local_heads: int,
        local_type: str,
        local_window: int,
        initial_form: str,
        initial_center: int,
        intent_encoder: str,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        share_position: bool,
        mask_ratio: float,
        initializer_range: float,
    ) -> None:
        if intent_encoder not in INTENT_ENCODERS:
            raise ValueError(f"intent_encoder={intent_encoder!r} is not one of {', '.join(INTENT_ENCODERS)}")

        encoder = partial(
            locker_encoder, n_local_heads=n_local_heads, local_window=local_window, initial_form=initial_form,
            initial_center=initial_center, cloze=True, hidden_size=hidden_size, inner_size=inner_size,
            n_layers=n_layers, n_heads=n_heads, max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob,
            attn_dropout_prob=attn_dropout_prob, hidden_act=hidden_act,
        )  # fmt: skip
        super().__init__(
            n_items=n_items, item2intent=item2intent, n_intents=n_intents, hidden_size=hidden_size,
            initializer_range=initializer_range, mask_ratio=mask_ratio, max_seq_length=max_seq_length,
            item_encoder=encoder(local_type=local_type), share_position=share_position,
            intent_encoder=encoder(local_type=local_type if intent_encoder == "same" else "plain"),
        )  # fmt: skip


class LOCKERF(NetRecommender):
    """LOCKER-F as RecBole sees it."""

    net = LOCKERFNet
