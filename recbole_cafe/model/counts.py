"""Counts of what follows what, as a memory that is looked up: tables, and the evidence of a history.

The formulas and their sources are in recbole_cafe.model.intent_backoff, which is made of nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_cafe.data.transitions import transitions
from recbole_cafe.errors import ConfigError
from recbole_cafe.ranking.query import ScoreOverrides
from recbole_cafe.ranking.spread import Spread

REPEATS = ("observed", "free")


def _check(
    settings: object, *, at_least: Mapping[str, int], shares: tuple[str, ...], positive: tuple[str, ...]
) -> None:
    values = vars(settings)
    for key, least in at_least.items():
        if values[key] < least:
            raise ConfigError(f"{key}={values[key]} must be at least {least}")
    for key in shares:
        if not 0 <= values[key] <= 1:
            raise ConfigError(f"{key}={values[key]} must be between 0 and 1")
    for key in positive:
        if values[key] <= 0:
            raise ConfigError(f"{key}={values[key]} must be above 0: it gives what was never seen a probability")


@dataclass(frozen=True)
class Lookup:
    """How a history is looked up in counts.

    Attributes:
        length: so many of the newest items count.
        decay: gamma, the weight of an item beside that of the next newer one.
        prior: mu, the weight of the coarser level.
    """

    length: int
    decay: float
    prior: float


@dataclass(frozen=True, kw_only=True)
class CountSettings:
    """How items are counted and looked up: keys of a model's YAML.

    Attributes:
        window: W, how far apart two items of a pair may be.
        window_decay: delta, the weight of a pair beside that of a pair one place closer.
        backward: beta, the weight of what came before an item.
        history_length: so many of the newest items are looked up.
        history_decay: gamma, the weight of an item beside that of the next newer one.
        discount: D, taken off each count.
        prior: mu, the weight of the coarser level.
        max_successors: successors kept of an item, 0 for all.
        popularity_prior: kappa, added to the count of every item.
        repeats: ``observed`` for (3), ``free`` to leave probabilities as they are.

    Raises:
        ConfigError: a setting outside of its range.
    """

    window: int
    window_decay: float
    backward: float
    history_length: int
    history_decay: float
    discount: float
    prior: float
    max_successors: int
    popularity_prior: float
    repeats: str

    def __post_init__(self) -> None:
        _check(
            self, at_least={"window": 1, "history_length": 1, "max_successors": 0},
            shares=("window_decay", "backward", "history_decay", "discount"), positive=("prior", "popularity_prior"),
        )  # fmt: skip
        if self.repeats not in REPEATS:
            raise ConfigError(f"repeats={self.repeats!r} is not one of {', '.join(REPEATS)}")

    def table(self, users: Tensor, items: Tensor, n: int) -> TransitionCounts:
        """The counts of items."""
        return TransitionCounts(
            users, items, n=n, window=self.window, window_decay=self.window_decay, backward=self.backward,
            discount=self.discount, most=self.max_successors,
        )  # fmt: skip

    @property
    def lookup(self) -> Lookup:
        """How a history is looked up."""
        return Lookup(self.history_length, self.history_decay, self.prior)

    @property
    def counted(self) -> str:
        """What a count is, as a part of a sentence: an item was taken so many times ..."""
        return ("soon " if self.window > 1 else "") + ("before or after" if self.backward else "after") + " which"


@dataclass(frozen=True, kw_only=True)
class IntentCountSettings:
    """The same for intents.

    Raises:
        ConfigError: a setting outside of its range.
    """

    intent_window: int
    intent_window_decay: float
    intent_history_decay: float
    intent_discount: float
    intent_prior: float

    def __post_init__(self) -> None:
        _check(
            self, at_least={"intent_window": 1}, positive=("intent_prior",),
            shares=("intent_window_decay", "intent_history_decay", "intent_discount"),
        )  # fmt: skip

    def table(self, users: Tensor, intents: Tensor, n: int) -> TransitionCounts:
        """The counts of intents."""
        return TransitionCounts(
            users, intents, n=n, window=self.intent_window, window_decay=self.intent_window_decay, backward=0.0,
            discount=self.intent_discount, most=0,
        )  # fmt: skip

    def lookup(self, length: int) -> Lookup:
        """How a history is looked up; all `length` of it count."""
        return Lookup(length, self.intent_history_decay, self.intent_prior)


class TransitionCounts(nn.Module):
    """c* of every pair of ids, by source, with N and N* of each source. In the state dict.

    Args:
        users: [P] in order.
        ids: [P] in 1..n-1, in the order of users, then time.
        n: number of ids, padding included.
        window: W.
        window_decay: delta.
        backward: beta.
        discount: D.
        most: keep so many successors of a source, those seen most, equal ones by id; what the others had counts as
            taken off. 0 for all.
    """

    start: Tensor
    successor: Tensor
    count: Tensor
    total: Tensor
    kept: Tensor

    def __init__(self, users: Tensor, ids: Tensor, *, n: int, window: int, window_decay: float, backward: float,
                 discount: float, most: int) -> None:  # fmt: skip
        super().__init__()
        self.n = n
        counts = transitions(
            users.numpy(), ids.numpy(), n=n, window=window, window_decay=window_decay, backward=backward
        )
        total = torch.from_numpy(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())
        if most:
            counts = _largest(counts, most)
        left = counts.data - discount * counts.data.clip(max=1.0)
        source = np.repeat(np.arange(n), np.diff(counts.indptr))
        keep = left > 0
        value = torch.from_numpy(left[keep].astype(np.float32))
        size = np.bincount(source[keep], minlength=n)
        self.register_buffer("start", torch.from_numpy(np.cumsum(np.r_[0, size])))  # [n + 1]
        self.register_buffer("successor", torch.from_numpy(counts.indices[keep].astype(np.int32)))  # [T]
        self.register_buffer("count", value)  # [T] c*
        self.register_buffer("total", total)  # [n] N
        # of what is stored, so that (1) sums to one
        kept = torch.bincount(torch.from_numpy(source[keep]), weights=value.double(), minlength=n)
        self.register_buffer("kept", kept.double())  # [n] N*; whole numbers if nothing is counted

    def check(self) -> None:
        """Raise unless the table fits itself: it may have been read from a file.

        Raises:
            ValueError: a start or a successor that leads out of it, or a count that is none.
        """
        T = len(self.successor)
        start, fits = self.start, len(self.start) == self.n + 1 and len(self.count) == T
        fits = fits and int(start[0]) == 0 and int(start[-1]) == T and bool((start[1:] >= start[:-1]).all())
        if T and fits:
            fits = int(self.successor.min()) > 0 and int(self.successor.max()) < self.n
        for values in (self.count, self.total, self.kept):
            fits = fits and bool((values >= 0).all()) and bool(values.isfinite().all())
        if not fits:
            raise ValueError("the table of transition counts does not fit itself")

    def of(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All successors of some sources. source: [S] ids.

        Returns:
            which of the sources, successor, c*, one each per pair: [P] long, [P] long, [P] float64.
        """
        first, size = self.start[source], self.start[source + 1] - self.start[source]
        which = torch.arange(len(source), device=source.device).repeat_interleave(size)
        within = torch.arange(len(which), device=source.device) - (torch.cumsum(size, 0) - size)[which]
        at = first[which] + within
        return which, self.successor[at].long(), self.count[at].double()

    def masses(self, sources: Tensor, lookup: Lookup) -> tuple[Tensor, Tensor]:
        """mu + E and mu + E - sum e of each row.

        Args:
            sources: [B, L] ids, newest first, 0 for none.
            lookup: how they are looked up.

        Returns:
            [B] each.
        """
        sources = sources[:, : lookup.length]
        weight = lookup.decay ** torch.arange(sources.shape[1], dtype=torch.float64, device=sources.device)
        weight = weight * (sources > 0)
        left_out = self.total - self.kept
        return (weight * self.total[sources]).sum(1) + lookup.prior, (weight * left_out[sources]).sum(1) + lookup.prior

    def evidence(self, sources: Tensor, lookup: Lookup) -> Tensor:
        """e of every id, [B, n]: for the few ids of intents. Arguments as :meth:`masses`."""
        sources = sources[:, : lookup.length]
        if sources.device.type == "cpu":
            return torch.from_numpy(_summed(self, sources, lookup, None).toarray())
        evidence = torch.zeros(len(sources), self.n, dtype=torch.float64, device=sources.device)
        for i, source in enumerate(sources.unbind(1)):
            row, successor, count = self.of(source)
            evidence[row, successor] += lookup.decay**i * count
        return evidence

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Tables of another train split have another size."""
        for name in ("successor", "count"):
            if (stored := state_dict.get(prefix + name)) is not None:
                old = getattr(self, name)
                setattr(self, name, torch.empty(stored.shape, dtype=old.dtype, device=old.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _largest(counts: sparse.csr_matrix, most: int) -> sparse.csr_matrix:
    """The `most` largest entries of each row, equal ones by column."""
    size = np.diff(counts.indptr)
    if size.max(initial=0) <= most:
        return counts
    row = np.repeat(np.arange(len(size)), size)
    order = np.lexsort((counts.indices, -counts.data, row))
    place = np.arange(len(row)) - counts.indptr[row]
    kept = np.sort(order[place < most])
    start = np.r_[0, np.cumsum(np.minimum(size, most))]
    return sparse.csr_matrix((counts.data[kept], counts.indices[kept], start), shape=counts.shape)


@dataclass
class Evidence:
    """The items a history has something to say about: successors of its items, and these items themselves.

    Attributes:
        row: [E] in order.
        item: [E] sorted by row, then item, each once.
        value: [E] float64 e(v).
        old: [O] the places, in order, of what the history has.
        size: [B] how many there are of each row.
    """

    row: Tensor
    item: Tensor
    value: Tensor
    old: Tensor
    size: Tensor

    def of(self, dense: Tensor) -> Tensor:
        """The values of these items. dense: [V, B]. Returns [E]."""
        return dense.view(-1).index_select(0, (self.item * dense.shape[1]).add_(self.row))

    def split(self, n_rows: int) -> Iterator[Evidence]:
        """So many rows at a time, each part with rows from 0."""
        first = 0
        for i, size in enumerate(self.size.split(n_rows)):
            last = first + int(size.sum())
            of, to = torch.searchsorted(self.old, self.old.new_tensor([first, last])).tolist()
            row, part = self.row[first:last] - i * n_rows, slice(first, last)
            yield Evidence(row, self.item[part], self.value[part], self.old[of:to] - first, size)
            first = last


def item_evidence(table: TransitionCounts | None, newest: Tensor, lookup: Lookup, *, n_items: int) -> Evidence:
    """e(v) of a batch of histories.

    Args:
        table: None if nothing is remembered.
        newest: [B, L] items, newest first.
        lookup: how they are looked up.
        n_items: V.
    """
    if newest.device.type == "cpu":
        return _evidence_of_products(table, newest, lookup, n_items)
    return _evidence_of_sorting(table, newest, lookup, n_items)


TRACE = 1e-300  # marks an item of the history among sums of counts, in which it is lost


def _summed(table: TransitionCounts | None, sources: Tensor, lookup: Lookup, marked: Tensor | None,
            n: int | None = None) -> sparse.csr_matrix:  # fmt: skip
    """Evidence by a product of sparse matrices, the rows' sources times the counts of all sources at hand.

    A row of the product adds up its sources in their order, newest first.

    Args:
        table: None if nothing is remembered.
        sources: [B, S] ids, newest first, 0 for none.
        lookup: how they are looked up.
        marked: [B, L] ids that get TRACE besides, or None.
        n: number of ids; that of the table if None.

    Returns:
        [B, n].
    """
    left, weights, rows = [], [], []
    done = 0
    if table is not None:
        ids, place = np.unique(sources.numpy(), return_inverse=True)
        which, successor, count = table.of(torch.from_numpy(ids))
        size = np.bincount(which.numpy(), minlength=len(ids))
        rows.append((size, successor.numpy(), count.numpy()))
        left.append(place.reshape(sources.shape))
        weights.append([lookup.decay**i for i in range(sources.shape[1])])
        done = len(ids)
    if marked is not None:
        ids, place = np.unique(marked.numpy(), return_inverse=True)
        rows.append((np.ones(len(ids), dtype=np.int64), ids, np.full(len(ids), TRACE)))
        left.append(done + place.reshape(marked.shape))
        weights.append([1.0] * marked.shape[1])
    size, column, value = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    start = np.concatenate(([0], np.cumsum(size)))
    shape = (len(size), table.n if n is None and table is not None else n)
    counts = sparse.csr_matrix((value, column, start), shape=shape)
    given = ([sources.numpy()] if table is not None else []) + ([] if marked is None else [marked.numpy()])
    real = np.concatenate(given, axis=1) > 0
    place, weight = np.concatenate(left, axis=1)[real], np.concatenate(weights)
    first = np.concatenate(([0], np.cumsum(real.sum(1))))
    weight = np.broadcast_to(weight, real.shape)[real]
    return sparse.csr_matrix((weight, place, first), shape=(len(real), len(size))) @ counts


def _evidence_of_products(table: TransitionCounts | None, newest: Tensor, lookup: Lookup, n_items: int) -> Evidence:
    summed = _summed(table, newest[:, : lookup.length], lookup, newest, n_items)
    if summed.nnz > n_items:
        summed = summed.tocsc().tocsr()  # sorts by counting
    else:
        summed.sort_indices()
    item, value = torch.from_numpy(summed.indices).long(), torch.from_numpy(summed.data)
    size = torch.from_numpy(np.diff(summed.indptr)).long()
    row = torch.arange(len(newest)).repeat_interleave(size)
    of_row, at = (newest > 0).nonzero(as_tuple=True)
    own = of_row * n_items + newest[of_row, at]
    old = torch.unique(torch.searchsorted(row * n_items + item, own))
    value[old] = value[old].where(value[old] > 1e10 * TRACE, 0.0)
    return Evidence(row, item, value, old, size)


def _evidence_of_sorting(table: TransitionCounts | None, newest: Tensor, lookup: Lookup, n_items: int) -> Evidence:
    """The same where there are no sparse matrices of SciPy: on an accelerator."""
    B, V = len(newest), n_items
    # in one of them, no row has an item twice
    pairs = [] if table is None else [table.of(source) for source in newest[:, : lookup.length].unbind(1)]
    in_history = newest > 0
    of_row = torch.arange(B, device=newest.device)[:, None].expand_as(newest)
    own = of_row[in_history] * V + newest[in_history]
    key, place = torch.unique(torch.cat([own, *(row * V + v for row, v, _ in pairs)]), return_inverse=True)
    value = torch.zeros(len(key), dtype=torch.float64, device=newest.device)
    done = len(own)
    for i, (_, _, count) in enumerate(pairs):
        value[place[done : done + len(count)]] += lookup.decay**i * count
        done += len(count)
    row = key // V
    return Evidence(row, key % V, value, torch.unique(place[: len(own)]), torch.bincount(row, minlength=B))


def with_repeats(evidence: Evidence, plain: Tensor, extra: Tensor, rho: Tensor | None, *, n_rows: int,
                 n_items: int) -> tuple[ScoreOverrides, Tensor]:  # fmt: skip
    """(3): what users take again is said by the data, the rest is shared among the other items.

    Args:
        evidence: the items with evidence of their own.
        plain: [E] the part of their probability that any item has.
        extra: [E] the part that the evidence adds.
        rho: share of interactions that are with an item of the history; None to leave probabilities as they are.
        n_rows: B.
        n_items: V.

    Returns:
        the overrides, and [B] the factor of everything that is none: `extra` is to be used beside it.
    """
    factor = torch.ones_like(extra)
    if rho is None:
        one = torch.ones(n_rows, dtype=extra.dtype, device=extra.device)
        return ScoreOverrides(evidence.row, evidence.item, extra, factor, n_items), one
    row = evidence.row[evidence.old]
    old = torch.bincount(row, weights=plain[evidence.old] + extra[evidence.old], minlength=n_rows)
    others = (1 - rho) / (1 - old).clamp(min=1e-12)
    factor[evidence.old] = (rho / old / others)[row]
    extra = extra * others.index_select(0, evidence.row)
    return ScoreOverrides(evidence.row, evidence.item, extra, factor, n_items), others


def spread(plain: Tensor, evidence: Evidence, common: Tensor, weight: Tensor, share: Tensor,
           rho: Tensor | None) -> Spread:  # fmt: skip
    """(1) and (3) of every item, up to a factor of each row.

    Args:
        plain: [V, B] float32, what any item scores, up to a factor of each row.
        evidence: the items with evidence of their own.
        common: [E] what these have in `plain`, from :meth:`Evidence.of`.
        weight: [E] float32, what the evidence adds, in the unit of `plain`.
        share: [B] float32, the probability that one unit of `plain` is.
        rho: as :func:`with_repeats`.
    """
    row, old, value = evidence.row, evidence.old, common + weight
    if rho is not None:
        of_row, again = row[old], value[old]
        total = torch.zeros_like(share).index_add_(0, of_row, again)
        others = (1 - rho) / (1 - total * share).clamp(min=1e-12)
        value[old] = again * (rho / (total * share * others)).float().index_select(0, of_row)
    return Spread(plain, row, evidence.item, common, value, evidence.size)


def repeat_rate(users: np.ndarray, items: np.ndarray, length: int) -> float:
    """rho: how often an item is one of the `length` before it, add-one smoothed. [P], by users, then time."""
    position = np.arange(len(users))
    order = np.lexsort((position, items, users))
    u, v, p = users[order], items[order], position[order]
    again = (u[1:] == u[:-1]) & (v[1:] == v[:-1]) & (p[1:] - p[:-1] <= length)
    with_history = int((users[1:] == users[:-1]).sum())
    return (int(again.sum()) + 1) / (with_history + 2)


def newest_first(item_seq: Tensor) -> Tensor:
    """Rows padded on the right, the newest item first. [B, L] to [B, L]."""
    length = (item_seq > 0).sum(1, keepdim=True)
    at = length - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
    return item_seq.gather(1, at.clamp(min=0)) * (at >= 0)
