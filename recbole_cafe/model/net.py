"""The contract of a net: what training and ranking need of a model, declared. PyTorch only.

B rows in the batch, L positions, V items, C intents. Id 0 is padding, rows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from recbole_cafe.data.batch import Batch
from recbole_cafe.errors import ConfigError
from recbole_cafe.model.counts import Evidence, Lookup, TransitionCounts, item_evidence
from recbole_cafe.model.reasons import Reasons
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks
from recbole_cafe.ranking.spread import Spread


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

    def scores_of(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """The scores that decide of items in rows of the query. row, item: [P]. Returns [P] float64."""

    def parts(self) -> dict[str, Tensor]:
        """What has been made of the weights, to be stored beside them and given back."""


@dataclass
class Reading:
    """What a batch of histories says whatever the settings of the ranking are, and what was made of it last.

    Attributes:
        newest: [B, L] the histories, newest item first.
    """

    newest: Tensor

    def __post_init__(self) -> None:
        self._kept: dict[str, tuple[tuple[float, ...], Any]] = {}

    def kept(self, name: str, settings: tuple[float, ...], make: Callable[[], Any]) -> Any:
        """What was made under these settings, if that is what was made last; else it is made.

        Args:
            name: of what is made.
            settings: that it depends on.
            make: how.
        """
        if name not in self._kept or self._kept[name][0] != settings:
            self._kept.pop(name, None)  # not two at a time
            self._kept[name] = (settings, make())
        return self._kept[name][1]

    def evidence(self, table: TransitionCounts | None, lookup: Lookup, n_items: int) -> Evidence:
        """The evidence of the histories; of the settings it depends on the decay alone."""
        made: Evidence = self.kept(
            "evidence", (lookup.decay,), lambda: item_evidence(table, self.newest, lookup, n_items=n_items)
        )
        return made


def parts_of(ranked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the catalogue among what :meth:`Net.ranked` gave, which may hold the items' vectors, too."""
    return {name: part for name, part in ranked.items() if name != "vectors"}


