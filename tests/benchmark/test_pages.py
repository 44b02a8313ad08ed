"""Tables of pages from results, and the pages of this repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.benchmark import pages
from recbole_cafe.benchmark.packed import pack

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(made: Callable[..., Any], tmp_path: Path) -> Path:
    """A checkout's results: `small` with systems A (two points) and B, and a file of speed."""
    benchmark = made()
    benchmark.plan["systems"] = ["A", "B", "C"]
    benchmark.cell("A", points={"A0": {}, "A1": {"x": 1}})
    benchmark.cell("B")
    config = {"eval_mode": ["pop100"], "valid_metric": "NDCG@10"}
    for seed, places in ((1, [0, 0, 3, 3]), (2, [0, 3, 3, 3])):
        benchmark.run("A", seed, places, valid=0.9, config={**config, "x": 0})
        benchmark.run("B", seed, [0, 3, 3, 3], config=config)
    benchmark.run("A", 4, [0, 0, 0, 0], valid=0.9, config={**config, "x": 0})  # not of the plan
    benchmark.run("A", 1, [0, 0, 0, 0], digest="A1", valid=0.1, config={**config, "x": 1})
    pack(benchmark.out, tmp_path / "results" / "small")
    (tmp_path / "results" / "speed").mkdir()
    (tmp_path / "results" / "speed" / "load.json").write_text(json.dumps({"ours": {"s": 0.25, "n": 1234}, "all": [7]}))
    return tmp_path / "results"


SPEC = """
benchmark: small
dataset: amazon-x
corner: test
columns:
- {title: HR, protocol: pop100, metric: hit@1}
- {title: users, fact: users}
rows:
- A
- {title: first seed, system: A, seeds: [1]}
- {title: three seeds, system: A, seeds: [1, 2, 4]}
- {title: a seed that nobody ran, system: B, seeds: [1, 2, 3]}
- {title: x, system: A, where: {x: 1}}
- B
- C
- {title: first of C, system: C, seeds: [1]}
- {title: gain, gain: [A, [B, C]]}
- {title: paper, text: [.5, 3]}
"""


def page(spec: str) -> str:
    return f"before\n\n<!-- table:\n{spec.strip()}\n-->\nold\n<!-- /table -->\n\nafter\n"


def test_a_table_is_made_of_runs(results: Path) -> None:
    text = pages.with_tables(page(SPEC), results)
    assert text.startswith("before\n\n<!-- table:\nbenchmark: small") and text.endswith("<!-- /table -->\n\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "| test | HR | users |",
        "|---|---|---|",
        "| A | .375 (.177) | 4 |",
        "| first seed | .500 | 4 |",
        "| three seeds | .583 (.382) | 4 |",
        "| a seed that nobody ran |  | 4 |",
        "| x | **1.000** | 4 |",
        "| B | .250 | 4 |",
        "| C |  | 4 |",
        "| first of C |  | 4 |",
        "| gain | +50 % |  |",
        "| paper | 0.5 | 3 |",
    ]
    assert pages.with_tables(text, results) == text


def test_a_table_is_made_of_files(results: Path) -> None:
    cells = ["${speed/load.json:ours.s:2}", "${speed/load.json:ours.n:,} of ${speed/load.json:all.0:d}"]
    spec = f"head: [a, b]\ncells:\n- {json.dumps(cells)}"
    assert "| .25 | 1,234 of 7 |" in pages.with_tables(page(spec), results)


def test_a_table_has_a_row_for_each_line_of_a_file(results: Path) -> None:
    lines = [
        {"place": name, "result": {"versions": {"python": name}, "x": x}} for name, x in (("3.10", 0.5), ("3.9", 1))
    ]
    (results / "matrix.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = (
        'head: [a, b, c]\nlines: matrix.jsonl\ncells: ["${*:versions.python}", "${*:x:2}", "${speed/load.json:ours.n}"]'
    )
    assert "| a | b | c |\n|---|---|---|\n| 3.10 | .50 | 1234 |\n| 3.9 | 1.00 | 1234 |\n" in pages.with_tables(
        page(spec), results
    )
    mean = 'head: [a]\ncells:\n- ["${matrix.jsonl#3.10,3.9:x:2}"]'
    assert "| .75 |" in pages.with_tables(page(mean), results)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- B", "- D", r"small has no system 'D'; it has A, B, C"),
        ("amazon-x", "amazon-y", r"has no data set 'amazon-y'; it has amazon-x"),
        ("{x: 1}", "{x: 2}", r"A has no run with \{'x': 2\}"),
        ("protocol: pop100, ", "", r"a table lacks KeyError\('protocol'\)"),
        ("- B", "- {", r"is not YAML"),
    ],
)
def test_what_is_not_there_is_named(results: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(pages.PageError, match=message):
        pages.with_tables(page(SPEC.replace(old, new)), results)
    with pytest.raises(pages.PageError, match=r"load\.json has no ours\.m"):
        pages.with_tables(page('head: [a]\ncells:\n- ["${speed/load.json:ours.m:2}"]'), results)


@pytest.mark.parametrize("lost", ["<!-- table:", "<!-- /table -->"])
def test_a_table_that_lost_a_mark_is_named(results: Path, lost: str) -> None:
    text = page(SPEC).replace(lost, "", 1) + page(SPEC)
    with pytest.raises(pages.PageError, match=r"stands [12] times"):
        pages.with_tables(text, results)


def test_the_command_writes_and_checks(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = results.parent
    (root / "docs").mkdir()
    path = root / "docs" / "a.md"
    path.write_text(page(SPEC))
    assert pages.main(check=True, root=root) == 1
    assert "docs/a.md: its tables differ" in capsys.readouterr().out
    assert "old" in path.read_text()
    assert pages.main(check=False, root=root) == 0
    assert "| B | .250 | 4 |" in path.read_text()
    assert pages.main(check=True, root=root) == 0
    path.write_text(page(SPEC.replace("- B", "- D")))
    assert pages.main(check=False, root=root) == 1


def test_the_pages_of_this_repository_are_as_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(check=True, root=ROOT) == 0, capsys.readouterr().out


def test_results_are_few_files() -> None:
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    kept = [path for path in files if path.parent.name != "report" or path.name == "report.md"]
    assert len(kept) <= 100
    assert sum(path.stat().st_size for path in kept) < 25 * 2**20
