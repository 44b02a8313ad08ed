"""Figures of a benchmark folder, as PNG and SVG, each with the CSV of the numbers it shows.

A dot for each system under each protocol; and, where the benchmark file has a `figure`, the gain of one system over
another from data set to data set::

    figure: {system: CaFe, baseline: BERT4Rec, x: {min1: 1, min5: 5}, xlabel: ..., metric: ndcg@5}

`baseline` may be a list: a line for each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_cafe.benchmark import store
from recbole_cafe.benchmark.results import Benchmark, SystemRuns, Table, check_comparable, metrics_of, read, tables
from recbole_cafe.benchmark.stats import gain, stat
from recbole_cafe.benchmark.wording import title
from recbole_cafe.errors import DataError, missing_package
from recbole_cafe.files.result import Result
from recbole_cafe.files.whole import written_whole

FOLDER = "figures"
KEYS = frozenset(["system", "baseline", "x", "xlabel", "metric"])
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "recbole-cafe",
         "figure.constrained_layout.use": True}  # fmt: skip
# Told apart in grey and by the colour-blind, the first ones best
COLOURS = ("#1f5fa8", "#c8601a", "#3d8b55", "#8a4fa3", "#7a7a7a", "#b03a48", "#4fa3a3", "#9a8040")
MARKS = "os^Dvx+*"
BLUE, GREY = COLOURS[0], COLOURS[4]


@dataclass(frozen=True)
class Point:
    """A point of the line of gains.

    Attributes:
        dataset: label of the data set.
        x: where it stands.
        protocol: name of the protocol.
        metric: name of the metric.
        over: label of the baseline.
        system: the system's mean over the seeds.
        baseline: the baseline's mean over the seeds.
        gain: of the means over the seeds.
        low: smallest gain of a single seed.
        high: largest gain of a single seed.
        seeds: how many.
        users: of the data.
        items: of the data.
        interactions_per_item: of the data.
    """

    dataset: str
    x: float
    protocol: str
    metric: str
    over: str
    system: float
    baseline: float
    gain: float
    low: float
    high: float
    seeds: int
    users: int
    items: int
    interactions_per_item: float


def gains(benchmark: Benchmark) -> list[Point]:
    """The points of the benchmark's `figure`, those whose runs are there, without protocols of random intents.

    Raises:
        StoreError: the description of the figure is wrong, or runs cannot be compared.
    """
    figure = benchmark.plan["figure"]
    if not isinstance(figure, dict) or not {"system", "baseline", "x"} <= figure.keys() <= KEYS:
        raise store.StoreError(
            f"figure={figure!r} should be a mapping of system, baseline and x, perhaps xlabel, metric"
        )
    order = figure["baseline"] if isinstance(figure["baseline"], list) else [figure["baseline"]]
    points = []
    for dataset, x in figure["x"].items():
        systems = {s.system: s for s in benchmark.datasets.get(dataset, [])}
        for over in order:
            pair = [systems.get(figure["system"]), systems.get(over)]
            if None in pair:
                continue
            check_comparable(dataset, pair)
            for protocol in benchmark.fair_protocols(dataset):
                metric = str(figure.get("metric") or metrics_of(benchmark, protocol)[0]).lower()
                points += _point(dataset, float(x), protocol, metric, *pair)
    return sorted(points, key=lambda point: (point.protocol, order.index(point.over), point.x))


def _point(dataset: str, x: float, protocol: str, metric: str, system: SystemRuns, baseline: SystemRuns) -> list[Point]:
    seeds = [s for s in system.runs if s in baseline.runs]
    values, baselines = (
        [r.runs[s]["test_result"].get(protocol, {}).get(metric) for s in seeds] for r in (system, baseline)
    )
    if not seeds or None in values or None in baselines:
        return []
    of_seeds = [gain(a, b) for a, b in zip(values, baselines, strict=True)]
    means = stat(values).mean, stat(baselines).mean
    if None in of_seeds:
        return []  # nothing is a multiple of nothing
    data = system.runs[seeds[0]]["data"]
    return [Point(
        dataset, x, protocol, metric, baseline.system, *means, gain(*means), min(of_seeds), max(of_seeds), len(seeds),
        data["users"], data["items"], data["interactions_per_item"],
    )]  # fmt: skip


def write(out: Path) -> list[Path]:
    """Draw everything there are results for.

    Returns:
        the files, in `out`/figures.

    Raises:
        StoreError: as :func:`recbole_cafe.benchmark.results.read` and :func:`gains`. MachineError: no matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    benchmark = read(out)
    folder, written = Path(out) / FOLDER, []
    with matplotlib.rc_context(STYLE):
        for table in tables(benchmark):
            rows = [row for row in table.rows if row.values[table.metrics[0]] is not None]
            if rows:
                lines = [{"system": row.system, "ours": row.ours, "metric": table.metrics[0],
                          **asdict(row.values[table.metrics[0]])} for row in rows]  # fmt: skip
                written += save_figure(folder, table.name, _dots(table, lines), lines)
        if benchmark.plan.get("figure") and (points := gains(benchmark)):
            lines = [asdict(point) for point in points]
            written += save_figure(folder, "gain", _line(benchmark, points), lines)
    if not written:
        raise store.StoreError(f"{out} has no finished run to draw")
    return written


