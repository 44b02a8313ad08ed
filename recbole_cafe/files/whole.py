"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends, and leaves nothing behind when it fails.

    The folder of `path` is made if needed; what was at `path` stays until then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all. What JSON has no form for is written as text."""
    with written_whole(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        json.dump(content, text, indent=2, default=str)
        text.write("\n")
