"""recbole_cafe.recommend.explain: reasons add up to the scores, and say what was counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made import bundle_of

from recbole_cafe.recommend.recommender import Recommender

INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z", "never": "z"}
WALKS = {"u1": "abcab", "u2": "bcd", "u3": "acdf", "u4": "fbe", "u5": "cabcd"}
HISTORIES = [["a", "b"], ["c"], ["b", "c", "a", "b", "c"], ["e"], ["f", "a"]]


def reasons_of(model: str, **settings: Any) -> list[dict[str, Any]]:
    asked = Recommender(bundle_of(model, WALKS, INTENT, **settings))
    table = asked.recommend(HISTORIES, 7, exclude_seen=False, reasons=True)
    assert len(table) == 7 * len(HISTORIES)
    return [row["reason"] | {"score": row[asked.score_name], "item": row["item"]} for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("IntentBackoff", {}), ("IntentBackoff", {"repeats": "free", "window": 2, "backward": 0.5}),
        ("IntentBackoff", {"use_intents": False}), ("CaFePlus", {}), ("CaFePlus", {"repeats": "free"}),
        ("CaFePlus", {"softmax": "items"}),
        ("CaFePlus", {"item_memory": False}), ("CaFePlus", {"evidence_exponent": 0.0, "max_successors": 1}),
        ("CaFePlus", {"item_net": False, "popularity_exponent": 0.3}),
    ],
)  # fmt: skip
def test_the_parts_of_a_probability_add_up_to_it(model: str, settings: dict[str, Any]) -> None:
    lines = reasons_of(model, **settings)
    for line in lines:
        through = line["weight"] * line["intent_probability"] * line["share_in_intent"]
        assert sum(entry["amount"] for entry in line["evidence"]) + through == pytest.approx(line["score"], rel=1e-5)
        assert 0 < line["popularity_share"] <= 1 + 1e-9
    assert any(line["evidence"] for line in lines) == settings.get("item_memory", True)


@pytest.mark.parametrize("joint", ["product", "sum"])
def test_both_halves_of_a_joint_score_add_up_to_it(joint: str) -> None:
    for line in reasons_of("CaFe", joint=joint):
        assert line["item_relevance"] + line["intent_relevance"] == pytest.approx(line["score"], abs=1e-6)
        assert line["evidence"] is None


def test_the_counts_are_those_of_the_interactions() -> None:
    """Of pairs next to each other, a -> b is there 3 times (u1 twice, u5), c -> b never, b -> c 3 times."""
    settings = {"window": 1, "backward": 0.0, "discount": 0.5, "history_length": 5, "repeats": "free"}
    asked = Recommender(bundle_of("IntentBackoff", WALKS, INTENT, **settings))
    table = asked.recommend([["c", "a"]], 7, exclude_seen=False, reasons=True).to_pylist()
    of = {row["item"]: row["reason"] for row in table}
    counts = {entry["item"]: entry["count"] for entry in of["b"]["evidence"]}
    assert counts == {"a": pytest.approx(3)}
    assert {entry["item"]: entry["count"] for entry in of["d"]["evidence"]} == {"c": pytest.approx(3)}
    assert of["b"]["text"].startswith("because you took a, after which b was taken 3 times")
    assert of["never"]["evidence"] == []
    assert "never is" in of["never"]["text"] and "% of *z*" in of["never"]["text"]


def test_a_likely_intent_is_named_with_its_probability() -> None:
    asked = Recommender(bundle_of("IntentBackoff", WALKS, INTENT))
    row = asked.recommend([["a"]], 1, reasons=True).to_pylist()[0]
    told = dict(zip(*asked.next_intents(["a"]).to_pydict().values(), strict=True))
    assert row["reason"]["intent_probability"] == pytest.approx(told[row["intent"]])
    assert f"({100 * told[row['intent']]:.2g} %)" in row["reason"]["text"]


def test_a_history_of_nothing_has_no_reasons() -> None:
    asked = Recommender(bundle_of("IntentBackoff", WALKS, INTENT))
    rows = asked.recommend([[], ["a"]], 2, reasons=True).to_pylist()
    assert [row["reason"] is None for row in rows] == [True, True, False, False]


def test_an_item_that_is_twice_in_a_history_is_told_once() -> None:
    asked = Recommender(bundle_of("IntentBackoff", WALKS, INTENT, repeats="free"))
    for row in asked.recommend([["a", "b", "a"]], 7, reasons=True).to_pylist():
        named = [entry["item"] for entry in row["reason"]["evidence"]]
        assert len(named) == len(set(named))
        assert np.all(np.diff([entry["amount"] for entry in row["reason"]["evidence"]]) <= 0)
