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

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ClozeNet
from recbole_cafe.model.settings import EncoderSettings, LossSettings

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


@dataclass(frozen=True, kw_only=True)
class LocalityForms:
    """LOCKER's local heads (recbole_cafe.layers.local).

    Attributes:
        local_type: the form of locality, one of LOCAL_TYPES.
        n_local_heads: how many heads have it.
        local_window: width of ``win``, ``conv`` and ``rnn``.
        initial_form: of ``initial``.
        initial_center: of ``initial``.

    Raises:
        ConfigError: an unknown local_type.
    """

    local_type: str
    n_local_heads: int
    local_window: int
    initial_form: str
    initial_center: int

    def __post_init__(self) -> None:
        if self.local_type not in LOCAL_TYPES:
            raise ConfigError(f"local_type={self.local_type!r} is not one of {', '.join(LOCAL_TYPES)}")

    def make(self, encoder: EncoderSettings, max_seq_length: int, *, cloze: bool) -> SequenceEncoder:
        """Blocks with these heads: BERT's for a cloze, else SASRec's."""
        heads: dict[str, Any] = {"causal": not cloze}
        if self.local_type != "plain":
            options = {key: vars(self)[key] for key in LOCAL_TYPES[self.local_type]}
            heads |= {"n_local_heads": self.n_local_heads, "local_options": {"form": self.local_type, **options}}
        at_end = None if self.local_type in OWN_POSITIONS else "end"
        return encoder.make(
            max_seq_length, attention=heads, arrangement="post" if cloze else "pre",
            positions=at_end if cloze else "start",
        )  # fmt: skip


class LOCKERNet(ClozeNet):
    """Items to states through blocks with global and local heads.

    Args:
        data: what the data know.
        encoder: the blocks.
        locality: the local heads.
        loss: how the next item is learned with ``objective="causal"``.
        objective: ``cloze`` or ``causal``.
        mask_ratio: share of a row's items that is hidden in training of a cloze.

    Raises:
        ConfigError: an unknown objective, or a cloze with another loss than CE.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        locality: LocalityForms,
        loss: LossSettings,
        objective: str,
        mask_ratio: float,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
        cloze = objective == "cloze"
        if cloze and loss.loss_type != "CE":
            raise ConfigError(f"loss_type={loss.loss_type!r}: objective='cloze' is learned with loss_type='CE'")
        super().__init__(
            data=data, loss=loss, hidden_size=encoder.hidden_size, initializer_range=encoder.initializer_range,
            item_bias=cloze, mask_ratio=mask_ratio if cloze else None,
        )  # fmt: skip
        self.encoder = locality.make(encoder, data.max_seq_length, cloze=cloze)
        init_transformer(self, encoder.initializer_range)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        return self.encoder(self.item_embedding(packing.pack(history)), packing), packing
