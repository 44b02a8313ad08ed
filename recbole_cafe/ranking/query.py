"""What a history says before it meets the items: one object for every model and every catalogue.

B rows, V items, C intents, D width of an item's vector.
"""

from __future__ import annotations

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
    """

    row: Tensor
    item: Tensor
    extra: Tensor
    factor: Tensor
    n_items: int

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
        logits: [V, B'] float32, the products of the items' vectors with `vector`, items first (B' is B padded; see
            recbole_cafe.ranking.blocks): there if the model needed them all and they are few. They save a catalogue
            the product and decide nothing that is closer than their rounding.
    """

    vector: Tensor | None = None
    terms: Tensor | None = None
    log_norm: Tensor | None = None
    overrides: ScoreOverrides | None = None
    logits: Tensor | None = None


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
