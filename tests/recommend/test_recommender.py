"""recbole_cafe.recommend.recommender: lists against a naive reading of all scores; the other questions by hand."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from made import bundle_of

from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.recommend import recommender as module
from recbole_cafe.recommend.recommender import Recommender

N = 60
INTENT = {f"i{n}": "abcde"[n * 3 % 5] if n % 9 else "" for n in range(N)}
WALKS = {f"u{u}": [f"i{(u * 7 + step * step * (u % 4 + 1)) % 50}" for step in range(3 + u % 7)] for u in range(40)}
MODELS = ("CaFe", "CaFePlus", "IntentBackoff", "NOVA")
HISTORIES = [["i0", "i7", "i9"], ["i3"], [], ["i5", "i5", "i1", "i5"], ["i59"], [f"i{n}" for n in range(20)]]
ASKED: list[dict[str, Any]] = [
    {},
    {"exclude_seen": False},
    {"exclude": ["i1", "i2", "i1"]},
    {"allow": [f"i{n}" for n in range(0, N, 3)]},
    {"intents": ["a", "e"]},
    {"per_intent": 1},
    {"per_intent": 2, "intents": ["b", "c"], "exclude": ["i4"]},
    {"allow": ["i3", "i59", "i8"], "per_intent": 1, "exclude_seen": False},
    {"allow": []},
    {"intents": []},
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def recommender(request: pytest.FixtureRequest) -> Recommender:
    return Recommender(bundle_of(request.param, WALKS, INTENT))


def naive(asked: Recommender, history: Sequence[str], k: int, *, exclude_seen: bool = True, exclude: Sequence[str] = (),
          allow: Sequence[str] | None = None, per_intent: int | None = None,
          intents: Sequence[str] | None = None) -> list[tuple[str, float]]:  # fmt: skip
    """All items by score, then by id; those that may stay, one after the other."""
    said = asked.score(history, list(INTENT))
    scored = zip(said["item"].to_pylist(), said[asked.score_name].to_pylist(), strict=True)
    order = sorted(scored, key=lambda pair: -pair[1])  # stable: equal ones stay in the order of ids
    of_intent: Counter[str] = Counter()
    listed: list[tuple[str, float]] = []
    for item, score in order:
        seen = exclude_seen and item in history
        banned = item in exclude or (allow is not None and item not in allow)
        if seen or banned or (intents is not None and (not INTENT[item] or INTENT[item] not in intents)):
            continue
        if per_intent is not None and of_intent[INTENT[item]] >= per_intent:
            continue
        of_intent[INTENT[item]] += 1
        listed.append((item, score))
    return listed[:k]


def lists_of(asked: Recommender, histories: Sequence[Sequence[str]], k: int, **options: Any) -> list[list[Any]]:
    lists: list[list[Any]] = [[] for _ in histories]
    for row in asked.recommend(histories, k, **options).to_pylist():
        lists[row["user"]].append((row["item"], row[asked.score_name]))
        assert row["rank"] == len(lists[row["user"]])
        assert row["intent"] == (INTENT[row["item"]] or None)
    return lists


def same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """The same scores; the same items but where scores are the same up to rounding."""
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for (item, score), (wanted, wanted_score) in zip(one, other, strict=True):
            assert score == pytest.approx(wanted_score, rel=1e-5, abs=1e-6)
            assert item == wanted or wanted_score == pytest.approx(dict(other).get(item, score), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("k", [1, 4, 1000])
@pytest.mark.parametrize("options", ASKED, ids=lambda options: ",".join(options) or "plain")
def test_lists_are_those_of_a_naive_reading(recommender: Recommender, options: dict[str, Any], k: int) -> None:
    same(lists_of(recommender, HISTORIES, k, **options), [naive(recommender, h, k, **options) for h in HISTORIES])


@pytest.mark.parametrize("options", ASKED, ids=lambda options: ",".join(options) or "plain")
def test_lists_are_the_same_however_many_items_are_looked_at_first(
    recommender: Recommender, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalogue of 60 is read at once; here as a large one is: best first, a few at a time."""
    monkeypatch.setattr(module, "PAIRS", 16)
    monkeypatch.setattr(module, "SHARE", 1)
    same(lists_of(recommender, HISTORIES, 2, **options), [naive(recommender, h, 2, **options) for h in HISTORIES])


