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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.layers.attention import masked_softmax
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.item_net import ItemNet, Negatives


class SINENet(ItemNet):
    """K of P prototypes, an interest for each, and a mixture of the interests: one vector per history.

    Args:
        n_items: V, padding included.
        item_negatives: draws the negatives of every `loss_type` but ``CE``.
        The rest: see props/model/CorrectedSINE.yaml.

    Raises:
        ValueError: more interests than prototypes, or a tau_ratio that is not positive.
    """

    def __init__(
        self,
        *,
        n_items: int,
        item_negatives: Negatives | None,
        max_seq_length: int,
        hidden_size: int,
        prototype_size: int,
        interest_size: int,
        tau_ratio: float,
        positions: bool,
        layer_norm_eps: float,
        initializer_range: float,
        loss_type: str,
        n_negatives: int,
        gbce_t: float,
        reg_loss_ratio: float,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            n_items=n_items, hidden_size=hidden_size, initializer_range=initializer_range, loss_type=loss_type,
            n_negatives=n_negatives, gbce_t=gbce_t, item_negatives=item_negatives, sparse_tables=sparse_tables,
        )  # fmt: skip
        if not 1 <= interest_size <= prototype_size:
            raise ValueError(f"interest_size={interest_size} is not in 1..prototype_size={prototype_size}")
        if tau_ratio <= 0.0:
            raise ValueError(f"tau_ratio={tau_ratio} should be above 0")
        size, k = hidden_size, interest_size
        self.interest_size, self.tau_ratio, self.reg_loss_ratio = interest_size, tau_ratio, reg_loss_ratio
        self.activation_hidden = nn.Parameter(torch.empty(size, size))  # W_1
        self.activation_score = nn.Parameter(torch.empty(size))  # W_2
        self.assignment = nn.Parameter(torch.empty(size, size))  # W_3
        self.aggregation_score = nn.Parameter(torch.empty(size))  # W_4
        self.weighting_hidden = nn.Parameter(torch.empty(k, size, size))  # W_k1
        self.weighting_score = nn.Parameter(torch.empty(k, size))  # W_k2
        self.prototype = nn.Parameter(torch.empty(prototype_size, size))  # C
        self.position = nn.Parameter(torch.empty(max_seq_length, size)) if positions else None
        self.prototype_norm = nn.LayerNorm(size, eps=layer_norm_eps)  # LN2
        self.intention_norm = nn.LayerNorm(size, eps=layer_norm_eps)  # LN4
        for weight in self.parameters(recurse=False):
            # positions of the size of items: larger ones would drown them
            nn.init.normal_(weight, std=initializer_range if weight is self.position else size**-0.5)

    def forward(self, item_seq: Tensor, user: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """item_seq: [B, L]. Returns [B, D]: what the whole row says, and not what its positions do."""
        real = item_seq > 0
        longest = int(real.sum(1).max())
        item_seq, real = item_seq[:, :longest], real[:, :longest]
        x = self.item_embedding(item_seq)  # [B, n, D]

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

    def loss(self, item_seq: Tensor, target: Tensor, user: Tensor) -> Tensor:
        """Loss of the item after the last position, and the regulariser. See :meth:`ItemNet.loss`."""
        last = (item_seq > 0).sum(1) - 1
        item = target[torch.arange(len(target), device=target.device), last]
        loss = self.item_loss(self(item_seq), item, user)
        return loss + self.reg_loss_ratio * self.prototype_covariance() if self.reg_loss_ratio else loss

    def prototype_covariance(self) -> Tensor:
        """L_c: half the squared covariances of different prototypes, which should be about different things."""
        centred = self.prototype - self.prototype.mean(1, keepdim=True)
        covariance = centred @ centred.T / centred.shape[1]
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / 2

    def last(self, item_seq: Tensor, user: Tensor | None = None) -> tuple[Tensor, None]:
        """See :class:`ItemNet`."""
        return self.query(self(item_seq, user)), None


class CorrectedSINE(NetRecommender):
    """The corrected SINE as RecBole sees it. A history makes one vector, so that it trains on prefix rows."""

    net = SINENet
    layouts = ("last",)
