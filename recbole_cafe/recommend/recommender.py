"""Ask a trained model: lists for histories, similar items, the intents that come next."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recbole_cafe.errors import ConfigError, DataError, did_you_mean
from recbole_cafe.ranking.factored import FactoredCatalogue
from recbole_cafe.ranking.query import Query, ScoreOverrides
from recbole_cafe.ranking.ranks import best
from recbole_cafe.recommend.bundle import Bundle, read
from recbole_cafe.recommend.calibration import tempered
from recbole_cafe.recommend.explain import REASON, explained
from recbole_cafe.recommend.histories import Histories, Lookup, read_histories, tokens_of
from recbole_cafe.recommend.update import with_interactions, with_items

BATCH = 512  # histories at a time
PAIRS = 2**18  # pairs of a history and an item scored in one go
SHARE = 8  # of a catalogue's 1 / SHARE looked at best first; then every allowed item is scored

_logger = logging.getLogger("recbole_cafe.recommend")


class Recommender:
    """A model that can be asked about anybody's history. It changes nothing when it is asked, so threads may share it.

    Args:
        bundle: from :func:`recbole_cafe.recommend.bundle.read`, or of a model in memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.net, self.items = bundle, bundle.net, bundle.items
        self.lookup = Lookup(bundle.items)
        self.catalogue = bundle.catalogue

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Recommender:
        """Open a bundle.

        Args:
            folder: what `recbole-cafe export` wrote.

        Raises:
            BundleError: see :func:`recbole_cafe.recommend.bundle.read`.
        """
        return cls(read(folder))

    @property
    def score_name(self) -> str:
        """``probability`` if what the model says of all items sums to one, else ``score``."""
        return "probability" if self.net.gives_probabilities else "score"

    # Lists ------------------------------------------------------------------------------------------------------------

    def recommend(
        self, histories: Any, k: int = 10, *, exclude_seen: bool = True, exclude: Iterable[Any] | None = None,
        allow: Iterable[Any] | None = None, per_intent: int | None = None, intents: Iterable[Any] | None = None,
        reasons: bool = False,
    ) -> pa.Table:  # fmt: skip
        """The k best items after each history, best first; equal scores by the items' order in the catalogue.

        A history without a known item gets what is popular: items in the order of how often they were taken in
        training, one more than that being their share.

        Args:
            histories: a list of lists of item tokens, oldest first; or a table (pandas, Polars, Arrow, mapping of
                columns) of user, item and, unless rows are in order, time. Unknown items are left out, counted and
                reported.
            k: how many.
            exclude_seen: leave out the items of the history.
            exclude: further items to leave out, of every list.
            allow: the only items that may be in a list.
            per_intent: at most so many items of one intent in a list.
            intents: the only intents whose items may be in a list.
            reasons: add the column `reason`: see :data:`recbole_cafe.recommend.explain.REASON`.

        Returns:
            a table, rows in the order of histories, then rank: user (the token, or the place in the list), rank from
            1, item, title (where the bundle has titles), probability or score (see `score_name`), intent (null without
            one). There are fewer than k rows where fewer items are left.

        Raises:
            DataError: histories of another form, or a token of `exclude`, `allow` or `intents` that is unknown.
            ConfigError: k or per_intent below 1.
        """
        given = read_histories(histories, self.lookup)
        self._report(given)
        return self.lists(
            given, k, exclude_seen=exclude_seen, exclude=exclude, allow=allow, per_intent=per_intent, intents=intents,
            reasons=reasons,
        )  # fmt: skip

    @torch.inference_mode()
    def lists(
        self, given: Histories, k: int = 10, *, exclude_seen: bool = True, exclude: Iterable[Any] | None = None,
        allow: Iterable[Any] | None = None, per_intent: int | None = None, intents: Iterable[Any] | None = None,
        reasons: bool = False,
    ) -> pa.Table:  # fmt: skip
        """:meth:`recommend` for histories that have been read; what is unknown in them is not reported again."""
        for name, number in (("k", k), ("per_intent", per_intent)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise ConfigError(f"{name}={number!r}, expected a whole number from 1 on")
        allowed = self._allowed(allow, intents)
        gone = torch.from_numpy(np.unique(self._known(exclude, "exclude"))) if exclude is not None else None
        parts = []
        for first in range(0, len(given), BATCH):
            part = given.rows(slice(first, min(first + BATCH, len(given))))
            parts.append(self._lists(part, k, exclude_seen, gone, allowed, per_intent, reasons))
        return pa.concat_tables(parts) if parts else self._table(given, *_nothing(), [] if reasons else None)

    def _lists(self, given: Histories, k: int, exclude_seen: bool, gone: Tensor | None, allowed: Tensor | None,
               per_intent: int | None, reasons: bool) -> pa.Table:  # fmt: skip
        """The lists of a batch."""
        B, k = len(given), min(k, max(1, self.items.n - 1))
        items = torch.zeros(B, k, dtype=torch.long)
        scores = torch.full((B, k), -torch.inf, dtype=torch.float64)
        said: list[list[Any]] = [[] for _ in range(B)]
        is_empty = np.diff(given.start) == 0
        for rows, catalogue in ((np.flatnonzero(~is_empty), self.catalogue), (np.flatnonzero(is_empty), self.popular)):
            if not len(rows):
                continue
            learned = catalogue is self.catalogue
            query = self._query(given, rows) if learned else _share_of_all(len(rows), self.items.n)
            excluded = self._excluded(given, rows, exclude_seen, gone)
            at = torch.from_numpy(rows)
            items[at], score = self._top(catalogue, query, len(rows), k, excluded, allowed, per_intent)
            scores[at] = self.net.as_given(score) if learned else score
            if reasons:
                told = self._explained(given, rows, query, items[at]) if learned else [[None] * k for _ in rows]
                for row, lines in zip(rows.tolist(), told, strict=True):
                    said[row] = lines
        row, column = (items > 0).nonzero(as_tuple=True)
        told = [said[r][c] for r, c in zip(row.tolist(), column.tolist(), strict=True)] if reasons else None
        return self._table(given, row, column, items[row, column], scores[row, column], told)

    def _explained(self, given: Histories, rows: np.ndarray, query: Query, items: Tensor) -> list[list[Any]]:
        """The column `reason` of the lists of some histories. items: [R, k]."""
        row, column = (items > 0).nonzero(as_tuple=True)
        reasons = self.net.reasons(given.padded(rows, self.bundle.max_seq_length), query, row, items[row, column])
        told: list[list[Any]] = [[None] * items.shape[1] for _ in rows]
        for r, c, line in zip(
            row.tolist(), column.tolist(), explained(reasons, items[row, column], self.items), strict=True
        ):
            told[r][c] = line
        return told

    def _query(self, given: Histories, rows: np.ndarray) -> Query:
        return self.net.query(given.padded(rows, self.bundle.max_seq_length))

    @staticmethod
    def _excluded(given: Histories, rows: np.ndarray, exclude_seen: bool, gone: Tensor | None) -> list[Tensor] | None:
        if not exclude_seen:
            return None if gone is None else [gone] * len(rows)
        seen = given.distinct(rows)
        return seen if gone is None else [torch.unique(torch.cat((own, gone))) for own in seen]

    def _top(self, catalogue: Any, query: Query, n_rows: int, k: int, excluded: list[Tensor] | None,
             allowed: Tensor | None, per_intent: int | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The k best that may be in a list. allowed: [V] bool. Returns items and scores, [n_rows, k]."""
        if allowed is None and per_intent is None:
            found: tuple[Tensor, Tensor] = catalogue.top(query, k, excluded)
            return found
        # Best first, as many as it takes; where that is much of the catalogue, each allowed item by itself
        n_allowed = self.items.n - 1 if allowed is None else int(allowed.sum())
        width, most = min(4 * k, self.items.n - 1), max((self.items.n - 1) // SHARE, k)
        while n_allowed > PAIRS // 16 or allowed is None:
            items, scores = catalogue.top(query, width, excluded)
            kept = self._kept(items, scores, k, allowed, per_intent)
            is_all = (items[:, -1] == 0).all() or width >= self.items.n - 1
            if is_all or bool((kept[0][:, -1] > 0).all()):
                return kept
            if width >= most:
                break
            width = min(4 * width, self.items.n - 1)
        every = torch.arange(1, self.items.n) if allowed is None else allowed.nonzero()[:, 0]
        parts = []
        for row in range(n_rows):
            own = every if excluded is None else every[~torch.isin(every, excluded[row])]
            scored = [
                catalogue.scores_of(query, torch.full_like(part, row), part) for part in own.split(PAIRS)
            ] or [torch.zeros(0, dtype=torch.float64)]  # fmt: skip
            order = best(torch.zeros_like(own), own, torch.cat(scored), 1, len(own))
            parts.append(self._kept(*order, k, None, per_intent))
        return torch.cat([items for items, _ in parts]), torch.cat([scores for _, scores in parts])

    def _kept(self, items: Tensor, scores: Tensor, k: int, allowed: Tensor | None,
              per_intent: int | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The first k of each list that may stay. items, scores: [B, W]. Returns [B, k] each."""
        keep = items > 0
        if allowed is not None:
            keep &= allowed[items]
        if per_intent is not None:
            intent = self.items.intent[items].masked_fill(~keep, -1)
            order = torch.argsort(intent, dim=1, stable=True)
            in_order = intent.gather(1, order)
            step = torch.arange(items.shape[1]).expand_as(items)
            is_first = torch.ones_like(in_order, dtype=torch.bool)
            is_first[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
            place = step - step.where(is_first, 0).cummax(1).values
            keep &= torch.zeros_like(place).scatter(1, order, place) < per_intent
        order = torch.argsort(~keep, dim=1, stable=True)[:, :k]
        stays = keep.gather(1, order)
        kept = items.gather(1, order).where(stays, 0), scores.gather(1, order).where(stays, -torch.inf)
        missing = (0, max(0, k - order.shape[1]))
        return torch.nn.functional.pad(kept[0], missing), torch.nn.functional.pad(kept[1], missing, value=-torch.inf)

    def _table(self, given: Histories, row: Tensor, column: Tensor, item: Tensor, score: Tensor,
               reasons: list[Any] | None) -> pa.Table:  # fmt: skip
        place = pa.array(item.numpy() - 1)
        columns = {"user": given.user.take(pa.array(row.numpy())), "rank": pa.array(column.numpy() + 1),
                   "item": self.items.token.take(place)}  # fmt: skip
        if self.items.title is not None:
            columns["title"] = self.items.title.take(place)
        columns[self.score_name] = pa.array(score.numpy())
        columns["intent"] = self.intent_tokens(self.items.intent[item])
        if reasons is not None:
            columns["reason"] = pa.array(reasons, REASON)
        return pa.table(columns)

    # Other questions --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, history: Iterable[Any], items: Iterable[Any]) -> pa.Table:
        """What the model says of given items after one history.

        Args:
            history: item tokens, oldest first.
            items: item tokens.

        Returns:
            a table in the order of `items`: item, probability or score, intent.

        Raises:
            DataError: an unknown item.
        """
        given = read_histories([history], self.lookup)
        self._report(given)
        item = torch.from_numpy(self._known(items, "items"))
        row = torch.zeros_like(item)
        if len(given.item):
            score = self.net.as_given(self.catalogue.scores_of(self._query(given, np.array([0])), row, item))
        else:
            score = self.popular.scores_of(_share_of_all(1, self.items.n), row, item)
        return pa.table({"item": self.items.token.take(pa.array(item.numpy() - 1)),
                         self.score_name: pa.array(score.numpy()),
                         "intent": self.intent_tokens(self.items.intent[item])})  # fmt: skip

    @torch.inference_mode()
    def next_intents(self, history: Iterable[Any], k: int | None = None) -> pa.Table:
        """Which intents come next, the likeliest first.

        Args:
            history: item tokens, oldest first.
            k: how many; None for all.

        Returns:
            a table: intent (null for the group of items without one), probability. It is calibrated where the export
            had a validation to learn a temperature from (Guo et al., ICML 2017); else it is the model's own, and of a
            model whose loss teaches no probabilities the column is called score.

        Raises:
            ConfigError: the model does not predict intents.
            DataError: the history is no list of tokens.
        """
        given = read_histories([history], self.lookup)
        self._report(given)
        temperature, name = self.bundle.intent_temperature, "probability"
        if len(given.item):
            history = given.padded(np.array([0]), self.bundle.max_seq_length)
            probability = self.net.intent_probabilities(history)[0].double()
            if temperature is None:
                name = self.score_name
            else:
                probability = tempered(probability, temperature)
        else:
            share = self.items.seen.double() + 1
            share[0] = 0
            probability = torch.bincount(self.items.intent, weights=share / share.sum())
        probability[0] = 0
        order = torch.argsort(probability, descending=True, stable=True)
        order = order[probability[order] > 0][:k]
        return pa.table({"intent": self.intent_tokens(order), name: pa.array(probability[order].numpy())})

    @torch.inference_mode()
    def similar_items(self, item: Any, k: int = 10) -> pa.Table:
        """Items that are like one: by the cosine of their vectors, or by what follows them.

        For a model without vectors of items, the similarity of u and v is their transition count over the geometric
        mean of how often both occur in transitions.

        Args:
            item: its token.
            k: how many.

        Returns:
            a table, most similar first: rank, item, similarity, intent. With counts, items that never were near each
            other are not listed.

        Raises:
            DataError: an unknown item.
        """
        own = int(self._known([item], "item")[0])
        other, similarity = self.net.similar(own)
        keep = (other != own) & (other > 0)
        other, similarity = other[keep], similarity[keep].double()
        items, scores = best(torch.zeros_like(other), other, similarity, 1, k)
        found = items[0] > 0
        listed = items[0][found]
        return pa.table({"rank": pa.array(np.arange(1, len(listed) + 1)),
                         "item": self.items.token.take(pa.array(listed.numpy() - 1)),
                         "similarity": pa.array(scores[0][found].numpy()),
                         "intent": self.intent_tokens(self.items.intent[listed])})  # fmt: skip

    # What is new ------------------------------------------------------------------------------------------------------

    def with_items(self, table: Any) -> Recommender:
        """A recommender that knows further items; see :func:`recbole_cafe.recommend.update.with_items`."""
        return Recommender(with_items(self.bundle, table))

    def with_interactions(self, table: Any) -> Recommender:
        """A recommender that has counted further ones; see :func:`recbole_cafe.recommend.update.with_interactions`."""
        return Recommender(with_interactions(self.bundle, table))

    # Tokens -----------------------------------------------------------------------------------------------------------

    def intent_tokens(self, intent: Tensor) -> pa.Array:
        """Names of intents; null for "no intent". intent: [n] ids."""
        ids = intent.numpy()
        return self.items.intents.take(pa.array(ids, mask=ids >= len(self.items.intents)))

    def _known(self, tokens: Iterable[Any], where: str) -> np.ndarray:
        texts = tokens_of(tokens, where)
        ids = self.lookup.ids(texts)
        if not ids.all():
            unknown = [texts[i] for i in np.flatnonzero(ids == 0)]
            raise DataError(f"{where}: {len(unknown)} unknown item{'s' * (len(unknown) > 1)}, the first is "
                            f"{unknown[0]!r:.80}; the bundle has {self.items.n - 1} items")  # fmt: skip
        return ids

    def _allowed(self, allow: Iterable[Any] | None, intents: Iterable[Any] | None) -> Tensor | None:
        """[V] which items may be in a list; None for all."""
        if allow is None and intents is None:
            return None
        allowed = torch.ones(self.items.n, dtype=torch.bool)
        if allow is not None:
            allowed[:] = False
            allowed[torch.from_numpy(self._known(allow, "allow"))] = True
        if intents is not None:
            names = {name: i for i, name in enumerate(self.items.intents.to_pylist()) if i}
            of = torch.zeros(len(self.items.intents) + 1, dtype=torch.bool)
            for token in tokens_of(intents, "intents"):
                if token not in names:
                    raise DataError(f"intents: unknown intent {token!r:.80}{did_you_mean(token, names)}")
                of[names[token]] = True
            allowed &= of[self.items.intent]
        allowed[0] = False
        return allowed

    def _report(self, given: Histories) -> None:
        if n := int(given.n_unknown.sum()):
            _logger.warning(f"{n} of {n + len(given.item)} items of the histories are not in the bundle; left out")

    @cached_property
    def popular(self) -> FactoredCatalogue:
        """The items by how often they were taken, plus one: what is asked where nothing is known."""
        one = torch.ones(self.items.n, dtype=torch.long)
        one[0] = 0
        share = (self.items.seen + 1).double() * (one > 0)
        return FactoredCatalogue(share / share.sum(), one, 2)


def _share_of_all(n_rows: int, n_items: int) -> Query:
    """A query for :attr:`Recommender.popular`."""
    none = torch.zeros(0, dtype=torch.long)
    nothing = none.double()
    return Query(terms=torch.ones(n_rows, 3, dtype=torch.float64),
                 overrides=ScoreOverrides(none, none, nothing, nothing, n_items))  # fmt: skip


def _nothing() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.long)
    return none, none, none, none.double()
