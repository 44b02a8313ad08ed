"""AttRec: metric learning with self-attention over a short window, and a long-term place of each user.

Zhang, Tay, Yao, Sun: "Next Item Recommendation with Self-Attention", arXiv:1808.06414 (2018).

    y(u, t, i) = w |U_u - V_i|^2 + (1 - w) |m_t - X_i|^2,        smaller is better
    m_t = mean over the window of s X,    s = softmax(Q' K'^T / sqrt(d)) without its diagonal
    Q' = ReLU((X + T) W_Q),    K' = ReLU((X + T) W_K),    T the sinusoidal time signal
    loss = [gamma + y(u, t, target) - y(u, t, negative)]_+

X and V are different tables of the items; the window is the last `att_window` items, and the values are not projected.

The score is -y. Of |a - b|^2 = |a|^2 - 2 a b + |b|^2 the first term does not depend on the item, so that -y, up to it,
is the inner product of [2 w U, 2 (1 - w) m, 1] and [V, X, -w |V|^2 - (1 - w) |X|^2].

Our reading, as no code of the authors and only notes on the paper were available to us: whether Q and K share their
projection is an option (the formulas have two matrices, a note says they are one); the time signal is added before the
projection and counts from the newest item of the window, so that this has the same one in short windows; in a window of
one item, whose diagonal is all there is, the item attends to itself; vectors are clipped to the ball where they are
read (recbole_cafe.layers.embedding.within_ball), since a net cannot act after a step; negatives are drawn from what is
not the user's, and `BCE` and `CE` with the inner product as the logit are our additions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import masked_softmax
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer, within_ball
from recbole_cafe.layers.losses import LOSSES, hinge_loss, next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.settings import LossSettings
from recbole_cafe.ranking.query import Query


def time_signal(steps: int, size: int) -> Tensor:
    """Sinusoids of geometrically growing wavelengths, [steps, size] float64.

    Sine and cosine of t / 10000^(2 i / size) stand in the columns 2 i and 2 i + 1.
    """
    rate = torch.exp(torch.arange(0, size, 2).double() * (-math.log(10000.0) / size))
    angle = torch.arange(steps)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :size]


class WindowAttention(nn.Module):
    """What the last items say: their mean, weighted by self-attention in the window.

    Args:
        hidden_size: D.
        att_window: W, the most items of a window.
        shared_projection: queries and keys are made by one matrix.
    """

    signal: Tensor

    def __init__(self, *, hidden_size: int, att_window: int, shared_projection: bool) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = self.query if shared_projection else nn.Linear(hidden_size, hidden_size, bias=False)
        signal = time_signal(att_window, hidden_size).to(torch.get_default_dtype())
        self.register_buffer("signal", signal, persistent=False)  # of the newest item first
        self.scale = hidden_size**-0.5

    def forward(self, x: Tensor, position: Tensor, at: Tensor) -> Tensor:
        """The windows that end at some positions.

        Args:
            x: [N, D] items, row after row.
            position: [N] of each in its row.
            at: [M] indices into x.

        Returns:
            [M, D].
        """
        window, real = self.windows(position, at)
        return torch.einsum("mw,mwd->md", self.weights(x, window, real), x[window])

    def windows(self, position: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Which items the windows hold, newest first: [M, W'] indices into x and which of them are of the row."""
        back = torch.arange(min(len(self.signal), int(position[at].max()) + 1), device=at.device)
        return (at[:, None] - back).clamp(min=0), position[at][:, None] >= back

    def weights(self, x: Tensor, window: Tensor, real: Tensor) -> Tensor:
        """The weight of each item of a window, [M, W']: over the window's queries, the mean attention it gets."""
        signal = self.signal[: window.shape[1]]
        q = F.relu(self.query(x)[window] + self.query(signal))  # [M, W', D], of sums as the projection is linear
        k = F.relu(self.key(x)[window] + self.key(signal))
        n = real.sum(1)
        itself = torch.eye(window.shape[1], dtype=torch.bool, device=x.device)
        others = real[:, None, :] & ~(itself & (n > 1)[:, None, None])  # who is alone attends to itself
        s = masked_softmax(q @ k.transpose(1, 2) * self.scale, others)
        return (s * real[:, :, None]).sum(1) / n[:, None]


@dataclass(frozen=True, kw_only=True)
class AttRecLoss(LossSettings):
    """The losses of the next item, and the paper's.

    Attributes:
        margin: gamma, of the loss_type ``hinge``.
    """

    accepted = (*LOSSES, "hinge")

    margin: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin <= 0.0:
            raise ConfigError(f"margin={self.margin} should be above 0")


