"""Atomic files for tests, from what a test cares about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HEADER = "user_id:token\titem_id:token\ttimestamp:float"


def write_data_set(
    parent: Path,
    name: str,
    clicks: Iterable[Sequence[object]],
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
    folder = Path(parent) / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, click)) for click in clicks)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if intents is not None:
        item_lines = [
            f"item_id:token\t{intent_field}:token",
            *(f"{item}\t{intent}" for item, intent in intents.items()),
        ]
    if item_lines is not None:
        (folder / f"{name}.item").write_text("\n".join(item_lines) + "\n", encoding="utf-8")
    return folder.parent
