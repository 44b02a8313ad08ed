"""Tables of a benchmark folder: Markdown, CSV and LaTeX for each data set and protocol, and two pages with all of them.

report.md is for the repository, report.html for the browser (recbole_cafe.benchmark.html_report).

A number without a result.json is not printed.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_cafe.benchmark.html_report import html_page
from recbole_cafe.benchmark.layout import TESTS
from recbole_cafe.benchmark.results import Benchmark, Table, metrics_of, read, tables
from recbole_cafe.benchmark.stats import stat
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
from recbole_cafe.errors import ConfigError
from recbole_cafe.files.candidates import LATER
from recbole_cafe.files.whole import written_whole

FOLDER = "report"

# Formats --------------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table, its notes, the tests and the costs."""
    titles = [title(m) for m in table.metrics]
    header = ["system", *titles, *([f"published {t} ¹" for t in titles] if table.published else [])]
    lines = [f"**{table.caption}**", ""]
    if table.warning:
        lines += [f"> **Warning.** {table.warning}", ""]
    lines += markdown_row(header), "|---" * len(header) + "|"
    places = {metric: table.places(metric) for metric in table.metrics}
    for row in table.rows:
        cells = [f"{_md(row.system)}{' †' if significant(row) else ''}"]
        for metric in table.metrics:
            text = shown(row.values[metric])
            place = places[metric].get(row.system)
            cells.append(f"**{text}**" if place == 1 else f"<u>{text}</u>" if place == 2 else text)
        if table.published:
            cells += [row.published[m] or "" for m in table.metrics]
        lines.append(markdown_row(cells))
    for system, gains in table.gains():
        cells = [f"*gain of {_md(system)} over the best baseline*"]
        cells += ["" if g is None else f"{g[0]:+.1%} ({_md(g[1])})" for g in gains.values()]
        lines.append(markdown_row([*cells, *([""] * len(titles) if table.published else [])]))
    lines.append("")
    lines += [f"* {note}" for note in footnotes(table)]
    lines += ["", *_markdown_tests(table), *_markdown_costs(table)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_tests(table: Table) -> list[str]:
    tested = [(row.system, d) for row in table.rows if (d := row.difference) is not None]
    if not tested:
        return []
    lines = [
        f"Against {table.reference}, {title(table.metrics[0])} of each user averaged over the seeds, "
        f"{TESTS[table.test]}, {len(tested)} comparisons:", "",
        "| system | mean difference | 95 % interval | p | p (Holm) | users |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for system, d in tested:
        interval = f"{d.low:+.4f} … {d.high:+.4f}"
        cells = [_md(system), f"{d.mean:+.4f}", interval, p_value(d.p), p_value(d.p_holm), f"{d.users:,}"]
        lines.append(markdown_row(cells))
    return [*lines, ""]


def _markdown_costs(table: Table) -> list[str]:
    """With a column for what differs in the environments of the runs, if anything does."""
    runs = [result for row in table.rows for result in row.runs.runs.values()]
    differing = differing_environments(runs)
    header = ["system", "model", "s / epoch", "epochs", "parameters", "chosen by the search", "settings",
              *(["made with"] if differing else [])]  # fmt: skip
    lines = [markdown_row(header), "|---" * len(header) + "|"]
    for row in table.rows:
        cost = costs(row.runs)
        if cost is not None:
            tried = f" ({row.runs.tried} of {row.runs.trials} points)" if row.runs.trials > 1 else ""
            epochs = ", ".join(map(str, cost["epochs"]))
            lines.append(markdown_row([
                _md(row.system), row.runs.model, f"{cost['seconds_per_epoch']:.2f}", epochs, f"{cost['parameters']:,}",
                _md(point_text(row.runs.point)) + tried, f"`{row.runs.digest}`",
                *([_md(environments(row.runs.runs.values(), differing))] if differing else []),
            ]))  # fmt: skip
    return lines if len(lines) > 2 else []


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    """Text in a cell of a Markdown table."""
    for sign in "\\|*_`<":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def latex(table: Table) -> str:
    """A `table` environment for booktabs."""
    columns = "l" + "r" * len(table.metrics) * (2 if table.published else 1)
    titles = [escape(title(m)) for m in table.metrics]
    header = ["System", *titles, *([f"{t} (published)" for t in titles] if table.published else [])]
    places = {metric: table.places(metric) for metric in table.metrics}
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
             " & ".join(header) + r" \\", r"\midrule"]  # fmt: skip
    for row in table.rows:
        cells = [escape(row.system) + (r"$^\dagger$" if significant(row) else "")]
        for metric in table.metrics:
            text = shown(row.values[metric]).replace(" ± ", r" $\pm$ ")
            place = places[metric].get(row.system)
            cells.append(rf"\textbf{{{text}}}" if place == 1 else rf"\underline{{{text}}}" if place == 2 else text)
        if table.published:
            cells += [row.published[m] or "" for m in table.metrics]
        lines.append(" & ".join(cells) + r" \\")
    gains = table.gains()
    if gains:
        lines.append(r"\midrule")
    for system, of in gains:
        cells = [f"Gain of {escape(system)}", *("" if g is None else escape(f"{g[0]:+.1%}") for g in of.values())]
        lines.append(" & ".join([*cells, *([""] * len(titles) if table.published else [])]) + r" \\")
    caption = " ".join(filter(None, [table.caption, table.warning, *footnotes(table)]))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape(caption)}}}",
              rf"\label{{tab:{table.name}}}", r"\end{table}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
             "†": r"$^\dagger$", "¹": r"$^1$", "…": r"\dots{}", "<": r"$<$", ">": r"$>$"}  # fmt: skip
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


