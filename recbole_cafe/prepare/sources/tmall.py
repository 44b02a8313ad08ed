"""Alibaba's logs of Tmall and Taobao: one CSV file of actions, seller and category beside each.

`user_log_format1.csv` of IJCAI-15 (https://tianchi.aliyun.com/dataset/42): user_id, item_id, cat_id, seller_id (some
copies: merchant_id), brand_id, time_stamp (mmdd, of 2014), action_type (0 click, 1 cart, 2 buy, 3 favourite).
`ijcai2016_taobao.csv` of IJCAI-16 (https://tianchi.aliyun.com/dataset/53): use_ID, sel_ID, ite_ID, cat_ID, act_ID
(0 click, 1 buy), time (yyyymmdd).
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator
from typing import Any

from recbole_cafe.prepare.raw import PrepareError, Source, levels

ACTIONS = ("click", "cart", "buy", "favourite")
INTENTS = ("seller", "category", "brand")
# name of the header -> what it is; the first column tells the kind of log
IJCAI15 = {"user_id": "user", "item_id": "item", "time_stamp": "time", "action_type": "action", "cat_id": "category",
           "seller_id": "seller", "merchant_id": "seller", "brand_id": "brand"}  # fmt: skip
IJCAI16 = {"use_ID": "user", "ite_ID": "item", "time": "time", "act_ID": "action", "cat_ID": "category",
           "sel_ID": "seller"}  # fmt: skip
_CODES = {"user_id": {"0": "click", "1": "cart", "2": "buy", "3": "favourite"}, "use_ID": {"0": "click", "1": "buy"}}


def rows(source: Source, role: str) -> Iterator[tuple[Any, ...]]:
    """Read a log. Options: intent, actions, year.

    Args:
        source: the raw file.
        role: always interactions; items are those of the log.

    Returns:
        Rows of `raw.SCHEMAS["interactions"]`.

    Raises:
        PrepareError: a header of neither log, or one without the chosen intent.
    """
    assert role == "interactions"
    first = next(source.texts(), "").strip("\r\ufeff")
    header = [name.strip() for name in next(csv.reader([first]), [])]
    kind = next((kind for kind in (IJCAI15, IJCAI16) if next(iter(kind)) in header), None)
    if kind is None:
        raise PrepareError(
            f"{source.path}: line 1: found {', '.join(header[:8]) or 'nothing'}, expected the header of IJCAI-15's "
            f"user_log_format1.csv ({', '.join(IJCAI15)}) or of IJCAI-16's ijcai2016_taobao.csv ({', '.join(IJCAI16)})"
        )
    codes = _CODES[next(iter(kind))]
    actions, choice = set(source.options["actions"]), source.options["intent"]
    names = {purpose: name for name, purpose in kind.items() if name in header}
    columns = {purpose: names.get(purpose, purpose) for purpose in ("user", "item", "time", "action", choice)}
    days: dict[str, float | None] = {}
    for line, (user, item, stamp, action, intent) in source.rows(columns):
        if codes.get(action) not in actions:
            if action not in codes:
                source.fault(f"an action that is none of {', '.join(codes)}", line, action)
            continue
        if stamp not in days:
            days[stamp] = day(stamp, source.options["year"], with_year=kind is IJCAI16)
        if days[stamp] is None:
            source.fault("no day of the form " + ("yyyymmdd" if kind is IJCAI16 else "mmdd"), line, stamp)
            continue
        yield user, item, days[stamp], None, levels([intent]), line


def day(stamp: str, year: int, *, with_year: bool) -> float | None:
    """Compute the seconds since 1970 of a day's beginning in UTC.

    Args:
        stamp: 829 for August 29, or 20150829.
        year: of a stamp without one.
        with_year: whether the stamp has one.

    Returns:
        None for no day.
    """
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 8:
        return None
    whole = int(stamp)
    year = whole // 10_000 if with_year else year
    try:
        date = datetime.datetime(year, whole // 100 % 100, whole % 100, tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    return None if not with_year and whole > 1231 else date.timestamp()
