"""recbole_cafe.benchmark.search: no point twice, none forgotten, and the same after a restart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from recbole_cafe.benchmark.search import Search

SPACE = {"rate": [0.1, 0.2, 0.3], "drop": [[0.1, 0.2], [0.3, 0.4]], "loss": ["CE", None]}
POINTS = {f"h{i}": dict(zip(SPACE, values, strict=True)) for i, values in enumerate(itertools.product(*SPACE.values()))}


def search(sampler: str, n_trials: int = 12, seed: int = 1, **given: Any) -> Search:
    return Search(SPACE, POINTS, n_trials=n_trials, sampler=sampler, seed=seed, **{"finished": {}, **given})


def drain(made: Search, at_once: int = 1) -> list[str]:
    """Ask until nothing is left, with `at_once` points under way; the score of h<i> is i."""
    order: list[str] = []
    while not made.over:
        while len(made.running) < at_once and (digest := made.ask()) is not None:
            order.append(digest)
        digest = next(iter(made.running))
        made.tell(digest, float(digest[1:]))
    assert made.ask() is None
    return order


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_every_point_once(sampler: str, at_once: int) -> None:
    assert sorted(drain(search(sampler), at_once)) == sorted(POINTS)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_no_more_than_asked_for_and_the_same_for_one_seed(sampler: str) -> None:
    one, same, other = (drain(search(sampler, n_trials=5, seed=seed)) for seed in (1, 1, 2))
    assert len(set(one)) == 5
    assert one == same != other


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
@pytest.mark.parametrize("done", [1, 4, 5])
def test_a_restart_makes_what_is_left(sampler: str, done: int) -> None:
    before = drain(search(sampler, n_trials=5))[:done]
    again = search(sampler, n_trials=5, finished={digest: float(digest[1:]) for digest in before})
    after = drain(again)
    assert len(after) == 5 - done
    assert len({*before, *after}) == 5
    assert again.scores.keys() == {*before, *after}


def test_the_grid_goes_on_in_its_order_after_a_restart() -> None:
    order = drain(search("grid", n_trials=6))
    assert drain(search("grid", n_trials=6, finished={order[0]: 1.0, order[3]: 2.0})) == [
        order[i] for i in (1, 2, 4, 5)
    ]


def test_tpe_first_finishes_what_was_begun() -> None:
    assert drain(search("tpe", n_trials=4, finished={"h1": 1.0}, begun=["h7", "h1", "gone"]))[0] == "h7"


def test_a_failed_point_counts_as_tried_and_is_not_chosen() -> None:
    for sampler in ("grid", "tpe"):
        made = search(sampler, n_trials=3)
        failed = made.ask()
        made.tell(failed, None)
        order = drain(made)
        assert len(order) == 2
        assert failed not in made.scores
        assert made.scores.keys() == set(order)


def test_tpe_learns_from_what_is_on_disk() -> None:
    """With rate 0.3 far better in what is done, it proposes that rate most of the time."""
    space = {"rate": [0.1, 0.2, 0.3], "n": list(range(40))}
    points = {f"h{i}": dict(zip(space, v, strict=True)) for i, v in enumerate(itertools.product(*space.values()))}
    finished = {digest: float(point["rate"] == 0.3) for digest, point in points.items() if point["n"] < 10}
    made = Search(space, points, n_trials=len(finished) + 9, sampler="tpe", seed=0, finished=finished)
    rates = [points[digest]["rate"] for digest in iter(made.ask, None)]
    assert rates.count(0.3) >= 7
