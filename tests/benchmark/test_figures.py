"""recbole_cafe.benchmark.figures: what is drawn is what the CSV beside it holds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.benchmark import figures, store
from recbole_cafe.benchmark.results import read
from recbole_cafe.cli.main import main

FIGURE = {"system": "CaFe", "baseline": "B", "x": {"min5": 5, "min1": 1, "min20": 20}, "xlabel": "items"}


def pair(made: Callable[..., Any]) -> Any:
    """hit@1 over four users: at min1 CaFe .75, .5 and B .5, .25; at min5 CaFe .5 and B .5; at min20 B alone."""
    folder = made(ours=["CaFe"], figure=FIGURE)
    for dataset, protocols, systems in (
        ("min1", ["pop100", "authors100"], {"CaFe": ([0, 0, 0, 1], [0, 0, 1, 1]), "B": ([0, 0, 1, 1], [0, 1, 1, 1])}),
        ("min5", ["pop100"], {"CaFe": ([0, 0, 1, 1],), "B": ([0, 1, 0, 1],)}),
        ("min20", ["pop100"], {"B": ([0, 1, 0, 1],)}),
    ):
        for system, seeds in systems.items():
            folder.cell(system, dataset, protocols=protocols)
            for seed, places in enumerate(seeds, 1):
                folder.run(system, seed, places, dataset, protocols=protocols)
    return folder


def test_points_by_hand(made: Callable[..., Any]) -> None:
    first, second = figures.gains(read(pair(made).out))  # in the order of x, min20 has no pair, authors100 no place
    assert (first.dataset, first.x, first.protocol, first.metric, first.seeds) == ("min1", 1, "pop100", "hit@1", 2)
    assert (first.system, first.baseline) == pytest.approx((0.625, 0.375))
    assert (first.gain, first.low, first.high) == pytest.approx((0.25 / 0.375, 0.5, 1.0))
    assert (second.x, second.gain, second.low, second.high, second.seeds) == (5, 0, 0, 0, 1)


def test_a_line_for_each_baseline(made: Callable[..., Any]) -> None:
    folder = made(ours=["CaFe"], figure={**FIGURE, "baseline": ["B", "A"]})
    for system, places in {"CaFe": [0, 0, 0, 1], "A": [0, 1, 1, 1], "B": [0, 0, 1, 1]}.items():
        folder.cell(system, "min1")
        folder.run(system, 1, places, "min1")
    found = [(point.over, point.gain) for point in figures.gains(read(folder.out))]
    assert found == [("B", pytest.approx(0.5)), ("A", pytest.approx(2.0))]
    assert Path(folder.out / "figures" / "gain.png") in figures.write(folder.out)


def test_files(made: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    pair(made)
    assert main(["figures", "out"]) == 0
    names = {"min1-pop100", "min1-authors100", "min5-pop100", "min20-pop100", "gain"}
    written = {Path(line) for line in capsys.readouterr().out.splitlines()}
    assert written == {Path(f"out/figures/{name}.{end}") for name in names for end in ("png", "svg", "csv")}
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".csv": b""}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in written)

    def rows(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(Path(f"out/figures/{name}.csv").read_text().splitlines()))

    assert [(r["system"], r["mean"], r["n"]) for r in rows("min1-pop100")] == [
        ("CaFe", "0.625", "2"),
        ("B", "0.375", "2"),
    ]
    assert [(r["x"], r["low"], r["high"]) for r in rows("gain")] == [("1.0", "0.5", "1.0"), ("5.0", "0.0", "0.0")]


def test_the_same_numbers_give_the_same_file(made: Callable[..., Any]) -> None:
    folder = made()
    folder.cell("A")
    folder.run("A", 1, [0, 1])
    first = [path.read_bytes() for path in figures.write(folder.out)]
    assert [path.read_bytes() for path in figures.write(folder.out)] == first


def test_nothing_to_draw_and_a_wrong_figure(made: Callable[..., Any]) -> None:
    folder = made()
    folder.cell("A")
    with pytest.raises(store.StoreError, match=r"out has no finished run to draw"):
        figures.write(folder.out)
    folder = made(figure={"system": "A"})
    folder.cell("A")
    with pytest.raises(store.StoreError, match=r"figure=.* should be a mapping of system, baseline and x"):
        figures.write(folder.out)
