"""recbole_cafe.files.candidates: who the negatives are, how likely, and that they stay the same."""

from __future__ import annotations

import itertools
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from recbole_cafe.files import candidates
from recbole_cafe.files.candidates import Candidates, Protocol, draw, fingerprint, other_intents, parse_protocol, stored

Pairs = tuple[np.ndarray, np.ndarray]


def random_interactions(n_users: int = 60, n_items: int = 300, seed: int = 3) -> Pairs:
    """Users 1..n_users with 2 to 40 interactions over the items 1..n_items-1, popular ones first, some twice."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_users + 1), rng.integers(2, 41, n_users))
    items = 1 + np.minimum((n_items - 1) * rng.random(len(users)) ** 2, n_items - 2).astype(np.int64)
    return users, items


def owned(users: np.ndarray, items: np.ndarray) -> dict[int, set[int]]:
    of: dict[int, set[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        of.setdefault(user, set()).add(item)
    return of


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The users finished by `_race`."""
    seen: list[int] = []
    race = candidates._race

    def counted(kept: np.ndarray, user: int, *rest: object) -> np.ndarray:
        seen.append(int(user))
        return race(kept, user, *rest)

    monkeypatch.setattr(candidates, "_race", counted)
    return seen


# Who ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["pop", "uni"])
def test_negatives_are_distinct_and_foreign(distribution: str) -> None:
    users, items = random_interactions()
    table = draw(users, items, n_users=61, n_items=300, n_negatives=100, distribution=distribution, seed=0)
    assert table.negatives.shape == (61, 100)
    assert table.n_short == 0
    assert (table.negatives[0] == 0).all()  # user id 0 is padding
    of = owned(users, items)
    for user in range(1, 61):
        row = table.negatives[user].tolist()
        assert len(set(row)) == 100
        assert not set(row) & of[user]
        assert set(row) <= set(range(1, 300))


@pytest.mark.parametrize("distribution", ["pop", "uni"])
def test_who_has_too_few_eligible_items_gets_all_of_them(distribution: str, raced: list[int]) -> None:
    # items 1..7, all of them bought; user 1 owns 1..4, user 2 owns 5, user 3 owns everything
    users = np.array([1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3])
    items = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7])
    table = draw(users, items, n_users=4, n_items=8, n_negatives=5, distribution=distribution, seed=1)
    assert set(table.negatives[1, :3]) == {5, 6, 7}
    assert table.negatives[1, 3:].tolist() == [0, 0]
    assert len(set(table.negatives[2]) - {0, 5}) == 5
    assert table.negatives[3].tolist() == [0] * 5
    assert table.n_short == 2
    assert {1, 3} <= set(raced)


def test_items_nobody_bought_are_drawn_by_uni_only() -> None:
    users, items = np.array([1, 2, 3]), np.array([1, 2, 3])  # items 4..9 were never bought
    pop = draw(users, items, n_users=4, n_items=10, n_negatives=4, distribution="pop", seed=0)
    uni = draw(users, items, n_users=4, n_items=10, n_negatives=8, distribution="uni", seed=0)
    assert set(pop.negatives[1]) == {2, 3, 0}
    assert set(uni.negatives[1]) == set(range(2, 10))
    assert (pop.n_short, uni.n_short) == (3, 0)


def test_more_users_than_a_chunk_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = random_interactions()
    monkeypatch.setattr(candidates, "CHUNK", 7)
    table = draw(users, items, n_users=61, n_items=300, n_negatives=50, distribution="pop", seed=0)
    of = owned(users, items)
    for user in range(1, 61):
        assert len(set(table.negatives[user]) - of[user] - {0}) == 50
    assert len({tuple(row) for row in table.negatives[1:]}) == 60  # nobody has another's list


# How likely -----------------------------------------------------------------------------------------------------------


def ordered_samples(weights: dict[int, float], n: int) -> dict[tuple[int, ...], float]:
    """Exact probability of each ordered sample of n without replacement in proportion to weights."""
    exact = {}
    for sample in itertools.permutations(weights, n):
        left, probability = sum(weights.values()), 1.0
        for item in sample:
            probability *= weights[item] / left
            left -= weights[item]
        exact[sample] = probability
    return exact


def p_value(rows: np.ndarray, exact: dict[tuple[int, ...], float]) -> float:
    seen = Counter(map(tuple, rows.tolist()))
    assert set(seen) <= set(exact)
    observed = np.array([seen[sample] for sample in exact])
    return float(chisquare(observed, np.array(list(exact.values())) * len(rows)).pvalue)


