"""report.html of a benchmark folder: one file with all tables and figures, which a browser opens from disk.

Nothing is loaded from elsewhere: style and script stand in the page (report.css and report.js beside this file), and
its content security policy lets no other run. Every text of a benchmark file, a result or a paper is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from recbole_cafe.benchmark.charts import Mark, Series, dots, lines, percent
from recbole_cafe.benchmark.figures import gains
from recbole_cafe.benchmark.layout import TESTS
from recbole_cafe.benchmark.results import Benchmark, SystemRuns, Table
from recbole_cafe.benchmark.wording import (
    costs,
    differing_environments,
    environments,
    footnotes,
    how_to_read,
    p_value,
    point_text,
    provenance,
    shown,
    significant,
    title,
)

HERE = Path(__file__).parent
OURS, OTHERS = 0, 4  # colours of the dots


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: what it is sorted by, a number or the text; None where there is nothing.
        kind: classes of the style sheet.
    """

    text: str
    value: float | str | None
    kind: str = ""


def words(text: object, kind: str = "text") -> Cell:
    """A cell of text, sorted by it."""
    return Cell(str(text), str(text) or None, kind)


def figure_of(value: float | None, form: str = ",.0f", kind: str = "") -> Cell:
    """A cell of a number; empty for None."""
    return Cell("", None, kind) if value is None else Cell(format(value, form), value, kind)


def html_page(benchmark: Benchmark, tables: Sequence[Table], command: Sequence[str]) -> str:
    """report.html: what was run, how to read it, every table and figure, learning curves, costs, environments.

    Args:
        benchmark: as :func:`recbole_cafe.benchmark.results.read` gives it.
        tables: of it.
        command: what is said to have made the page.

    Raises:
        StoreError: the benchmark's `figure` is wrong.
    """
    style, script = ((HERE / f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    names = list(benchmark.datasets)
    body = [f"<h1>{escape(benchmark.title)}</h1>"]
    if benchmark.plan.get("description"):
        body.append(f"<p>{escape(str(benchmark.plan['description']).strip())}</p>")
    body.append(f'<p class="soft">{escape(provenance(benchmark))}</p>')
    links = [f'<a href="#d{i}">{escape(name)}</a>' for i, name in enumerate(names)]
    if figure := _gain(benchmark):
        links.insert(0, '<a href="#gain">Gain</a>')
    body.append(
        f'<nav aria-label="Sections">{"".join(links)}<a href="#about">How to read and how it was made</a></nav>'
    )
    if figure:
        body += ['<h2 id="gain">Gain</h2>', figure]
    for i, dataset in enumerate(names):
        body.append(f'<h2 id="d{i}">{escape(dataset)}</h2>')
        for table in tables:
            if table.dataset == dataset:
                body += _table(table)
        body += _of_a_dataset(benchmark.datasets[dataset])
    body += _about(benchmark, command)
    policy = (f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
              f"form-action 'none'")  # fmt: skip
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(benchmark.title)}</title>", f"<style>{style}</style>", "</head>", "<body>", *body,
        f"<script>{script}</script>", "</body>", "</html>", "",
    ])  # fmt: skip


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Tables ---------------------------------------------------------------------------------------------------------------


def sortable(headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, ours: Sequence[bool] = (),
             foot: Sequence[Sequence[str]] = ()) -> str:  # fmt: skip
    """A table whose headings sort it.

    Args:
        headings: of the columns.
        rows: a cell for each column. A column without text is sorted by number, the greatest first.
        ours: for each row, whether it is one of ours.
        foot: rows that stay below.
    """
    head, numeric = "", [not any(isinstance(row[i].value, str) for row in rows) for i in range(len(headings))]
    for name, number in zip(headings, numeric, strict=True):
        kind = " data-numeric" if number else ' class="text"'
        head += f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(name)}</button></th>'
    body = ""
    for i, row in enumerate(rows):
        body += '<tr class="ours">' if ours and ours[i] else "<tr>"
        for cell in row:
            value = "" if cell.value is None else repr(cell.value) if isinstance(cell.value, float) else str(cell.value)
            kind = f' class="{cell.kind}"' if cell.kind else ""
            body += f'<td{kind} data-value="{escape(value)}">{escape(cell.text)}</td>'
        body += "</tr>\n"
    below = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in foot)
    below = f"<tfoot>{below}</tfoot>" if below else ""
    return (f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>{below}'
            "</table></div>")  # fmt: skip


