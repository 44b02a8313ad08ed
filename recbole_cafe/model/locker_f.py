"""LOCKER-F: LOCKER that reads the intents as FDSA does.

Named in one sentence of CaFe (Li et al., SIGIR 2022, Section 4.1), as BERT-F is; what is our reading there
(recbole_cafe.model.bert_f) is so here, with LOCKER's blocks in place of BERT4Rec's.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.bert_f import FusedClozeNet
from recbole_cafe.model.locker import OWN_POSITIONS, local_attention

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

        def encoder(form: str) -> SequenceEncoder:
            attention = local_attention(
                local_type=form, n_local_heads=n_local_heads, local_window=local_window, initial_form=initial_form,
                initial_center=initial_center, hidden_size=hidden_size, n_heads=n_heads,
                max_seq_length=max_seq_length, dropout=attn_dropout_prob, causal=False,
            )  # fmt: skip
            return blocks(attention=attention, positions=None if form in OWN_POSITIONS else "end")

        blocks = partial(
            SequenceEncoder, hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers,
            max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, hidden_act=hidden_act,
            arrangement="post",
        )  # fmt: skip
        super().__init__(
            n_items=n_items, item2intent=item2intent, n_intents=n_intents, hidden_size=hidden_size,
            initializer_range=initializer_range, mask_ratio=mask_ratio, max_seq_length=max_seq_length,
            item_encoder=encoder(local_type), share_position=share_position,
            intent_encoder=encoder(local_type if intent_encoder == "same" else "plain"),
        )  # fmt: skip


class LOCKERF(NetRecommender):
    """LOCKER-F as RecBole sees it."""

    net = LOCKERFNet
