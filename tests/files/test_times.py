"""Which interactions are later than the one before, and whether stamps are times: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_cafe.files import times
from recbole_cafe.files.times import are_positions, later_than_before

DAY = 86_400.0


def test_later_is_strict_and_within_the_user() -> None:
    user = np.array([1, 1, 1, 1, 2, 2, 3])
    time = np.array([0, 0, DAY, DAY, 2 * DAY, 3 * DAY, 9 * DAY])
    assert later_than_before(user, time).tolist() == [False, False, True, False, False, True, False]


def test_stamps_that_float32_cannot_tell_apart_are_told_apart() -> None:
    user, time = np.array([1, 1, 1]), np.array([1_363_061_522.0, 1_363_061_523.0, 1_363_061_523.0])
    assert later_than_before(user, time).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("user", "time", "expected"),
    [
        ([1, 1, 1, 2, 2], [1, 2, 3, 1, 2], True),  # of each user
        ([1, 1, 1, 2, 2], [0, 2, 4, 1, 3], True),  # of all, 0 ... 4
        ([1, 1, 1, 2, 2], [0, 2, 2, 1, 3], False),  # a tie
        ([1, 1, 1, 2, 2], [0, 0.5, 1, 2, 4], False),
        ([1, 1, 2, 2], [0, 86_400, 0, 86_400], False),
        ([1, 1, 2, 2], [5, 6, 9, 12], False),
        ([1, 2], [5, 900], True),  # nothing to tell
    ],
)
def test_positions_are_no_times(user: list[int], time: list[float], expected: bool) -> None:
    assert are_positions(np.array(user), np.array(time, dtype=np.float64)) is expected


def test_one_step_in_a_later_part_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "_ROWS", 2)
    user = np.ones(7, dtype=np.int64)
    assert are_positions(user, np.arange(7.0))
    for at in range(1, 7):  # also the step between two parts
        assert not are_positions(user, np.arange(7.0) + (np.arange(7) >= at))
