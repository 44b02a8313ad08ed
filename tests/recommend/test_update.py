"""recbole_cafe.recommend.update: new items and interactions give what counting everything anew gives."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from made import bundle_of

from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.recommend.bundle import read, write
from recbole_cafe.recommend.recommender import Recommender

INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z"}
BEFORE = {"u1": "abc", "u2": "bcd", "u3": "a", "u4": "fbe"}
LATER = [("u3", "c", 11), ("u1", "a", 12), ("u9", "b", 10), ("u1", "b", 13), ("u9", "e", 15), ("u3", "d", 20)]
AFTER = {"u1": "abcab", "u2": "bcd", "u3": "acd", "u4": "fbe", "u9": "be"}
NEW = {"g": "y", "h": ""}
HISTORIES = [["a", "b"], ["c"], ["e", "f", "a"]]
MODELS = [
    ("IntentBackoff", {}),
    ("IntentBackoff", {"window": 3, "backward": 0.3, "max_successors": 2}),
    ("CaFePlus", {}),
    ("CaFePlus", {"softmax": "items"}),
]


def table_of(rows: list[tuple[str, str, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def said(bundle: Any, items: list[str]) -> list[float]:
    asked = Recommender(bundle)
    return [x for history in HISTORIES for x in asked.score(history, items)[asked.score_name].to_pylist()]


@pytest.mark.parametrize(("model", "settings"), MODELS)
def test_interactions_give_what_a_rebuild_gives(model: str, settings: dict[str, Any]) -> None:
    old, new = (bundle_of(model, walks, INTENT, **settings) for walks in (BEFORE, AFTER))
    updated = Recommender(old).with_interactions(table_of(LATER)).bundle
    new.net.load_state_dict({**new.net.state_dict(), **dict(old.net.named_parameters())})  # the same weights
    for name, value in new.net.state_dict().items():
        torch.testing.assert_close(updated.net.state_dict()[name], value, rtol=0, atol=0)
    assert updated.items.seen.tolist() == new.items.seen.tolist()
    assert said(updated, list(INTENT)) == said(new, list(INTENT))
    assert said(updated, list(INTENT)) != said(old, list(INTENT))


@pytest.mark.parametrize(("model", "settings"), MODELS)
def test_two_updates_are_one(model: str, settings: dict[str, Any]) -> None:
    first = Recommender(bundle_of(model, BEFORE, INTENT, **settings))
    by_time = sorted(LATER, key=lambda row: row[2])
    once = first.with_interactions(table_of(LATER))
    twice = first.with_interactions(table_of(by_time[:3])).with_interactions(table_of(by_time[3:]))
    assert said(once.bundle, list(INTENT)) == said(twice.bundle, list(INTENT))
    assert twice.bundle.about["updates"] == 2


@pytest.mark.parametrize(("model", "settings"), MODELS)
def test_a_new_item_is_ranked_as_one_that_was_never_taken(model: str, settings: dict[str, Any]) -> None:
    """Its intent is known: that is what a model of all items from the start would have known, too."""
    old, whole = (bundle_of(model, BEFORE, intent, **settings) for intent in (INTENT, INTENT | NEW))
    updated = Recommender(old).with_items({"item": list(NEW), "intent": [name or None for name in NEW.values()]}).bundle
    learned = dict(old.net.named_parameters())
    state = {
        name: torch.cat((learned[name], torch.zeros(len(value) - len(learned[name]), *value.shape[1:])))
        if name in learned and len(value) > len(learned[name]) else learned.get(name, value)
        for name, value in whole.net.state_dict().items()
    }  # fmt: skip
    whole.net.load_state_dict(state)
    assert said(updated, [*INTENT, *NEW]) == pytest.approx(said(whole, [*INTENT, *NEW]), rel=1e-6)
    assert all(x > 0 for x in said(updated, list(NEW)))


def test_of_two_new_items_of_an_intent_neither_is_before_the_other() -> None:
    asked = Recommender(bundle_of("CaFePlus", BEFORE, INTENT)).with_items({"item": [7, 8], "intent": ["y", "y"]})
    one, other = asked.score(["a"], [7, 8])["probability"].to_pylist()
    assert one == other


def test_an_update_survives_its_bundle(tmp_path: Any) -> None:
    asked = Recommender(bundle_of("CaFePlus", BEFORE, INTENT)).with_items({"item": ["g"], "intent": ["y"]})
    asked = asked.with_interactions({"user": ["u1"], "item": ["g"]})
    write(asked.bundle, tmp_path / "bundle")
    again = read(tmp_path / "bundle")
    assert said(again, [*INTENT, "g"]) == pytest.approx(said(asked.bundle, [*INTENT, "g"]), rel=1e-6)
    assert again.about["updates"] == 2
    more = Recommender(again).with_interactions({"user": ["u1"], "item": ["g"]})
    assert more.items.seen[-1] == 2


def test_what_is_unknown_is_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    asked = Recommender(bundle_of("IntentBackoff", BEFORE, INTENT))
    updated = asked.with_interactions({"user": ["u1", "u1"], "item": ["nowhere", "a"]})
    assert "1 of 2 are with unknown items; left out" in caplog.text
    assert int(updated.items.seen.sum()) == int(asked.items.seen.sum()) + 1
    updated = asked.with_items({"item": ["g"], "intent": ["unheard of"]})
    assert "the first is 'unheard of'; they count as items without one" in caplog.text
    assert updated.recommend([["a"]], allow=["g"])["intent"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user": ["u1"]}, "new interactions: no column item or item_id; there are user"),
        ({"user": ["u1", None], "item": ["a", "b"]}, "new interactions: row 1 has no user"),
        ({"user": ["u1"], "item": [1.5]}, "column item is of type double, expected tokens"),
        ({"user": ["u1"], "item": ["a"], "time": [float("inf")]}, "row 0 has the time inf, expected a finite number"),
    ],
)
def test_a_table_that_cannot_be_right_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Recommender(bundle_of("IntentBackoff", BEFORE, INTENT)).with_interactions(table)


def test_items_that_cannot_be_right_are_named() -> None:
    asked = Recommender(bundle_of("IntentBackoff", BEFORE, INTENT))
    with pytest.raises(DataError, match="row 1, item 'a' is known with the intent 'x', found 'y'"):
        asked.with_items({"item": ["g", "a"], "intent": ["y", "y"]})
    with pytest.raises(DataError, match="item 'g' is there twice"):
        asked.with_items({"item": ["g", "g"]})
    assert asked.with_items({"item": ["a"], "intent": ["x"]}).items.n == asked.items.n


def test_a_model_without_counts_learns_by_training_alone() -> None:
    with pytest.raises(ConfigError, match="CaFe does not count what follows what"):
        Recommender(bundle_of("CaFe", BEFORE, INTENT)).with_interactions({"user": ["u1"], "item": ["a"]})
