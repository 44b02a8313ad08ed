"""Draw docs/images/quality.svg from the first table of docs/quality.md: `python docs/_site/figure.py`."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parents[1]
BAR, GAP, LEFT, WIDTH = 26, 10, 240, 860  # pixels
OURS = ("CaFePlus",)


def drawing(page: str) -> str:
    """The picture: a bar for each system of the table's first column of numbers.

    Args:
        page: the text of docs/quality.md.
    """
    (table,) = re.findall(r"-->\n\n\| amazon-mix0, test \|.*?\n\n", page, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[4:]]
    bars = [(name, float(re.sub(r"[*]", "", value).split()[0])) for name, value, *_ in rows if not name.startswith("*")]
    top, scale = max(value for _, value in bars), WIDTH - LEFT - 90
    height = len(bars) * (BAR + GAP) + 70
    font = 'font-family="system-ui, sans-serif" font-size="15"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {font}>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        '<text x="20" y="30" font-size="16" font-weight="600" fill="#3e2723">NDCG@10 over all items, real reviews, '
        "2.7 interactions per item</text>",
    ]
    for i, (name, value) in enumerate(bars):
        y, length = 50 + i * (BAR + GAP), value / top * scale
        colour = "#bf360c" if name in OURS else "#8d6e63" if name.startswith("IntentBackoff") else "#bcaaa4"
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end" fill="#3e2723">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" fill="{colour}"/>',
            f'<text x="{LEFT + length + 8:.1f}" y="{y + 18}" fill="#3e2723">{value:.4f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (DOCS / "images/quality.svg").write_text(
        drawing((DOCS / "quality.md").read_text(encoding="utf-8")), encoding="utf-8"
    )