class Net(nn.Module):
    """A net that learns from histories and scores items.

    Its keyword-only constructor is the list of the model's config keys: `data`, a
    :class:`recbole_cafe.data.facts.DataFacts`, is given; each field of a settings dataclass is a key, and so is any
    other argument (recbole_cafe.config.signature).

    Attributes:
        learns: whether there is something to train. A model of counts is complete when it is built.
        needs_intents: whether it cannot be built without the intents of the items.
        layouts: values of `train_layout` it can be trained under.
        counts_transitions: whether it counts what follows what, and so can take in new interactions once it is trained.
        gives_probabilities: whether the scores of all items sum to one.
        scores_intents: whether the score of a candidate depends on its intent.
        resolved: settings that were left to the data (``auto``) -> what was chosen.
        not_shared: why several processes, which share the rows of a step, train it to other weights than one; empty if
            they do not.
        shards: whether several processes can hold its item table together, each some rows.
        not_served: why it cannot be asked outside of training, such as about users it has not seen; empty if it can.
    """

    learns: ClassVar[bool] = True
    needs_intents: ClassVar[bool] = False
    layouts: ClassVar[tuple[str, ...]] = ("all", "last")
    gives_probabilities: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    counts_transitions: ClassVar[bool] = False
    scores_intents: bool = False
    resolved: Mapping[str, Any] = MappingProxyType({})
    not_shared: ClassVar[str] = ""
    not_served: str = ""

    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch, scalar."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> list[tuple[Tensor, int]]:
        """The means that :meth:`loss` is the sum of, and of how many terms each is one.

        Rows of one step may lie in several processes, where each has its own means.
        """
        return [(self.loss(batch), int((batch.target > 0).sum()))]

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:
        """What histories say.

        Args:
            history: [B, L] items.
            user: [B]; nets that do not read it take None.
        """
        raise NotImplementedError

    # Settings of the ranking ------------------------------------------------------------------------------------------

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Settings of the ranking that touch no weight, and values of each that are worth trying, in order.

        They can be chosen after the training (recbole_cafe.train.ranking_settings). A net that has some has
        :meth:`read`, :meth:`asked` and :meth:`spread`.
        """
        return {}

    def read(self, history: Tensor, user: Tensor | None = None) -> Reading:
        """What histories say whatever the settings of :meth:`tried` are. Arguments as :meth:`query`."""
        raise NotImplementedError

    def asked(self, reading: Any) -> Query:
        """What :meth:`query` gives, with the present settings.

        Args:
            reading: from :meth:`read`. It may be asked again, after other settings.
        """
        raise NotImplementedError

    def spread(self, reading: Any) -> Spread:
        """What :meth:`scores` gives for all items, with the present settings, in float32 and at once.

        Args:
            reading: as :meth:`asked`.
        """
        raise NotImplementedError

    def rank_with(self, settings: Mapping[str, float]) -> None:
        """Rank with other settings from now on.

        Args:
            settings: keys of :meth:`tried` -> value.

        Raises:
            ConfigError: a value outside of its range.
        """
        for name, held in vars(self).items():
            if is_dataclass(held) and not isinstance(held, type):
                own = {field.name for field in fields(held)} & settings.keys()
                if own:
                    setattr(self, name, replace(held, **{key: settings[key] for key in own}))

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

    def catalogue(self, ranked: Mapping[str, Tensor] | None = None) -> Ranking:
        """The items with the present weights, as they are ranked.

        Args:
            ranked: from :meth:`ranked`, of the same weights; None to make it anew.
        """
        raise NotImplementedError

    # Outside of training ----------------------------------------------------------------------------------------------

    def ranked(self) -> dict[str, Tensor]:
        """What :meth:`catalogue` makes of the weights and a bundle stores, so that it need not be made again.

        These are the catalogue's parts and, where it does not read the net's own table, the items' `vectors`.
        """
        return self.catalogue().parts()

    def encoded(self, history: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """What the network alone says of histories: the part of :meth:`query` that can be run by another engine.

        Args:
            history: [B, L] items, at least one in each row.

        Returns:
            name -> [B, ...].

        Raises:
            ConfigError: the model has no network.
        """
        raise ConfigError(f"{type(self).__name__} has no network that encodes a history")

    def as_given(self, score: Tensor) -> Tensor:
        """A score that a catalogue ranks by, float64, as the user gets it: a probability where the net has them."""
        return score

    def intent_probabilities(self, history: Tensor) -> Tensor:  # noqa: ARG002
        """What comes next, coarsely.

        Args:
            history: [B, L] items.

        Returns:
            [B, C + 1], 0 for padding.

        Raises:
            ConfigError: the model does not predict intents.
        """
        raise ConfigError(f"{type(self).__name__} does not tell which intent comes next")

    def reasons(self, history: Tensor, query: Query, row: Tensor, item: Tensor) -> Reasons:  # noqa: ARG002
        """What the scores of some items are made of.

        Args:
            history: [B, L] items.
            query: what they say.
            row: [P] rows of them.
            item: [P]; a pair of row and item at most once.

        Raises:
            ConfigError: the model does not say.
        """
        raise ConfigError(f"{type(self).__name__} gives no reasons")

    def similar(self, item: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """How like an item others are, at least 0 for those that are like it at all.

        Args:
            item: its id.

        Returns:
            [P] items, each once, and [P] their similarity.

        Raises:
            ConfigError: the model does not say.
        """
        raise ConfigError(f"{type(self).__name__} does not say which items are similar")

    def check_loaded(self) -> None:
        """Raise unless what was read from a file can be right.

        Raises:
            ValueError: numbers that would lead out of a table.
        """
        for part in self.modules():
            if isinstance(part, TransitionCounts):
                part.check()
