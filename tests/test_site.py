"""The pages: the site builds strictly, its links lead somewhere, its code runs, and its English is plain."""

from __future__ import annotations

import html.parser
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest
from page_code import MARK, blocks

from recbole_cafe.host.compat import DEFECTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Whose blocks are run together, in this order: what one makes, the next may use
ORDER = ("own_data.md", "evaluation.md", "resume.md", "from_recbole.md", "contributing.md", "start.md",
         "README.md")  # fmt: skip
ELSEWHERE = {  # mark of a block -> who runs it
    "test-command": ".ci/run",
    "main-command": "tests/test_site.py",
    **dict.fromkeys(
        ("recommend-train", "recommend-python", "recommend-file", "recommend-serve"),
        "tests/recommend/test_serving_environment.py",
    ),
}
CODE = ("bash", "sh", "python", "yaml", "console", "shell")
EASE, WORDS = 50, 35  # Flesch's reading ease, at least; words of a sentence, at most


# Code -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_block_is_run_or_says_why_not(path: Path) -> None:
    for block in blocks(path):
        if block.language in CODE:
            assert MARK.fullmatch(block.mark) or block.mark in ELSEWHERE, f"{block} is neither run nor says why not"
        else:
            assert block.language == "text", f"{block}: say which language it is, or `text`"
        if block.run or block.file:
            assert path.name in ORDER, f"{block}: {path.name} is not among the pages whose blocks are run"