@dataclass(frozen=True, kw_only=True)
class DistanceSettings:
    """What is near whom.

    Attributes:
        att_window: the most items of a window.
        shared_projection: queries and keys are made by one matrix.
        long_term_weight: w, the weight of the distance to the user.
        max_norm: radius of the ball that all vectors are clipped to; None for no bound.

    Raises:
        ConfigError: a value out of its range.
    """

    att_window: int
    shared_projection: bool
    long_term_weight: float
    max_norm: float | None

    def __post_init__(self) -> None:
        if self.att_window < 1:
            raise ConfigError(f"att_window={self.att_window} should be at least 1")
        if not 0.0 <= self.long_term_weight <= 1.0:
            raise ConfigError(f"long_term_weight={self.long_term_weight} is not in 0..1")
        if self.max_norm is not None and self.max_norm <= 0.0:
            raise ConfigError(f"max_norm={self.max_norm} should be above 0, or ~ for no bound")


class AttRecNet(ItemNet):
    """Distances to the user and to the window's mean.

    Args:
        data: what the data know.
        loss: how the next item is learned.
        distance: what is near whom.
        hidden_size: D.
        initializer_range: standard deviation of the weights at the start.
        sparse_tables: gradients of the tables hold the rows a batch touched.
    """

    not_served = "its query reads the user, and it knows those of its training alone"

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: AttRecLoss,
        distance: DistanceSettings,
        hidden_size: int,
        initializer_range: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range,
            sparse_tables=sparse_tables,
        )  # fmt: skip
        self.long_term_weight, self.max_norm = distance.long_term_weight, distance.max_norm
        sparse = self.item_embedding.sparse
        self.long_term_item = PaddedEmbedding(data.n_items, hidden_size, std=initializer_range, sparse=sparse)  # V
        self.user_embedding = PaddedEmbedding(data.n_users, hidden_size, std=initializer_range, sparse=sparse)  # U
        self.attention = WindowAttention(
            hidden_size=hidden_size, att_window=distance.att_window, shared_projection=distance.shared_projection
        )
        init_transformer(self.attention, initializer_range)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """[U_u, m_t] of every real position, [N, 2 D]; see :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        every = torch.arange(len(packing.row), device=history.device)
        return self._states(packing.pack(history), packing, every, user), packing

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """See :meth:`ItemNet.query`; of each row only the last window is made."""
        packing = Packing(history > 0)
        last = packing.length.cumsum(0) - 1
        return Query(self.query_vector(self._states(packing.pack(history), packing, last, user)))

    def _states(self, items: Tensor, packing: Packing, at: Tensor, user: Tensor | None) -> Tensor:
        assert user is not None, "AttRec reads the user"
        x = within_ball(self.item_embedding(items), self.max_norm)  # [N, D]
        short_term = self.attention(x, packing.position, at)  # [M, D] m
        long_term = within_ball(self.user_embedding(user), self.max_norm)[packing.row[at]]  # [M, D] U
        return torch.cat((long_term, short_term), dim=1)

    def query_vector(self, state: Tensor) -> Tensor:
        """[N, 2 D] to [N, 2 D + 1]."""
        w = self.long_term_weight
        long_term, short_term = state.chunk(2, dim=1)
        return torch.cat((2 * w * long_term, 2 * (1 - w) * short_term, torch.ones_like(state[:, :1])), dim=1)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """[..., 2 D + 1] of given items, [V, 2 D + 1] of all."""
        w, tables = self.long_term_weight, (self.long_term_item, self.item_embedding)
        long_term, short_term = (
            within_ball(table.weight if items is None else table(items), self.max_norm) for table in tables
        )
        square = w * long_term.square().sum(-1, keepdim=True) + (1 - w) * short_term.square().sum(-1, keepdim=True)
        return torch.cat((long_term, short_term, -square), dim=-1)

    def target_loss(self, state: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """See :class:`ItemNet`."""
        query, loss = self.query_vector(state), self.loss_settings
        if loss.loss_type != "hinge" or not len(state):
            return next_id_loss(
                query, item, owner, self.item_vectors, every=self.item_vectors, n_ids=self.n_items,
                loss_type=loss.loss_type, negatives=self.item_negatives, n_negatives=loss.n_negatives,
                gbce_t=loss.gbce_t,
            )  # fmt: skip
        assert isinstance(loss, AttRecLoss) and self.item_negatives is not None
        negative = self.item_negatives(owner, item, loss.n_negatives)  # [N, K]
        positive_score = (query * self.item_vectors(item)).sum(-1)
        return hinge_loss(positive_score, torch.einsum("nd,nkd->nk", query, self.item_vectors(negative)), loss.margin)
