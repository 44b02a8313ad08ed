"""A data set whose right answers follow from how it is made.

Twenty-four items stand on a ring, r00 ... r23. Whoever takes item m takes item m + 1 next, and the intent of item m is
the letter number m mod 4, so that after each intent comes the next letter. Every user walks along the ring from a
random start: the next item is known exactly, from the last item alone. The known answer for a history is
:func:`successor` of its last item.

What data have that models stumble on is here too: users of three interactions, one longer than the rows, one item of
the ring without an intent, items that are in the catalogue but in no interaction, and stamps (seconds since 1970) that
float32 cannot tell apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from atomic_files import atomic_files

NAME = "toy"
RING = 24
INTENTS = "abcd"
NO_INTENT = 9  # number of the ring's item without an intent
NEVER = ("n0", "n1", "n2")  # items of the catalogue without interactions
MAX_LENGTH = 8  # L the tests use; the long user has more interactions
LONG, LONG_USER = 30, "long"
SHORT_USERS = 6  # of three interactions: one target to train on, one to test
USERS = 150


def item(number: int) -> str:
    """Token of an item of the ring."""
    return f"r{number % RING:02d}"


def intent(token: str) -> str:
    """Token of an item's intent, "" for none."""
    number = int(token[1:])
    return "" if token == item(NO_INTENT) else INTENTS[number % len(INTENTS)]


def successor(token: str) -> str:
    """The only item that ever follows an item of the ring."""
    return item(int(token[1:]) + 1)


def walks() -> dict[str, list[str]]:
    """User -> items in order."""
    rng = np.random.default_rng(7)
    lengths = [3] * SHORT_USERS + [int(n) for n in rng.integers(4, 8, USERS - SHORT_USERS)]
    starts = rng.integers(0, RING, USERS)
    of = {
        f"u{i:02d}": [item(start + step) for step in range(n)]
        for i, (start, n) in enumerate(zip(starts, lengths, strict=True))
    }
    of[LONG_USER] = [item(step) for step in range(LONG)]
    return of


def write_toy(folder: Path) -> Path:
    """Write `<folder>/toy/toy.inter` and `toy.item`; lines in random order, so that only time gives the order.

    Returns:
        <folder>/toy; its parent is the `data_path`.
    """
    rng = np.random.default_rng(8)

    def shuffled(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
        return [rows[i] for i in rng.permutation(len(rows))]

    clicks = [
        (user, token, 1_400_000_000 + step) for user, tokens in walks().items() for step, token in enumerate(tokens)
    ]
    catalogue = [*(item(m) for m in range(RING)), *NEVER]
    return atomic_files(
        Path(folder), NAME, inter=shuffled(clicks), item=shuffled([(token, intent(token)) for token in catalogue])
    )
