"""Settings that several nets share: the keys of a model's YAML as frozen dataclasses, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import SelfAttention
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.local import THETA_SOURCES
from recbole_cafe.layers.losses import LOSSES, check_loss


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Blocks of self-attention, and the size of the vectors that enter them.

    Attributes:
        hidden_size: D.
        inner_size: width of the feed-forward layer.
        n_layers: number of blocks.
        n_heads: heads of each attention.
        hidden_dropout_prob: dropout of embeddings and layers.
        attn_dropout_prob: dropout of attention weights.
        hidden_act: activation of the feed-forward layer.
        initializer_range: standard deviation of the weights at the start.
    """

    hidden_size: int
    inner_size: int
    n_layers: int
    n_heads: int
    hidden_dropout_prob: float
    attn_dropout_prob: float
    hidden_act: str
    initializer_range: float

    def make(self, max_seq_length: int, *, attention: Mapping[str, Any] | None = None, width: int | None = None,
             **options: Any) -> SequenceEncoder:  # fmt: skip
        """An encoder of these blocks.

        Args:
            max_seq_length: L.
            attention: further arguments of :class:`recbole_cafe.layers.attention.SelfAttention`.
            width: size of the vectors, if it is not D.
            options: further arguments of :class:`recbole_cafe.layers.encoder.SequenceEncoder`.
        """
        size = self.hidden_size if width is None else width
        heads = partial(
            SelfAttention, hidden_size=size, n_heads=self.n_heads, max_seq_length=max_seq_length,
            dropout=self.attn_dropout_prob, **(attention or {}),
        )  # fmt: skip
        return SequenceEncoder(
            attention=heads, hidden_size=size, inner_size=self.inner_size, n_layers=self.n_layers,
            max_seq_length=max_seq_length, hidden_dropout_prob=self.hidden_dropout_prob, hidden_act=self.hidden_act,
            **options,
        )  # fmt: skip

    def make_bert(self, max_seq_length: int, *, positions: str | None = "end") -> SequenceEncoder:
        """BERT4Rec's blocks: attention to both sides, LayerNorm after each part, positions counted from the end."""
        return self.make(max_seq_length, attention={"causal": False}, arrangement="post", positions=positions)


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """CaFe's re-weighted attention (Eq. 5 and 6), and where its paper and its code differ.

    Attributes:
        n_local_heads: heads whose weights are multiplied by theta.
        theta_source: what theta is made from, see :mod:`recbole_cafe.layers.local`.
        attn_scale: ``hidden`` or ``head``, see :class:`recbole_cafe.layers.attention.SelfAttention`.
        residual: see :class:`recbole_cafe.layers.encoder.EncoderBlock`.

    Raises:
        ConfigError: an unknown theta_source.
    """

    n_local_heads: int
    theta_source: str
    attn_scale: str
    residual: str

    def __post_init__(self) -> None:
        if self.theta_source not in THETA_SOURCES:
            raise ConfigError(f"theta_source={self.theta_source!r} is not one of {', '.join(THETA_SOURCES)}")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the next id is learned, see :mod:`recbole_cafe.layers.losses`.

    Attributes:
        loss_type: one of `accepted`.
        n_negatives: negatives of a target, or of a batch for ``SSM``.
        gbce_t: calibration of ``gBCE``.

    Raises:
        ConfigError: see :func:`recbole_cafe.layers.losses.check_loss`.
    """

    accepted: ClassVar[tuple[str, ...]] = LOSSES

    loss_type: str
    n_negatives: int
    gbce_t: float

    def __post_init__(self) -> None:
        check_loss(self.loss_type, self.n_negatives, self.gbce_t, self.accepted)


SOFTMAX = LossSettings(loss_type="CE", n_negatives=1, gbce_t=0.0)  # of a cloze, which has no other loss
