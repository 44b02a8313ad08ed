"""Ranks with ties, and the exact expectation of a ranking metric over random tie-breaking.

A tie counts half: with b candidates above the target and t tied with it, each of the places b, ..., b + t is equally
likely. The mean rank is b + t / 2, and a metric is the mean of its value over those places (McSherry & Najork, ECIR
2008), so a scorer that gives every candidate the same score gets what chance gets. Without ties this is the usual
metric. RecBole breaks ties by whatever order `torch.topk` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_cafe.errors import DataError
from recbole_cafe.ranking.expectation import expectation

__all__ = ["Ranks", "ScoreError", "best", "check_parts", "expectation", "list_with_target", "pairs", "rank_of_target"]


class ScoreError(DataError):
    """A model returned scores that cannot be ranked."""


@dataclass(frozen=True)
class Ranks:
    """Where N targets stand.

    Attributes:
        above: [N] candidates with a higher score.
        tied: [N] other candidates with the same score.
        n_candidates: [N] candidates, the target included.
        limit: None if all ranks are exact; else `above` from `limit` on is a lower bound.
    """

    above: Tensor
    tied: Tensor
    n_candidates: Tensor
    limit: int | None = None

    @property
    def mean_rank(self) -> Tensor:
        """[N] mean rank, 0 is best."""
        return self.above + self.tied.double() / 2

    def places(self, luck: Tensor) -> Tensor:
        """[N] one place for each target, among those its tie leaves open; 0 is best.

        Args:
            luck: [N] in [0, 1), which of them.
        """
        return self.above + (luck * (self.tied + 1)).long()

    def of(self, chosen: Tensor) -> Ranks:
        """Those of some targets.

        Args:
            chosen: [N] bool.
        """
        return Ranks(self.above[chosen], self.tied[chosen], self.n_candidates[chosen], self.limit)

    @staticmethod
    def cat(parts: list[Ranks]) -> Ranks:
        """All of them, in order."""
        return Ranks(
            above=torch.cat([part.above for part in parts]),
            tied=torch.cat([part.tied for part in parts]),
            n_candidates=torch.cat([part.n_candidates for part in parts]),
            limit=parts[0].limit,
        )


def rank_of_target(scores: Tensor, target: Tensor, valid: Tensor | None = None) -> Ranks:
    """Rank the target's column among the valid columns of its row.

    Args:
        scores: [B, K].
        target: [B] column of the target.
        valid: [B, K] or [K] bool, which columns are candidates; the target always is one.

    Raises:
        ScoreError: a candidate's score is NaN (RecBole would rank it somewhere without a word).
    """
    row = torch.arange(len(scores), device=scores.device)
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    else:
        valid = valid.expand(scores.shape).clone()
    valid[row, target] = False  # now: the competitors
    own = scores[row, target][:, None]
    if bool((scores.isnan() & valid).any()) or bool(own.isnan().any()):
        raise ScoreError("the model's scores contain NaN; nothing can be ranked by them")
    above = ((scores > own) & valid).sum(1)
    tied = ((scores == own) & valid).sum(1)
    return Ranks(above.cpu(), tied.cpu(), (valid.sum(1) + 1).cpu())


def list_with_target(items: Tensor, target: Tensor, place: Tensor) -> Tensor:
    """The k best items of each row, with the target at its place.

    Args:
        items: [B, k + 1] the best items, best first, 0 where there are fewer; the target may be among them.
        target: [B] its id.
        place: [B] where it stands; from k on it is not in the list.

    Returns:
        [B, k].
    """
    k = items.shape[1] - 1
    rivals_first = (items == target[:, None]).to(torch.uint8).argsort(dim=1, stable=True)
    rivals = items.gather(1, rivals_first)[:, :k]
    moved = torch.cat((torch.zeros_like(target)[:, None], rivals[:, :-1]), dim=1)  # one place down
    column, place = torch.arange(k, device=items.device), place[:, None]
    return torch.where(column < place, rivals, torch.where(column == place, target[:, None], moved))


def best(row: Tensor, item: Tensor, score: Tensor, n_rows: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of some items of each row, best first; equal scores by item id.

    Args:
        row: [P] in 0..n_rows-1.
        item: [P], an item at most once in a row.
        score: [P].
        n_rows: number of rows.
        k: how many.

    Returns:
        items [n_rows, k] (0 where there are fewer) and their scores [n_rows, k] (-inf there).
    """
    items = torch.zeros(n_rows, k, dtype=torch.long, device=row.device)
    scores = torch.full((n_rows, k), -torch.inf, dtype=score.dtype, device=row.device)
    order = torch.argsort(item, stable=True)
    order = order[torch.argsort(score[order], descending=True, stable=True)]
    order = order[torch.argsort(row[order], stable=True)]
    row, item, score = row[order], item[order], score[order]
    size = torch.bincount(row, minlength=n_rows)
    place = torch.arange(len(row), device=row.device) - (torch.cumsum(size, 0) - size)[row]
    keep = place < k
    items[row[keep], place[keep]] = item[keep]
    scores[row[keep], place[keep]] = score[keep]
    return items, scores


def pairs(lists: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists of items, one per row, as rows and items."""
    size = torch.tensor([len(items) for items in lists], device=device)
    return torch.arange(len(lists), device=device).repeat_interleave(size), torch.cat(list(lists))


def check_parts(prepared: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """See that the parts a catalogue is made from are its own.

    Args:
        prepared: the parts.
        shapes: the shape of each, None for any.

    Raises:
        DataError: one is missing, unknown, or of another shape.
    """
    if prepared.keys() != shapes.keys():
        raise DataError(f"parts of a catalogue: found {sorted(prepared)}, expected {sorted(shapes)}")
    for name, shape in shapes.items():
        if shape is not None and tuple(prepared[name].shape) != shape:
            raise DataError(
                f"part {name} of a catalogue: found the shape {tuple(prepared[name].shape)}, expected {shape}"
            )
