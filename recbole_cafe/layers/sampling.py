"""Uniform draws of ids: negatives that avoid a user's own, exactly, without rejection or a loop over users; swaps."""

import math

import torch
from torch import Tensor, nn

from recbole_cafe.errors import DataError
from recbole_cafe.layers.draws import current


def swap_ids(ids: Tensor, p: float, n: int) -> Tensor:
    """Replace each id with probability p by one drawn uniformly from 1..n-1, itself included.

    These are the stochastic shared embeddings of Wu et al., NeurIPS 2019.

    Args:
        ids: any shape; 0, padding, stays and is never drawn.
        p: probability of a replacement.
        n: number of ids, padding 0 included.

    Returns:
        the shape of `ids`.
    """
    share, other = uniform(ids), 1 + (uniform(ids) * (n - 1)).long().clamp(max=n - 2)
    return torch.where((share < p) & (ids > 0), other, ids)


def uniform(like: Tensor) -> Tensor:
    """Numbers in [0, 1) for each place of a batch, of the step's rows if there is one. like: [B, ...], to the same."""
    draws = current()
    if draws is None or len(draws.rows) != len(like):
        return torch.rand(like.shape, dtype=torch.float64, device=like.device)
    return draws.for_rows.uniform(like[0].numel() if len(like) else 1).view(like.shape)


class ExclusiveSampler(nn.Module):
    """Draws ids uniformly from 1..n-1 without the ids of a key (a user).

    With a key's sorted ids e_1 < ... < e_k, the r-th id (r = 0, 1, ...) outside them is 1 + r + #{j : e_j - j <= r},
    e_j - j being the number of free ids below e_j. So one draw of r and one binary search give an exact sample.
    All keys share one search: key * n + (e_j - j) is sorted over all keys.

    A key that owns every id gets any id but the target instead: CaFe's released code loops for ever there.

    Args:
        keys: [P] key of each pair, e.g. the user of an interaction.
        ids: [P] id of each pair in 1..n-1, duplicates allowed; 0 is ignored.
        n_keys: keys are 0..n_keys-1.
        n: number of ids, padding 0 included.

    Raises:
        DataError: fewer than two ids, so that no negative exists.
    """

    count: Tensor
    start: Tensor
    free_below: Tensor

    def __init__(self, keys: Tensor, ids: Tensor, *, n_keys: int, n: int) -> None:
        super().__init__()
        if n < 3:
            raise DataError(f"negatives need at least two ids beside padding, there are {max(n - 1, 0)}")
        self.n = n
        pairs = torch.unique(keys[ids > 0] * n + ids[ids > 0])  # sorted, distinct
        key, own = pairs // n, pairs % n
        count = torch.bincount(key, minlength=n_keys)
        start = torch.cumsum(count, 0) - count
        rank = torch.arange(len(pairs), device=pairs.device) - start[key]  # j - 1
        # Not persistent: they are the data's, not the model's, and must not be in a checkpoint.
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("free_below", key * n + (own - 1 - rank), persistent=False)

    def forward(self, key: Tensor, target: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw k ids for each row, independently, with replacement.

        Args:
            key: [N] keys.
            target: [N] the row's own target, avoided in any case (it belongs to its key).
            k: number of draws per row.
            generator: of the random numbers; None for those of the step, by owner and target, or PyTorch's own.

        Returns:
            [N, k] ids in 1..n-1.
        """
        n_free = self.n - 1 - self.count[key]  # [N]
        full = n_free <= 0
        size = torch.where(full, self.n - 2, n_free)
        # float64: a float32 uniform has 2^24 values, too few for catalogues of millions of ids
        if generator is None and (draws := current()) is not None:
            u = draws.for_step(key, target).uniform(k)
        else:
            u = torch.rand(len(key), k, dtype=torch.float64, device=key.device, generator=generator)
        r = torch.minimum((u * size[:, None]).long(), size[:, None] - 1)
        n_below = torch.searchsorted(self.free_below, key[:, None] * self.n + r, right=True)
        free = 1 + r + n_below - self.start[key][:, None]
        not_target = 1 + r + (r >= (target - 1)[:, None]).long()
        return torch.where(full[:, None], not_target, free)


class PopularitySampler(nn.Module):
    """Draws ids from 1..n-1 in proportion to their occurrences plus one, for a whole batch at a time.

    Args:
        ids: [P] occurrences, 0 and ids from n on are ignored.
        n: number of ids, padding 0 included.

    Raises:
        DataError: fewer than two ids, so that there is nothing to tell apart.
    """

    below: Tensor
    log_share: Tensor

    def __init__(self, ids: Tensor, *, n: int) -> None:
        super().__init__()
        if n < 3:
            raise DataError(f"a sampled softmax needs at least two ids beside padding, there are {max(n - 1, 0)}")
        weight = torch.bincount(ids[(ids > 0) & (ids < n)], minlength=n)[1:] + 1
        self.register_buffer("below", weight.cumsum(0), persistent=False)  # the data's, as in ExclusiveSampler
        self.register_buffer("log_share", (weight / weight.sum()).log(), persistent=False)

    def forward(self, k: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw k ids independently, with replacement.

        Args:
            k: number of draws.
            generator: of the random numbers; None for those of the step, or PyTorch's own.

        Returns:
            [k] ids, and [k] ln(k q), how often each is expected among the k.
        """
        total = int(self.below[-1])
        if generator is None and (draws := current()) is not None:
            place = draws.for_step(self.below[:1] * 0).integers(k, total)[0]
        else:
            place = torch.randint(total, (k,), device=self.below.device, generator=generator)
        at = torch.searchsorted(self.below, place, right=True)
        return at + 1, self.log_share[at] + math.log(k)
