"""The file beside a data set that says that it is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recbole_cafe.files.atomic import AtomicFileError

MANIFEST = "simulation.json"


def is_simulated(folder: str | Path) -> dict[str, Any] | None:
    """The content of `simulation.json` if the data set in `folder` is simulated, else None.

    Raises:
        AtomicFileError: the file exists and is not such a manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AtomicFileError(f"{path}: expected JSON as `recbole-cafe simulate` writes it: {error}") from None
    if not isinstance(content, dict) or content.get("simulated") is not True or "sha256" not in content:
        raise AtomicFileError(
            f"{path}: expected 'simulated': true and 'sha256', as `recbole-cafe simulate` writes them"
        )
    return content
