"""Products of items with a batch of states, items first, and what is counted and found in such blocks.

A block is [n, B']: n items, B' states, B padded to a multiple of eight. A threshold per state then is one row, one per
state and intent a row gathered whole, and eight comparisons of neighbours, a byte each, are one integer: they are added
up and searched eight at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

EIGHT = 8  # comparisons in a word of 64 bits
LARGEST_BYTE = 255
CELLS = 2**20  # products of a block: 4 MB, which a cache holds


def columns(state: Tensor, fill: float = 0.0) -> Tensor:
    """States as columns, padded. state: [B, D]. Returns [D, B'], contiguous."""
    missing = -len(state) % EIGHT
    if missing:
        state = torch.cat((state, state.new_full((missing, state.shape[1]), fill)))
    return state.T.contiguous()


def items_at_once(n_columns: int) -> int:
    """n of a block."""
    return max(1, CELLS // n_columns)


def counts(mask: Tensor) -> Tensor:
    """How many of each column are true. mask: [n, B'] bool, contiguous. Returns [B'] long."""
    total = torch.zeros(mask.shape[1], dtype=torch.long, device=mask.device)
    for words in mask.view(torch.int64).split(LARGEST_BYTE):  # so many ones of a byte are no more than it holds
        total += words.sum(0).view(torch.uint8)
    return total


def places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where few of a block are true: their items' places and their columns. mask: as :func:`counts`."""
    words = mask.view(torch.int64)
    at, word = words.nonzero(as_tuple=True)
    found, byte = words[at, word][:, None].view(torch.bool).nonzero(as_tuple=True)
    return at[found], word[found] * EIGHT + byte
