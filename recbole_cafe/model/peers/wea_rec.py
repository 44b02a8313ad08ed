"""WEARec: a frequency filter that the history sets, and wavelets beside it; no attention.

"WEARec", AAAI 2026. Authors' code: github.com/xhy963319431/WEARec, a fork of BSARec's (read for comparison; nothing is
taken from it). Its text was not available to us; the equations are those of the code.

    S = rfft(X) over positions,   a, e = MLP(mean of X over positions),   for each head and frequency
    F = irfft(S w (1 + a) + b + e)
    W : pairs of neighbours to mean and half difference, the difference times v, and back (Haar, one level)
    X <- LN(X + alpha F + (1 - alpha) W),   X <- LN(X + FFN(X))

B rows, L positions, D hidden size, H heads of d = D / H channels, K = L/2 + 1 frequencies. Histories are moved to the
right end of the L positions; padding is read like any item, and is most of the mean of a short history.

**Not causal**, as :mod:`recbole_cafe.model.peers.bsa_rec`, whose frame it shares: the filter scales waves without
moving them, so that it looks as far ahead as back and wraps round; it is trained on prefix rows alone.

Differences from the authors' code: those of BSARec; an odd L is refused, where theirs leaves the newest position out of
the wavelets; weights that it never uses are left out. The last block's feed-forward layer is computed at the last
position alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.fourier import fourier_basis
from recbole_cafe.model.peers.bsa_rec import EPS, FeedForward, WholeRowNet, check_share
from recbole_cafe.model.settings import LossSettings


class AdaptiveFilter(nn.Module):
    """Scales each frequency of each head by a weight that the row's mean moves, and adds a constant to it.

    All numbers are real: a wave is never moved. What is added to all frequencies alike is an impulse at position 0.

    Args:
        hidden_size: D. n_heads: H. max_seq_length: L.
    """

    waves: Tensor
    bins: Tensor
    impulse: Tensor

    def __init__(self, *, hidden_size: int, n_heads: int, max_seq_length: int) -> None:
        super().__init__()
        waves, bins = fourier_basis(max_seq_length)
        waves = waves.to(torch.get_default_dtype())
        n_bins = max_seq_length // 2 + 1
        self.n_heads, self.n_bins = n_heads, n_bins
        self.register_buffer("waves", waves, persistent=False)  # [L, L]
        self.register_buffer("bins", bins, persistent=False)  # [L]
        # 1 in the real part of all frequencies of rfft(..., norm="ortho"), as coefficients of the waves
        self.register_buffer("impulse", math.sqrt(max_seq_length) * waves[:, 0], persistent=False)  # [L]
        self.scale = nn.Parameter(torch.ones(n_heads, n_bins))  # w
        self.shift = nn.Parameter(torch.full((n_heads, n_bins), -0.1))  # b
        self.context = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 2 * n_heads * n_bins)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        adaptive = self.context(x.mean(1)).view(-1, self.n_heads, self.n_bins, 2)
        with torch.autocast(device_type=x.device.type, enabled=False):  # small differences of large sums
            a, e = adaptive.to(x.dtype).unbind(3)  # [B, H, K]
            scale = (self.scale * (1.0 + a))[:, :, self.bins].transpose(1, 2)  # [B, L, H], a wave each
            shift = (self.shift + e)[:, :, self.bins].transpose(1, 2) * self.impulse[:, None]
            coefficient = (self.waves @ x).unflatten(2, (self.n_heads, -1)) * scale[..., None] + shift[..., None]
            filtered: Tensor = self.waves.T @ coefficient.flatten(2)
        return filtered


class HaarFilter(nn.Module):
    """Pairs of neighbours (0, 1), (2, 3), ...: their mean stays, their half difference is multiplied by v.

    At the start v is near 0, so that both become about their mean.

    Args:
        hidden_size: D. max_seq_length: L, even.
    """

    def __init__(self, *, hidden_size: int, max_seq_length: int) -> None:
        super().__init__()
        self.detail = nn.Parameter(0.02 * torch.randn(max_seq_length // 2, hidden_size))  # v

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        first, second = x.unflatten(1, (-1, 2)).unbind(2)  # [B, L/2, D]
        mean, half = (first + second) / 2, (first - second) / 2 * self.detail
        return torch.stack((mean + half, mean - half), dim=2).flatten(1, 2)


@dataclass(frozen=True, kw_only=True)
class WaveletSettings:
    """The blocks.

    Attributes:
        hidden_size: D.
        inner_size: width of the feed-forward layer.
        n_layers: number of blocks.
        n_heads: H, heads of the frequency filter.
        fourier_share: alpha, share of the frequency filter beside the wavelets.
        hidden_dropout_prob: dropout of embeddings and layers.
        hidden_act: activation of the feed-forward layer.
        initializer_range: standard deviation of the weights at the start.

    Raises:
        ConfigError: a share that is none, or a hidden_size that is no multiple of n_heads.
    """

    hidden_size: int
    inner_size: int
    n_layers: int
    n_heads: int
    fourier_share: float
    hidden_dropout_prob: float
    hidden_act: str
    initializer_range: float

    def __post_init__(self) -> None:
        check_share("fourier_share", self.fourier_share)
        if self.n_heads < 1 or self.hidden_size % self.n_heads:
            raise ConfigError(f"hidden_size={self.hidden_size} is not a multiple of n_heads={self.n_heads}")


class WEABlock(nn.Module):
    """Both filters, then the feed-forward layer.

    Args:
        blocks: sizes and shares.
        max_seq_length: L.

    Raises:
        ConfigError: an odd L.
    """

    def __init__(self, *, blocks: WaveletSettings, max_seq_length: int) -> None:
        super().__init__()
        if max_seq_length % 2:
            raise ConfigError(
                f"MAX_ITEM_LIST_LENGTH={max_seq_length} should be even: WEARec's wavelets take positions in pairs"
            )
        size = blocks.hidden_size
        self.share = blocks.fourier_share
        self.fourier = AdaptiveFilter(hidden_size=size, n_heads=blocks.n_heads, max_seq_length=max_seq_length)
        self.wavelet = HaarFilter(hidden_size=size, max_seq_length=max_seq_length)
        self.dropout = Dropout(blocks.hidden_dropout_prob)
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.feed_forward = FeedForward(
            hidden_size=size, inner_size=blocks.inner_size, dropout=blocks.hidden_dropout_prob,
            hidden_act=blocks.hidden_act,
        )  # fmt: skip

    def filtered(self, x: Tensor) -> Tensor:
        """alpha F + (1 - alpha) W. [B, L, D] to [B, L, D]."""
        mixed: Tensor = self.share * self.fourier(x) + (1.0 - self.share) * self.wavelet(x)
        return mixed

    def forward(self, x: Tensor, real: Tensor, *, newest: bool) -> Tensor:  # noqa: ARG002
        """See :class:`recbole_cafe.model.peers.bsa_rec.BSABlock`; padding is not told from items."""
        filtered = self.filtered(x)
        if newest:
            x, filtered = x[:, -1:], filtered[:, -1:]
        mixed: Tensor = self.feed_forward(self.norm(self.dropout(filtered) + x))
        return mixed


class WEARecNet(WholeRowNet):
    """Items and positions through blocks of filters; one inner product.

    Args:
        data: what the data know.
        blocks: the blocks.
        loss: how the next item is learned.
    """

    layouts = ("last",)

    def __init__(self, *, data: DataFacts, blocks: WaveletSettings, loss: LossSettings) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=blocks.hidden_size, initializer_range=blocks.initializer_range,
            dropout=blocks.hidden_dropout_prob, n_layers=blocks.n_layers,
            block=WEABlock(blocks=blocks, max_seq_length=data.max_seq_length),
        )  # fmt: skip
