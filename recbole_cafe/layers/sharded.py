"""An embedding table whose rows lie in several processes, for tables that one process cannot hold.

Of W processes the r-th holds the rows r + 1, r + 1 + W, ... and their share of the optimiser's state. A lookup asks the
owners (all-to-all), and the gradients go back the same way, so that a step sends what it touches, however large the
table. torch's own sharded tables were no help: DTensor's embedding has no sparse gradients and sums [B, D] of every
process, TorchRec's kernels come for few versions of PyTorch.

n rows, padding included, N ids asked for, U distinct ones, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.layers.embedding import PaddedEmbedding

DRAWN = 2**20  # numbers drawn at a time, at least


@dataclass(frozen=True)
class Shard:
    """One of several processes that hold a table together.

    Row 0 is padding; each process has one, as its own row 0.

    Attributes:
        rank: of the process.
        world: processes.
    """

    rank: int
    world: int

    def owner(self, ids: Tensor) -> Tensor:
        """Who holds these rows of the table; of the padding, the last one."""
        return (ids - 1) % self.world

    def local(self, ids: Tensor) -> Tensor:
        """Where their owners hold them."""
        return torch.div(ids - 1, self.world, rounding_mode="floor") + 1

    def ids(self, local: Tensor) -> Tensor:
        """Which rows of the table this process's rows are; 0 for its padding."""
        return (local - 1).mul(self.world).add(self.rank + 1).where(local > 0, 0)

    def rows(self, n: int) -> Tensor:
        """The rows of a table of n that this process holds, its padding first."""
        return torch.cat((torch.zeros(1, dtype=torch.long), torch.arange(self.rank + 1, n, self.world)))

    def most(self, n: int) -> int:
        """How many rows a process holds at most of a table of n."""
        return 1 + -(-(n - 1) // self.world)


_shard: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextmanager
def tables_in_shards(shard: Shard | None) -> Iterator[None]:
    """Tables that :func:`item_table` makes meanwhile are shared by several processes, those with sparse gradients."""
    token = _shard.set(shard)
    try:
        yield
    finally:
        _shard.reset(token)


def item_table(n: int, size: int, *, std: float, sparse: bool) -> PaddedEmbedding:
    """A table of items, see :class:`recbole_cafe.layers.embedding.PaddedEmbedding` for the arguments."""
    shard = _shard.get()
    if shard is None or not sparse:
        return PaddedEmbedding(n, size, std=std, sparse=sparse)
    return ShardedEmbedding(n, size, std=std, shard=shard)


class ShardedEmbedding(PaddedEmbedding):
    """This process's rows of a table, and the lookup in all of them.

    All processes have to look up together, and to go back together.

    Args:
        n: rows of the whole table, padding included.
        size: D.
        std: standard deviation of the normal initialisation; the numbers are those of the undivided table.
        shard: which rows are held here.

    Attributes:
        n_whole: n.
        catch_up: what an optimiser has to do before rows of the weight are read in training.
        bytes_sent: by this process so far.
    """

    def __init__(self, n: int, size: int, *, std: float, shard: Shard) -> None:
        self.shard, self.n_whole = shard, n
        super().__init__(len(shard.rows(n)), size, std=std, sparse=True)
        self.catch_up: Callable[[Tensor, Tensor], None] | None = None
        self.bytes_sent = 0

    def reset_parameters(self) -> None:
        """Draw the whole table, a block at a time, and keep the own rows."""
        size, held = self.embedding_dim, self.shard.rows(self.n_whole)
        # torch draws 16 normal numbers at a time: blocks of a multiple of them are the numbers of one draw
        step = 16 * max(1, DRAWN // (16 * size))
        edges = [*range(0, max(self.n_whole - step, 1), step), self.n_whole]
        with torch.no_grad():
            for first, last in pairwise(edges):
                block = torch.empty(last - first, size).normal_(std=self.std)
                own = torch.nonzero((held >= first) & (held < last))[:, 0]
                self.weight[own] = block[held[own] - first]
            self.weight[0].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [...] rows of the whole table. Returns [..., D]."""
        asked, inverse = torch.unique(ids, return_inverse=True)  # [U]
        owner = self.shard.owner(asked)
        order = torch.argsort(owner, stable=True)
        n_asked = torch.bincount(owner, minlength=self.shard.world)
        n_given = torch.empty_like(n_asked)
        torch.distributed.all_to_all_single(n_given, n_asked)
        asks, gives = n_asked.tolist(), n_given.tolist()
        wanted = _exchanged(asked[order], asks, gives)
        local = self.shard.local(wanted)
        if self.training and self.catch_up is not None:
            self.catch_up(self.weight, local)
        own = F.embedding(local, self.weight, self.padding_idx, sparse=True)
        rows: Tensor = _Exchange.apply(own, gives, asks)  # type: ignore[no-untyped-call]
        away = wanted.shape[0] - gives[self.shard.rank]
        self.bytes_sent += n_asked.nbytes + asked.nbytes + away * own.shape[1] * own.element_size()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return F.embedding(place[inverse], rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take the own rows of a whole table."""
        whole = state_dict.get(f"{prefix}weight")
        if whole is not None and len(whole) == self.n_whole:
            state_dict[f"{prefix}weight"] = whole[self.shard.rows(self.n_whole)]
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _exchanged(rows: Tensor, gives: list[int], gets: list[int]) -> Tensor:
    """Rows sent to the processes, so many to each, and those that come from them. [N, ...] to [M, ...]."""
    received = rows.new_empty(sum(gets), *rows.shape[1:])
    torch.distributed.all_to_all_single(received, rows.contiguous(), gets, gives)
    return received


class _Exchange(torch.autograd.Function):
    """:func:`_exchanged` whose gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gives: list[int], gets: list[int]) -> Tensor:
        ctx.gives, ctx.gets = gives, gets
        return _exchanged(rows, gives, gets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _exchanged(gradient, ctx.gets, ctx.gives), None, None


def sharded_tables(model: nn.Module) -> list[ShardedEmbedding]:
    """The tables of a model of which this process holds some rows."""
    return [part for part in model.modules() if isinstance(part, ShardedEmbedding)]
