"""What the stamps of interactions tell of their order: which tie, and whether they are times at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NO_TIMES = "the stamps are positions in an order, not times"  # of :func:`are_positions`, for people

_ROWS = 1 << 18  # at a time
Stamps = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Flags = npt.NDArray[np.bool_]


def later_than_before(user: npt.NDArray[np.generic], time: Stamps) -> Flags:
    """Whether each interaction has a strictly later stamp than the user's interaction before it.

    Args:
        user: [P] of interactions in (user, time) order.
        time: [P] their stamps.

    Returns:
        [P]; a user's first interaction, which has none before it, is not later.
    """
    later = np.zeros(len(time), dtype=bool)
    later[1:] = (user[1:] == user[:-1]) & (time[1:] > time[:-1])
    return later


def are_positions(user: npt.NDArray[np.generic], time: Stamps) -> bool:
    """Whether the stamps only number the interactions, of each user or of all, so that they cannot tell which tie.

    They do if each of a user's stamps is the one before plus 1, or if all stamps together are consecutive whole
    numbers. One interaction a user tells nothing, and counts as positions.

    Args:
        user: [P] of interactions in (user, time) order.
        time: [P] their stamps.
    """
    for start in range(0, len(time), _ROWS):  # times differ soon
        part = slice(start, start + _ROWS + 1)
        step = np.diff(time[part])[user[part][1:] == user[part][:-1]]
        if (step != 1).any():
            break
    else:
        return True
    least = time.min()
    if time.max() - least != len(time) - 1 or (time != np.floor(time)).any():
        return False
    return bool((np.bincount((time - least).astype(np.int64)) == 1).all())
