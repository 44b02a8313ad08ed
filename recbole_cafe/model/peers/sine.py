"""SINE without the defects of RecBole 1.2's.

Tan, Zhang, Yao, Liu, Zhou, Yang, Hu: "Sparse-Interest Network for Sequential Recommendation", WSDM 2021,
arXiv:2102.09267. RecBole's own stays available as `SINE`.

What differs from RecBole's, each with a test:

* positions: the paper adds position vectors to the items in the attention weighting; RecBole has none, so that its SINE
  reads a history as a bag (the authors' code adds them in all three softmaxes; here they are where the paper has them);
* padding: RecBole masks none of its softmaxes, and its padding is a frozen random vector, so that short histories are
  mostly padding; here every softmax over positions is over the real ones, and row 0 is zero;
* the regulariser belongs to the loss; RecBole adds it for `loss_type: NLL` only, which is its CE otherwise.

With ``positions=False`` and ``reg_loss_ratio=0`` this is RecBole's on rows without padding. Kept as there, where
paper, authors' code and RecBole differ: items l2-normalised and prototypes layer-normalised in the intention
assignment, interests l2-normalised (the paper has LayerNorm).

B users, n positions of the longest row, D hidden size, P prototypes, K interests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import masked_softmax
from recbole_cafe.model.item_net import HistoryNet
from recbole_cafe.model.settings import LossSettings


@dataclass(frozen=True, kw_only=True)
class InterestSettings:
    """The prototypes and interests of SINE.

    Attributes:
        prototype_size: P, prototypes.
        interest_size: K, interests of a history.
        tau_ratio: temperature of the interests' shares.
        positions: whether position vectors are added in the attention weighting.
        layer_norm_eps: of the LayerNorms.
        reg_loss_ratio: weight of the regulariser.

    Raises:
        ConfigError: more interests than prototypes, or a tau_ratio that is not positive.
    """

    prototype_size: int
    interest_size: int
    tau_ratio: float
    positions: bool
    layer_norm_eps: float
    reg_loss_ratio: float

    def __post_init__(self) -> None:
        if not 1 <= self.interest_size <= self.prototype_size:
            raise ConfigError(f"interest_size={self.interest_size} is not in 1..prototype_size={self.prototype_size}")
        if self.tau_ratio <= 0.0:
            raise ConfigError(f"tau_ratio={self.tau_ratio} should be above 0")


class SINENet(HistoryNet):
    """K of P prototypes, an interest for each, and a mixture of the interests: one vector per history.

    Args:
        data: what the data know.
        loss: how the next item is learned.
        interests: the prototypes and interests.
        hidden_size: D.
        initializer_range: standard deviation of the tables at the start.
        sparse_tables: gradients of the item table hold the rows a batch touched.
    """

    layouts = ("last",)  # a history makes one vector

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: LossSettings,
        interests: InterestSettings,
        hidden_size: int,
        initializer_range: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range,
            sparse_tables=sparse_tables,
        )  # fmt: skip
        size, k = hidden_size, interests.interest_size
        self.interest_size, self.tau_ratio, self.reg_loss_ratio = k, interests.tau_ratio, interests.reg_loss_ratio
        self.activation_hidden = nn.Parameter(torch.empty(size, size))  # W_1
        self.activation_score = nn.Parameter(torch.empty(size))  # W_2
        self.assignment = nn.Parameter(torch.empty(size, size))  # W_3
        self.aggregation_score = nn.Parameter(torch.empty(size))  # W_4
        self.weighting_hidden = nn.Parameter(torch.empty(k, size, size))  # W_k1
        self.weighting_score = nn.Parameter(torch.empty(k, size))  # W_k2
        self.prototype = nn.Parameter(torch.empty(interests.prototype_size, size))  # C
        self.position = nn.Parameter(torch.empty(data.max_seq_length, size)) if interests.positions else None
        self.prototype_norm = nn.LayerNorm(size, eps=interests.layer_norm_eps)  # LN2
        self.intention_norm = nn.LayerNorm(size, eps=interests.layer_norm_eps)  # LN4
        for weight in self.parameters(recurse=False):
            # positions of the size of items: larger ones would drown them
            nn.init.normal_(weight, std=initializer_range if weight is self.position else size**-0.5)

    def vector(self, history: Tensor, user: Tensor | None) -> Tensor:  # noqa: ARG002
        """history: [B, L]. Returns [B, D]: what the whole row says, and not what its positions do."""
        real = history > 0
        longest = int(real.sum(1).max())
        history, real = history[:, :longest], real[:, :longest]
        x = self.item_embedding(history)  # [B, n, D]

        # Concept activation: the K prototypes next to the history
        a = masked_softmax(torch.tanh(x @ self.activation_hidden) @ self.activation_score, real)
        z = torch.einsum("bn,bnd->bd", a, x)
        s, at = (z @ self.prototype.T).topk(self.interest_size)  # [B, K], largest first
        s, at = s.flip(1), at.flip(1)  # W_k belongs to a rank; RecBole's order
        active = self.prototype[at] * s.sigmoid()[:, :, None]  # [B, K, D] C^u

        # Intention assignment: which of them an item belongs to
        similar = F.normalize(x @ self.assignment, dim=2) @ self.prototype_norm(active).transpose(1, 2)
        of_item = similar.softmax(2)  # [B, n, K] P_k|t

        # Attention weighting: how much an item matters for each
        placed = x if self.position is None else x + self.position[:longest]
        hidden = torch.einsum("bnd,kde->bkne", placed, self.weighting_hidden).tanh()
        of_interest = masked_softmax(torch.einsum("bkne,ke->bkn", hidden, self.weighting_score), real[:, None])  # P_t|k

        interest = F.normalize((of_item.transpose(1, 2) * of_interest) @ x, dim=2)  # [B, K, D] phi

        # Interest aggregation: the intention that the row's prototypes point at
        concepts = of_item @ active  # [B, n, D] X hat
        b = masked_softmax(torch.tanh(concepts @ self.assignment) @ self.aggregation_score, real)
        intention = self.intention_norm(torch.einsum("bn,bnd->bd", b, concepts))  # [B, D] C_apt
        share = (torch.einsum("bkd,bd->bk", interest, intention) / self.tau_ratio).softmax(1)
        return torch.einsum("bk,bkd->bd", share, interest)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the item after the last position, and the regulariser. See :meth:`HistoryNet.loss`."""
        loss = super().loss(batch)
        return loss + self.reg_loss_ratio * self.prototype_covariance() if self.reg_loss_ratio else loss

    def prototype_covariance(self) -> Tensor:
        """L_c: half the squared covariances of different prototypes, which should be about different things."""
        centred = self.prototype - self.prototype.mean(1, keepdim=True)
        covariance = centred @ centred.T / centred.shape[1]
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / 2
