"""LOCKER: self-attention with local heads.

He, Zhao, Liu, McAuley: "Locker: Locally Constrained Self-Attentive Sequential Recommendation", CIKM 2021.
Authors' code: github.com/AaronHeee/LOCKER (read for comparison; nothing is taken from it). The paper's formulas were
not available to us; the forms of locality and the values are those of the code (recbole_cafe.layers.local).

Two backbones. ``objective: cloze``, as published: BERT's blocks, hidden items, one softmax over the catalogue;
positions enter at the input only for the forms that have none of their own. ``objective: causal``: SASRec's blocks and
the next item, which is what CaFe builds on.

Differences from the authors' code: mask and padding are no classes of the softmax; `initial` is centred on the item
itself (`initial_center: 1` gives the code's shift by one); `conv` and `rnn` work with any number of local heads and do
not see the future if causal; terms of `adapt` that cancel in the softmax (user, query, bias) are left out; dropout
comes after the feed-forward layer's activation, not before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import ClozeNet, Negatives

OBJECTIVES = ("cloze", "causal")
# local_type of the config -> which keys its form takes
LOCAL_TYPES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "win": ("local_window",),
    "initial": ("initial_form", "initial_center"),
    "adapt": (),
    "conv": ("local_window",),
    "rnn": ("local_window",),
}
OWN_POSITIONS = ("initial", "adapt")  # forms whose heads have position vectors of their own


def locker_encoder(*, local_type: str, n_local_heads: int, local_window: int, initial_form: str, initial_center: int,
                   cloze: bool, hidden_size: int, inner_size: int, n_layers: int, n_heads: int, max_seq_length: int,
                   hidden_dropout_prob: float, attn_dropout_prob: float,
                   hidden_act: str) -> SequenceEncoder:  # fmt: skip
    """Blocks with LOCKER's heads: BERT's for a cloze, else SASRec's.

    Raises:
        ValueError: an unknown local_type.
    """
    if local_type not in LOCAL_TYPES:
        raise ValueError(f"local_type={local_type!r} is not one of {', '.join(LOCAL_TYPES)}")
    heads: dict[str, Any] = {}
    if local_type != "plain":
        values = {"local_window": local_window, "initial_form": initial_form, "initial_center": initial_center}
        options = {key: values[key] for key in LOCAL_TYPES[local_type]}
        heads = {"n_local_heads": n_local_heads, "local_type": local_type, "local_options": options}
    attention = partial(
        SelfAttention, hidden_size=hidden_size, n_heads=n_heads, max_seq_length=max_seq_length,
        dropout=attn_dropout_prob, causal=not cloze, **heads,
    )  # fmt: skip
    return SequenceEncoder(
        attention=attention, hidden_size=hidden_size, inner_size=inner_size, n_layers=n_layers,
        max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob, hidden_act=hidden_act,
        arrangement="post" if cloze else "pre",
        positions="start" if not cloze else None if local_type in OWN_POSITIONS else "end",
    )  # fmt: skip


class LOCKERNet(ClozeNet):
    """Items to states through blocks with global and local heads.

    Args:
        n_items: V. item_negatives: for ``objective="causal"`` with any `loss_type` but ``CE``.
        The rest: see props/model/LOCKER.yaml.

    Raises:
        ValueError: an unknown objective, or a cloze with another loss than CE.
    """

    def __init__(
        self,
        *,
        n_items: int,
        item_negatives: Negatives | None,
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
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        initializer_range: float,
        objective: str,
        mask_ratio: float,
        loss_type: str,
        n_negatives: int,
        gbce_t: float,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
        cloze = objective == "cloze"
        if cloze and loss_type != "CE":
            raise ValueError(f"loss_type={loss_type!r}: objective='cloze' is learned with loss_type='CE'")
        super().__init__(
            n_items=n_items, hidden_size=hidden_size, initializer_range=initializer_range, loss_type=loss_type,
            n_negatives=n_negatives, gbce_t=gbce_t, item_negatives=item_negatives, item_bias=cloze,
            mask_ratio=mask_ratio if cloze else None, max_seq_length=max_seq_length,
        )  # fmt: skip
        self.encoder = locker_encoder(
            local_type=local_type, n_local_heads=n_local_heads, local_window=local_window, initial_form=initial_form,
            initial_center=initial_center, cloze=cloze, hidden_size=hidden_size, inner_size=inner_size,
            n_layers=n_layers, n_heads=n_heads, max_seq_length=max_seq_length, hidden_dropout_prob=hidden_dropout_prob,
            attn_dropout_prob=attn_dropout_prob, hidden_act=hidden_act,
        )  # fmt: skip
        init_transformer(self, initializer_range)

    def states(self, item_seq: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(item_seq > 0)
        return self.encoder(self.item_embedding(packing.pack(item_seq)), packing), packing


class LOCKER(NetRecommender):
    """LOCKER as RecBole sees it."""

    net = LOCKERNet
