"""Small atomic files, written by one function for all tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

INTER = ("user_id:token", "item_id:token", "timestamp:float")
ITEM = ("item_id:token", "intent:token")
USER = ("user_id:token",)

Rows = Iterable[Sequence[object]]


def atomic_text(header: Sequence[str], rows: Rows) -> str:
    """The text of an atomic file: a header of `name:type` and a line a row, columns separated by tabs."""
    return "".join("\t".join(map(str, row)) + "\n" for row in (header, *rows))


def atomic_files(
    folder: Path,
    name: str,
    *,
    inter: Rows | None = None,
    item: Rows | Mapping[object, object] | None = None,
    user: Rows | None = None,
    inter_header: Sequence[str] = INTER,
    item_header: Sequence[str] = ITEM,
    user_header: Sequence[str] = USER,
    others: Mapping[str, tuple[Sequence[str], Rows]] | None = None,
) -> Path:
    """Write `<folder>/<name>/<name>.inter`, `.item` and `.user`, as far as they are given.

    Args:
        folder: where the data set's folder is made; it is the `data_path`.
        name: of the data set.
        inter: rows in the order of the file.
        item: rows, or item -> intent, "" for none.
        user: rows.
        inter_header: columns of the interactions.
        item_header: columns of the items.
        user_header: columns of the users.
        others: further ending, such as "train.inter" -> header and rows.

    Returns:
        <folder>/<name>.
    """
    path = Path(folder) / name
    path.mkdir(parents=True, exist_ok=True)
    files = {"inter": (inter_header, inter), "item": (item_header, item), "user": (user_header, user)}
    for ending, (header, rows) in {**files, **(others or {})}.items():
        if rows is not None:
            lines = rows.items() if isinstance(rows, Mapping) else rows
            (path / f"{name}.{ending}").write_text(atomic_text(header, lines), encoding="utf-8")
    return path


HEADER = "\t".join(INTER)


def write_data_set(
    parent: Path,
    name: str,
    clicks: Rows,
    intents: Mapping[object, str] | None = None,
    *,
    header: str = HEADER,
    intent_field: str = "intent",
    item_lines: Iterable[str] | None = None,
) -> Path:
    """Write `<parent>/<name>/<name>.inter` (and `.item`).

    Args:
        parent: the folder of data sets.
        name: of the data set.
        clicks: rows of the .inter file in the order of the file, by default (user, item, time).
        intents: item -> intent, "" for none.
        header: first line of the .inter file.
        intent_field: column of the .item file that the intents stand in.
        item_lines: the whole .item file instead of `intents`.

    Returns:
        the folder for `data_path`.
    """
    item_header: Sequence[str] = (ITEM[0], f"{intent_field}:token")
    item: Rows | Mapping[object, object] | None = intents
    if item_lines is not None:
        item_header, *item = [line.split("\t") for line in item_lines]
    return atomic_files(
        parent, name, inter=clicks, item=item, inter_header=header.split("\t"), item_header=item_header
    ).parent
