"""DIF-SR: items, positions and intents attend apart; their scores are fused, and values are made of items alone.

Xie, Zhou, Kim: "Decoupled Side Information Fusion for Sequential Recommendation", SIGIR 2022. Authors' code:
github.com/AIM-SE/DIF-SR (read for comparison; nothing is taken from it). Its text was not available to us; the
equations are those of the code.

    score = fuse((E q_f)(E k_f)^T, (X q)(X k)^T, (P q')(P k')^T) / sqrt(d),    E intents, X items, P positions
    X <- LN(X + softmax(score) (X v)),   X <- LN(X + FFN(X))
    loss = CE(next item) + lambda BCE(the query's logits of all intents, the intents of the next item)

E and P enter no state and are the same in all layers. `fuse` is a sum; or a linear layer over the rows of scores side
by side (`concat`); or a sum weighted by what a small network makes of each source's row of scores (`gate`).

B rows, L positions, D hidden size, D_f width of an intent, H heads, V items, C intents with padding, S sources.

**`gate` and `concat` are not causal**: they read a query's scores of all keys, later ones and padding too, before those
are masked. Trained at every position they would see what they are to predict, so that they train on prefix rows alone
(``train_layout: last``); and the same history scores otherwise with another MAX_ITEM_LIST_LENGTH. `sum` is causal.

In the authors' code the table of intents was never trained: it kept its first draw, N(0, 1), in which intents are fixed
random codes. ``intent_table: frozen`` is that, ``trained`` is what the paper means.

Differences from the authors' code: padding is a zero vector and no class of the softmax; an item has one intent, where
theirs has all of its categories, and an item without one has the zero vector and no label; `sum` reads no padding.
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
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.peers.bsa_rec import EPS, FeedForward
from recbole_cafe.model.settings import EncoderSettings, LossSettings

FUSIONS = ("sum", "concat", "gate")
TABLES = ("trained", "frozen")


class ScoreFusion(nn.Module):
    """The scores of several sources to one.

    Args:
        fusion: ``sum``; ``concat``, a linear layer from all keys of all sources to the keys; ``gate``, a sum whose
            weights are a softmax over one number for each source, made of its scores of all keys.
        n_sources: S.
        max_seq_length: L, how many keys ``concat`` and ``gate`` are made for.

    Raises:
        ConfigError: an unknown fusion.
    """

    def __init__(self, *, fusion: str, n_sources: int, max_seq_length: int) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ConfigError(f"fusion={fusion!r} is not one of {', '.join(FUSIONS)}")
        self.concat = nn.Linear(n_sources * max_seq_length, max_seq_length) if fusion == "concat" else None
        self.gate = None
        if fusion == "gate":
            n = max_seq_length
            self.gate = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1))

    def forward(self, scores: list[Tensor]) -> Tensor:
        """S tensors that broadcast to [B, H, L, L], keys last. Returns [B, H, L, L]."""
        if self.concat is not None:
            fused: Tensor = self.concat(torch.cat(torch.broadcast_tensors(*scores), dim=3))
            return fused
        if self.gate is not None:
            share = torch.stack(torch.broadcast_tensors(*(self.gate(s) for s in scores))).softmax(0)  # [S, B, H, L, 1]
            scores = [w * s for w, s in zip(share, scores, strict=True)]
        return torch.stack(torch.broadcast_tensors(*scores)).sum(0)


class DecoupledAttention(nn.Module):
    """Attention to the past whose scores are made of items, positions and intents apart.

    Args:
        hidden_size: D. intent_size: D_f. n_heads: H, which divides both. dropout: of the weights.
        fusion: of the scores.

    Raises:
        ConfigError: a size that is no multiple of the heads.
    """

    def __init__(self, *, hidden_size: int, intent_size: int, n_heads: int, dropout: float,
                 fusion: ScoreFusion) -> None:  # fmt: skip
        super().__init__()
        for key, size in (("hidden_size", hidden_size), ("intent_hidden_size", intent_size)):
            if n_heads < 1 or size % n_heads:
                raise ConfigError(f"{key}={size} is not a multiple of n_heads={n_heads}")
        self.n_heads, self.scale = n_heads, math.sqrt(hidden_size / n_heads)
        self.query, self.key, self.value, self.output = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.position_query, self.position_key = (nn.Linear(hidden_size, hidden_size) for _ in range(2))
        self.intent_query, self.intent_key = (nn.Linear(intent_size, intent_size) for _ in range(2))
        self.fusion = fusion
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, intent: Tensor, allowed: Tensor) -> Tensor:
        """Attend.

        Args:
            x: [b, l, D] items.
            position: [1, l, D].
            intent: [b, l, D_f].
            allowed: [b, l, l] bool, queries first.

        Returns:
            [b, l, D].
        """
        fused = self.fusion([
            self._heads(self.intent_query(intent)) @ self._heads(self.intent_key(intent)).transpose(2, 3),
            self._heads(self.query(x)) @ self._heads(self.key(x)).transpose(2, 3),
            self._heads(self.position_query(position)) @ self._heads(self.position_key(position)).transpose(2, 3),
        ])  # fmt: skip
        weight = self.dropout(masked_softmax(fused / self.scale, allowed[:, None]))
        mixed: Tensor = self.output((weight @ self._heads(self.value(x))).transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        """[b, l, n] to [b, H, l, n / H]."""
        split: Tensor = x.unflatten(2, (self.n_heads, -1))
        return split.transpose(1, 2)


class DIFBlock(nn.Module):
    """The attention, then the feed-forward layer.

    Args:
        encoder: sizes.
        attention: of this block.
    """

    def __init__(self, *, encoder: EncoderSettings, attention: DecoupledAttention) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(encoder.hidden_size, eps=EPS)
        self.dropout = Dropout(encoder.hidden_dropout_prob)
        self.feed_forward = FeedForward(
            hidden_size=encoder.hidden_size, inner_size=encoder.inner_size, dropout=encoder.hidden_dropout_prob,
            hidden_act=encoder.hidden_act,
        )  # fmt: skip

    def forward(self, x: Tensor, position: Tensor, intent: Tensor, allowed: Tensor) -> Tensor:
        """See :class:`DecoupledAttention`."""
        attended = self.norm(self.dropout(self.attention(x, position, intent, allowed)) + x)
        mixed: Tensor = self.feed_forward(attended)
        return mixed


@dataclass(frozen=True, kw_only=True)
class SideSettings:
    """What intents do.

    Attributes:
        fusion: how scores are fused, see :class:`ScoreFusion`.
        intent_hidden_size: D_f.
        intent_table: ``trained``, or ``frozen`` at its first draw, N(0, 1).
        intent_loss_weight: lambda, weight of the next item's intent in the loss.

    Raises:
        ConfigError: an unknown intent_table, a weight below 0.
    """

    fusion: str
    intent_hidden_size: int
    intent_table: str
    intent_loss_weight: float

    def __post_init__(self) -> None:
        if self.intent_table not in TABLES:
            raise ConfigError(f"intent_table={self.intent_table!r} is not one of {', '.join(TABLES)}")
        if self.intent_loss_weight < 0.0:
            raise ConfigError(f"intent_loss_weight={self.intent_loss_weight} should be at least 0")


class DIFSRNet(ItemNet):
    """Items through blocks that positions and intents steer; the state also tells the next item's intent.

    Args:
        data: what the data know.
        encoder: the blocks.
        loss: how the next item is learned.
        side: what intents do.
        train_layout: on which rows it is trained.

    Raises:
        ConfigError: ``concat`` or ``gate`` with a loss at all positions.
    """

    item2intent: Tensor
    needs_intents = True

    def __init__(
        self, *, data: DataFacts, encoder: EncoderSettings, loss: LossSettings, side: SideSettings, train_layout: str
    ) -> None:
        size, std, length = encoder.hidden_size, encoder.initializer_range, data.max_seq_length
        super().__init__(data=data, loss=loss, hidden_size=size, initializer_range=std)
        if side.fusion != "sum" and train_layout == "all":
            raise ConfigError(
                f"fusion={side.fusion!r} does not suit train_layout='all': it reads a position's scores of later "
                f"items, its target among them; use train_layout=last or fusion=sum"
            )
        self.max_seq_length, self.reads_padding = length, side.fusion != "sum"
        self.intent_loss_weight = side.intent_loss_weight
        of_item = data.item2intent
        self.register_buffer("item2intent", of_item.where(of_item < data.n_intents, 0), persistent=False)  # none: 0
        frozen = side.intent_table == "frozen"
        self.intent_embedding = PaddedEmbedding(data.n_intents, side.intent_hidden_size, std=1.0 if frozen else std)
        self.intent_embedding.requires_grad_(not frozen)
        self.position = nn.Embedding(length, size)
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.dropout = Dropout(encoder.hidden_dropout_prob)
        self.blocks = nn.ModuleList()
        for _ in range(encoder.n_layers):
            attention = DecoupledAttention(
                hidden_size=size, intent_size=side.intent_hidden_size, n_heads=encoder.n_heads,
                dropout=encoder.attn_dropout_prob,
                fusion=ScoreFusion(fusion=side.fusion, n_sources=3, max_seq_length=length),
            )  # fmt: skip
            self.blocks.append(DIFBlock(encoder=encoder, attention=attention))
        self.intent_of_next = nn.Linear(size, data.n_intents) if side.intent_loss_weight else None
        init_transformer(self, std)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`.

        Raises:
            ValueError: rows of more positions than the net is made for.
        """
        missing = self.max_seq_length - history.shape[1]
        if missing < 0:
            raise ValueError(f"rows of {history.shape[1]} positions, where MAX_ITEM_LIST_LENGTH={self.max_seq_length}")
        packing = Packing(history > 0)
        if self.reads_padding:
            items = F.pad(history, (0, missing))
            return packing.pack(self.encode(items)), packing
        items = packing.pack(history)
        groups = [self.encode(items[at]).flatten(0, 1) for at in packing.groups]  # what a row ends with, it repeats
        return torch.cat(groups)[packing.back], packing

    def encode(self, items: Tensor) -> Tensor:
        """States of rows, padding among them. [b, l] to [b, l, D]."""
        real, length = items > 0, items.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        allowed = real[:, None] & past
        position, intent = self.position.weight[None, :length], self.intent_embedding(self.item2intent[items])
        x: Tensor = self.dropout(self.norm(self.item_embedding(items)))
        for block in self.blocks:
            x = block(x, position, intent, allowed)
        return x

    def target_loss(self, state: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """Loss of the next item, and `intent_loss_weight` times that of its intent. See :class:`ItemNet`."""
        loss = super().target_loss(state, item, owner)
        if self.intent_of_next is not None and len(state):
            loss = loss + self.intent_loss_weight * self.intent_loss(state, item)
        return loss

    def intent_loss(self, state: Tensor, item: Tensor) -> Tensor:
        """Binary cross-entropy of every intent but padding, which the next item has or has not.

        Args:
            state: [N, D].
            item: [N] the next items; one without an intent has none of all.

        Returns:
            scalar, the mean over N (C - 1).
        """
        assert self.intent_of_next is not None, "there is no weight on the loss of intents"
        logit = self.intent_of_next(state)
        has = F.one_hot(self.item2intent[item], logit.shape[1]).to(logit.dtype)
        return F.binary_cross_entropy_with_logits(logit[:, 1:], has[:, 1:])