def test_a_batch_says_what_each_alone_is_told(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    histories = [[f"i{n}" for n in rng.integers(0, N, rng.integers(0, 12))] for _ in range(40)]
    alone = [lists_of(recommender, [history], 10)[0] for history in histories]
    same(lists_of(recommender, histories, 10), alone)
    monkeypatch.setattr(module, "BATCH", 7)
    same(lists_of(recommender, histories, 10), alone)


def test_only_the_newest_items_are_read_but_all_are_left_out(recommender: Recommender) -> None:
    length = recommender.bundle.max_seq_length
    long, short = HISTORIES[-1], HISTORIES[-1][-length:]
    assert len(long) > length
    every = lists_of(recommender, [long, short], N, exclude_seen=False)
    same([every[0]], [every[1]])
    listed = {item for item, _ in lists_of(recommender, [long], N)[0]}
    assert listed == set(INTENT) - set(long)


def test_an_empty_history_gets_what_is_popular(recommender: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    taken = Counter(item for walk in WALKS.values() for item in walk)
    expected = sorted(INTENT, key=lambda item: -taken[item])[:5]
    with caplog.at_level(logging.WARNING):
        lists = lists_of(recommender, [[], ["nowhere", "never"]], 5)
    assert "2 of 2 items of the histories are not in the bundle; left out" in caplog.text
    total = sum(taken.values()) + N
    for one in lists:
        assert [item for item, _ in one] == expected
        assert [score for _, score in one] == pytest.approx([(taken[item] + 1) / total for item in expected])


def test_a_history_says_the_same_with_and_without_what_is_unknown(recommender: Recommender) -> None:
    one, other = lists_of(recommender, [["i1", "nowhere", "i2"], ["i1", "i2"]], 8)
    assert one == other


def test_probabilities_sum_to_one(recommender: Recommender) -> None:
    for history in (["i3", "i4"], []):
        said = recommender.score(history, list(INTENT))
        if recommender.score_name == "probability" or not history:
            assert sum(said[recommender.score_name].to_pylist()) == pytest.approx(1, abs=1e-5)


def test_scores_come_in_the_order_of_the_items_asked_for(recommender: Recommender) -> None:
    said = recommender.score(["i3"], ["i9", "i1", "i9"]).to_pylist()
    assert [row["item"] for row in said] == ["i9", "i1", "i9"]
    assert said[0] == said[2] and said[0]["intent"] is None
    for row in said:
        alone = recommender.score(["i3"], [row["item"]]).to_pylist()[0]
        assert alone[recommender.score_name] == pytest.approx(row[recommender.score_name], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k=0, expected a whole number from 1 on"),
        ({"k": True}, ConfigError, "k=True"),
        ({"k": 2.0}, ConfigError, "k=2.0"),
        ({"per_intent": -1}, ConfigError, "per_intent=-1"),
        ({"allow": ["i1", "x"]}, DataError, "allow: 1 unknown item, the first is 'x'; the bundle has 60 items"),
        ({"exclude": ["x", "y"]}, DataError, "exclude: 2 unknown items, the first is 'x'"),
        ({"exclude": "i1"}, DataError, "exclude: 'i1' is a str, expected a list of items"),
        ({"intents": ["aa"]}, DataError, "intents: unknown intent 'aa'; did you mean a"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    recommender: Recommender, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recommender.recommend(HISTORIES, **options)


# Counts, by hand ------------------------------------------------------------------------------------------------------

FEW = {"a": "x", "b": "x", "c": "y", "d": ""}


def test_similar_items_of_counts_by_hand() -> None:
    """Followed: a by b twice and by c once, b by c once, c by nothing: N = 3, 1, 0."""
    asked = Recommender(bundle_of("IntentBackoff", {"u1": "ab", "u2": "ab", "u3": "ac", "u4": "bc", "u5": "d"}, FEW,
                                  window=1, backward=0.0, discount=0.0))  # fmt: skip
    found = asked.similar_items("a").to_pylist()
    assert [row["item"] for row in found] == ["b", "c"]
    expected = [2 / np.sqrt(3 * max(1, 2)), 1 / np.sqrt(3 * max(0, 1))]
    assert [row["similarity"] for row in found] == pytest.approx(expected)
    assert asked.similar_items("d").num_rows == 0
    assert [row["item"] for row in asked.similar_items("a", k=1).to_pylist()] == ["b"]
    with pytest.raises(DataError, match="item: 1 unknown item, the first is 'q'"):
        asked.similar_items("q")


def test_similar_items_of_vectors_are_the_nearest_by_cosine() -> None:
    asked = Recommender(bundle_of("CaFe", WALKS, INTENT))
    vectors = asked.net.item_embedding.weight[: N + 1].double()
    own = torch.nn.functional.normalize(vectors, dim=1)
    cosine = (own @ own[8])[1:]
    expected = sorted(((float(c), f"i{n}") for n, c in enumerate(cosine) if n != 7), reverse=True)[:10]
    found = asked.similar_items("i7").to_pylist()
    assert [row["item"] for row in found] == [item for _, item in expected]
    assert [row["similarity"] for row in found] == pytest.approx([c for c, _ in expected], abs=1e-6)
    assert [row["rank"] for row in found] == list(range(1, 11))


@pytest.mark.parametrize("model", ["CaFePlus", "IntentBackoff"])
def test_next_intents_are_probabilities_of_every_intent(model: str) -> None:
    asked = Recommender(bundle_of(model, WALKS, INTENT))
    for history in (["i0", "i7"], []):
        said = asked.next_intents(history)
        probability = said["probability"].to_pylist()
        assert sum(probability) == pytest.approx(1, abs=1e-5)
        assert probability == sorted(probability, reverse=True)
        assert len(set(said["intent"].to_pylist())) == len(probability) >= 5
        assert set(said["intent"].to_pylist()) <= {*"abcde", None}
        assert asked.next_intents(history, k=2).to_pylist() == said.to_pylist()[:2]
    with pytest.raises(ConfigError, match="does not tell which intent comes next"):
        Recommender(bundle_of("NOVA", WALKS, INTENT)).next_intents(["i1"])
