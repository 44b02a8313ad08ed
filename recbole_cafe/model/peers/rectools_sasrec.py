"""RecTools' SASRec (`rectools[torch]`, MTS), a peer to compare with: their network, their losses, our data and loop.

RecTools implements SASRec (Kang, McAuley, ICDM 2018) with softmax, BCE, gBCE and sampled softmax, and adds vectors of
categories to those of items (https://rectools.readthedocs.io). Everything that learns is RecTools' own code, made by
its public `SASRecModel`; the histories, the optimizer, early stopping, candidates and ranking are those of all other
models here, so that what differs is the model. `pip install "recbole-cafe[peers]"`.

RecTools knows the items of the train split only. The others are ranked last, all alike.

B rows, L positions, D hidden size, V items. RecTools pads rows on the left, and so their newest item stands last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import missing_package
from recbole_cafe.model.net import Net
from recbole_cafe.model.settings import LossSettings
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query, required

LOSSES = {"BCE": "BCE", "gBCE": "gBCE", "SSM": "sampled_softmax", "CE": "softmax"}  # our names: theirs
UNKNOWN = -1e6  # logit of an item that RecTools does not know


@dataclass(frozen=True, kw_only=True)
class RecToolsLoss(LossSettings):
    """RecTools' losses under our names."""

    accepted = tuple(LOSSES)


class RecToolsSASRecNet(Net):
    """A `rectools.models.SASRecModel` behind the contract of :class:`recbole_cafe.model.net.Net`.

    Args:
        data: what the data know.
        loss: RecTools' loss.
        hidden_size: D.
        n_layers: number of blocks.
        n_heads: heads of each attention.
        dropout_prob: dropout.
        use_intents: whether items have a vector of their category, too.

    Raises:
        MachineError: RecTools is not installed.
    """

    not_served = "its weights are those of a RecTools model, which needs RecTools and its data"

    their_id: Tensor
    needs_intents = True
    not_shared = "its library draws dropout and negatives from the process's own random numbers"

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: RecToolsLoss,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        dropout_prob: float,
        use_intents: bool,
    ) -> None:
        super().__init__()
        self.max_seq_length = data.max_seq_length
        item2intent, n_intents = data.item2intent, data.n_intents
        try:
            from rectools.models import SASRecModel
            from rectools.models.nn.item_net import CatFeaturesItemNet, IdEmbeddingsItemNet
        except ImportError as error:
            raise missing_package(error, "peers") from error
        blocks = (IdEmbeddingsItemNet, CatFeaturesItemNet) if use_intents else (IdEmbeddingsItemNet,)
        model = SASRecModel(
            n_factors=hidden_size, n_blocks=n_layers, n_heads=n_heads, dropout_rate=dropout_prob,
            session_max_len=data.max_seq_length, loss=LOSSES[loss.loss_type], n_negatives=loss.n_negatives,
            gbce_t=loss.gbce_t, epochs=0,
            item_net_block_types=blocks,
        )  # fmt: skip
        items = torch.unique(data.train_pairs[1].cpu())
        model.fit(_items_as_dataset(items, item2intent.cpu() if use_intents else None, n_intents, data.max_seq_length))
        self.theirs = model.lightning_model
        self.theirs.on_train_start()  # draws the weights
        preparator = self.theirs.data_preparator
        self.first_id, self.end_id = preparator.n_item_extra_tokens, preparator.item_id_map.size
        of = torch.zeros(data.n_items, dtype=torch.long)
        of[items] = torch.as_tensor(preparator.item_id_map.convert_to_internal(items.numpy()), dtype=torch.long)
        self.register_buffer("their_id", of, persistent=False)

    def forward(self, history: Tensor) -> Tensor:
        """States of the positions. history: [B, L]. Returns [B, L, D], rows padded on the left."""
        backbone = self.theirs.torch_model
        state: Tensor = backbone.encode_sessions({"x": self._on_the_right(history, history)}, self._vectors())
        return state

    def loss(self, batch: Batch) -> Tensor:
        """RecTools' loss of the next item."""
        x = self._on_the_right(batch.history, batch.history)
        y = self._on_the_right(batch.history, batch.target)
        if not (y > 0).any():
            return self._vectors().sum() * 0.0
        their_batch = {"x": x, "y": y, "yw": (y > 0).float()}
        sampler = self.theirs.data_preparator.negative_sampler
        if sampler is not None:
            drawn = sampler.get_negatives(their_batch, lowest_id=self.first_id, highest_id=self.end_id)
            their_batch["negatives"] = drawn.to(x.device)
        loss: Tensor = self.theirs.loss_calculator(self.theirs.get_batch_logits(their_batch), y, their_batch["yw"])
        return loss

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:  # noqa: ARG002
        """The vector that the history of each row makes, [B, D + 1]."""
        state = self(history)[:, -1]
        return Query(torch.cat((state, torch.ones_like(state[:, :1])), 1))

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Scores of every item, [B, V] (column 0 is padding), or of candidates [B, K]."""
        vector, vectors = required(query.vector, "vector"), self.item_vectors()
        if items is None:
            return vector @ vectors.T
        return torch.einsum("bd,bkd->bk", vector, vectors[items])

    def item_vectors(self) -> Tensor:
        """[V, D + 1]: the last column tells the items RecTools does not know."""
        unknown = torch.where(self.their_id > 0, 0.0, UNKNOWN)
        vectors = self._vectors()
        return torch.cat((vectors[self.their_id], unknown.to(vectors.dtype)[:, None]), 1)

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> Catalogue:  # noqa: ARG002
        """The items as :mod:`recbole_cafe.ranking.catalogue` ranks them, with the present weights.

        Two groups: beside the unknown ones' logits every product of a known item would count as doubtful and be summed
        again in float64.
        """
        group = torch.where(self.their_id > 0, 1, 2)
        group[0] = 0
        return Catalogue(self.item_vectors().detach(), group, "item", 3)

    def _vectors(self) -> Tensor:
        vectors: Tensor = self.theirs.torch_model.item_model.get_all_embeddings()
        return vectors

    def _on_the_right(self, history: Tensor, of: Tensor) -> Tensor:
        """`of` [B, up to L], our ids beside history, as theirs and padded on the left to L.

        RecTools' attention depends on that: it reads padding too. An unknown item becomes padding. Returns [B, L].
        """
        length = (history > 0).sum(1, keepdim=True)
        at = torch.arange(self.max_seq_length, device=of.device) - (self.max_seq_length - length)
        return self.their_id[of.gather(1, at.clamp(min=0))].where(at >= 0, 0)


def _items_as_dataset(items: Tensor, item2intent: Tensor | None, n_intents: int, max_seq_length: int) -> Any:
    """A RecTools dataset in which each item occurs, so that its model knows them all and their categories.

    RecTools takes its vocabulary from what is left of the sessions after truncation. items: [n] distinct ids.
    """
    import pandas as pd
    from rectools.dataset import Dataset

    size = max(2, max_seq_length)
    items = torch.cat((items, items[: -len(items) % size]))  # the last session is filled up: one of one item is dropped
    interactions = pd.DataFrame({
        "user_id": torch.arange(len(items)).numpy() // size, "item_id": items.numpy(), "weight": 1.0,
        "datetime": pd.Timestamp("2000-01-01"),
    })  # fmt: skip
    if item2intent is None:
        return Dataset.construct(interactions)
    known = torch.unique(items)
    known = known[item2intent[known] < n_intents]
    features = pd.DataFrame({"id": known.numpy(), "value": item2intent[known].numpy(), "feature": "intent"})
    return Dataset.construct(interactions, item_features_df=features, cat_item_features=["intent"])
