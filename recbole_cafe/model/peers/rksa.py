"""RKSA: relation-aware kernelized self-attention.

Ji, Joo, Song, Kim, Moon: "Sequential Recommendation with Relation-Aware Kernelized Self-Attention", AAAI 2020.
There is no released code. Location, shape and the mixing of kernels are the paper's; the formulas of the kernels and of
their loss were not available to us, and what stands for them here is marked [R], our reading.

SASRec whose attention logits are drawn: each row of logits is a multivariate skew-normal vector around the usual
scores, whose covariance mixes a kernel of co-occurrence, one of items and one of items and user, and whose skew leans
towards what occurs together with the last item.

B rows, L positions of which N are real, D hidden size, V items; b rows of l positions in a group. x_n is the last item
of a row, c_ij the number of train users that have items i and j. Id 0 is padding, rows are padded on the right.

Scale and shape of every position's logits depend on x_n. A state before the last therefore knows the row's last item,
which is its target or comes after it: trained at all positions at once the model would see what it is to predict. It is
trained on prefix rows, at their last position (``train_layout: last``).

[R] x in the formulas is what the block's attention is given, after the LayerNorm of SASRec's block. [R] Scores use the
mean of the logits, so that they are the same twice; `eval_samples` draws instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.cooccurrence import CoOccurrence
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.skew_normal import SkewNormal
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.settings import LossSettings
from recbole_cafe.ranking.query import Query

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda score: score, "tanh": torch.tanh}


@dataclass
class Relations:
    """What the blocks know of the rows of a batch beside their states, a tensor per group of the packing.

    Attributes:
        cosine: [b, l, l] co-occurrence as a cosine. lean: [b, l] co-occurrence with the last item, in 0..1.
        user: [b, D] u. mixture: [b, 3] r. draw: sample the logits instead of taking their mean.
        surprises: [b] of each block and group, see :meth:`SkewNormal.surprise`; None where nobody asks for them.
    """

    cosine: list[Tensor]
    lean: list[Tensor]
    user: list[Tensor]
    mixture: list[Tensor]
    draw: bool
    surprises: list[Tensor] | None


class Scores(nn.Module):
    """(a W^Q)(b W^K)^T / sqrt(D)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[b, T, D] and [b, l, D] to [b, T, l]."""
        score: Tensor = self.query(a) @ self.key(b).transpose(1, 2) / math.sqrt(a.shape[-1])
        return score


class KernelAttention(nn.Module):
    """Attention with skew-normal logits, H = softmax(z) V, z_t ~ MSN(xi_t, Sigma, alpha) for each position t.

        xi_tj   = f((x_t W_l^Q)(x_j W_l^K)^T / sqrt(D))
        omega_j = softplus((x_n W_w^Q)(x_j W_w^K)^T / sqrt(D))
        alpha_j = f((x_n W_s^Q)(x_j W_s^K)^T / sqrt(D)) ahat_j / max(ahat)
        Sigma   = diag(omega) (r_1 R_c + r_2 R_i + r_3 R_u) diag(omega)

    [R] The kernels, of which we know what they are made of: R_c the cosine c_ij / sqrt(c_ii c_jj) of co-occurrence, R_i
    = cos(x_i, x_j), R_u = cos(x_i u, x_j u). Each is positive semi-definite with a unit diagonal, so that Sigma is a
    covariance by construction and omega its standard deviations. [R] Sigma and alpha are the same for all positions of
    a row, which the draws are independent for. [R] f is not defined in what we have: the identity, or tanh.

    Args:
        hidden_size: D. dropout: of attention weights. activation: f, ``identity`` or ``tanh``.
        jitter: see :class:`SkewNormal`.

    Raises:
        ConfigError: an unknown activation. (A ReLU would leave the shape without gradient.)
    """

    def __init__(self, *, hidden_size: int, dropout: float, activation: str, jitter: float) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation, self.jitter = activation, jitter
        self.location, self.scale, self.shape = (Scores(hidden_size) for _ in range(3))
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, relations: Relations) -> Tensor:
        """[N, D] to [N, D]."""
        values = self.value(x)  # [N, D]
        groups = []
        for g, (at, real) in enumerate(zip(packing.groups, packing.real_of_groups, strict=True)):
            given = relations.cosine[g], relations.lean[g], relations.user[g], relations.mixture[g]
            with torch.autocast(device_type=x.device.type, enabled=False):  # kernels of 8 bits have no Cholesky factor
                logits = self.logits(x[at].to(relations.user[g].dtype), real, *given)
            if relations.surprises is not None:
                last = logits.location[torch.arange(len(at), device=at.device), real.sum(1) - 1]
                relations.surprises.append(logits.surprise(last.detach(), real))
            z = logits.sample() if relations.draw else logits.mean()
            future = torch.ones(at.shape[1], at.shape[1], dtype=torch.bool, device=at.device).triu(1)
            weight = self.dropout(z.masked_fill(future, -torch.inf).softmax(-1))  # a real position sees no padding
            groups.append((weight.to(values.dtype) @ values[at]).flatten(0, 1))
        return torch.cat(groups)[packing.back]

    def logits(self, x: Tensor, real: Tensor, cosine: Tensor, lean: Tensor, user: Tensor,
               mixture: Tensor) -> SkewNormal:  # fmt: skip
        """The distribution of a group's logits. What is no position has no scale, no shape and no relatives.

        Args:
            x: [b, l, D], where a row ends its last position repeated.
            real: [b, l].
            cosine: see :class:`Relations`.
            lean: see there.
            user: see there.
            mixture: see there.
        """
        f = ACTIVATIONS[self.activation]
        last = x[:, -1:]  # x_n
        own = F.normalize(x, dim=-1)
        personal = F.normalize(x * user[:, None], dim=-1)
        kernels = torch.stack((cosine, own @ own.transpose(1, 2), personal @ personal.transpose(1, 2)))
        correlation = torch.einsum("bm,mbij->bij", mixture, kernels)
        apart = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        related = real[:, :, None] & real[:, None] & apart
        return SkewNormal(
            location=f(self.location(x, x)),
            scale=self.deviation(self.scale(last, x)[:, 0]) * real,
            correlation=correlation * related + ~apart,
            slant=f(self.shape(last, x)[:, 0]) * lean * real,
            jitter=self.jitter,
        )

    def deviation(self, score: Tensor) -> Tensor:
        """omega of the scale's scores."""
        return F.softplus(score)


