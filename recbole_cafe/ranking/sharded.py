"""A catalogue whose items lie in several processes: each ranks among its own items, and the results are put together.

Counts of items above a target add up; the k best of all are among the k best of each process. So the result is that of
the whole catalogue, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed
from torch import Tensor

from recbole_cafe.layers.sharded import Shard
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks, best


class ShardedCatalogue:
    """The items of all processes. All have to call it together, with the same histories.

    Args:
        own: this process's items, numbered as it holds them.
        shard: which they are.
        n_items: V of the whole, padding included.
    """

    def __init__(self, own: Catalogue, shard: Shard, n_items: int) -> None:
        self.own, self.shard, self.n_items = own, shard, n_items

    def rank(self, query: Query, target: Tensor, *, excluded: Sequence[Tensor] | None = None,
             at_most: int | None = None) -> Ranks:  # fmt: skip
        """See :meth:`Catalogue.rank`."""
        query = _of_the_first(query)
        row = torch.arange(len(target), device=target.device)
        score = self._scores(query, row, target)
        held = self.shard.owner(target) == self.shard.rank
        mine = self.shard.local(target).where(held, 0)
        ranks = self.own.rank_given(query, mine, score, excluded=self._held(excluded), at_most=at_most)
        counts = torch.stack((ranks.above, ranks.tied, ranks.n_candidates)).to(target.device)
        torch.distributed.all_reduce(counts)
        above, tied, n_candidates = counts.cpu()
        return Ranks(above, tied, n_candidates, at_most)

    def top(self, query: Query, k: int, excluded: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Catalogue.top`."""
        query = _of_the_first(query)
        item, score = self.own.top(query, k, self._held(excluded))
        everyones = [torch.empty_like(item) for _ in range(self.shard.world)]
        torch.distributed.all_gather(everyones, self.shard.ids(item))
        scores = [torch.empty_like(score) for _ in everyones]
        torch.distributed.all_gather(scores, score)
        items, values = torch.cat(everyones, 1), torch.cat(scores, 1)
        row, place = (items > 0).nonzero(as_tuple=True)
        return best(row, items[row, place], values[row, place], len(items), k)

    def scores_of(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """See :meth:`Catalogue.scores_of`."""
        return self._scores(_of_the_first(query), row, item)

    def parts(self) -> dict[str, Tensor]:
        """There are none to be stored.

        Raises:
            TypeError: always: a bundle is made of a checkpoint, which holds whole tables.
        """
        raise TypeError("the catalogue lies in several processes")

    def _scores(self, query: Query, row: Tensor, item: Tensor) -> Tensor:
        """The scores that decide, each from the process that holds the item. row, item: [P]. Returns [P] float64."""
        held = self.shard.owner(item) == self.shard.rank
        score = torch.zeros(len(item), dtype=torch.float64, device=item.device)
        score[held] = self.own.scores_of(query, row[held], self.shard.local(item[held]))
        torch.distributed.all_reduce(score)
        return score

    def _held(self, items: Sequence[Tensor] | None) -> list[Tensor] | None:
        """Those of some items of each row that lie here."""
        if items is None:
            return None
        return [self.shard.local(some[self.shard.owner(some) == self.shard.rank]) for some in items]


def _of_the_first(query: Query) -> Query:
    """The first process's query: another kind of processor may make another last bit."""
    parts = {name: part.contiguous() for name in ("vector", "terms") if (part := vars(query)[name]) is not None}
    for part in parts.values():
        torch.distributed.broadcast(part, 0)
    return replace(query, **parts)