def _table(table: Table) -> list[str]:
    """The heading, the table, its figures, notes and tests."""
    titles = [title(m) for m in table.metrics]
    parts = [f"<h3>{escape(table.dataset)}, {escape(table.protocol)}</h3>",
             f'<p class="caption">{escape(table.caption)}</p>']  # fmt: skip
    if table.warning:
        parts.append(f'<p class="warning"><b>Warning.</b> {escape(table.warning)}</p>')
    headings = ["system", *titles, *([f"published {t} ¹" for t in titles] if table.published else [])]
    places = {metric: table.places(metric) for metric in table.metrics}
    rows = []
    for row in table.rows:
        cells = [words(row.system + " †" * significant(row))]
        for metric in table.metrics:
            value, place = row.values[metric], places[metric].get(row.system)
            kind = {1: "best", 2: "second"}.get(place or 0, "")
            cells.append(Cell(shown(value), None if value is None else value.mean, kind))
        if table.published:
            for metric in table.metrics:
                text = row.published[metric]
                cells.append(Cell(text or "", None if text is None else float(text)))
        rows.append(cells)
    foot = []
    for system, of in table.gains():
        texts = ["" if g is None else f"{g[0]:+.1%} ({g[1]})" for g in of.values()]
        foot.append([f"gain of {system} over the best baseline", *texts, *([""] * len(titles) * bool(table.published))])
    parts.append(sortable(headings, rows, ours=[row.ours for row in table.rows], foot=foot))
    if notes := footnotes(table):
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    charts = [_dots(table, metric) for metric in table.metrics if any(row.values[metric] for row in table.rows)]
    if charts:
        parts.append(f'<div class="figures">{"".join(charts)}</div>')
    return parts + _tests(table)


def _dots(table: Table, metric: str) -> str:
    rows = []
    for row in table.rows:
        value, mark = row.values[metric], None
        if value is not None:
            seeds = {s: r["test_result"].get(table.protocol, {}).get(metric) for s, r in row.runs.runs.items()}
            lines_of_tip = [row.system, f"{title(metric)} {shown(value)}"]
            lines_of_tip += [f"seed {seed}: {number:.4f}" for seed, number in seeds.items() if number is not None]
            reach = (None, None) if value.sd is None else (value.mean - value.sd, value.mean + value.sd)
            mark = Mark(value.mean, 0.0, "\n".join(lines_of_tip), *reach)
        rows.append((row.system, OURS if row.ours else OTHERS, mark))
    label = f"{title(metric)}, mean and standard deviation over seeds"
    return f"<figure>{dots(rows, label, f'{table.dataset}, {table.protocol}: {title(metric)} of each system')}</figure>"


def _tests(table: Table) -> list[str]:
    rows = []
    for row in table.rows:
        if (d := row.difference) is not None:
            rows.append([
                words(row.system), figure_of(d.mean, "+.4f"), Cell(f"{d.low:+.4f} … {d.high:+.4f}", d.low),
                Cell(p_value(d.p), d.p), Cell(p_value(d.p_holm), d.p_holm), figure_of(d.users),
            ])  # fmt: skip
    if not rows:
        return []
    said = (f"Against {table.reference}, {title(table.metrics[0])} of each user averaged over the seeds, "
            f"{TESTS[table.test]}, {len(rows)} comparisons")  # fmt: skip
    headings = ["system", "mean difference", "95 % interval", "p", "p (Holm)", "users"]
    return [f"<details><summary>{escape(said)}</summary>{sortable(headings, rows)}</details>"]


# A data set -----------------------------------------------------------------------------------------------------------


def _of_a_dataset(systems: Sequence[SystemRuns]) -> list[str]:
    """Learning curves, costs and single runs of a data set."""
    runs = [(system, seed, result) for system in systems for seed, result in system.runs.items()]
    if not runs:
        return []
    return [*_curves(runs), "<h3>Costs</h3>", _costs(systems), *_single_runs(runs)]


def _curves(runs: Sequence[tuple[SystemRuns, int, Mapping[str, Any]]]) -> list[str]:
    kept = [run for run in runs if run[2].get("curve")]
    parts = ["<h3>Learning curves</h3>"]
    if len(kept) < len(runs):
        parts.append(f'<p class="soft">{len(runs) - len(kept)} of {len(runs)} runs have no learning curve in their '
                     "result: nothing was trained, or an earlier version made them. Epochs and best validation of "
                     "every run stand below.</p>")  # fmt: skip
    figures = []
    for key, ylabel in (("score", "validation"), ("loss", "loss, mean over batches")):
        series = []
        for system, seed, result in kept:
            if key == "score":
                ylabel = f"validation {title(str(result['config']['valid_metric']).lower())}"
            marks = [
                Mark(at["epoch"], at[key], f"{system.system}, seed {seed}\nepoch {at['epoch']}: {at[key]:.4f}")
                for at in result["curve"]
                if at[key] is not None
            ]
            if marks:
                series.append(Series(system.system, marks))
        if series:
            chart = lines(series, xlabel="epoch", ylabel=ylabel, description=f"{ylabel} after each epoch")
            figures.append(f"<figure>{chart}</figure>")
    if figures:
        parts.append(f'<div class="figures">{"".join(figures)}</div>')
    return parts


