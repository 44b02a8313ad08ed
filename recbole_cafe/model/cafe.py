"""CaFe: Coarse-to-Fine Sparse Sequential Recommendation.

Li, Zhao, Li, Chan, Faloutsos, Karypis, Pantel, McAuley: "Coarse-to-Fine Sparse Sequential Recommendation",
SIGIR 2022, arXiv:2204.01839.
Authors' code: github.com/JiachengLi1995/CAFE (read for comparison; nothing is taken from it).

Most items are rare, and little is learned of what follows them; their intents (categories, sellers) are frequent. So
one encoder reads the intents of a history, coarse and dense, another one its items, fine and sparse, and an item is
scored by both: is its intent what comes next, and is it the item?

    R^c = encoder of the intents of h: plain causal self-attention
    R^v = encoder of the items of h, in whose local heads query i weighs key j by
          softmax_j(q_i . k_j / sqrt(D) + ln theta_ij)                                                              (5)
          ln theta_ij = w . k_j + w . b_{i-j} + const, learned: what is near may count more                         (6)
    R = R^v + R^c                                                                                                   (7)
    r(v) = R . E_v,   r(c) = R^c . E^c_c                                                                            (8)
    loss: binary cross-entropy of r(v) of the next item and r(c) of the next intent, against drawn negatives        (9)
    score(v) = sigmoid(r(v)) sigmoid(r(c_v))                                                                        (10)

h is a history, v an item, c_v its intent, E and E^c the tables of items and intents. B users in the batch, L positions
of which N are real, D hidden size, V items, C intents. Id 0 is padding, rows are padded on the right. Of Eq. 6 the
terms that cancel in the softmax are left out (recbole_cafe.layers.local).

Where the paper and its code differ, the paper is the default and the code an option: `joint` (Eq. 10's product or a
sum of logits), `theta_source` (Eq. 6 from query and key or from value projections), `attn_scale` (sqrt(D) or
sqrt(D / heads)), `residual` (x or LN(x)). The authors' script passes no local heads at all: `n_local_heads: 0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.embedding import PaddedEmbedding, cosines, init_transformer
from recbole_cafe.layers.encoder import SequenceEncoder
from recbole_cafe.layers.losses import next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.scoring import JOINTS, intent_terms, joint_score
from recbole_cafe.layers.sharded import ShardedEmbedding, item_table
from recbole_cafe.model.net import Net, Ranking
from recbole_cafe.model.reasons import Reasons
from recbole_cafe.model.settings import EncoderSettings, LocalSettings, LossSettings
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query, required
from recbole_cafe.ranking.sharded import ShardedCatalogue


class Towers(Net):
    """An encoder of the items and one of their intents.

    Args:
        data: what the data know. The intent table has C + 1 rows, the last for items without an intent.
        encoder: blocks of both towers.
        local: the re-weighting of the item tower's attention.
        sparse: gradients of the item table hold the rows a batch touched.
        intent_tower: whether there is a tower of the intents.
    """

    needs_intents = True
    item2intent: Tensor
    intent_embedding: PaddedEmbedding | None
    intent_encoder: SequenceEncoder | None

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        local: LocalSettings,
        sparse: bool,
        intent_tower: bool = True,
    ) -> None:
        super().__init__()
        self.n_intents = data.n_intents
        self.n_heads, self.n_local_heads = encoder.n_heads, local.n_local_heads
        self.register_buffer("item2intent", data.item2intent, persistent=False)
        scale = {"attn_scale": local.attn_scale}
        theta = {"n_local_heads": local.n_local_heads, "local_options": {"source": local.theta_source}}
        make = partial(encoder.make, data.max_seq_length, residual=local.residual)
        size, std = encoder.hidden_size, encoder.initializer_range
        self.item_embedding = item_table(data.n_items, size, std=std, sparse=sparse)
        self.item_encoder = make(attention={**scale, **theta})
        self.intent_embedding = self.intent_encoder = None
        if intent_tower:
            self.intent_embedding = PaddedEmbedding(data.n_intents + 1, size, std=std)
            self.intent_encoder = make(attention=scale)  # theta = 1: plain SASRec
        init_transformer(self, std)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor | None, Packing]:
        """States of a batch of histories.

        Args:
            history: [B, L].

        Returns:
            the fused states R and the intent states R^c (None without their tower) of the real positions, [N, D] each,
            and where these are.
        """
        packing = Packing(history > 0)
        items = packing.pack(history)  # [N]
        fine = self.item_encoder(self.item_embedding(items), packing)  # [N, D] items: fine, sparse
        if self.intent_encoder is None or self.intent_embedding is None:
            return fine, None, packing
        intents = self.item2intent[items]  # [N]
        coarse = self.intent_encoder(self.intent_embedding(intents), packing)  # [N, D] intents: coarse, dense
        return fine + coarse, coarse, packing  # Eq. 7

    @torch.no_grad()
    def first_attention(self, history: Tensor) -> tuple[Packing, dict[str, list[Tensor]]]:
        """What the first blocks attend to, as in Figure 2 of the paper.

        Args:
            history: [B, L].

        Returns:
            where the real positions are, and "items, global heads", "items, local heads" and "intents", those that
            there are -> weights as :meth:`recbole_cafe.layers.attention.SelfAttention.weights` gives them.
        """
        packing = Packing(history > 0)
        items = packing.pack(history)
        weights = self.item_encoder.first_weights(self.item_embedding(items), packing)
        split = self.n_heads - self.n_local_heads  # the local heads are the last ones
        kinds = {}
        if split:
            kinds["items, global heads"] = [group[:, :split] for group in weights]
        if self.n_local_heads:
            kinds["items, local heads"] = [group[:, split:] for group in weights]
        if self.intent_encoder is not None and self.intent_embedding is not None:
            embedded = self.intent_embedding(self.item2intent[items])
            kinds["intents"] = self.intent_encoder.first_weights(embedded, packing)
        return packing, kinds

    def similar(self, item: int) -> tuple[Tensor, Tensor]:
        """The cosine of the items' vectors; see :meth:`Net.similar`."""
        return cosines(self.item_embedding.weight, item)


