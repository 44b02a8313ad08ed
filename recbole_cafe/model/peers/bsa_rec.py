"""BSARec: self-attention beside a filter that keeps low frequencies and re-weighs high ones.

Shin, Choi, Wi, Park: "An Attentive Inductive Bias for Sequential Recommendation beyond the Self-Attention", AAAI 2024.
Authors' code: github.com/yehjin-shin/BSARec (read for comparison; nothing is taken from it). Its text was not available
to us; the equations are those of the code.

    low  = the lowest c of the L frequencies of X over positions,   high = X - low
    F    = LN(X + low + s^2 high),   A = LN(X + Attention(X)),   s of each channel
    X   <- LN(M + FFN(M)),   M = alpha F + (1 - alpha) A

B rows, L positions, D hidden size, V items. Histories are moved to the right end of the L positions; what is left of
them is padding, and is read as in the code: it takes part in the filter, queries of padding attend to everything.

**Not causal.** The filter mixes all positions and wraps round, so that every state knows every item of the row. Trained
at every position it would see what it is to predict; it is trained on prefix rows, at their last position
(``train_layout: last``), which nothing follows. And the padding enters: the same history scores otherwise with another
MAX_ITEM_LIST_LENGTH.

Differences from the authors' code: padding is a zero vector (and its position) and no class of the softmax, where
theirs is a random vector that the softmax pushes away; no row with an empty history. The last block is computed at the
last position alone, which is all that is read.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import masked_softmax
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.encoder import ACTIVATIONS
from recbole_cafe.layers.fourier import fourier_basis
from recbole_cafe.layers.packing import left_padded
from recbole_cafe.model.item_net import HistoryNet
from recbole_cafe.model.settings import EncoderSettings, LossSettings

EPS = 1e-12  # of every LayerNorm


def check_share(key: str, share: float) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: naming the key.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"{key}={share} is not between 0 and 1")


class FeedForward(nn.Module):
    """LN(x + FFN(x)) of any positions.

    Args:
        hidden_size: D. inner_size: width inside. dropout: of what comes out. hidden_act: key of ACTIVATIONS.

    Raises:
        ConfigError: an unknown hidden_act.
    """

    def __init__(self, *, hidden_size: int, inner_size: int, dropout: float, hidden_act: str) -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act={hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, inner_size), ACTIVATIONS[hidden_act](), nn.Linear(inner_size, hidden_size),
            Dropout(dropout),
        )  # fmt: skip
        self.norm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        normed: Tensor = self.norm(self.layers(x) + x)
        return normed


class WholeRowNet(HistoryNet):
    """Blocks that mix all L positions of a row, padding on the left among them; the newest position is the query.

    Args:
        data: what the data know.
        loss: how the next item is learned.
        hidden_size: D.
        initializer_range: standard deviation of the weights at the start.
        dropout: of the embeddings.
        block: the first block; the others start as copies of it, all but their matrices, which are drawn anew.
        n_layers: how many blocks, at least 1.

    Raises:
        ConfigError: no block.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: LossSettings,
        hidden_size: int,
        initializer_range: float,
        dropout: float,
        block: nn.Module,
        n_layers: int,
    ) -> None:
        super().__init__(data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range)
        if n_layers < 1:
            raise ConfigError(f"n_layers={n_layers} should be at least 1")
        self.max_seq_length = data.max_seq_length
        self.position = nn.Embedding(data.max_seq_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=EPS)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList([block, *(copy.deepcopy(block) for _ in range(n_layers - 1))])
        init_transformer(self, initializer_range)

    def vector(self, history: Tensor, user: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state of the newest position. history: [B, L]. Returns [B, D]."""
        items = left_padded(history, self.max_seq_length)
        x = self.enter(items)
        for block in self.blocks:
            x = block(x, items > 0, newest=block is self.blocks[-1])
        return x[:, -1]

    def enter(self, items: Tensor) -> Tensor:
        """What the first block gets. [B, L] to [B, L, D]."""
        entered: Tensor = self.dropout(self.norm(self.item_embedding(items) + self.position.weight))
        return entered


class FrequencyFilter(nn.Module):
    """low + s^2 (x - low): what is slow over the positions is kept, what is fast re-weighed in each channel.

    Low is the projection of each channel on the waves of the lowest c // 2 + 1 frequencies, the same as setting the
    others of its Fourier transform to zero. It is circular: the last position is the first one's neighbour.

    Args:
        hidden_size: D. max_seq_length: L.
        kept_frequencies: c, of the L two-sided ones; an even one counts as the next odd one.

    Raises:
        ConfigError: c is not in 1..L+1.
    """

    waves: Tensor

    def __init__(self, *, hidden_size: int, max_seq_length: int, kept_frequencies: int) -> None:
        super().__init__()
        if not 1 <= kept_frequencies <= max_seq_length + 1:
            raise ConfigError(
                f"kept_frequencies={kept_frequencies} is not in 1..{max_seq_length + 1}, "
                f"which MAX_ITEM_LIST_LENGTH={max_seq_length} positions have"
            )
        waves, _ = fourier_basis(max_seq_length, kept_frequencies // 2 + 1)
        self.register_buffer("waves", waves.to(torch.get_default_dtype()), persistent=False)
        self.high_scale = nn.Parameter(torch.randn(hidden_size))  # s

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        with torch.autocast(device_type=x.device.type, enabled=False):  # small differences of large sums
            low = self.waves.T @ (self.waves @ x)
        return low + self.high_scale.square() * (x - low)


class LeftPaddedAttention(nn.Module):
    """Multi-head attention of positions to those they are allowed to see.

    Args:
        hidden_size: D. n_heads: of equal size. dropout: of the attention weights.

    Raises:
        ConfigError: D is not a multiple of the heads.
    """

    def __init__(self, *, hidden_size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if n_heads < 1 or hidden_size % n_heads:
            raise ConfigError(f"hidden_size={hidden_size} is not a multiple of n_heads={n_heads}")
        self.n_heads, self.head_size = n_heads, hidden_size // n_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, allowed: Tensor) -> Tensor:
        """Attend.

        Args:
            x: [B, q, D] what queries are made of.
            source: [B, L, D] what keys and values are made of.
            allowed: [B, q, L] bool, at least one of each query.

        Returns:
            [B, q, D].
        """
        q, k, v = (
            t.unflatten(2, (self.n_heads, self.head_size)).transpose(1, 2)
            for t in (self.query(x), self.key(source), self.value(source))
        )
        weight = masked_softmax(q @ k.transpose(2, 3) / math.sqrt(self.head_size), allowed[:, None])
        mixed: Tensor = self.output((self.dropout(weight) @ v).transpose(1, 2).flatten(2))
        return mixed


def may_see(real: Tensor) -> Tensor:
    """What the queries of left-padded rows attend to: real positions up to their own; those of padding, everything.

    Args:
        real: [B, L] bool.

    Returns:
        [B, L, L] bool, queries first.
    """
    past = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
    return (real[:, None] & past) | ~real[:, :, None]


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """The filter of every block.

    Attributes:
        frequency_share: alpha, share of the filter beside the attention.
        kept_frequencies: c, see :class:`FrequencyFilter`.

    Raises:
        ConfigError: a share that is none.
    """

    frequency_share: float
    kept_frequencies: int

    def __post_init__(self) -> None:
        check_share("frequency_share", self.frequency_share)


class BSABlock(nn.Module):
    """Filter and attention side by side, then the feed-forward layer.

    Args:
        encoder: sizes.
        filters: the filter.
        max_seq_length: L.
    """

    def __init__(self, *, encoder: EncoderSettings, filters: FilterSettings, max_seq_length: int) -> None:
        super().__init__()
        size = encoder.hidden_size
        self.share = filters.frequency_share
        self.filter = FrequencyFilter(
            hidden_size=size, max_seq_length=max_seq_length, kept_frequencies=filters.kept_frequencies
        )
        self.filter_norm = nn.LayerNorm(size, eps=EPS)
        self.attention = LeftPaddedAttention(
            hidden_size=size, n_heads=encoder.n_heads, dropout=encoder.attn_dropout_prob
        )
        self.attention_norm = nn.LayerNorm(size, eps=EPS)
        self.dropout = Dropout(encoder.hidden_dropout_prob)
        self.feed_forward = FeedForward(
            hidden_size=size, inner_size=encoder.inner_size, dropout=encoder.hidden_dropout_prob,
            hidden_act=encoder.hidden_act,
        )  # fmt: skip

    def forward(self, x: Tensor, real: Tensor, *, newest: bool) -> Tensor:
        """The next states.

        Args:
            x: [B, L, D].
            real: [B, L] bool, False for padding.
            newest: of the last position alone.

        Returns:
            [B, L, D], or [B, 1, D].
        """
        source, filtered, allowed = x, self.filter(x), may_see(real)
        if newest:
            x, filtered, allowed = x[:, -1:], filtered[:, -1:], allowed[:, -1:]
        slow = self.filter_norm(self.dropout(filtered) + x)
        attended = self.attention_norm(self.dropout(self.attention(x, source, allowed)) + x)
        mixed: Tensor = self.feed_forward(self.share * slow + (1.0 - self.share) * attended)
        return mixed


class BSARecNet(WholeRowNet):
    """Items and positions through blocks of filter and attention; one inner product.

    Args:
        data: what the data know.
        encoder: the blocks.
        loss: how the next item is learned.
        filters: the filter of the blocks.
    """

    layouts = ("last",)

    def __init__(
        self, *, data: DataFacts, encoder: EncoderSettings, loss: LossSettings, filters: FilterSettings
    ) -> None:
        block = BSABlock(encoder=encoder, filters=filters, max_seq_length=data.max_seq_length)
        super().__init__(
            data=data, loss=loss, hidden_size=encoder.hidden_size, initializer_range=encoder.initializer_range,
            dropout=encoder.hidden_dropout_prob, block=block, n_layers=encoder.n_layers,
        )  # fmt: skip
