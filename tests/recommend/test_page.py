"""The page of the service in a real browser without a window; skipped where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ODD_TITLE, running, written

from recbole_cafe.recommend.recommender import Recommender

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SEEN = os.environ.get("RECBOLE_CAFE_SCREENSHOTS")  # a folder: pictures of what the tests have seen
MODELS = ("CaFePlus", "CaFe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [written(folder / model, model) for model in MODELS]


@pytest.fixture(scope="module")
def address(folders: list[Path]) -> Iterator[str]:
    with running(folders) as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty page, which must neither complain nor fetch from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, complaints = context.new_page(), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
    opened.set_default_timeout(20_000)
    opened.goto(address)
    waits_for(opened, [])
    yield opened
    if SEEN:
        opened.screenshot(path=Path(SEEN) / f"{request.node.name}.png", full_page=True)
    context.close()
    assert not complaints


def waits_for(page: Any, history: list[str]) -> None:
    """Until the page shows what follows a history."""
    page.wait_for_function("tokens => document.body.dataset.ready === tokens", arg=",".join(history))
    sync_api.expect(page.locator(".panel.busy")).to_have_count(0)


def listed(page: Any, panel: int = 0) -> list[str]:
    return page.locator(".panel").nth(panel).locator(".list .name").all_inner_texts()


def titles(folder: Path, history: list[str], **options: Any) -> list[str]:
    return Recommender.load(folder).recommend([history], **options)["title"].to_pylist()


def test_items_are_typed_and_the_list_follows(page: Any, folders: list[Path]) -> None:
    keyboard = page.keyboard
    assert listed(page) == titles(folders[0], [])
    keyboard.press("/")
    sync_api.expect(page.locator("#search")).to_be_focused()
    keyboard.type("title 7 of")
    sync_api.expect(page.locator("#options li[aria-selected=true] .name")).to_have_text("Title 7 of <b>odd & bold</b>")
    keyboard.press("Enter")
    waits_for(page, ["i7"])
    assert listed(page) == titles(folders[0], ["i7"])
    keyboard.type("i1")
    sync_api.expect(page.locator("#options li").first).to_contain_text("Title 1 of")
    keyboard.press("ArrowDown")
    chosen = page.locator("#options li[aria-selected=true] .of").inner_text().split(" · ")[0]
    keyboard.press("Enter")
    waits_for(page, ["i7", chosen])
    assert listed(page) == titles(folders[0], ["i7", chosen])
    keyboard.press("Backspace")
    waits_for(page, ["i7"])
    keyboard.type("i3, nobody, i4")
    keyboard.press("Enter")
    waits_for(page, ["i7", "i3", "i4"])
    sync_api.expect(page.locator("#told")).to_have_text("unknown: nobody")
    assert listed(page) == titles(folders[0], ["i7", "i3", "i4"])
    page.reload()  # the address has the history
    waits_for(page, ["i7", "i3", "i4"])
    assert page.locator("#history .name").all_inner_texts()[1].startswith("Title 3 of")
    page.locator("#history button").first.click()
    waits_for(page, ["i3", "i4"])
    page.locator("#clear").click()
    waits_for(page, [])


def test_an_item_of_the_list_is_taken_and_an_intent_is_kept_to(page: Any, folders: list[Path]) -> None:
    first = Recommender.load(folders[0]).recommend([[]])["item"][0].as_py()
    page.locator(".take").first.click()
    waits_for(page, [first])
    page.locator(".panel").first.locator(".intents button", has_text="cakes").click()
    sync_api.expect(page.locator(".panel").first.locator(".intents button[aria-pressed=true]")).to_have_count(1)
    waits_for(page, [first])
    assert listed(page) == titles(folders[0], [first], intents=["cakes"])
    page.locator("#per-intent").select_option("2")
    waits_for(page, [first])
    assert listed(page) == titles(folders[0], [first], intents=["cakes"], per_intent=2)
    page.locator("#seen").check()
    waits_for(page, [first])
    assert listed(page) == titles(folders[0], [first], intents=["cakes"], per_intent=2, exclude_seen=False)


def test_reasons_and_intents_are_drawn_to_scale(page: Any, folders: list[Path], address: str) -> None:
    page.goto(f"{address}/#h=i3&h=i4&h=i5&m=CaFePlus")
    waits_for(page, ["i3", "i4", "i5"])
    own = Recommender.load(folders[0])
    table = own.recommend([["i3", "i4", "i5"]], reasons=True).to_pylist()
    panel = page.locator(".panel").first
    assert panel.locator(".why").all_inner_texts() == [row["reason"]["text"].replace("*", "") for row in table]
    widths = (
        panel.locator(".list li")
        .first.locator(".bar span")
        .evaluate_all("parts => parts.map(part => parseFloat(part.style.width) / 100)")
    )
    assert sum(widths) == pytest.approx(1, abs=1e-4)  # the first item's parts add up to its probability, the largest
    parts = [entry["amount"] / table[0]["probability"] for entry in table[0]["reason"]["evidence"]]
    assert widths[:-1] == pytest.approx(parts, abs=1e-4)
    bars = panel.locator(".intents .bar span").evaluate_all("all => all.map(bar => parseFloat(bar.style.width) / 100)")
    expected = own.next_intents(["i3", "i4", "i5"])["probability"].to_pylist()
    assert bars == pytest.approx([p / max(expected) for p in expected], abs=1e-4)
    counted = [sum(e["amount"] for row in table for e in row["reason"]["evidence"] if e["item"] == item)
               for item in ("i3", "i4", "i5")]  # fmt: skip
    shares = "bars => bars.map(bar => parseFloat(bar.style.width) / 100)"
    mattered = page.locator("#history .bar span")
    assert mattered.evaluate_all(shares) == pytest.approx([one / max(counted) for one in counted], abs=1e-4)
    panel.locator(".list li").nth(1).hover()
    of_one = {e["item"]: e["amount"] for e in table[1]["reason"]["evidence"]}
    if of_one:
        expected = [of_one.get(item, 0) / max(of_one.values()) for item in ("i3", "i4", "i5")]
        assert mattered.evaluate_all(shares) == pytest.approx(expected, abs=1e-4)


def test_two_models_side_by_side(page: Any, folders: list[Path], address: str) -> None:
    page.goto(f"{address}/#h=i3&h=i4")
    waits_for(page, ["i3", "i4"])
    assert not page.locator(".panel").nth(1).is_visible()
    page.locator("#compare").click()
    sync_api.expect(page.locator(".panel").nth(1).locator(".list li")).to_have_count(10)
    waits_for(page, ["i3", "i4"])
    left, right = (titles(folder, ["i3", "i4"]) for folder in folders)
    assert (listed(page, 0), listed(page, 1)) == (left, right)
    there = page.locator(".panel").first.locator(".there").all_inner_texts()
    assert there == [f"#{right.index(title) + 1} there" if title in right else "only here" for title in left]
    page.locator(".panel").first.locator("select").select_option("CaFe")
    sync_api.expect(page.locator(".panel").first.locator(".there").first).to_have_text("#1 there")
    assert listed(page, 0) == right


def test_names_are_text_and_never_markup(page: Any, address: str) -> None:
    page.goto(f"{address}/#h=i0&h=i3")  # i0 has a title, i3 an intent that would be markup
    waits_for(page, ["i0", "i3"])
    assert page.locator("#history .name").first.inner_text() == ODD_TITLE
    page.locator("#search").fill("<img")
    sync_api.expect(page.locator("#options li .name")).to_have_text(ODD_TITLE)
    assert page.locator("main img, main b, main script").count() == 0
    assert page.title() == "recbole-cafe"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, address: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(f"{address}/#h=i0&h=i3&c=CaFe")
    waits_for(page, ["i0", "i3"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 384) == (scheme == "dark")
    page.locator(".take").first.tap()
    sync_api.expect(page.locator("#history li")).to_have_count(3)
    if SEEN:
        page.screenshot(path=Path(SEEN) / f"phone-{scheme}.png")
    context.close()


def test_the_documents_of_the_api(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/docs")
    sync_api.expect(page.locator("article section")).to_have_count(8)
    assert "POST /recommend" in page.locator("h2").all_inner_texts()
    page.close()


def test_what_goes_wrong_is_said(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/#h=i0&i=nothing")
    said = page.locator(".panel").first.locator("[role=status]")
    sync_api.expect(said).to_contain_text("unknown intent")
    page.locator(".panel").first.locator(".intents button[aria-pressed=true]").click()  # it can be taken back
    waits_for(page, ["i0"])
    sync_api.expect(said).to_be_hidden()
    page.close()