def test_pop_is_exact_sampling_without_replacement_by_counts(raced: list[int]) -> None:
    counts = {1: 9000, 2: 5000, 3: 3000, 4: 2000, 5: 1000}  # one interaction a user
    items = np.repeat(list(counts), list(counts.values()))
    users = np.arange(1, len(items) + 1)
    table = draw(users, items, n_users=len(users) + 1, n_items=6, n_negatives=2, distribution="pop", seed=7)
    for own in counts:
        exact = ordered_samples({i: c for i, c in counts.items() if i != own}, 2)
        assert p_value(table.negatives[users[items == own]], exact) > 0.001
    assert not raced  # eleven draws a round find two others of five items within six rounds


def test_the_race_gives_the_same_distribution(raced: list[int]) -> None:
    counts = {1: 5000, 2: 12, 3: 9, 4: 6, 5: 3}  # who owns item 1 hardly ever meets another one
    items = np.repeat(list(counts), list(counts.values()))
    users = np.arange(1, len(items) + 1)
    table = draw(users, items, n_users=len(users) + 1, n_items=6, n_negatives=2, distribution="pop", seed=7)
    assert len(raced) > 4000
    exact = ordered_samples({i: c for i, c in counts.items() if i != 1}, 2)
    assert p_value(table.negatives[users[items == 1]], exact) > 0.001
    wrong = ordered_samples({i: 1.0 for i in counts if i != 1}, 2)  # the test can tell
    assert p_value(table.negatives[users[items == 1]], wrong) < 1e-9


def test_uni_is_uniform(raced: list[int]) -> None:
    items = np.repeat([1, 2, 3, 4, 5], [9000, 400, 300, 200, 100])
    users = np.arange(1, len(items) + 1)
    table = draw(users, items, n_users=len(users) + 1, n_items=6, n_negatives=2, distribution="uni", seed=7)
    exact = ordered_samples(dict.fromkeys((2, 3, 4, 5), 1.0), 2)
    assert p_value(table.negatives[users[items == 1]], exact) > 0.001


def test_the_order_of_the_interactions_does_not_matter() -> None:
    """`tie_order` changes it, and the fingerprint under which candidates are stored does not look at it."""
    users, items = random_interactions()
    shuffled = np.random.default_rng(0).permutation(len(users))
    make = {"n_users": 61, "n_items": 300, "n_negatives": 50, "distribution": "pop", "seed": 0}
    assert draw(users, items, **make).digest == draw(users[shuffled], items[shuffled], **make).digest


def test_a_seed_means_the_same_table_and_another_one_another() -> None:
    users, items = random_interactions()
    make = {"n_users": 61, "n_items": 300, "n_negatives": 50, "distribution": "pop"}
    first, again, other = (draw(users, items, seed=seed, **make) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.negatives, again.negatives)
    assert first.digest == again.digest != other.digest


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates are drawn by pop or uni, not 'zipf'"):
        draw(np.array([1]), np.array([1]), n_users=2, n_items=3, n_negatives=1, distribution="zipf", seed=0)


# Stored ---------------------------------------------------------------------------------------------------------------


def keep(folder: Path, *, data: str = "d" * 64, protocol: str = "pop3", seed: int = 1,
         make: Callable[[], Candidates] | None = None) -> Candidates:  # fmt: skip
    users, items = random_interactions()
    shape = {"n_users": 61, "n_items": 300, "n_negatives": 3, "distribution": "pop"}
    make = make or (lambda: draw(users, items, seed=seed, **shape))
    return stored(folder, name="toy", data=data, protocol=parse_protocol(protocol), seed=seed, make=make)


def never() -> Candidates:
    raise AssertionError("drawn again")


def test_what_was_stored_is_read_back(tmp_path: Path) -> None:
    drawn = keep(tmp_path / "new" / "folder")
    read = keep(tmp_path / "new" / "folder", make=never)
    np.testing.assert_array_equal(read.negatives, drawn.negatives)
    assert (read.digest, read.n_short, read.path) == (drawn.digest, drawn.n_short, drawn.path)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [f"toy-pop3-seed1-{'d' * 12}.npz"]


def test_another_seed_data_or_protocol_is_another_file(tmp_path: Path) -> None:
    paths = {
        keep(tmp_path).path,
        keep(tmp_path, seed=2).path,
        keep(tmp_path, data="e" * 64).path,
        keep(tmp_path, protocol="uni3").path,
        keep(tmp_path, protocol="pop4").path,
    }
    assert len(paths) == len(list(tmp_path.iterdir())) == 5


def test_authors_shares_the_candidates_of_pop(tmp_path: Path) -> None:
    assert keep(tmp_path, protocol="authors3", make=None).path == keep(tmp_path, protocol="pop3", make=never).path


