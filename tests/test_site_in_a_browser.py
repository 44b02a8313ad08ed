"""The site in a real browser without a window: its pages fit, complain of nothing, and fetch nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SEEN = os.environ.get("RECBOLE_CAFE_SCREENSHOTS")  # a folder: pictures of what the tests have seen; docs/images has two
PAGES = (
    "index",
    "start",
    "quality",
    "performance",
    "models/CaFePlus",
    "from_recbole",
    "contributing",
    "notebook",
    "api",
)
PICTURED = ("start", "quality")
WIDTH = 1280


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "mkdocs.yml", "-d", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, check=True, env=environment)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """An empty page, which must neither complain nor fetch from elsewhere."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 1000})
    opened, complaints = context.new_page(), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    opened.on("response", lambda one: complaints.append(f"{one.status} {one.url}") if one.status >= 400 else None)
    opened.on("request", lambda asked: None if asked.url.startswith((address, "data:", "blob:"))
              else complaints.append(asked.url))  # fmt: skip
    opened.set_default_timeout(20_000)
    yield opened
    context.close()
    assert not complaints


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_its_pictures_are_there(page: Any, address: str, name: str) -> None:
    page.goto(f"{address}/{name}.html")
    assert page.locator("h1").count() >= 1
    empty = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert not empty
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH  # tables and code scroll by themselves
    if SEEN and name in PICTURED:
        page.screenshot(path=Path(SEEN) / f"{name.replace('/', '-')}-page.png")


def test_search_finds_a_page(page: Any, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("resume")
    found = page.locator(".md-search-result__link, [data-md-component=search-result] a").first
    sync_api.expect(found).to_be_visible()