def leaning(count: Tensor, real: Tensor) -> Tensor:
    """ahat / max(ahat), ahat_j = sum_k c_jk c_kn over the n items of a row, 0 where nothing occurs together.

    The diagonal c_kk is replaced by the mean of the others, c_kl with l != k ([R]: those of the row).

    Args:
        count: [b, l, l].
        real: [b, l].

    Returns:
        [b, l] in 0..1.
    """
    n = real.sum(1)
    apart = ~torch.eye(count.shape[1], dtype=torch.bool, device=count.device)
    c = count * (real[:, :, None] & real[:, None] & apart)
    mean = c.sum(2) / (n - 1).clamp(min=1)[:, None]
    c = c + torch.diag_embed(mean)
    last = c[torch.arange(len(c), device=c.device), :, n - 1]  # [b, l] c_kn
    shared = torch.einsum("bjk,bk->bj", c, last)
    most = shared.amax(1, keepdim=True)
    return torch.where(most > 0, shared / most.clamp(min=torch.finfo(shared.dtype).tiny), 0)


def cosine_of(count: Tensor, items: Tensor) -> Tensor:
    """c_ij / sqrt(c_ii c_jj), of an item that no train user has 1 with itself and 0 with others.

    Args:
        count: [b, l, l], on the diagonal the items' numbers of users.
        items: [b, l].
    """
    root = count.diagonal(dim1=1, dim2=2).sqrt()
    cosine = count / (root[:, :, None] * root[:, None]).clamp(min=1)
    return torch.where(items[:, :, None] == items[:, None], 1, cosine)


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """The blocks, whose one head has skew-normal logits.

    Attributes:
        inner_size: width of the feed-forward layer.
        n_layers: number of blocks.
        hidden_dropout_prob: dropout of embeddings and layers.
        attn_dropout_prob: dropout of attention weights.
        hidden_act: activation of the feed-forward layer.
        activation: f, see :class:`KernelAttention`.
        cooccurrence_items: so many items have counts of co-occurrence, the most frequent ones.
        kernel_weight: weight of the loss of the kernels.
        jitter: see :class:`recbole_cafe.layers.skew_normal.SkewNormal`.
        eval_samples: draws whose mean scores; 0 for the mean of the logits.

    Raises:
        ConfigError: an option is out of its range.
    """

    inner_size: int
    n_layers: int
    hidden_dropout_prob: float
    attn_dropout_prob: float
    hidden_act: str
    activation: str
    cooccurrence_items: int
    kernel_weight: float
    jitter: float
    eval_samples: int

    def __post_init__(self) -> None:
        if self.cooccurrence_items < 1:
            raise ConfigError(f"cooccurrence_items={self.cooccurrence_items} should be at least 1")
        if self.jitter <= 0:
            raise ConfigError(f"jitter={self.jitter} should be above 0: a row may hold an item twice")
        if self.eval_samples < 0:
            raise ConfigError(f"eval_samples={self.eval_samples} should be at least 0")


