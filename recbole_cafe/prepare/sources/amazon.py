"""Amazon's reviews and metadata as McAuley's group publishes them: lines of JSON, gzipped, a pair of files a category.

| | 2014 | 2018 | 2023 |
|---|---|---|---|
| user | reviewerID | reviewerID | user_id |
| item | asin | asin | parent_asin, which the metadata list; else asin |
| rating | overall | overall | rating |
| time | unixReviewTime, seconds | unixReviewTime, seconds | timestamp, milliseconds |
| categories | categories: paths, lists in a list | category: one path | categories: one path |
| brand | brand | brand | store, details.Brand |
| main | the first category | main_cat | main_category |

Of several paths the first counts. The lines of the 2014 metadata are Python literals, which `ast.literal_eval` reads.
"""

from __future__ import annotations

import ast
import html
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from recbole_cafe.prepare.raw import Source, intent_text, levels, number, token

CATEGORY = "category"  # the choice of the category's path as intent; another name is a column
_TAG = re.compile("<[^>]*>?")


def rows(source: Source, role: str) -> Iterator[tuple[Any, ...]]:
    """Read reviews or metadata. Options: intent, the name of a column of the metadata or 'category'.

    Args:
        source: the raw file.
        role: interactions or items.

    Returns:
        Rows of `raw.SCHEMAS[role]`.
    """
    return _reviews(source) if role == "interactions" else _metadata(source)


def _reviews(source: Source) -> Iterator[tuple[Any, ...]]:
    for line, record in source.records():
        get = record.get
        user = get("reviewerID")
        if user is None:
            user, item, rating = get("user_id"), get("parent_asin") or get("asin"), get("rating")
            when = get("timestamp")
            if type(when) is int:
                when = when / 1000  # the nearest float64 to the decimal, as reading it would give
        else:
            item, rating, when = get("asin"), get("overall"), get("unixReviewTime")
        user, item, when = token(user), token(item), number(when)
        if user is None or item is None or when is None:
            missing = "user" if user is None else "item" if item is None else "time"
            source.fault(f"no {missing}", line, json.dumps(record))
            continue
        yield user, item, when, number(rating), None, line


def _metadata(source: Source) -> Iterator[tuple[Any, ...]]:
    choice = source.options["intent"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of literals: invalid escape sequences
        for line, record in source.records(literal):
            item = token(record.get("parent_asin") or record.get("asin"))
            if item is None:
                source.fault("no item", line, json.dumps(record, default=str))
                continue
            yield item, levels(_intent(record, choice)), line


def literal(text: str) -> Any:
    """Read a JSON record or a Python literal; nothing of it is run.

    Args:
        text: the line.

    Raises:
        ValueError: neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, ValueError):
        raise ValueError("neither JSON nor a Python literal") from None


def _intent(record: dict[str, Any], choice: str) -> list[Any]:
    """The chosen intent of an item, general to special."""
    path = _path(record)
    if choice == CATEGORY:
        return path
    if choice == "main":
        return [record.get("main_cat") or record.get("main_category") or (path[0] if path else None)]
    if choice == "brand":
        details = record.get("details")
        brand = record.get("brand") or record.get("store")
        brand = brand or (details.get("Brand") if isinstance(details, dict) else None)
        # 2018 has the page's text: "by<line break>    <line break>    Name"
        return [re.sub(r"^\s*by\s*\n\s*", "", _clean(brand)) if isinstance(brand, str) else brand]
    value = record.get(choice)
    return value if isinstance(value, list) else [value]


def _path(record: dict[str, Any]) -> list[str]:
    """The first path of categories, without the page's markup that the 2018 metadata have among them."""
    path = record.get("categories") or record.get("category") or []
    if isinstance(path, str):
        path = [path]
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = next(filter(None, path), [])
    if not isinstance(path, list):
        return []
    return [name for name in (_clean(part) for part in path if isinstance(part, str)) if intent_text(name)]


def _clean(text: str) -> str:
    return html.unescape(_TAG.sub(" ", text)) if "<" in text or "&" in text else text
