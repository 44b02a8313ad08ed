"""The contract of a net: what training and ranking need of a model, declared. PyTorch only.

B rows in the batch, L positions, V items, C intents. Id 0 is padding, rows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks


class Ranking(Protocol):
    """The items of a model, ready to be ranked exactly for any query; see recbole_cafe.ranking."""

    @property
    def n_items(self) -> int:
        """V, padding included."""

    def rank(self, query: Query, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip
        """Where each row's target stands among all items."""

    def top(self, query: Query, k: int, excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The k best items of each row and their scores, [B, k] each."""


class Net(nn.Module):
    """A net that learns from histories and scores items.

    Its keyword-only constructor is the list of the model's config keys: `data`, a
    :class:`recbole_cafe.data.facts.DataFacts`, is given; each field of a settings dataclass is a key, and so is any
    other argument (recbole_cafe.config.signature).

    Attributes:
        learns: whether there is something to train. A model of counts is complete when it is built.
        needs_intents: whether it cannot be built without the intents of the items.
        scores_intents: whether the score of a candidate depends on its intent.
    """

    learns: ClassVar[bool] = True
    needs_intents: ClassVar[bool] = False
    scores_intents: bool = False

    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch, scalar."""
        raise NotImplementedError

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """What histories say.

        Args:
            history: [B, L] items.
            user: [B]; nets that do not read it take None.
        """
        raise NotImplementedError

    def scores(self, query: Query, items: Tensor | None = None, intents: Tensor | None = None) -> Tensor:
        """Scores of every item, or of given candidates.

        Args:
            query: from :meth:`query`.
            items: [B, K] candidates; None for all V.
            intents: [B, K] intents to score the candidates with, instead of their own (only `authors100` does).

        Returns:
            [B, V] (column 0 is padding) or [B, K].
        """
        raise NotImplementedError

    def catalogue(self) -> Ranking:
        """The items with the present weights, as they are ranked."""
        raise NotImplementedError
