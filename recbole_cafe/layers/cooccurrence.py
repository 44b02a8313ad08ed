"""How many users have both of two items, kept for the pairs that occur and no others."""

import torch
from torch import Tensor, nn

from recbole_cafe.errors import ConfigError

CHUNK = 2**23  # pairs that wait to be counted: 64 MB


class CoOccurrence(nn.Module):
    """Counts of users per pair of items.

    The counted pairs i < j are sorted keys i * n + j beside their counts, searched by bisection; a matrix of the
    catalogue's size does not exist. A user of k items has k (k - 1) / 2 pairs, so that a few very long users could
    make most of them: of each user only the latest `limit` items count, everywhere, so that the counts stay those of
    some users' sets of items and a matrix of cosines of them stays positive semi-definite.

    Args:
        users: [P] of each interaction.
        items: [P] of each interaction, those of a user in order of time; repeats count once, 0 not at all.
        n_items: n, padding included.
        limit: items per user.

    Raises:
        ConfigError: limit is below 1.
    """

    pairs: Tensor
    counts: Tensor
    users_of: Tensor

    def __init__(self, users: Tensor, items: Tensor, *, n_items: int, limit: int) -> None:
        super().__init__()
        if limit < 1:
            raise ConfigError(f"limit={limit} should be at least 1")
        self.n_items = n_items
        user, item = _latest(users[items > 0], items[items > 0], n_items, limit)
        pairs, counts = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        waiting: list[Tensor] = []
        size = 0
        # the pairs of items that are d places apart in a user's list, for d = 1, 2, ...
        at, d = torch.arange(len(user)), 1
        while True:
            at = at[: int(torch.searchsorted(at, len(user) - d))]
            at = at[user[at] == user[at + d]]  # who has no d-th neighbour has no further one either
            if not len(at) or size >= CHUNK:
                pairs, counts = _merged(pairs, counts, waiting)
                waiting, size = [], 0
            if not len(at):
                break
            a, b = item[at], item[at + d]
            waiting.append(torch.minimum(a, b) * n_items + torch.maximum(a, b))
            size += len(at)
            d += 1
        # Not persistent: they are the data's, not the model's, and must not be in a checkpoint.
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("counts", counts.to(torch.int32), persistent=False)
        self.register_buffer("users_of", torch.bincount(item, minlength=n_items).to(torch.int32), persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """[b, l] items to [b, l, l] numbers of users that have both; an item has itself as often as it has users."""
        i, j = items[:, :, None], items[:, None]
        key = torch.minimum(i, j) * self.n_items + torch.maximum(i, j)
        own = self.users_of[items]
        count = torch.where(i == j, own[:, :, None], 0)
        if not len(self.pairs):
            return count
        place = torch.searchsorted(self.pairs, key).clamp(max=len(self.pairs) - 1)
        return torch.where(self.pairs[place] == key, self.counts[place], count)


def _latest(users: Tensor, items: Tensor, n_items: int, limit: int) -> tuple[Tensor, Tensor]:
    """The last `limit` distinct items of each user, by user and then by when they last occurred."""
    distinct, inverse = torch.unique(users * n_items + items, return_inverse=True)
    last = torch.zeros_like(distinct).scatter_reduce_(0, inverse, torch.arange(len(users)), "amax")
    distinct = distinct[last.argsort()]
    distinct = distinct[(distinct // n_items).argsort(stable=True)]
    user, item = distinct // n_items, distinct % n_items
    end = torch.searchsorted(user, user, right=True)
    kept = end - torch.arange(len(user)) <= limit
    return user[kept], item[kept]


def _merged(pairs: Tensor, counts: Tensor, waiting: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Count the waiting keys into the sorted ones."""
    if not waiting:
        return pairs, counts
    new, times = torch.unique(torch.cat(waiting), return_counts=True)
    merged, inverse = torch.unique(torch.cat((pairs, new)), return_inverse=True)
    return merged, torch.zeros_like(merged).index_add_(0, inverse, torch.cat((counts, times)))