def test_nothing_stays_behind_when_drawing_or_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="disk full"):
        keep(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Touch:
    """Pickled, it makes the folder `path` when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_a_damaged_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = keep(tmp_path).path
    whole = path.read_bytes()
    trap = tmp_path / "trap"
    for content in (b"", b"not an archive", whole[: len(whole) // 2], pickle.dumps(Touch(str(trap)))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pop3-seed1-.*npz: not a readable candidates file .*delete it to draw"):
            keep(tmp_path, make=never)
    np.savez(path, negatives=np.array([Touch(str(trap))], dtype=object), data=np.array("d" * 64), digest=np.array(""))
    with pytest.raises(ValueError, match="not a readable candidates file"):
        keep(tmp_path, make=never)
    assert not trap.exists()


def test_a_changed_or_foreign_file_is_refused(tmp_path: Path) -> None:
    drawn = keep(tmp_path)
    with np.load(drawn.path) as file:
        content = dict(file)
    other = content["negatives"].copy()
    other[1, 0], other[1, 1] = other[1, 1], other[1, 0]
    for change in ({"negatives": other}, {"data": np.array("d" * 12 + "0" * 52)}, {"digest": np.array("0" * 64)}):
        np.savez(drawn.path, **(content | change))
        with pytest.raises(ValueError, match="does not belong to these interactions or was changed; delete it"):
            keep(tmp_path, make=never)
    np.savez(drawn.path, **content)
    assert keep(tmp_path, make=never).digest == drawn.digest


def test_the_fingerprint_knows_the_data_and_not_their_order() -> None:
    users, items = random_interactions()
    user_tokens, item_tokens = np.array(["[PAD]", *"abc"]), np.array(["[PAD]", *map(str, range(299))])
    base = ("toy", user_tokens, item_tokens, users, items)
    shuffled = np.random.default_rng(0).permutation(len(users))
    assert fingerprint(*base) == fingerprint("toy", user_tokens, item_tokens, users[shuffled], items[shuffled])
    others = [
        ("toy2", *base[1:]),
        ("toy", user_tokens[::-1], *base[2:]),
        ("toy", user_tokens, item_tokens[::-1], users, items),
        (*base[:3], users[1:], items[1:]),
        (*base[:3], np.r_[users, users[:1]], np.r_[items, items[:1]]),
        (*base[:4], np.r_[items[1:], items[:1]]),
    ]
    assert len({fingerprint(*base), *(fingerprint(*other) for other in others)}) == 1 + len(others)


# Protocols ------------------------------------------------------------------------------------------------------------


def test_protocol_names() -> None:
    assert parse_protocol("full") == Protocol("full", None, 0)
    assert parse_protocol("pop100") == Protocol("pop100", "pop", 100)
    assert parse_protocol("uni7") == Protocol("uni7", "uni", 7)
    assert parse_protocol("authors100") == Protocol("authors100", "authors", 100)
    assert [parse_protocol(n).random_intents for n in ("full", "pop1", "uni1", "authors1")] == [False] * 3 + [True]


@pytest.mark.parametrize(
    "name", ["", "pop", "pop0", "pop-1", "pop1.5", "POP100", "pop100 ", "labeled", None, 100, "uni07"]
)
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not full, popN, uniN or authorsN with N a positive number") as caught:
        parse_protocol(name)
    assert repr(name) in str(caught.value)


# Other intents --------------------------------------------------------------------------------------------------------


def test_other_intents_are_distinct_and_never_the_targets() -> None:
    target = np.arange(1, 13).repeat(50)
    chosen = other_intents(target, n_intents=13, n_negatives=11, seed=3)  # 12 intents: all but the target's
    for own, row in zip(target.tolist(), chosen.tolist(), strict=True):
        assert sorted(row) == [i for i in range(1, 13) if i != own]


def test_other_intents_are_uniform_in_every_place() -> None:
    chosen = other_intents(np.full(6000, 2), n_intents=6, n_negatives=2, seed=3)
    assert p_value(chosen, ordered_samples(dict.fromkeys((1, 3, 4, 5), 1.0), 2)) > 0.001


def test_a_target_without_intent_excludes_none_and_is_never_drawn() -> None:
    chosen = other_intents(np.full(200, 6), n_intents=6, n_negatives=4, seed=3)  # id C = 6 is "no intent"
    assert set(chosen.ravel()) == {1, 2, 3, 4, 5}


def test_other_intents_need_one_more_intent_than_negatives() -> None:
    message = (
        "authors100 gives each negative another intent, all different: it needs at least 101 intents, there are 100"
    )
    with pytest.raises(ValueError, match=message):
        other_intents(np.array([1]), n_intents=101, n_negatives=100, seed=0)
    assert other_intents(np.array([1]), n_intents=102, n_negatives=100, seed=0).shape == (1, 100)
