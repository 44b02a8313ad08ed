"""A step of training that several processes share: the same rows, random numbers and weights as in one.

Each process takes some rows of each batch. Random numbers belong to rows (recbole_cafe.layers.draws). A loss is a mean
over the targets of the whole batch, so that a process's mean counts by how many targets it has, and gradients are
summed. What is left is the order of float32 sums.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.draws import Draws
from recbole_cafe.layers.sharded import sharded_tables
from recbole_cafe.train.row_adam import ChainedOptimizer, sparse_tables

SEED, EPOCH = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, to keep steps of other seeds and epochs apart


def place_in_group(config: Any) -> tuple[int, int]:
    """This process's rank and how many there are."""
    if config["single_spec"]:
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def check_shared_folder(key: str, folder: str | Path) -> None:
    """See that all processes have the same folder; they read there what the first one writes.

    Args:
        key: whose value the folder is.
        folder: of the first process.

    Raises:
        ConfigError: a process does not see what the first one wrote.
    """
    rank, probe = torch.distributed.get_rank(), [""]
    if rank == 0:
        probe = [str(Path(folder) / f".shared-{uuid.uuid4().hex}")]
        Path(probe[0]).touch()
    torch.distributed.broadcast_object_list(probe)
    seen: list[bool] = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, Path(probe[0]).is_file())
    if rank == 0:
        Path(probe[0]).unlink()
    if not all(seen):
        raise ConfigError(f"{key}={folder}: process {seen.index(False)} does not see what process 0 writes there; it "
                          f"should be a folder that all machines share")  # fmt: skip


def step_draws(seed: int, epoch: int, step: int, place: Tensor) -> Draws:
    """The random numbers of some rows of a step. place: [B], where they stand in the whole step."""
    return Draws(seed * SEED + epoch * EPOCH + step, place)