class CaFeNet(Towers):
    """The two towers and their joint.

    Args:
        data: what the data know.
        encoder: blocks of both towers.
        local: the re-weighting of the item tower's attention.
        loss: how the next item and the next intent are learned.
        intent_tower: whether there is a tower of the intents.
        intent_loss: whether it is trained on the next intent, too.
        joint: how the two relevances become one score, see :mod:`recbole_cafe.layers.scoring`.
        sparse_tables: gradients of the item table hold the rows a batch touched.

    Raises:
        ConfigError: an unknown joint, or no intent tower where one is to be trained or to score.
    """

    shards = True

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        local: LocalSettings,
        loss: LossSettings,
        intent_tower: bool,
        intent_loss: bool,
        joint: str,
        sparse_tables: bool,
    ) -> None:
        if joint not in JOINTS:
            raise ConfigError(f"joint={joint!r} is not one of {', '.join(JOINTS)}")
        if not intent_tower and (intent_loss or joint != "item"):
            raise ConfigError(
                f"intent_tower=False needs intent_loss=False and joint='item' (there is no intent relevance to train "
                f"or to score with), got intent_loss={intent_loss} and joint={joint!r}"
            )
        sparse = sparse_tables and loss.loss_type != "CE"  # CE touches every row anyway
        super().__init__(data=data, encoder=encoder, local=local, sparse=sparse, intent_tower=intent_tower)
        self.joint, self.loss_settings, self.intent_loss = joint, loss, intent_loss
        self.scores_intents = joint != "item"
        self.item_negatives = data.item_negatives(loss.loss_type)
        self.intent_negatives = data.intent_negatives(loss.loss_type) if intent_loss else None

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 9, over every position that has a target. A user's own items and intents are no negatives.

        Returns:
            scalar: the item tower's loss plus, with `intent_loss`, the intent tower's.
        """
        first, *others = (mean for mean, _ in self.losses(batch))
        return sum(others, start=first)

    def losses(self, batch: Batch) -> list[tuple[Tensor, int]]:
        """See :meth:`Net.losses`."""
        fused, coarse, packing = self(batch.history)
        item, owner = packing.pack(batch.target), batch.user[packing.row]  # [N]
        has_target = item > 0
        losses = [self._tower_loss(fused, item, owner, has_target, self.item_embedding, self.item_negatives)]
        if self.intent_loss:
            assert coarse is not None and self.intent_embedding is not None  # the constructor has seen to it
            intent = self.item2intent[item]
            has_intent = has_target & (intent < self.n_intents)  # an item without intent teaches the tower nothing
            losses.append(
                self._tower_loss(coarse, intent, owner, has_intent, self.intent_embedding, self.intent_negatives)
            )
        return losses

    def _tower_loss(self, state: Tensor, target: Tensor, owner: Tensor, counts: Tensor, table: PaddedEmbedding,
                    negatives: nn.Module | None) -> tuple[Tensor, int]:  # fmt: skip
        """A mean and the number of its terms.

        state: [N, D]; target, owner, counts: [N]. Relevance is the inner product with the table's row (Eq. 8).
        """
        if not counts.all():
            state, target, owner = state[counts], target[counts], owner[counts]
        n_ids = self.n_intents if table is self.intent_embedding else None  # "no intent" is no class
        loss = next_id_loss(
            state, target, owner, table, loss_type=self.loss_settings.loss_type, n_ids=n_ids, negatives=negatives,
            n_negatives=self.loss_settings.n_negatives, gbce_t=self.loss_settings.gbce_t,
        )  # fmt: skip
        return loss, len(state)

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:  # noqa: ARG002
        """What the last position says: its fused state [B, D] and the intent terms [B, C + 1] (None for ``item``)."""
        fused, coarse, packing = self(history)
        state = packing.last(fused)
        if self.joint == "item":
            return Query(state)
        assert coarse is not None and self.intent_embedding is not None  # the constructor has seen to it
        return Query(state, intent_terms(packing.last(coarse) @ self.intent_embedding.weight.T, self.joint))

    def encoded(self, history: Tensor) -> dict[str, Tensor]:
        """`vector` [B, D] and, but for ``item``, `terms` [B, C + 1] of the intents; see :meth:`Net.encoded`."""
        query = self.query(history)
        encoded = {"vector": required(query.vector, "vector")}
        return encoded if query.terms is None else encoded | {"terms": query.terms}

    def intent_probabilities(self, history: Tensor) -> Tensor:
        """What comes next, coarsely: a softmax of the intents' relevance.

        With ``loss_type="CE"`` the tower learns just that; other losses order the intents and promise no probabilities.

        Args:
            history: [B, L].

        Returns:
            [B, C + 1], 0 for padding and for "no intent".

        Raises:
            ConfigError: the model has no intent tower.
        """
        _, coarse, packing = self(history)
        if coarse is None or self.intent_embedding is None:
            raise ConfigError("intent_tower=False: no tower tells which intent comes next")
        logits = packing.last(coarse) @ self.intent_embedding.weight.T
        logits[:, [0, self.n_intents]] = -torch.inf
        probabilities: Tensor = logits.softmax(1)
        return probabilities

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:
        """The joint score (Eq. 10) of every item, [B, V], or of given candidates, [B, K]; see :meth:`Net.scores`."""
        state, terms = required(query.vector, "vector"), query.terms
        if items is None:
            logit = state @ self.item_embedding.weight.T
            intent_term = None if terms is None else terms[:, self.item2intent]
        else:
            logit = torch.einsum("bd,bkd->bk", state, self.item_embedding(items))
            own = self.item2intent[items] if intents is None else intents
            intent_term = None if terms is None else terms.gather(1, own)
        return joint_score(logit, intent_term, self.joint)

    def reasons(self, history: Tensor, query: Query, row: Tensor, item: Tensor) -> Reasons:  # noqa: ARG002
        """Both halves of the joint score, which add up to it (Eq. 10 in logarithms); see :meth:`Net.reasons`."""
        state, table = required(query.vector, "vector"), self.item_embedding.weight
        logit = (state[row].double() * table[item].double()).sum(1)
        if query.terms is None:
            return Reasons(item_relevance=logit)
        term = query.terms[row, self.item2intent[item]].double()
        return Reasons(item_relevance=joint_score(logit, torch.zeros_like(term), self.joint), intent_relevance=term)

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> Ranking:
        """The items as :mod:`recbole_cafe.ranking.catalogue` ranks them, with the present weights."""
        table = self.item_embedding.weight.detach()
        if not isinstance(self.item_embedding, ShardedEmbedding):
            return Catalogue(table, self.item2intent, self.joint, self.n_intents, prepared=ranked)
        shard, n_items = self.item_embedding.shard, self.item_embedding.n_whole
        intents = self.item2intent[shard.rows(n_items).to(table.device)]
        return ShardedCatalogue(Catalogue(table, intents, self.joint, self.n_intents), shard, n_items)
