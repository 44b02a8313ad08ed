"""Random numbers that belong to the rows of a training step, whoever computes them.

Several processes share the rows of a step. A stream of random numbers for each process would give other dropout and
other negatives, and so other weights, for each number of processes. Here a number depends on the step, the row's place
in it, the position in the row, what it is for and its index, by SplitMix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014): a row's key starts a sequence of its own. The same on every device.

B rows, N of their positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, odd, as a signed number: SplitMix64's step
FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # and its two multipliers
SITE = 0x2545F4914F6CDD1D  # keeps what is drawn for one use apart from the next
STEP_WIDE = -1  # the place of what all rows of a step have in common
PER_DRAW = 4  # 16-bit numbers in a 64-bit one
LEVELS = 2**16


def signed(number: int) -> int:
    """A whole number modulo 2^64, as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function, in place. z: [...] int64."""
    z.bitwise_xor_((z >> 30).bitwise_and_(2**34 - 1)).mul_(FIRST)  # the shifts are logical: the sign is masked away
    z.bitwise_xor_((z >> 27).bitwise_and_(2**37 - 1)).mul_(SECOND)
    return z.bitwise_xor_((z >> 31).bitwise_and_(2**33 - 1))


class Draws:
    """The random numbers of some rows of a step.

    Args:
        step: a number of the step's own, any.
        place: [B] int64, where each row stands in the whole step.
    """

    def __init__(self, step: int, place: Tensor) -> None:
        step = signed(step)
        self.rows = mixed(place * GOLDEN + step)  # [B]
        self.step = mixed(torch.full_like(place[:1], STEP_WIDE) * GOLDEN + step)  # [1]
        self._sites = 0

    @classmethod
    def any(cls, n_rows: int, device: torch.device) -> Draws:
        """Those of a step nobody numbers, by PyTorch's own stream."""
        return cls(int(torch.randint(2**62, ())), torch.arange(n_rows, device=device))

    def site(self) -> int:
        """A number for one use; the uses of a step come in the same order in every process."""
        self._sites += 1
        return self._sites

    def for_step(self, *ids: Tensor) -> Keys:
        """Keys of things that are not rows, such as the intents of a step. ids: [U] each."""
        key = self.step
        for some in ids:
            key = mixed(key + (some + 1) * GOLDEN)
        return Keys(self, key)

    @property
    def for_rows(self) -> Keys:
        """A key for each row, [B]."""
        return Keys(self, self.rows)

    def for_positions(self, row: Tensor, position: Tensor) -> Keys:
        """A key for each position. row, position: [N]."""
        return Keys(self, mixed(self.rows[row] + (position + 1) * GOLDEN))


_current: ContextVar[Draws | None] = ContextVar("draws", default=None)


def current() -> Draws | None:
    """Those of the step that is being computed, as PyTorch's own stream is at hand everywhere; None outside of one."""
    return _current.get()


@contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    """Random numbers inside are these."""
    token = _current.set(draws)
    try:
        yield
    finally:
        _current.reset(token)


class Keys:
    """Where sequences of random numbers start.

    Args:
        draws: of the step.
        key: [...] int64, one for each sequence.
    """

    def __init__(self, draws: Draws, key: Tensor) -> None:
        self.draws, self.key = draws, key

    def once(self) -> Tensor:
        """The keys for one use. Returns [...]."""
        return mixed(self.key + signed(self.draws.site() * SITE))

    def uniform(self, n: int) -> Tensor:
        """Numbers in [0, 1). Returns [..., n] float64."""
        bits = sequence(self.once(), torch.arange(n, device=self.key.device))
        return (bits >> 11).bitwise_and_(2**53 - 1).double().mul_(2.0**-53)

    def integers(self, n: int, limit: int) -> Tensor:
        """Whole numbers below `limit`. Returns [..., n] int64."""
        return (self.uniform(n) * limit).long().clamp_(max=limit - 1)


def sequence(key: Tensor, index: Tensor) -> Tensor:
    """Members of sequences. key: [...], index: [n]. Returns [..., n] int64, all bits random."""
    return mixed(key[..., None] + (index + 1) * GOLDEN)


def kept(key: Tensor, n: int, p: float) -> tuple[Tensor, float]:
    """What dropout keeps: 16 bits for each element give the probability to within 1/65536.

    Args:
        key: [...] as :meth:`Keys.once` gives them.
        n: elements of a key.
        p: probability of being dropped.

    Returns:
        [..., n] int16, 1 for what is kept, else 0; and by what that is to be multiplied, so that the expectation stays.
    """
    dropped = round(p * LEVELS)
    if dropped >= LEVELS or not key.numel():
        return torch.zeros(*key.shape, n, dtype=torch.int16, device=key.device), 1.0
    bits = sequence(key, torch.arange(-(-n // PER_DRAW), device=key.device))
    # int16 runs from -LEVELS / 2; 0 and 1 stay int16, as what comes after bool takes four times as long
    keep = bits.view(torch.int16)[..., :n].ge_(dropped - LEVELS // 2)
    return keep, LEVELS / (LEVELS - dropped)