class Share:
    """The part of each batch that is this process's.

    Args:
        rank: of the process.
        world: processes.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def places(self, length: Tensor) -> Tensor:
        """Which rows of a batch are this process's, so that all processes have about as many positions.

        The rows are dealt out from the longest to the shortest, there and back.

        Args:
            length: [B] of the rows' histories.

        Returns:
            [b] places in the batch, in order.
        """
        order = torch.argsort(length, descending=True, stable=True)
        turn, place = torch.arange(len(order)) // self.world, torch.arange(len(order)) % self.world
        taker = torch.where(turn % 2 == 0, place, self.world - 1 - place)
        return order[taker == self.rank].sort().values

    def batches(self, loader: Any) -> Iterator[tuple[Any, Tensor, int]]:
        """This process's rows of each batch.

        A process without rows gets the first row of all, which counts as none: all look up in a table together.

        Returns:
            for each batch: the rows; [b] their places in it; and how many of them count.
        """
        whole: Callable[[Any], Any] = loader.collate_fn
        dataset = loader._dataset
        lengths = dataset.inter_feat[dataset.item_list_length_field]

        def collate(index: Any) -> tuple[Any, Tensor, int]:
            rows = torch.as_tensor(index)
            own = self.places(lengths[rows])
            place = own if len(own) else torch.zeros(1, dtype=torch.long)
            return whole(rows[place].tolist()), place, len(own)

        loader.collate_fn = collate
        try:
            yield from loader
        finally:
            loader.collate_fn = whole

    def own_batches(self, loader: Any) -> Iterator[tuple[Any, Tensor, int]]:
        """The same for batches that are this process's alone; its random numbers are none of the others'."""
        for batch in loader:
            yield batch, self.rank + self.world * torch.arange(len(batch)), len(batch)

    def scaled(self, parts: list[tuple[Tensor, int]], n_rows: int) -> Tensor:
        """This process's part of the loss of the whole batch; all processes have to call it together.

        Args:
            parts: means, and of how many targets here each is one.
            n_rows: of this process; with 0 its targets are another's.

        Returns:
            scalar, whose sum over the processes is the loss.
        """
        own = torch.tensor([n if n_rows else 0 for _, n in parts], dtype=torch.float64, device=parts[0][0].device)
        counts = own.clone()
        torch.distributed.all_reduce(counts)
        weight = own / counts.clamp(min=1)
        return torch.stack([mean * weight[i].to(mean.dtype) for i, (mean, _) in enumerate(parts)]).sum()


def dealt(loader: Any) -> bool:
    """Whether RecBole has dealt the rows to the processes, which then take steps of their own."""
    return isinstance(loader.sampler, DistributedSampler)


class Sums:
    """Gradients summed over the processes, in few messages.

    Those of tables whose rows lie in several processes have been summed on the way to their owners.

    Args:
        model: whose gradients.

    Attributes:
        bytes_sent: by this process so far, without what the collectives add.
    """

    def __init__(self, model: nn.Module) -> None:
        sharded, tables = sharded_tables(model), sparse_tables(model)
        self.sharded = [table.weight for table in sharded]
        self.tables = [table.weight for table in tables if table not in sharded]
        sparse = {id(table.weight) for table in tables}
        self.dense = [p for p in model.parameters() if p.requires_grad and id(p) not in sparse]
        self.bytes_sent = 0

    def __call__(self, loss: Tensor, *, mean: bool = False) -> Tensor:
        """Replace each gradient by the sum over the processes.

        Of a sparse gradient the touched rows travel, so that what is sent does not grow with the table.

        Args:
            loss: scalar, summed beside them.
            mean: divide both by the number of processes.

        Returns:
            the sum of the losses.
        """
        parts = 1 / torch.distributed.get_world_size() if mean else 1.0
        used = loss.new_tensor([p.grad is not None for p in self.dense])
        given = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.dense]
        flat = torch.cat([loss.detach().reshape(1), used, *(gradient.reshape(-1) for gradient in given)])
        torch.distributed.all_reduce(flat)
        self.bytes_sent += flat.nbytes
        first = 1 + len(used)
        for p, n in zip(self.dense, flat[1:first], strict=True):
            p.grad = flat[first : first + p.numel()].view_as(p) * parts if n else None
            first += p.numel()
        for table in self.tables:
            rows, value = self._everyones(table)
            table.grad = torch.sparse_coo_tensor(
                rows[None], value * parts, table.shape, check_invariants=False
            ).coalesce()
        for table in self.sharded:
            if mean and table.grad is not None:
                table.grad = table.grad * parts
        return flat[0] * parts

    def agree(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give all processes the weights and the state of the first one's optimiser: they may differ in the last bit.

        A row of a table that one process reads and another does not catches up in other portions. What only one process
        holds cannot differ.
        """
        own = {id(table) for table in self.sharded}
        tensors = [parameter.data for parameter in model.parameters() if id(parameter) not in own]
        for part in optimizer.parts if isinstance(optimizer, ChainedOptimizer) else (optimizer,):
            for parameter, state in part.state.items():
                if id(parameter) not in own:
                    tensors += [value for value in state.values() if isinstance(value, Tensor)]
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)

    def _everyones(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of all processes' gradients, [R], and their values, [R, D]; their number may differ."""
        rows, value = torch.empty(0, dtype=torch.int64, device=table.device), table.new_empty(0, table.shape[1])
        if table.grad is not None:
            gradient = table.grad.coalesce()
            rows, value = gradient.indices()[0], gradient.values()
        count = torch.tensor([len(rows)], device=table.device)
        counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(counts, count)
        sizes = [int(n) for n in counts]
        ids = torch.int32 if value.dtype == torch.float32 else torch.int64
        own = torch.cat((rows.to(ids)[:, None].view(value.dtype), value), 1)  # one message for both
        padded = torch.cat((own, own.new_zeros(max(sizes) - len(own), own.shape[1])))
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        self.bytes_sent += count.nbytes + padded.nbytes
        every = torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
        return every[:, :1].contiguous().view(ids)[:, 0].long(), every[:, 1:]