def write_curve(path: Path) -> list[Path]:
    """Draw the learning curve of a run beside its result: `NAME.curve.png`, `.svg` and `.csv` beside `NAME.json`.

    Args:
        path: the result.

    Returns:
        the files.

    Raises:
        DataError: no result, or one without a curve. MachineError: no matplotlib.
    """
    result = Result.load(path)
    if not result.curve:
        raise DataError(f"{path} keeps no learning curve: nothing was trained, or an earlier version wrote it")
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    with matplotlib.rc_context(STYLE):
        return save_figure(Path(path).parent, f"{Path(path).stem}.curve", _curve(result), result.curve)


def _curve(result: Result) -> Any:
    """The loss, and the validation metric where it was measured, against the epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = {
        "loss": "loss, mean over batches",
        "score": f"validation {title(str(result.config['valid_metric']).lower())}",
    }
    known = {key: [at for at in result.curve if at[key] is not None] for key in names}
    panels = [key for key in names if known[key]] or ["loss"]
    figure = Figure(figsize=(0.4 + 3.6 * len(panels), 2.8))
    for axes, key, colour in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, COLOURS, strict=False):
        axes.plot([at["epoch"] for at in known[key]], [at[key] for at in known[key]], f"{MARKS[0]}-", color=colour,
                  markersize=3, linewidth=1.2)  # fmt: skip
        if key == "score" and result.best_epochs:
            axes.axvline(result.best_epochs, color=GREY, linewidth=0.8, linestyle="--")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_xlabel("epoch")
        axes.set_title(names[key], loc="left", fontsize=9)
    dashed = "; dashed: the best" * bool(known["score"])
    figure.suptitle(f"{result.model} on {result.dataset}, seed {result.seed}{dashed}", fontsize=8)
    return figure


def _dots(table: Table, lines: Sequence[Mapping[str, Any]]) -> Any:
    """Systems from top to bottom in the order of the table, mean and standard deviation from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 0.9 + 0.24 * len(lines)))
    axes = figure.subplots()
    for y, line in enumerate(lines):
        axes.errorbar(line["mean"], y, xerr=line["sd"] or 0.0, fmt="o", markersize=5, capsize=2, linewidth=1,
                      color=BLUE if line["ours"] else GREY)  # fmt: skip
    axes.set_yticks(range(len(lines)), [line["system"] for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_xlabel(f"{title(table.metrics[0])}, mean and standard deviation over seeds")
    warning = " (random intents: no measure of recommendation)" if table.warning else ""
    axes.set_title(f"{table.dataset}, {table.protocol}{warning}", loc="left", fontsize=9)
    return figure


def _line(benchmark: Benchmark, points: Sequence[Point]) -> Any:
    """Gain against x: a panel per protocol, a line per baseline."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    spec = benchmark.plan["figure"]
    protocols, baselines = (list(dict.fromkeys(getattr(p, name) for p in points)) for name in ("protocol", "over"))
    figure = Figure(figsize=(0.6 + 4.2 * len(protocols), 3.4))
    panels = figure.subplots(1, len(protocols), squeeze=False)[0]
    for axes, protocol in zip(panels, protocols, strict=True):
        shown = [point for point in points if point.protocol == protocol]
        for i, over in enumerate(baselines):
            own = [point for point in shown if point.over == over]
            reach = [[p.gain - p.low for p in own], [p.high - p.gain for p in own]]
            axes.errorbar([p.x for p in own], [p.gain for p in own], yerr=reach, fmt=f"{MARKS[i % len(MARKS)]}-",
                          color=COLOURS[i % len(COLOURS)], markersize=5, capsize=2, linewidth=1.2, elinewidth=0.8,
                          label=f"over {over}")  # fmt: skip
        places = sorted({point.x for point in shown})
        if len(places) > 2 and places[0] > 0:
            axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_xlabel(str(spec.get("xlabel", "")))
        axes.set_title(f"{protocol}, {title(shown[0].metric)}", loc="left", fontsize=9)
    panels[0].set_ylabel(f"gain of {spec['system']}")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("point: gain of the means; whiskers: lowest and highest of a single seed", fontsize=8)
    return figure


def save_figure(folder: Path, name: str, figure: Any, lines: Sequence[Mapping[str, Any]]) -> list[Path]:
    """`folder`/`name`.png and .svg, the same bytes for the same numbers, and .csv with the numbers."""
    for end, more in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
        with written_whole(folder / f"{name}.{end}") as file:
            figure.savefig(file, format=end, **more)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with written_whole(folder / f"{name}.csv") as file:
        file.write(text.getvalue().encode())
    return [folder / f"{name}.{end}" for end in ("png", "svg", "csv")]
