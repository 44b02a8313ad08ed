"""What a history says before it meets the items: one object for every model and every catalogue.

B rows, V items, C intents, D width of an item's vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


@dataclass(frozen=True)
class ScoreOverrides:
    """Items of which a row knows more than its catalogue does; sorted by row, then item, each once.

    An item listed here scores ``(plain + extra) * factor`` where any other scores ``plain``.

    Attributes:
        row: [E] rows of the batch.
        item: [E] items.
        extra: [E] float64, at least 0; 0 for an item that is not listed.
        factor: [E] float64, at least 0; 1 for an item that is not listed.
        n_items: V.
        plain: [E] float64, nearly what the item scores were it not listed, and
        error: [B] float64, by how much ln of that may be off besides the rounding of a product; None if not known.
            They save a catalogue work and decide nothing that is closer than that.
    """

    row: Tensor
    item: Tensor
    extra: Tensor
    factor: Tensor
    n_items: int
    plain: Tensor | None = None
    error: Tensor | None = None

    def of(self, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """The extra and the factor of any items.

        Args:
            row: rows of the batch.
            item: items, of the same shape.

        Returns:
            two tensors of that shape.
        """
        if not len(self.row):
            return torch.zeros_like(row, dtype=torch.float64), torch.ones_like(row, dtype=torch.float64)
        listed, asked = self.row * self.n_items + self.item, row * self.n_items + item
        at = torch.searchsorted(listed, asked).clamp(max=len(listed) - 1)
        is_listed = listed[at] == asked
        return self.extra[at].where(is_listed, 0.0), self.factor[at].where(is_listed, 1.0)


@dataclass(frozen=True)
class Query:
    """What a batch of histories says.

    A model fills what its catalogue reads and leaves the rest None.

    Attributes:
        vector: [B, D], multiplied with the items' vectors.
        terms: [B, C + 1], what each intent contributes.
        log_norm: [B, C + 1], ln of the sum over the items of each intent.
        overrides: items of which single rows know more.
        logits: float32 products of the items' vectors with those of some rows after the other, [V, B'] each, items
            first (B' is the number of rows padded; see recbole_cafe.ranking.blocks): there if the model needed them
            all and they are few. They save a catalogue the product and decide nothing that is closer than their
            rounding.
    """

    vector: Tensor | None = None
    terms: Tensor | None = None
    log_norm: Tensor | None = None
    overrides: ScoreOverrides | None = None
    logits: tuple[Tensor, ...] = ()

    @staticmethod
    def cat(parts: Sequence[Query]) -> Query:
        """The rows of several queries with overrides, one after the other."""
        if len(parts) == 1:
            return parts[0]

        def joined(values: Sequence[Tensor | None]) -> Tensor | None:
            given = [value for value in values if value is not None]
            return torch.cat(given) if len(given) == len(parts) else None

        listed = [required(part.overrides, "overrides") for part in parts]
        names = ("item", "extra", "factor", "plain", "error")
        item, extra, factor, plain, error = (joined([vars(each)[name] for each in listed]) for name in names)
        rows, done = [], 0
        for part, each in zip(parts, listed, strict=True):
            rows.append(each.row + done)
            done += len(required(part.terms, "terms"))
        overrides = ScoreOverrides(
            torch.cat(rows), required(item, "items"), required(extra, "extras"), required(factor, "factors"),
            listed[0].n_items, plain, error,
        )  # fmt: skip
        vector, terms, norm = (joined([vars(part)[name] for part in parts]) for name in ("vector", "terms", "log_norm"))
        return Query(vector, terms, norm, overrides, tuple(x for part in parts for x in part.logits))

    def split(self, n_rows: int) -> Iterator[Query]:
        """Some rows after the other of a query with overrides; as many as there are logits of at a time, if any.

        Args:
            n_rows: otherwise.
        """
        terms, listed = required(self.terms, "terms"), required(self.overrides, "overrides")
        n_rows = self.logits[0].shape[1] if self.logits else n_rows
        if len(terms) <= n_rows:
            yield self
            return
        edge = torch.arange(0, len(terms) + n_rows, n_rows, device=terms.device)
        edges = torch.searchsorted(listed.row, edge).tolist()
        for i, first in enumerate(range(0, len(terms), n_rows)):
            rows, at = slice(first, first + n_rows), slice(edges[i], edges[i + 1])
            overrides = ScoreOverrides(
                listed.row[at] - first, listed.item[at], listed.extra[at], listed.factor[at], listed.n_items,
                None if listed.plain is None else listed.plain[at],
                None if listed.error is None else listed.error[rows],
            )  # fmt: skip
            yield Query(
                None if self.vector is None else self.vector[rows], terms[rows],
                None if self.log_norm is None else self.log_norm[rows], overrides, self.logits[i : i + 1],
            )  # fmt: skip


def required(part: Part | None, name: str) -> Part:
    """A part of a query that its reader cannot do without.

    Args:
        part: of a query.
        name: of the part.

    Returns:
        the part.

    Raises:
        TypeError: it is None: the query was made for another model or another catalogue.
    """
    if part is None:
        raise TypeError(f"the query has no {name}: it was made for another model")
    return part