class RKSANet(ItemNet):
    """Items, blocks with kernelised attention, one inner product.

    Args:
        data: what the data know; held-out interactions must not be among its train pairs.
        loss: how the next item is learned.
        kernels: the blocks.
        hidden_size: D.
        initializer_range: standard deviation of the weights at the start.
        sparse_tables: gradients of the tables hold the rows a batch touched.
    """

    layouts = ("last",)  # a history makes one vector
    not_shared = "its logits are drawn from the process's own random numbers"
    not_served = "its query reads the user, and it knows those of its training alone"

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: LossSettings,
        kernels: KernelSettings,
        hidden_size: int,
        initializer_range: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range,
            sparse_tables=sparse_tables,
        )  # fmt: skip
        self.kernel_weight, self.eval_samples = kernels.kernel_weight, kernels.eval_samples
        self.cooccurrence = CoOccurrence(*data.train_pairs, n_items=data.n_items, limit=kernels.cooccurrence_items)
        self.user_embedding = PaddedEmbedding(data.n_users, hidden_size, std=initializer_range, sparse=sparse_tables)
        self.mixture = nn.Linear(hidden_size, 3)  # W_u, b_u
        attention = partial(
            KernelAttention, hidden_size=hidden_size, dropout=kernels.attn_dropout_prob, activation=kernels.activation,
            jitter=kernels.jitter,
        )  # fmt: skip
        self.encoder = SequenceEncoder(
            attention=attention, hidden_size=hidden_size, inner_size=kernels.inner_size, n_layers=kernels.n_layers,
            max_seq_length=data.max_seq_length, hidden_dropout_prob=kernels.hidden_dropout_prob,
            hidden_act=kernels.hidden_act,
        )  # fmt: skip
        init_transformer(self, initializer_range)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """States, of which the last of each row may predict. See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        return self.encode(history, user, packing, draw=self.training, surprises=None), packing

    def encode(self, history: Tensor, user: Tensor | None, packing: Packing, *, draw: bool,
               surprises: list[Tensor] | None) -> Tensor:  # fmt: skip
        """[B, L] and [B] to [N, D]; draw, surprises: see :class:`Relations`."""
        assert user is not None, "RKSA reads the user"
        items = packing.pack(history)
        u = self.user_embedding(user)  # [B, D]
        mixture = self.mixture(u).softmax(1).to(u.dtype)  # Eq. 9
        relations = Relations([], [], [], [], draw, surprises)
        for at, real in zip(packing.groups, packing.real_of_groups, strict=True):
            count = self.cooccurrence(items[at]).to(u.dtype)
            row = packing.row[at[:, 0]]
            relations.cosine.append(cosine_of(count, items[at]))
            relations.lean.append(leaning(count, real))
            relations.user.append(u[row])
            relations.mixture.append(mixture[row])
        state: Tensor = self.encoder(self.item_embedding(items), packing, relations)
        return state

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the next item plus `kernel_weight` times that of the kernels. See :meth:`ItemNet.loss`.

        [R] The latter: how surprising the last position's scores xi_n, as given, are to a Gaussian process with
        covariance Sigma, per item, as a mean over rows and blocks.
        """
        packing = Packing(batch.history > 0)
        surprises: list[Tensor] | None = [] if self.kernel_weight else None
        state = self.encode(batch.history, batch.user, packing, draw=self.training, surprises=surprises)
        loss = self.packed_loss(state, packing, batch.target, batch.user)
        return loss + self.kernel_weight * torch.cat(surprises).mean() if surprises else loss

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """The vector that the history of each row makes, [B, D].

        With `eval_samples` the mean of so many draws: scores are linear in it, so they are the mean of theirs.
        """
        if not self.eval_samples:
            return super().query(history, user)
        packing = Packing(history > 0)
        draws = [
            packing.last(self.encode(history, user, packing, draw=True, surprises=None))
            for _ in range(self.eval_samples)
        ]
        return Query(self.query_vector(torch.stack(draws).mean(0)))
