"""RecBole's published atomic files, whose intents are a column of another name: a seller, a brand, categories.

They are tables like any others; `files_of` says which of the two files has the intent.
"""

from __future__ import annotations

from pathlib import Path

from recbole_cafe.files.atomic import read_header
from recbole_cafe.prepare.raw import PrepareError
from recbole_cafe.prepare.sources import table

rows = table.rows


def files_of(folder: str, intent: str) -> tuple[list[str], list[str], bool]:
    """List the .inter files and the .item files of a folder, and say whether the intent is a list (token_seq).

    The .item files are left out where the interactions have the intent themselves.

    Args:
        folder: with the files.
        intent: name of the column.

    Raises:
        PrepareError: no such files, or none with the intent.
    """
    inter, item = (sorted(map(str, Path(folder).glob(f"*.{ending}"))) for ending in ("inter", "item"))
    if not inter:
        raise PrepareError(f"{folder}: no .inter file, expected a folder with RecBole's atomic files")
    for files, used in ((item, item), (inter, [])):
        headers = [read_header(file) for file in files]
        if headers and all(intent in header for header in headers):
            return inter, used, headers[0][intent] == "token_seq"
    columns = [name for file in (*item, *inter) for name in read_header(file)]
    raise PrepareError(f"{folder}: no column {intent!r} for the intent; found {', '.join(dict.fromkeys(columns))}")
