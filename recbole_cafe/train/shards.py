"""Tables whose rows lie in several processes, in checkpoints: there they are whole, as those of one process.

So a run can be gone on with by any number of processes, and whatever reads a checkpoint needs to know nothing of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from recbole_cafe.layers.sharded import ShardedEmbedding, sharded_tables
from recbole_cafe.train.row_adam import ChainedOptimizer

AT_ONCE = 2**22  # numbers that a process sends at a time: 16 MB


class Shards:
    """The tables of a model that several processes hold together; there may be none.

    Args:
        model: the model.
        folder: on a disk with room for whole tables; what is put there is gone afterwards.

    Attributes:
        weights: of the tables, this process's rows.
    """

    def __init__(self, model: nn.Module, folder: str | Path) -> None:
        self.model, self.folder = model, folder
        self._tables = {id(table.weight): table for table in sharded_tables(model)}
        self.weights = [table.weight for table in self._tables.values()]

    def __bool__(self) -> bool:
        return bool(self._tables)

    def n_parameters(self) -> int:
        """Numbers that the whole model learns."""
        return sum(
            self._tables[id(p)].n_whole * p.shape[1] if id(p) in self._tables else p.numel()
            for p in self.model.parameters()
            if p.requires_grad
        )

    def whole(self, parameter: Tensor, value: Any) -> Any:
        """A parameter or a part of its optimiser's state, put together in the first process.

        All processes have to call it together.

        Args:
            parameter: of the model.
            value: what belongs to it, [R, ...] for the rows here.

        Returns:
            [n, ...] in a file of its own that has no name any more; in other processes nothing of use. What has no
            rows, or is no part of a sharded table, as it is.
        """
        table = self._tables.get(id(parameter))
        if table is None or not isinstance(value, Tensor) or value.shape[:1] != parameter.shape[:1]:
            return value
        return _gathered(value.detach(), table, self.folder)

    def own(self, parameter: Tensor, value: Any) -> Any:
        """This process's rows of what :meth:`whole` gives, or any other run with this table."""
        table = self._tables.get(id(parameter))
        if table is None or not isinstance(value, Tensor) or value.shape[:1] != (table.n_whole,):
            return value
        return value[table.shard.rows(table.n_whole)].to(parameter.device)

    def whole_weights(self) -> dict[str, Any]:
        """The model's `state_dict` with whole tables; see :meth:`whole`."""
        state = self.model.state_dict()
        for name, parameter in self.model.named_parameters():
            if id(parameter) in self._tables:
                state[name] = self.whole(parameter, parameter)
        return state

    def of_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, whole: bool) -> dict[str, Any]:
        """The state of an optimiser with whole tables, or with this process's rows of them.

        Args:
            optimizer: the optimiser.
            state: as its `state_dict` gives it.
            whole: which of the two is wanted.
        """
        if not self:
            return state
        chained = isinstance(optimizer, ChainedOptimizer)
        optimizers, states = (optimizer.parts, state["parts"]) if chained else ((optimizer,), [state])
        convert = self.whole if whole else self.own
        changed = []
        for part, saved in zip(optimizers, states, strict=True):
            parameters = [p for group in part.param_groups for p in group["params"]]
            of = {
                place: {name: convert(parameters[place], value) for name, value in values.items()}
                for place, values in saved["state"].items()
            }
            changed.append({**saved, "state": of})
        return {**state, "parts": changed} if chained else changed[0]

    def of_list(self, values: list[Tensor], *, whole: bool) -> list[Tensor]:
        """Values of all parameters, in their order, with whole tables or with this process's rows of them."""
        convert = self.whole if whole else self.own
        return [convert(p, value) for p, value in zip(self.model.parameters(), values, strict=True)] if values else []


def _gathered(own: Tensor, table: ShardedEmbedding, folder: str | Path) -> Tensor:
    """The rows of all processes. own: [R, ...]. Returns [n, ...] in the first one, [0, ...] in the others."""
    n, shard, shape = table.n_whole, table.shard, own.shape[1:]
    first = shard.rank == 0
    result = own.new_empty(0, *shape, device="cpu")
    if first:
        with tempfile.TemporaryFile(dir=folder) as file:  # in memory there may be no room
            numbers = np.memmap(file, dtype=result.numpy().dtype, mode="w+", shape=(n, *shape))
        result = torch.from_numpy(numbers)
    for rows, ids in _portions(own, shard.most(n), shard.world):
        sent = own.new_zeros(len(ids[0]), *shape)
        here = own[rows]
        sent[: len(here)] = here
        received = [torch.empty_like(sent) for _ in range(shard.world)] if first else None
        torch.distributed.gather(sent, received)
        for rank, part in enumerate(received or []):
            of = ids[rank]
            result[of[of < n]] = part[: int((of < n).sum())].cpu()
    return result


def _portions(own: Tensor, most: int, world: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Some rows after the other, and which rows of the table they are in each process."""
    step = max(1, AT_ONCE // max(own[0].numel(), 1))
    for first in range(1, most, step):
        local = torch.arange(first, min(first + step, most))
        yield slice(first, first + len(local)), [(local - 1) * world + rank + 1 for rank in range(world)]
