"""The blocks of code of the pages: which they are, and who runs them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
MARK = re.compile(r"(?:run: (?P<run>[\w-]+)|file: (?P<file>[\w.-]+)|not run: (?P<why>.+))")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: the page's path.
        line: where it stands there.
        mark: the comment before it.
        language: of its code.
        code: its lines.
    """

    page: str
    line: int
    mark: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def run(self) -> str | None:
        found = MARK.fullmatch(self.mark)
        return found and found["run"]

    @property
    def file(self) -> str | None:
        found = MARK.fullmatch(self.mark)
        return found and found["file"]


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order.

    Args:
        path: of the repository.
    """
    text = path.read_text(encoding="utf-8")
    return [
        Block(path.relative_to(ROOT).as_posix(), text[: match.start()].count("\n") + 1, match["mark"] or "",
              match["language"], match["code"])
        for match in BLOCK.finditer(text)
    ]  # fmt: skip