def test_the_marks_of_other_tests_are_there() -> None:
    marks = [block.mark for path in PAGES for block in blocks(path)]
    assert sorted(mark for mark in marks if mark in ELSEWHERE) == sorted(ELSEWHERE)
    names = [block.run for path in PAGES for block in blocks(path) if block.run]
    assert len(names) >= 10 and len(set(names)) == len(names)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of commands: recbole-cafe, whose runs have one epoch, python, and a pip that installs nothing.

    Each run is a fork of a process with everything loaded.
    """
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    with preloaded.Preloaded(tmp_path_factory.mktemp("preloaded"), "everything") as waiting:
        folder = waiting.address.with_name("programs")
        folder.mkdir()
        words = [sys.executable, "-S", "-E", preloaded.__file__, "ask", str(waiting.address)]
        ask = f'exec {shlex.join(words)} "$@"'
        short = 'case "$*" in *--final_from*) ;; run*) set -- "$@" --epochs=1 --gpu_id= --show_progress=False ;; esac'
        for name, lines in {"recbole-cafe": [short, ask], "python": [ask], "pip": []}.items():
            (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
            (folder / name).chmod(0o755)
        yield folder


@pytest.mark.slow
def test_the_blocks_run(tmp_path: Path, programs: Path) -> None:
    folder, out = tmp_path / "work", tmp_path / "out"
    folder.mkdir()
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PRELOADED_OUT": str(out)}
    by_name = {path.name: path for path in PAGES if path.parent.name != "models"}
    for block in (block for name in ORDER for block in blocks(by_name[name])):
        if block.file:
            (folder / block.file).write_text(block.code)
        if not block.run:
            continue
        command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [programs / "python", "-c"]}[block.language]
        out.write_text("")
        with out.open("ab") as file:
            done = subprocess.run([*command, block.code], cwd=folder, env=environment, stdout=file, stderr=file)
        assert done.returncode == 0, f"{block} {block.run}\n{out.read_text()[-2500:]}"
    lists = (folder / "lists.csv").read_text().splitlines()
    assert lists[0].startswith("user,rank,item") and len(lists) == 1 + 2 * 3


@pytest.mark.slow
def test_the_main_command_runs(tmp_path: Path, programs: Path) -> None:
    (command,) = (block.code for block in blocks(ROOT / "README.md") if block.mark == "main-command")
    python, script, *options = shlex.split(command.split("&&")[-1])
    assert python == ".venv/bin/python"
    quick = [
        "--epochs=1",
        "--user_inter_num_interval=[60,inf)",
        "--hidden_size=8",
        "--gpu_id=",
        "--show_progress=False",
    ]
    out = tmp_path / "out"
    out.write_text("")
    short = [programs / "python", ROOT / script, *options, *quick]
    done = subprocess.run(short, cwd=tmp_path, env=os.environ | {"PRELOADED_OUT": str(out)})
    assert done.returncode == 0, out.read_text()[-2500:]
    assert (tmp_path / "result.json").is_file()


# The site -------------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Links, places and what is fetched of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of = {key: value or "" for key, value in attributes}
        self.places |= {of[key] for key in ("id", "name") if key in of}
        if tag == "a" and "href" in of:
            self.links.add(of["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in of:
            self.fetched.add(of["src"])
        if tag == "link" and of.get("rel") not in ("canonical", "prev", "next", "alternate", "edit"):
            self.fetched.add(of["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` builds it: any warning is an error."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "mkdocs.yml", "-d", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Reader]:
    return {path: Reader(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_model_has_a_page_with_its_equations_and_keys(site: Path) -> None:
    from recbole_cafe.config.props import props_dir
    from recbole_cafe.model import MODELS

    for name in MODELS:
        page = (site / "models" / f"{name}.html").read_text(encoding="utf-8")
        keys = re.findall(r"^(\w+):", (props_dir() / "model" / f"{name}.yaml").read_text(), re.MULTILINE)
        assert not [key for key in keys if f"<code>{key}</code>" not in page], name
        assert "Idea and equations" in page
    assert "beyond-rare" in (site / "models" / "CaFePlus.html").read_text(encoding="utf-8")


def test_no_link_inside_is_broken(site: Path, built: dict[Path, Reader]) -> None:
    assert len(built) > 40
    broken = []
    for page, reader in built.items():
        for link in reader.links | reader.fetched:
            target, place = urllib.parse.urldefrag(link)
            if "://" in target or link.startswith(("mailto:", "data:")):
                continue
            path = (page.parent / urllib.parse.unquote(target)).resolve() if target else page
            lacks_place = place and path in built and urllib.parse.unquote(place) not in built[path].places
            if not path.is_file() or lacks_place:
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(site: Path, built: dict[Path, Reader]) -> None:
    foreign = {link for reader in built.values() for link in reader.fetched if "://" in link or link.startswith("//")}
    assert not foreign
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet


def test_no_comment_of_the_tools_is_in_the_site(built: dict[Path, Reader]) -> None:
    assert not [page for page in built if "<!-- table:" in page.read_text(encoding="utf-8")]


# What pages say -------------------------------------------------------------------------------------------------------


def test_the_repairs_are_those_of_compat() -> None:
    text = (ROOT / "docs/from_recbole.md").read_text(encoding="utf-8")
    table = text.partition("<!-- defects -->\n")[2].partition("<!-- /defects -->")[0].splitlines()[2:]
    expected = [f"| `{one.name}` | {one.what} | {one.issues} | {one.when} |" for one in DEFECTS]
    assert table == expected


def test_the_figure_of_quality_is_that_of_its_table() -> None:
    drawing = runpy.run_path(str(ROOT / "docs/_site/figure.py"))["drawing"]
    page = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    assert (ROOT / "docs/images/quality.svg").read_text(encoding="utf-8") == drawing(page)


def test_the_readme_is_short_and_the_version_is_one() -> None:
    import recbole_cafe

    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert f"version: {recbole_cafe.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# English --------------------------------------------------------------------------------------------------------------


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a page: without code, tables, headings, comments, addresses of links and signs of Markdown."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(\||#|::: |    ).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)(\{[^}]*\})?", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", "Code", text)  # a capital: it may begin a sentence
    text = re.sub(r"</?\w+[^>]*>", "", text)
    text = re.sub(r"^ *([*-]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}", "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        if words := " ".join(paragraph.split()):
            yield words


def sentences(text: str) -> Iterator[str]:
    for paragraph in paragraphs(text):
        yield from re.split(r"(?<=[.!?])['\")]*\s+(?=[A-Z\d(\"'])", paragraph)


def test_prose_is_told_from_code() -> None:
    page = "# Head\n\nSee [this](x.md) `a b`. It *is*\nso.\n\n| t |\n\n<!-- c -->\n```bash\nrun\n```\n\n* one.\n* two\n"
    assert list(sentences(page)) == ["See this Code.", "It is so.", "one.", "two"]


def text_of(path: Path) -> str:
    """A page, or what stands between the code of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "docs/notebook.ipynb"], ids=lambda path: path.name)
def test_english_is_plain(path: Path) -> None:
    textstat = pytest.importorskip("textstat")
    text = text_of(path)
    long = [sentence for sentence in sentences(text) if len(sentence.split()) > WORDS]
    assert not long
    prose = " ".join(paragraph.rstrip(" .:;") + "." for paragraph in paragraphs(text))
    if len(prose.split()) >= 50:
        ease = textstat.flesch_reading_ease(prose)
        assert ease > EASE, f"{path.name}: {ease:.0f}"