def _costs(systems: Sequence[SystemRuns]) -> str:
    differing = differing_environments([r for system in systems for r in system.runs.values()])
    headings = ["system", "model", "s / epoch", "s of training", "s of evaluation", "peak memory, MiB", "epochs",
                "parameters", "chosen by the search", "settings",
                *(["made with"] if differing else [])]  # fmt: skip
    rows = []
    for system in systems:
        if (cost := costs(system)) is None:
            continue
        tried = f" ({system.tried} of {system.trials} points)" if system.trials > 1 else ""
        results = list(system.runs.values())
        rows.append([
            words(system.system), words(system.model), figure_of(cost["seconds_per_epoch"], ".2f"),
            figure_of(_mean([r["seconds"]["train"] for r in results]), ",.1f"),
            figure_of(_mean([r["seconds"].get("evaluation") for r in results]), ",.1f"),
            figure_of(_mean([r.get("peak_memory_mb") for r in results])),
            Cell(", ".join(map(str, cost["epochs"])), _mean(cost["epochs"])), figure_of(cost["parameters"]),
            words(point_text(system.point) + tried, "text long"), words(system.digest),
            *([words(environments(results, differing), "text long")] if differing else []),
        ])  # fmt: skip
    return sortable(headings, rows) + '<p class="soft">Seconds and memory are means over the seeds.</p>'


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _single_runs(runs: Sequence[tuple[SystemRuns, int, Mapping[str, Any]]]) -> list[str]:
    rows = []
    for system, seed, result in runs:
        best, made = result["best_valid_score"], result["benchmark"]
        commit = (made.get("commit") or "no checkout")[:12] + " with changes" * bool(made.get("dirty"))
        rows.append([
            words(system.system), Cell(str(seed), seed), figure_of(best, ".4f"), figure_of(result["epochs"]),
            figure_of(result.get("validations_since_best")), figure_of(result["seconds"]["train"], ",.1f"),
            words(commit),
        ])  # fmt: skip
    headings = ["system", "seed", "best validation", "epochs", "validations since the best", "s of training", "commit"]
    said = f"Every run: {len(rows)}"
    return [f"<details><summary>{said}</summary>{sortable(headings, rows)}</details>"]


# The rest -------------------------------------------------------------------------------------------------------------


def _gain(benchmark: Benchmark) -> str:
    """The benchmark's own figure; empty if it has none, or no run for it."""
    spec = benchmark.plan.get("figure")
    points = gains(benchmark) if spec else []
    parts = []
    for protocol in dict.fromkeys(point.protocol for point in points):
        own = [point for point in points if point.protocol == protocol]
        series = []
        for over in dict.fromkeys(point.over for point in own):
            marks = [
                Mark(p.x, p.gain, f"{p.dataset}: {p.gain:+.1%} over {over}\n{spec['system']} {p.system:.4f}, {over} "
                     f"{p.baseline:.4f}\nsingle seeds {p.low:+.1%} … {p.high:+.1%} ({p.seeds})", p.low, p.high)
                for p in own if p.over == over
            ]  # fmt: skip
            series.append(Series(f"over {over}", marks))
        ylabel = f"gain of {spec['system']}, {title(own[0].metric)}"
        chart = lines(series, xlabel=str(spec.get("xlabel", "")), ylabel=ylabel, zero=True, show=percent,
                      description=f"{ylabel}, {protocol}")  # fmt: skip
        parts.append(f"<figure>{chart}<figcaption>{escape(protocol)}; whiskers: lowest and highest of a single seed"
                     "</figcaption></figure>")  # fmt: skip
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def _about(benchmark: Benchmark, command: Sequence[str]) -> list[str]:
    """How to read, commands, environments."""
    commands = [shlex.join(one) for one in (*benchmark.plan.get("commands", []), command)]
    parts = ['<h2 id="about">How to read and how it was made</h2>', "<ul>"]
    parts += [f"<li>{_rich(line)}</li>" for line in how_to_read(benchmark)]
    parts += ["</ul>", "<h3>Made by</h3>", f"<pre>{escape(chr(10).join(commands))}</pre>", "<h3>Environments</h3>"]
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for systems in benchmark.datasets.values():
        for system in systems:
            for result in system.runs.values():
                key = tuple((name, str(value)) for name, value in result["versions"].items())
                counts[key] = counts.get(key, 0) + 1
    names = list(dict.fromkeys(name for key in counts for name, _ in key))
    rows = [[figure_of(n), *(words(dict(key).get(name, "")) for name in names)] for key, n in counts.items()]
    parts.append(sortable(["runs", *names], rows) if rows else "<p>No run is finished.</p>")
    return parts


def _rich(text: str) -> str:
    """The little Markdown of our own sentences as HTML; anything else is text."""
    safe = escape(text).replace("&lt;u&gt;", "<u>").replace("&lt;/u&gt;", "</u>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", safe))
