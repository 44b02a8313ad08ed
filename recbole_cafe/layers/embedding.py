"""Embedding tables whose row 0 is padding and stays zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_given_later = ContextVar("given_later", default=False)


@contextmanager
def tables_given_later() -> Iterator[None]:
    """Tables made meanwhile have a shape and no numbers: for `load_state_dict(..., assign=True)`.

    Drawing a large table's numbers to throw them away would take its memory twice, and seconds.
    """
    token = _given_later.set(True)
    try:
        yield
    finally:
        _given_later.reset(token)


class PaddedEmbedding(nn.Embedding):
    """A table of n vectors with a zero row 0.

    RecBole's models re-draw row 0 with the rest of the table, so that their padding is a frozen random vector;
    here it is zero and, through ``padding_idx``, stays so.

    Args:
        n: number of rows, padding included.
        size: width of a row.
        std: standard deviation of the normal initialisation.
        sparse: gradients hold the rows a batch touched instead of all n.
    """

    def __init__(self, n: int, size: int, *, std: float, sparse: bool = False) -> None:
        self.std = std
        super().__init__(n, size, padding_idx=0, sparse=sparse, device="meta" if _given_later.get() else None)

    def reset_parameters(self) -> None:
        """nn.Embedding's constructor calls this: one draw, not two of a large table."""
        if self.weight.is_meta:
            return
        nn.init.normal_(self.weight, std=self.std)
        with torch.no_grad():
            self.weight[0].zero_()


def cosines(table: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """The cosine of the angle between one row and every other. table: [n, D].

    Returns:
        [n - 1] the rows but 0, and [n - 1] their cosines, 0 for a row of zeros.
    """
    own = table[row]
    product = table @ own
    length = torch.linalg.vector_norm(table, dim=1) * torch.linalg.vector_norm(own)
    return torch.arange(1, len(table), device=table.device), (product / length.clamp(min=1e-12))[1:]


def within_ball(vectors: Tensor, radius: float | None) -> Tensor:
    """Vectors longer than `radius` shortened to it; None leaves all as they are. [..., D] to [..., D].

    Out of place: the table keeps its rows and what is read is their projection. A row outside the ball so gets the
    part of its gradient that turns it, and none that shortens or lengthens it.
    """
    if radius is None:
        return vectors
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * (radius / norm.clamp(min=radius))


def init_transformer(module: nn.Module, std: float) -> None:
    """Draw the weights of every Linear below `module` from N(0, std^2), biases zero; position tables likewise."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding) and not isinstance(part, PaddedEmbedding):
            nn.init.normal_(part.weight, std=std)
