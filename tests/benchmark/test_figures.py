"""recbole_cafe.benchmark.figures: what is drawn is what the CSV beside it holds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.benchmark import figures, store
from recbole_cafe.benchmark.report import read
from recbole_cafe.cli import main

FIGURE = {"system": "CaFe", "baseline": "B", "x": {"min5": 5, "min1": 1, "min20": 20}, "xlabel": "items"}


def pair(made: Callable[..., Any]) -> Any:
    """hit@1 over four users: at min1 CaFe .75, .5 and B .5, .25; at min5 CaFe .5 and B .5; at min20 B alone."""
    folder = made(ours=["CaFe"], figure=FIGURE)
    for dataset, systems in (
        ("min1", {"CaFe": ([0, 0, 0, 1], [0, 0, 1, 1]), "B": ([0, 0, 1, 1], [0, 1, 1, 1])}),
        ("min5", {"CaFe": ([0, 0, 1, 1],), "B": ([0, 1, 0, 1],)}),
        ("min20", {"B": ([0, 1, 0, 1],)}),
    ):
        for system, seeds in systems.items():
            folder.cell(system, dataset, protocols=["pop100", "authors100"])
            for seed, places in enumerate(seeds, 1):
                folder.run(system, seed, places, dataset, protocols=["pop100", "authors100"])
    return folder


def test_points_by_hand(made: Callable[..., Any]) -> None:
    first, second = figures.gains(read(pair(made).out))  # in the order of x, min20 has no pair, authors100 no place
    assert (first.dataset, first.x, first.protocol, first.metric, first.seeds) == ("min1", 1, "pop100", "hit@1", 2)
    assert (first.system, first.baseline) == pytest.approx((0.625, 0.375))
    assert (first.gain, first.low, first.high) == pytest.approx((0.25 / 0.375, 0.5, 1.0))
    assert (second.x, second.gain, second.low, second.high, second.seeds) == (5, 0, 0, 0, 1)


def test_files(made: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    pair(made)
    assert main(["figures", "out"]) == 0
    names = {f"{d}-{p}" for d in ("min1", "min5", "min20") for p in ("pop100", "authors100")} | {"gain"}
    written = {Path(line) for line in capsys.readouterr().out.splitlines()}
    assert written == {Path(f"out/figures/{name}.{end}") for name in names for end in ("png", "svg", "csv")}
    for path in written:
        start = path.read_bytes()[:100]
        assert start.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".csv": b"system,ours,metric,mean,sd,n\n"}.get(
            path.suffix if path.name != "gain.csv" else "", b"dataset,x,protocol,metric,system,baseline,gain"))  # fmt: skip
    lines = list(csv.DictReader(Path("out/figures/min1-pop100.csv").open()))
    assert [(line["system"], float(line["mean"]), line["n"]) for line in lines] == [
        ("CaFe", 0.625, "2"),
        ("B", 0.375, "2"),
    ]
    svg = Path("out/figures/gain.svg").read_bytes()
    figures.write(Path("out"))
    assert Path("out/figures/gain.svg").read_bytes() == svg  # the same numbers give the same file


def test_nothing_to_draw_and_a_wrong_figure(made: Callable[..., Any]) -> None:
    folder = made(figure={"system": "A"})
    folder.cell("A")
    with pytest.raises(
        store.StoreError, match="out has no finished run to draw|should be a mapping of system, baseline"
    ):
        figures.write(folder.out)
    folder.run("A", 1, [0])
    with pytest.raises(store.StoreError, match="figure=.* should be a mapping of system, baseline and x"):
        figures.write(folder.out)
