"""report.html: its numbers are those of the tables, its text is escaped, and it works in a browser from disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.benchmark import charts
from recbole_cafe.benchmark.report import write

EVIL = '<script>document.title="x"</script>&"\''
VOID = {"meta"}
CUT = """[...document.querySelectorAll("svg text")].filter(text => {
  const [inner, outer] = [text, text.ownerSVGElement].map(one => one.getBoundingClientRect());
  return inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).map(text => text.textContent)"""
ROOT = Path(__file__).parents[2]
SEEN = os.environ.get("RECBOLE_CAFE_SCREENSHOTS")  # a folder: pictures of what the tests have seen; docs/images has it


class Page(HTMLParser):
    """What a page holds: `tables` as headings and rows, `tips` of marks, `tags` with attributes, all `text`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.values: list[list[list[str]]] = []
        self.tips: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.values.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.values[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.values[-1][-1].append(given.get("data-value") or "")
        if "data-tip" in given:
            self.tips.append(given["data-tip"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


CURVE = [{"epoch": 1, "loss": 0.7, "score": 0.1}, {"epoch": 2, "loss": 0.5, "score": None},
         {"epoch": 3, "loss": 0.4, "score": 0.25}]  # fmt: skip


def two(made: Callable[..., Any], **plan: Any) -> Path:
    """A of hit@1 1/2 and 1 on two seeds, CaFe of 3/4 on one; A's first run keeps its curve."""
    folder = made(ours=["CaFe"], systems=["A", "CaFe"], **plan)
    for system in ("A", "CaFe"):
        folder.cell(system, seeds=[1, 2] if system == "A" else [1])
    folder.run("A", 1, [0, 0, 1, 1], curve=CURVE)
    folder.run("A", 2, [0, 0, 0, 0], curve=[])
    folder.run("CaFe", 1, [0, 0, 0, 3])
    return Path(folder.out)


def page_of(out: Path) -> Page:
    return Page(write(out)[1].read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_runs(made: Callable[..., Any]) -> None:
    page = page_of(two(made))
    first = page.tables[0]
    assert first[0] == ["system", "HR@1", "MRR"]
    assert [row[:2] for row in first[1:]] == [
        ["A", "0.7500 ± 0.3536"], ["CaFe", "0.7500"], ["gain of CaFe over the best baseline", "+0.0% (A)"]
    ]  # fmt: skip
    assert [row[1] for row in page.values[0][1:3]] == ["0.75", "0.75"]  # sorted by numbers that are not rounded
    assert "A\nHR@1 0.7500 ± 0.3536\nseed 1: 0.5000\nseed 2: 1.0000" in page.tips
    assert "A, seed 1\nepoch 3: 0.2500" in page.tips
    assert "A, seed 1\nepoch 2: 0.5000" in page.tips  # the loss; nothing was validated there
    assert "2 of 3 runs have no learning curve" in page.text
    costs = next(table for table in page.tables if table[0][:3] == ["system", "model", "s / epoch"])
    assert costs[1][:4] == ["A", "ModelA", "0.50", "2.0"]
    single = next(table for table in page.tables if table[0][:2] == ["system", "seed"])
    assert [row[:2] for row in single[1:]] == [["A", "1"], ["A", "2"], ["CaFe", "1"]]
    assert page.tables[-1] == [["runs", "threads"], ["3", "1"]]


def test_nothing_is_loaded_and_no_foreign_script_may_run(made: Callable[..., Any]) -> None:
    page = page_of(two(made))
    assert not [tag for tag, attrs in page.tags if {"src", "style", "onclick"} & attrs.keys() or tag in ("link", "img")]
    assert all(attrs["href"][0] == "#" for tag, attrs in page.tags if tag == "a")
    (policy,) = (attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_all_text_is_escaped(made: Callable[..., Any]) -> None:
    folder = made(ours=[EVIL], title=EVIL, description=EVIL, commands=[[EVIL]],
                  figure={"system": EVIL, "baseline": "B" + EVIL, "x": {EVIL: 1}, "xlabel": EVIL})  # fmt: skip
    for system, places in {EVIL: [0, 0], "B" + EVIL: [0, 1]}.items():
        folder.cell(system, EVIL, points={"d0": {"key": EVIL}})
        folder.run(system, 1, places, EVIL, digest="d0", curve=CURVE, versions={EVIL: EVIL})
    text = write(folder.out)[1].read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    page = Page(text)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert page.tables[0][1][0] == EVIL
    assert (
        f"{EVIL}: +100.0% over B{EVIL}\n{EVIL} 1.0000, B{EVIL} 0.5000\nsingle seeds +100.0% … +100.0% (1)" in page.tips
    )


def test_the_same_runs_give_the_same_page(made: Callable[..., Any]) -> None:
    out = two(made)
    assert write(out)[1].read_bytes() == write(out)[1].read_bytes()


def test_no_finished_run(made: Callable[..., Any]) -> None:
    folder = made()
    folder.cell("A")
    page = page_of(folder.out)
    assert page.text.count("No run is finished.") == 2
    assert page.tables[0][1:] == [["A", "", ""]]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 0.147, [0.0, 0.05, 0.1, 0.15]),
        (3, 3, [1, 2, 3, 4, 5]),  # one value stands in the middle
        (-0.37, 0.0, [-0.4, -0.3, -0.2, -0.1, 0.0]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks(low: float, high: float, wanted: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(wanted)


# In a browser ---------------------------------------------------------------------------------------------------------


def test_in_a_browser(made: Callable[..., Any], browser: Any) -> None:
    path = write(two(made))[1].resolve()
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]

    table = page.locator("table").first
    heading = table.locator("th").nth(2)
    given = [0.875, 0.8125]  # MRR of A and CaFe: means of (3/4, 1), and of 1, 1, 1, 1/4
    for state, wanted in (("descending", given), ("ascending", given[::-1]), ("none", given)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == state
        cells = table.locator("tbody tr td:nth-child(3)")
        assert [float(cells.nth(i).get_attribute("data-value")) for i in range(2)] == wanted

    tip = page.locator(".tip")
    assert not tip.is_visible()
    page.locator("circle").first.hover()
    assert tip.text_content() == "A\nHR@1 0.7500 ± 0.3536\nseed 1: 0.5000\nseed 2: 1.0000"
    page.locator("h1").hover()
    assert not tip.is_visible()
    page.locator("circle").nth(1).focus()
    assert tip.text_content().startswith("CaFe")
    page.keyboard.press("Escape")
    assert not tip.is_visible()

    assert said == []
    page.close()


def test_a_legend_hides_its_lines(made: Callable[..., Any], browser: Any) -> None:
    folder = made()
    for system in ("A", "B"):
        folder.cell(system, seeds=[1])
        folder.run(system, 1, [0, 1], curve=CURVE)
    page = browser.new_page()
    page.goto(write(folder.out)[1].resolve().as_uri())
    figure = page.locator("figure:has(.legend)").first
    figure.locator(".key").nth(1).click()
    assert figure.locator('g[data-key="0"]').is_visible()
    assert not figure.locator('g[data-key="1"]').is_visible()
    figure.locator(".key").nth(1).click()
    assert figure.locator('g[data-key="1"]').is_visible()
    page.close()


def test_the_report_of_a_real_benchmark_fits(tmp_path: Path, browser: Any) -> None:
    """Of runs that were measured; its picture is on docs/benchmark.md."""
    shutil.copytree(ROOT / "results" / "beyond-rare", tmp_path / "beyond-rare")
    context = browser.new_context(viewport={"width": 1280, "height": 1300})
    page = context.new_page()
    page.goto(write(tmp_path / "beyond-rare")[1].resolve().as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.locator("table").count() > 3 and page.locator("svg").count() > 1
    assert page.evaluate(CUT) == []
    page.locator("figure").first.locator("circle").last.hover()
    if SEEN:
        page.screenshot(path=Path(SEEN) / "report-page.png")
    context.close()