FIELDS = ("dataset", "protocol", "system", "model", "ours", "metric", "mean", "sd", "n_seeds", "place",
          "gain_over_best_baseline", "best_baseline", "published", "reference", "difference", "difference_low",
          "difference_high", "p", "p_holm", "users", "seconds_per_epoch", "epochs", "parameters", "environments",
          "search", "settings_hash")  # fmt: skip


def as_csv(table: Table) -> str:
    """One line for each system and metric, numbers not rounded; systems without a result have no line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    gains = dict(table.gains())
    for metric in table.metrics:
        places = table.places(metric)
        for row in table.rows:
            value = row.values[metric]
            if value is None:
                continue
            line = {
                "dataset": table.dataset, "protocol": table.protocol, "system": row.system, "model": row.runs.model,
                "ours": row.ours, "metric": metric, "mean": value.mean, "sd": value.sd, "n_seeds": value.n,
                "place": places.get(row.system), "published": row.published.get(metric),
                "search": json.dumps(row.runs.point), "settings_hash": row.runs.digest,
            }  # fmt: skip
            if (of := gains.get(row.system, {}).get(metric)) is not None:
                line |= {"gain_over_best_baseline": of[0], "best_baseline": of[1]}
            if (d := row.difference) is not None and metric == table.metrics[0]:
                line |= {"reference": table.reference, "difference": d.mean, "difference_low": d.low,
                         "difference_high": d.high, "p": d.p, "p_holm": d.p_holm, "users": d.users}  # fmt: skip
            cost = costs(row.runs)
            if cost is not None:
                line |= {**cost, "epochs": " ".join(map(str, cost["epochs"]))}
            writer.writerow(line)
    return text.getvalue()


FORMATS = {".md": markdown, ".csv": as_csv, ".tex": latex}


# The page -------------------------------------------------------------------------------------------------------------


def page(benchmark: Benchmark, all_tables: Sequence[Table], command: Sequence[str]) -> str:
    """report.md: what was run, how to read it, every table."""
    plan = benchmark.plan
    lines = [f"# {benchmark.title}", ""]
    if plan.get("description"):
        lines += [str(plan["description"]).strip(), ""]
    commands = [shlex.join(one) for one in (*plan.get("commands", []), command)]
    lines += ["Made by", "", "```bash", *commands, "```", ""]
    lines += [provenance(benchmark), "", "## How to read the tables", ""]
    lines += [*(f"* {line}" for line in how_to_read(benchmark)), ""]
    for dataset in benchmark.datasets:
        lines += [f"## {dataset}", "", *views(benchmark, dataset)]
        for table in all_tables:
            if table.dataset == dataset:
                lines += [f"### {table.protocol}", "", markdown(table)]
                lines += [f"As CSV and LaTeX beside this page: `{table.name}.csv`, `{table.name}.tex`.", ""]
    return "\n".join(lines).rstrip() + "\n"


def views(benchmark: Benchmark, dataset: str) -> list[str]:
    """`full` three times side by side: ties as in the file, shuffled, and later targets alone.

    Args:
        benchmark: the folder as read.
        dataset: label of the data set.

    Returns:
        lines of Markdown; none without `full`, and for the label that is the shuffled order of another.
    """
    systems = [system for system in benchmark.datasets[dataset] if system.runs]
    own = {cell["settings"].get("tie_order") for cell in benchmark.plan["cells"][dataset].values()}
    if "full" not in benchmark.protocols(dataset) or not systems or "random" in own:
        return []
    other = benchmark.shuffled(dataset)
    of_other = {system.system: system for system in benchmark.datasets[other]} if other is not None else {}
    metric = metrics_of(benchmark, "full")[0]
    rows, counts = [], dict.fromkeys(("full", "shuffled", LATER), "")
    for system in systems:
        again = of_other.get(system.system)
        places = {"full": (system, "full"), "shuffled": (again, "full"), LATER: (system, LATER)}
        cells = [system.system]
        for name, (runs, protocol) in places.items():
            values = runs.values(protocol, metric) if runs is not None else []
            cells.append(shown(stat(values)) if values else "")
            told = (r.get("n_targets", {}).get(protocol) for r in (runs.runs.values() if runs is not None else ()))
            counts[name] = counts[name] or next((f"{n:,}" for n in told if n is not None), "")
        rows.append(cells)
    missing = [
        *(["Ties shuffled: not run."] if not any(row[2] for row in rows) else []),
        *(["Later targets: unknown or none, see the notes of `full`."] if not any(row[3] for row in rows) else []),
    ]
    return [
        f"### full, three views: {title(metric)}", "",
        markdown_row(["system", "file order", "ties shuffled", "later targets"]), "|---" * 4 + "|",
        markdown_row(["*test targets*", *(f"*{n}*" if n else "" for n in counts.values())]),
        *(markdown_row([_md(row[0]), *row[1:]]) for row in rows), "", *missing, *([""] if missing else []),
    ]  # fmt: skip


def write(out: Path, *, test: str = "t", published: Mapping[str, Any] | None = None,
          command: Sequence[str] = ()) -> list[Path]:  # fmt: skip
    """Write all tables, report.md and report.html into `out`/report.

    Args:
        out: the benchmark's folder.
        test: t or wilcoxon.
        published: content of props/benchmark/published.yaml.
        command: what is said to have made the page.

    Returns:
        what was written, report.md and report.html first.

    Raises:
        StoreError: see :func:`read` and :func:`tables`. ConfigError: an unknown test.
    """
    if test not in TESTS:
        raise ConfigError(f"test={test!r} is none of {', '.join(TESTS)}")
    benchmark = read(out)
    entry = (published or {}).get(str(benchmark.plan.get("published")))
    all_tables = tables(benchmark, test=test, published=entry)
    folder = Path(out) / FOLDER
    command = command or ["recbole-cafe", "report", str(out)]
    texts = {
        "report.md": page(benchmark, all_tables, command),
        "report.html": html_page(benchmark, all_tables, command),
    }
    for table in all_tables:
        texts |= {f"{table.name}{end}": make(table) for end, make in FORMATS.items()}
    for name, text in texts.items():
        with written_whole(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in texts]
