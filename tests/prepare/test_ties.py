"""Targets that ties decide, and orders of items inside ties: counted by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from recbole_cafe.prepare.ties import count_ties, sentence


def counted(of: dict[str, list[tuple[int, float]]]) -> dict:
    """Numbers of user -> (item, day) in the order of the file."""
    rows = [(number, item, day) for number, clicks in enumerate(of.values()) for item, day in clicks]
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    return count_ties(user, item, time.astype(np.float64))


def test_targets_and_steps_by_hand() -> None:
    found = counted({
        "a": [(0, 0), (1, 0), (2, 7), (3, 7)],  # test tied, validation not; steps 0 > 1, 2 > 3
        "b": [(1, 0), (0, 0), (4, 0), (5, 9)],  # test later, validation tied; steps 1 > 0, 0 > 4
        "c": [(2, 3), (3, 3)],                  # test tied, no validation; step 2 > 3 again
        "d": [(6, 1), (6, 1), (0, 5)],          # the same item again is no step
        "e": [(7, 1)],                          # no target
    })  # fmt: skip
    assert (found["tied_test"], found["tied_valid"]) == (2 / 4, 2 / 3)
    assert (found["tied_pairs"], found["tied_repeated"], found["tied_reversed"]) == (5, 2, 1)
    assert found["tied_cyclic"] == 2  # 0 > 1 and 1 > 0


def test_a_cycle_of_three_contradicts_an_order_without_a_reversed_pair() -> None:
    found = counted({"a": [(0, 0), (1, 0)], "b": [(1, 5), (2, 5)], "c": [(2, 9), (0, 9)]})
    assert (found["tied_reversed"], found["tied_cyclic"], found["tied_pairs"]) == (0, 3, 3)


def test_stamps_count_not_the_place_in_the_file() -> None:
    found = counted({"a": [(0, 9.0), (1, 0.0), (2, 9.0)], "b": [(3, 5.0), (4, 0.0), (5, 2.0)]})
    assert (found["tied_test"], found["tied_pairs"]) == (1 / 2, 1)


@pytest.fixture
def baskets() -> dict[str, list[tuple[int, float]]]:
    """Sixty users with a basket of four of 12 items on each of two days, sorted by item."""
    rng = np.random.default_rng(5)
    draw = lambda day: [(int(i), day) for i in sorted(rng.choice(12, 4, replace=False))]  # noqa: E731
    return {f"u{n}": draw(3.0) + draw(8.0) for n in range(60)}


def test_one_order_of_all_items_is_said(baskets: dict[str, list[tuple[int, float]]]) -> None:
    found = counted(baskets)
    assert (found["tied_test"], found["tied_pairs"]) == (1.0, 60 * 6)
    assert (found["tied_reversed"], found["tied_cyclic"]) == (0, 0)
    assert found["tied_cyclic_shuffled"] > 300
    assert "one global order without exception (360 pairs, none reversed)" in sentence(found)
    assert "inflated" in sentence(found)


def test_an_order_with_exceptions_is_a_tendency_and_a_mixed_one_none(baskets: dict) -> None:
    user = next(iter(baskets))
    baskets[user] = list(reversed(baskets[user]))
    assert "tends to an order" in sentence(counted(baskets))
    rng = np.random.default_rng(6)
    mixed = {u: [rows[i] for i in (*rng.permutation(4), *4 + rng.permutation(4))] for u, rows in baskets.items()}
    assert "shows no order of the items" in sentence(counted(mixed))


def test_no_ties_and_no_times_are_said() -> None:
    no_ties = counted({"a": [(0, 3), (1, 9)], "b": [(1, 4), (0, 8), (2, 16)]})
    assert (no_ties["tied_test"], no_ties["tied_pairs"]) == (0.0, 0)
    assert sentence(no_ties).startswith("no test target has the time of the item before")
    positions = counted({"a": [(0, 1), (1, 2)], "b": [(1, 1), (0, 2), (2, 3)]})
    assert set(positions.values()) == {None} and "cannot be checked" in sentence(positions)
    few = counted({"a": [(0, 3), (1, 3)], "b": [(1, 4), (2, 8)]})
    assert "too few pairs (1)" in sentence(few)


def test_cycles_equal_a_naive_search() -> None:
    rng = np.random.default_rng(1)
    of = {f"u{n}": [(int(rng.integers(9)), float(day)) for day in sorted(rng.integers(0, 3, 4))] for n in range(7)}
    steps = [
        (a, b) for rows in of.values() for (a, s), (b, t) in itertools.pairwise(sorted(rows, key=lambda r: r[1]))
        if s == t and a != b
    ]  # fmt: skip

    def reaches(start: int, goal: int) -> bool:
        seen, left = set(), [start]
        while left:
            here = left.pop()
            seen.add(here)
            left += [b for a, b in steps if a == here and b not in seen]
        return goal in seen

    assert counted(of)["tied_cyclic"] == sum(reaches(b, a) for a, b in steps)


def test_check_prints_it(write_atomic, capsys: pytest.CaptureFixture[str]) -> None:
    from recbole_cafe.cli.main import main

    clicks = [(f"u{n}", f"i{i}", 86_400 * (1 + n + i // 2)) for n in range(4) for i in range(4)]
    folder: Path = write_atomic("d", clicks, {f"i{n}": "ab"[n % 2] for n in range(4)}) / "d"
    main(["check", str(folder)])
    said = capsys.readouterr().out
    assert "test targets at the time of the item before" in said and "100.00%" in said
    assert "100.0% of the test targets have the time of the item before them" in said
