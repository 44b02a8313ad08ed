"""Charts as SVG text, for a page that has no other file: every mark says its numbers when it is pointed at or focused.

Colours are classes of the page's style sheet (`c0` ... `c7`), so that a chart follows a dark page. A mark carries its
text in `data-tip`, and as a `title` for a page without its script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

N_COLOURS = 8
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 460, 62, 14, 12, 40  # of a chart of lines, in pixels
SIGN = 7.4  # pixels of a character of a label, about


@dataclass(frozen=True)
class Mark:
    """A point of a chart.

    Attributes:
        x: where it stands.
        y: where it stands.
        tip: what is said of it, lines of text.
        low: lower end of its whisker, in the direction of the values; None for none.
        high: upper end.
    """

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Marks that a line joins; those of one `name` share a colour and a key of the legend."""

    name: str
    marks: Sequence[Mark]


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Round numbers, about `n` of them, that begin at or below `low` and end at or above `high`.

    Args:
        low: least value.
        high: greatest value.
        n: steps that are wanted.
    """
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number of an axis."""
    return f"{value:.10g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def percent(value: float) -> str:
    """A share of an axis."""
    return f"{100 * value:.6g} %"


def dots(rows: Sequence[tuple[str, int, Mark | None]], label: str, description: str) -> str:
    """A row for each name, from top to bottom, with a dot at `x` and a whisker from `low` to `high`.

    Args:
        rows: name, colour, mark; a name without a mark has an empty row.
        label: of the axis, which begins at 0.
        description: of the chart, for those who do not see it.
    """
    marks = [mark for _, _, mark in rows if mark is not None]
    at = ticks(0.0, max((m.x if m.high is None else m.high for m in marks), default=1.0))
    left = 16 + SIGN * max(len(name) for name, _, _ in rows)
    width, height = left + 262, TOP + 22 * len(rows) + BOTTOM

    def x(value: float) -> float:
        return left + (value - at[0]) / (at[-1] - at[0]) * (width - left - 24)

    bottom = height - BOTTOM
    parts = [_grid_x(x(value), TOP, bottom, number(value)) for value in at]
    for i, (name, colour, mark) in enumerate(rows):
        y = TOP + 22 * i + 11
        parts.append(f'<text class="name" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if mark is not None:
            whisker = ""
            if mark.low is not None and mark.high is not None:
                whisker = f'<path d="M{x(max(mark.low, at[0])):.1f} {y}H{x(mark.high):.1f}"/>'
            parts.append(f'<g class="c{colour % N_COLOURS}">{whisker}{_circle(x(mark.x), y, 4.5, mark.tip)}</g>')
    half = SIGN * len(label) / 2  # a long label begins left of the axis, and ends within the picture
    parts.append(_label_x(label, max(half, min((left + width) / 2, width - half)), height))
    return _svg(width, height, description, parts)


def lines(series: Sequence[Series], *, xlabel: str, ylabel: str, description: str, zero: bool = False,
          show: Callable[[float], str] = number) -> str:  # fmt: skip
    """Lines with marks, the legend above them where there is more than one name.

    Args:
        series: one mark at least in all.
        xlabel: of the axis from left to right.
        ylabel: of the axis from bottom to top.
        description: of the chart, for those who do not see it.
        zero: draw the line y = 0 and keep it in view.
        show: a number of the y axis as text.
    """
    marks = [mark for one in series for mark in one.marks]
    ends = [v for m in marks for v in (m.y, m.low, m.high) if v is not None] + [0.0] * zero
    x_at, y_at = ticks(min(m.x for m in marks), max(m.x for m in marks)), ticks(min(ends), max(ends))
    height = 270

    def x(value: float) -> float:
        return LEFT + (value - x_at[0]) / (x_at[-1] - x_at[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - (value - y_at[0]) / (y_at[-1] - y_at[0]) * (height - TOP - BOTTOM)

    parts = [_grid_x(x(value), TOP, height - BOTTOM, number(value)) for value in x_at]
    for value in y_at:
        kind, text = "zero" if zero and value == 0 else "grid", escape(show(value))
        parts.append(f'<path class="{kind}" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    names = list(dict.fromkeys(one.name for one in series))
    for one in series:
        path = "L".join(f"{x(m.x):.1f} {y(m.y):.1f}" for m in one.marks)
        inside = f'<path d="M{path}"/>' if len(one.marks) > 1 else ""
        for mark in one.marks:
            if mark.low is not None and mark.high is not None:
                inside += f'<path d="M{x(mark.x):.1f} {y(mark.low):.1f}V{y(mark.high):.1f}"/>'
            inside += _circle(x(mark.x), y(mark.y), 3, mark.tip)
        key = names.index(one.name)
        parts.append(f'<g class="c{key % N_COLOURS}" data-key="{key}">{inside}</g>')
    parts.append(_label_x(xlabel, (LEFT + WIDTH - RIGHT) / 2, height))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>')
    keys = "".join(
        f'<button type="button" class="key c{i % N_COLOURS}" data-key="{i}" aria-pressed="true">{escape(name)}</button>'
        for i, name in enumerate(names)
    )
    legend = f'<div class="legend">{keys}</div>' if len(names) > 1 else ""
    return legend + _svg(WIDTH, height, description, parts)


def _svg(width: float, height: float, description: str, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="group" '
            f'aria-label="{escape(description)}">{"".join(parts)}</svg>')  # fmt: skip


def _circle(x: float, y: float, radius: float, tip: str) -> str:
    text = escape(tip)
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" tabindex="0" role="img" aria-label="{text}" '
            f'data-tip="{text}"><title>{text}</title></circle>')  # fmt: skip


def _grid_x(x: float, top: float, bottom: float, text: str) -> str:
    return (f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>')  # fmt: skip


def _label_x(text: str, x: float, height: float) -> str:
    return f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{escape(text)}</text>'
