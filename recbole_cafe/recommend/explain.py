"""Why an item is in a list: the numbers its score is made of, and one sentence from them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from torch import Tensor

from recbole_cafe.model.reasons import Reasons
from recbole_cafe.recommend.bundle import Items

NAMED = 2  # items of the history in a sentence
LIKELY = 0.1  # an intent of this probability or more is called likely

# A probability is the sum of `amount` over `evidence` plus weight * intent_probability * share_in_intent; a joint score
# is item_relevance + intent_relevance. Fields that a model does not have are null. `evidence` has the items of the
# history that count for this item, the largest amount first; `count` is how often it was taken after them, weighted as
# the model's counts are. `popularity_share` is what popularity alone would give inside the intent.
REASON = pa.struct([
    ("text", pa.string()),
    ("evidence", pa.list_(pa.struct([("item", pa.string()), ("count", pa.float64()), ("amount", pa.float64())]))),
    ("weight", pa.float64()),
    ("intent_probability", pa.float64()),
    ("share_in_intent", pa.float64()),
    ("popularity_share", pa.float64()),
    ("item_relevance", pa.float64()),
    ("intent_relevance", pa.float64()),
])  # fmt: skip
NUMBERS = ("weight", "intent_probability", "share_in_intent", "popularity_share", "item_relevance", "intent_relevance")


def explained(reasons: Reasons, item: Tensor, items: Items) -> list[dict[str, Any]]:
    """A value of :data:`REASON` for each pair.

    Args:
        reasons: of P pairs.
        item: [P] their items.
        items: what is known of the items.
    """
    numbers = {name: None if (value := vars(reasons)[name]) is None else value.tolist() for name in NUMBERS}
    lines = []
    for p, own in enumerate(item.tolist()):
        line: dict[str, Any] = {name: None if of is None else of[p] for name, of in numbers.items()}
        evidence = None if reasons.amount is None else _evidence(reasons, p)
        line["evidence"] = (
            None
            if evidence is None
            else [
                {"item": items.token[source - 1].as_py(), "count": count, "amount": amount}
                for source, count, amount in evidence
            ]
        )
        line["text"] = _sentence(line, own, evidence, reasons.counted, items)
        lines.append(line)
    return lines


def _evidence(reasons: Reasons, p: int) -> list[tuple[int, float, float]]:
    """The items of the history that count, each once, with count and amount, the largest amount first."""
    assert reasons.source is not None and reasons.count is not None and reasons.amount is not None
    found: dict[int, tuple[float, float]] = {}
    rows = zip(reasons.source[p].tolist(), reasons.count[p].tolist(), reasons.amount[p].tolist(), strict=True)
    for source, count, amount in rows:
        if amount > 0:
            found[source] = (count, found.get(source, (0.0, 0.0))[1] + amount)  # a history may have an item twice
    return sorted(((source, *of) for source, of in found.items()), key=lambda entry: -entry[2])


def _sentence(line: dict[str, Any], own: int, evidence: list[tuple[int, float, float]] | None, counted: str,
              items: Items) -> str:  # fmt: skip
    title = _title(items, own)
    intent = int(items.intent[own])
    intent_name = items.intents[intent].as_py() if intent < len(items.intents) else None
    parts = []
    if evidence:
        taken = " and ".join(_title(items, source) for source, _, _ in evidence[:NAMED])
        times = f"{sum(count for _, count, _ in evidence[:NAMED]):.3g}"
        parts.append(f"because you took {taken}, {counted} {title} was taken {times} times")
    if line["intent_probability"] is not None and intent_name:
        percent = f"{100 * line['intent_probability']:.2g} %"
        if line["intent_probability"] >= LIKELY:
            parts.append(f"you are likely in *{intent_name}* next ({percent})")
        else:
            parts.append(f"*{intent_name}* comes next with {percent}")
    if evidence == [] and line["share_in_intent"] is not None:
        of = f"*{intent_name}*" if intent_name else "the items without an intent"
        parts.append(f"{title} is {100 * line['share_in_intent']:.2g} % of {of}")
    if line["item_relevance"] is not None:
        text = f"the network finds {title} relevant after this history ({line['item_relevance']:.3g})"
        if line["intent_relevance"] is not None and intent_name:
            text += f", and *{intent_name}*, too ({line['intent_relevance']:.3g})"
        parts.append(text)
    return "; ".join(parts)


def _title(items: Items, item: int) -> str:
    title = None if items.title is None else items.title[item - 1].as_py()
    return str(title or items.token[item - 1].as_py())
