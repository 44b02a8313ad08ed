"""What the companions' nets share: items scored by an inner product, learned as the next item or as a cloze.

B users in the batch, L positions of which N are real, D hidden size, V items. Id 0 is padding, rows are padded on the
right. A net of these says how positions become states; base.py makes a RecBole model of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.layers.cloze import Cloze
from recbole_cafe.layers.embedding import PaddedEmbedding, cosines
from recbole_cafe.layers.losses import next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.net import Net, parts_of
from recbole_cafe.model.reasons import Reasons
from recbole_cafe.model.settings import SOFTMAX, LossSettings
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query, required


class ItemNet(Net):
    """States of positions to the next item, at every position that has a target.

    A subclass implements :meth:`states`, and :meth:`item_vectors` where an item's vector is not its embedding.

    Args:
        data: what the data know.
        loss: how the next item is learned.
        hidden_size: D.
        initializer_range: standard deviation of the item table at the start.
        n_special: further rows of the item table behind V, such as a mask. They are never scored.
        item_bias: each item has a bias.
        sparse_tables: gradients of the item table hold the rows a batch touched (not with CE, which touches all).
    """

    item_bias: Tensor | None

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: LossSettings,
        hidden_size: int,
        initializer_range: float,
        n_special: int = 0,
        item_bias: bool = False,
        sparse_tables: bool = False,
    ) -> None:
        super().__init__()
        self.n_items, self.loss_settings = data.n_items, loss
        self.item_negatives = data.item_negatives(loss.loss_type)
        sparse = sparse_tables and loss.loss_type != "CE"
        rows = data.n_items + n_special
        self.item_embedding = PaddedEmbedding(rows, hidden_size, std=initializer_range, sparse=sparse)
        self.item_bias = nn.Parameter(torch.zeros(data.n_items)) if item_bias else None

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """What each real position says about the item to predict there.

        Args:
            history: [B, L].
            user: [B], None for nets that do not read it.

        Returns:
            [N, D] and where the N positions are.
        """
        raise NotImplementedError

    def forward(self, history: Tensor, user: Tensor | None = None) -> tuple[Tensor, Packing]:
        """See :meth:`states`."""
        return self.states(history, user)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the next item, whose negatives are none of the user's own items."""
        state, packing = self(batch.history, batch.user)
        return self.packed_loss(state, packing, batch.target, batch.user)

    def packed_loss(self, state: Tensor, packing: Packing, target: Tensor, user: Tensor) -> Tensor:
        """:meth:`target_loss` of the positions that have a target.

        Args:
            state: [N, D].
            packing: where the positions are.
            target: [B, L], 0 where there is none.
            user: [B].
        """
        item, owner = packing.pack(target), user[packing.row]
        has_target = item > 0
        if not has_target.all():
            state, item, owner = state[has_target], item[has_target], owner[has_target]
        return self.target_loss(state, item, owner)

    def target_loss(self, state: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """Loss of states that all have a target; zero, still part of the graph, without states.

        Args:
            state: [N, D].
            item: [N] targets.
            owner: [N] users.
        """
        return next_id_loss(
            state, item, owner, self.item_embedding, loss_type=self.loss_settings.loss_type, n_ids=self.n_items,
            negatives=self.item_negatives, n_negatives=self.loss_settings.n_negatives,
            gbce_t=self.loss_settings.gbce_t, bias=self.item_bias,
        )  # fmt: skip

    # Scores: the inner product of a query and an item's vector --------------------------------------------------------

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """The vector [B, D'] that the history of each row makes."""
        state, packing = self(history, user)
        return Query(self.query_vector(packing.last(state)))

    def encoded(self, history: Tensor) -> dict[str, Tensor]:
        """`vector` [B, D'], which is multiplied with the items' vectors; see :meth:`Net.encoded`."""
        return {"vector": required(self.query(history).vector, "vector")}

    def query_vector(self, state: Tensor) -> Tensor:
        """[B, D] to [B, D']: what :meth:`item_vectors` are multiplied with. A 1 picks up the items' bias."""
        return state if self.item_bias is None else torch.cat((state, torch.ones_like(state[:, :1])), dim=1)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """[..., D'] for given items, [V, D'] for all: the vector and, with `item_bias`, the bias."""
        if items is None:
            vectors, bias = self.item_embedding.weight[: self.n_items], self.item_bias
        else:
            vectors = self.item_embedding(items)
            bias = None if self.item_bias is None else self.item_bias[items]
        return vectors if bias is None else torch.cat((vectors, bias[..., None]), dim=-1)

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The inner products, [B, V] (column 0 is padding) or [B, K]; see :meth:`Net.scores`."""
        vector = required(query.vector, "vector")
        if items is None:
            return vector @ self.item_vectors().T
        return torch.einsum("bd,bkd->bk", vector, self.item_vectors(items))

    def reasons(self, history: Tensor, query: Query, row: Tensor, item: Tensor) -> Reasons:  # noqa: ARG002
        """The inner product alone; see :meth:`Net.reasons`."""
        return Reasons(item_relevance=self.catalogue().scores_of(query, row, item))

    def similar(self, item: int) -> tuple[Tensor, Tensor]:
        """The cosine of the items' vectors; see :meth:`Net.similar`."""
        return cosines(self.item_embedding.weight[: self.n_items], item)

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> Catalogue:
        """The items as :mod:`recbole_cafe.ranking.catalogue` ranks them, with the present weights: one group."""
        if ranked is None:
            return Catalogue.of_items(self.item_vectors().detach())
        table = ranked.get("vectors", self.item_embedding.weight[: self.n_items].detach())
        return Catalogue.of_items(table, parts_of(ranked))

    def ranked(self) -> dict[str, Tensor]:
        """The parts of the catalogue, and the vectors of the items where they are not just the rows of their table."""
        catalogue = self.catalogue()
        is_table = catalogue.table.data_ptr() == self.item_embedding.weight.data_ptr()
        return catalogue.parts() | ({} if is_table else {"vectors": catalogue.table})


class HistoryNet(ItemNet):
    """A history makes one vector and no states of positions: it learns the item after its last one alone.

    What such a net computes may see the whole row, so that nothing but prefix rows is sound to train it on
    (``layouts = ("last",)``).
    """

    def vector(self, history: Tensor, user: Tensor | None) -> Tensor:
        """What the whole row says.

        Args:
            history: [B, L].
            user: [B], None for nets that do not read it.

        Returns:
            [B, D].
        """
        raise NotImplementedError

    def forward(  # type: ignore[override]  # one vector, where other nets of items have states of positions
        self, history: Tensor, user: Tensor | None = None
    ) -> Tensor:
        """See :meth:`vector`."""
        return self.vector(history, user)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the item after the last position. See :meth:`ItemNet.loss`."""
        last = (batch.history > 0).sum(1) - 1
        item = batch.target[torch.arange(len(last), device=last.device), last]
        has_target = item > 0
        vector = self(batch.history[has_target], batch.user[has_target])
        return self.target_loss(vector, item[has_target], batch.user[has_target])

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """See :class:`ItemNet`."""
        return Query(self.query_vector(self(history, user)))


class MaskedIntents(nn.Module):
    """Vectors of the items' intents for a cloze: the intent of a hidden item is hidden too.

    Were it visible, training would learn from the very thing that is unknown at inference: what is wanted next.

    Args:
        data: the intents. The table has C + 2 rows, the last for hidden items; the items' mask has id V.
        hidden_size: D.
        initializer_range: see :class:`ItemNet`.
    """

    item2intent: Tensor

    def __init__(self, *, data: DataFacts, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        item2intent, n_intents = data.item2intent, data.n_intents
        of_mask = torch.tensor([n_intents + 1], device=item2intent.device)
        self.register_buffer("item2intent", torch.cat((item2intent, of_mask)), persistent=False)
        self.embedding = PaddedEmbedding(n_intents + 2, hidden_size, std=initializer_range)

    def forward(self, items: Tensor) -> Tensor:
        """items: [N] in 0..V. Returns [N, D]."""
        vectors: Tensor = self.embedding(self.item2intent[items])
        return vectors


class ClozeNet(ItemNet):
    """States of hidden positions to the hidden items, read from both sides (recbole_cafe.layers.cloze).

    Args:
        data: what the data know. The item table has one more row, the mask, with id V.
        mask_ratio: share of a row's items that is hidden in training. None: learn the next item instead, as
            :class:`ItemNet` does; the subclass then has to be causal.
        hidden_size: D.
        initializer_range: standard deviation of the item table at the start.
        loss: how the item is learned.
        item_bias: each item has a bias.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        mask_ratio: float | None,
        hidden_size: int,
        initializer_range: float,
        loss: LossSettings = SOFTMAX,
        item_bias: bool = True,
    ) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range, n_special=1,
            item_bias=item_bias,
        )  # fmt: skip
        self.cloze = None
        if mask_ratio is not None:
            self.cloze = Cloze(mask_id=data.n_items, mask_ratio=mask_ratio, max_seq_length=data.max_seq_length)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of the hidden items of rows that end with the item after the history. See :meth:`ItemNet.loss`."""
        return self.losses(batch)[0][0]

    def losses(self, batch: Batch) -> list[tuple[Tensor, int]]:
        """See :meth:`Net.losses`."""
        if self.cloze is None:
            return [(super().loss(batch), int((batch.target > 0).sum()))]
        rows, answer = self.cloze.hide(self.cloze.rows(batch.history, batch.target))
        state, packing = self(rows, batch.user)
        return [(self.packed_loss(state, packing, answer, batch.user), int((answer > 0).sum()))]

    def target_loss(self, state: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """See :class:`ItemNet`; only states that have a target are transformed."""
        return super().target_loss(self.transform(state), item, owner)

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """The vector at a mask put after the history; see :meth:`ItemNet.query`."""
        state, packing = self(history if self.cloze is None else self.cloze.question(history), user)
        return Query(self.query_vector(self.transform(packing.last(state))))

    def transform(self, state: Tensor) -> Tensor:
        """What stands between a state and the scores; nothing here. [N, D] to [N, D]."""
        return state
