"""Tables of a benchmark folder: Markdown, CSV and LaTeX for each data set and protocol, and one page with all of them.

Every number comes from a result.json; a number without one is not printed. Runs whose candidates or data differ are
not compared at all.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.benchmark import store
from recbole_cafe.benchmark.stats import TESTS, Difference, Stat, gain, holm, paired, per_user, stat
from recbole_cafe.data.candidates import AUTHORS_NOTICE, parse_protocol
from recbole_cafe.files import written_whole

FOLDER = "report"
DEFAULT_METRICS = {"full": ("ndcg@10", "hit@10", "mrr@10"), "sampled": ("ndcg@5", "hit@5", "mrr")}
TITLES = {"ndcg": "NDCG", "hit": "HR", "mrr": "MRR"}
LEVEL = 0.05
DATA = ("users", "items", "interactions")  # what all runs on a data set must agree on


@dataclass
class SystemRuns:
    """What there is of one system on one data set.

    Attributes:
        digest: hash of the settings that validation chose, None without a finished run.
        point: what the search chose. runs: seed -> result. folders: seed -> where it is.
        tried, trials: points of the search that are done, and that were planned; 1 without a search.
    """

    system: str
    model: str
    seeds: list[int]
    digest: str | None
    point: dict[str, Any]
    runs: dict[int, dict[str, Any]]
    folders: dict[int, Path]
    tried: int
    trials: int

    def values(self, protocol: str, metric: str) -> list[float]:
        """Of each seed that has it."""
        found = (result["test_result"].get(protocol, {}).get(metric) for result in self.runs.values())
        return [float(value) for value in found if value is not None]


@dataclass
class Benchmark:
    """A benchmark folder as read: `datasets` holds data set -> systems in the order of the file."""

    out: Path
    plan: dict[str, Any]
    datasets: dict[str, list[SystemRuns]]

    @property
    def title(self) -> str:
        return self.plan.get("title", self.plan["name"])

    @property
    def ours(self) -> list[str]:
        return _as_list(self.plan.get("ours"))

    def protocols(self, dataset: str) -> list[str]:
        """Of all its systems."""
        cells = self.plan["cells"][dataset].values()
        return list(dict.fromkeys(name for cell in cells for name in cell["protocols"]))


@dataclass
class Row:
    """A system in a table; `values` and `published`: metric -> number, None where there is none. Published numbers are
    text, with the digits that were printed."""

    system: str
    ours: bool
    values: dict[str, Stat | None]
    published: dict[str, str | None]
    runs: SystemRuns
    difference: Difference | None = None


@dataclass
class Table:
    """One data set under one protocol, ready to be written in any format."""

    dataset: str
    protocol: str
    metrics: list[str]
    rows: list[Row]
    caption: str
    reference: str | None
    test: str
    published: str | None  # the source, when the table has that column
    warning: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{store.folder_name(self.dataset)}-{self.protocol}"

    def places(self, metric: str) -> dict[str, int]:
        """system -> 1 for the best mean, 2 for the second; equal means share a place."""
        means = {row.system: row.values[metric].mean for row in self.rows if row.values[metric] is not None}
        order = sorted(set(means.values()), reverse=True)[:2]
        return {system: order.index(mean) + 1 for system, mean in means.items() if mean in order}

    def gains(self) -> list[tuple[str, dict[str, tuple[float, str] | None]]]:
        """For each of our systems, metric -> (relative gain over the best baseline, its name)."""
        found = []
        for row in self.rows:
            if row.ours and any(row.values.values()) and any(not other.ours for other in self.rows):
                found.append((row.system, {metric: self._gain(row, metric) for metric in self.metrics}))
        return found

    def _gain(self, row: Row, metric: str) -> tuple[float, str] | None:
        others = {r.system: r.values[metric].mean for r in self.rows if not r.ours and r.values[metric] is not None}
        if not others or row.values[metric] is None:
            return None
        best = max(others, key=others.__getitem__)
        relative = gain(row.values[metric].mean, others[best])
        return None if relative is None else (relative, best)


# Reading --------------------------------------------------------------------------------------------------------------


def read(out: Path) -> Benchmark:
    """What a benchmark folder holds.

    Raises:
        StoreError: it is no benchmark folder, or a file in it is damaged.
    """
    out = Path(out)
    if not (out / store.PLAN).is_file():
        raise store.StoreError(f"{out} is no folder of a benchmark: {out / store.PLAN} is missing")
    plan = store.read_json(out / store.PLAN)
    order = {name: i for i, name in enumerate(plan.get("systems", []))}
    datasets = {}
    for dataset, cells in plan["cells"].items():
        labels = sorted(cells, key=lambda label: order.get(label, len(order)))
        datasets[dataset] = [_system(out, dataset, label, cells[label]) for label in labels]
    return Benchmark(out, plan, datasets)


def _system(out: Path, dataset: str, label: str, cell: Mapping[str, Any]) -> SystemRuns:
    results = store.finished_runs(out, dataset, label, cell["points"], cell["seeds"])
    scores = {digest: store.score(r) for (digest, seed), r in results.items() if seed == cell["seeds"][0]}
    # without a search there is nothing to choose, and a later seed may be done before the first
    chosen = store.choose(scores) if len(cell["points"]) > 1 else next(iter(cell["points"]))
    runs = {seed: results[chosen, seed] for seed in cell["seeds"] if (chosen, seed) in results}
    return SystemRuns(
        system=label,
        model=cell["model"],
        seeds=list(cell["seeds"]),
        digest=chosen if runs else None,
        point=cell["points"][chosen] if runs else {},
        runs=runs,
        folders={seed: store.run_folder(out, dataset, label, chosen, seed) for seed in runs},
        tried=len(scores),
        trials=cell["trials"],
    )


def user_values(runs: SystemRuns, protocol: str, metric: str, seeds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """A metric of each user, averaged over seeds.

    Returns:
        [N] user tokens, sorted; [N] values.

    Raises:
        StoreError: the ranks are missing or do not give the metric that result.json states.
    """
    users, total = None, []
    for seed in seeds:
        path = runs.folders[seed] / store.RANKS
        try:
            with np.load(path, allow_pickle=False) as ranks:
                columns = [ranks[f"{protocol}.{name}"] for name in ("above", "tied", "n_candidates")]
                theirs = ranks["users"]
        except (OSError, ValueError, KeyError) as error:
            raise store.StoreError(f"{path} cannot be read: {error}") from error
        values = per_user(metric, *columns)
        stated = runs.runs[seed]["test_result"][protocol][metric]
        if not math.isclose(values.mean(), stated, rel_tol=1e-9, abs_tol=1e-12):
            raise store.StoreError(f"{path} gives {protocol} {metric} {values.mean()}, the result beside it {stated}")
        order = np.argsort(theirs)
        if users is not None and not np.array_equal(users, theirs[order]):
            raise store.StoreError(f"{path}: the test users differ from those of another seed")
        users = theirs[order]
        total.append(values[order])
    return users, np.mean(total, axis=0)


# Tables ---------------------------------------------------------------------------------------------------------------


def tables(benchmark: Benchmark, *, test: str = "t", published: Mapping[str, Any] | None = None) -> list[Table]:
    """All tables of a benchmark.

    Args:
        test: t or wilcoxon.
        published: one entry of props/benchmark/published.yaml.

    Raises:
        StoreError: runs that cannot be compared.
    """
    return [
        _table(benchmark, dataset, systems, protocol, test, published)
        for dataset, systems in benchmark.datasets.items()
        for protocol in benchmark.protocols(dataset)
    ]


def metrics_of(benchmark: Benchmark, protocol: str) -> list[str]:
    """The columns of a protocol: the file's `metrics`, a list or protocol -> list, or the usual ones."""
    given = benchmark.plan.get("metrics")
    if isinstance(given, dict):
        given = given.get(protocol)
    return [str(m).lower() for m in given or DEFAULT_METRICS["full" if protocol == "full" else "sampled"]]


def check_comparable(dataset: str, systems: Sequence[SystemRuns]) -> None:
    """Refuse runs on other candidates or other data.

    Raises:
        StoreError: naming two runs that differ.
    """
    seen: dict[str, tuple[Any, Path]] = {}
    for system in systems:
        for seed, result in system.runs.items():
            facts = {f"candidates of {name}": digest for name, digest in result["candidates"].items()}
            facts |= {f"number of {name}": result["data"].get(name) for name in DATA}
            for what, value in facts.items():
                first, where = seen.setdefault(what, (value, system.folders[seed]))
                if first != value:
                    raise store.StoreError(
                        f"{dataset}: the runs cannot be compared, their {what} differ: {first} in {where}, {value} in "
                        f"{system.folders[seed]}"
                    )


def _table(benchmark: Benchmark, dataset: str, systems: list[SystemRuns], protocol: str, test: str,
           published: Mapping[str, Any] | None) -> Table:  # fmt: skip
    check_comparable(dataset, systems)
    metrics = metrics_of(benchmark, protocol)
    there = [system for system in systems if system.runs]
    facts = next(iter(there[0].runs.values())) if there else None
    paper = _published_for(published, dataset, protocol, simulated=bool(facts and facts["simulated"]))
    rows = []
    for system in systems:
        values = {m: stat(v) if (v := system.values(protocol, m)) else None for m in metrics}
        numbers = {m: paper.get(system.system, {}).get(m) for m in metrics} if paper else {}
        rows.append(Row(system.system, system.system in benchmark.ours, values, numbers, system))
    reference = reference_of(benchmark, systems)
    random_intents = parse_protocol(protocol).random_intents
    table = Table(
        dataset=dataset,
        protocol=protocol,
        metrics=metrics,
        rows=rows,
        caption=_caption(dataset, protocol, facts),
        reference=reference,
        test=test,
        published=published["source"] if paper else None,
        warning=AUTHORS_NOTICE.format(n=parse_protocol(protocol).n_negatives) if random_intents else None,
        notes=_missing(systems, protocol),
    )
    if reference is not None:
        _compare(table)
    return table


def _caption(dataset: str, protocol: str, facts: Mapping[str, Any] | None) -> str:
    parts = [f"{dataset}, protocol {protocol}"]
    if facts is None:
        return f"{parts[0]}: no run is finished."
    data = facts["data"]
    numbers = ", ".join(f"{data[name]:,} {name}" for name in (*DATA, "intents") if data.get(name) is not None)
    parts.append(f"{numbers}, {data['interactions_per_item']:.2f} interactions per item")
    if facts["simulated"]:
        parts.append("the data are simulated: these numbers say nothing about real recommendation")
    if digest := facts["candidates"].get(protocol):
        parts.append(f"candidates sha256 {digest[:16]}")
    config = facts["config"]
    if protocol == "full":
        parts.append("items of the history are " + ("no " if config.get("mask_history") else "") + "candidates")
    parts.append(f"chosen by {facts['config']['eval_mode'][0]} {config['valid_metric']} on validation")
    return "; ".join(parts) + "."


def _missing(systems: Sequence[SystemRuns], protocol: str) -> list[str]:
    notes, total, gone = [], 0, []
    for system in systems:
        total += len(system.seeds)
        lacking = [s for s in system.seeds if s not in system.runs or protocol not in system.runs[s]["test_result"]]
        if lacking:
            gone.append((len(lacking), f"{system.system} ({', '.join(map(str, lacking))})"))
        if 0 < system.tried < system.trials:
            notes.append(f"{system.system}: {system.tried} of {system.trials} points of its search are done; the "
                         f"choice may change.")  # fmt: skip
    notes += [note for system in systems if (note := _limited(system))]
    if gone:
        notes.insert(0, f"{sum(n for n, _ in gone)} of {total} runs have no result, their cells are empty or rest on "
                        f"fewer seeds: {', '.join(name for _, name in gone)}.")  # fmt: skip
    return notes


def _limited(system: SystemRuns) -> str | None:
    """What to say of runs that did not stop by themselves: more epochs might have given more."""
    limit = [
        r
        for r in system.runs.values()
        if 1 < r["epochs"] == r["config"].get("epochs")
        and r.get("validations_since_best", 0) <= r["config"].get("stopping_step", 0)
    ]
    if not limit:
        return None
    rising = sum(r.get("validations_since_best") == 0 for r in limit)  # older results do not say
    return (
        f"{system.system}: {len(limit)} of {len(system.runs)} runs ended at the limit of {limit[0]['epochs']} epochs"
        + (f", {rising} of them with the last validation as the best." if rising else ".")
    )


def reference_of(benchmark: Benchmark, systems: Sequence[SystemRuns]) -> str | None:
    """The system of these that the others are compared with: the file's, else the first of ours with a run."""
    wanted = [*_as_list(benchmark.plan.get("reference")), *benchmark.ours]
    there = {system.system for system in systems if system.runs}
    return next((name for name in wanted if name in there), None)


def _compare(table: Table) -> None:
    """Test every system against the reference, on the first metric, over the users, on the seeds both have."""
    metric = table.metrics[0]
    rows = {row.system: row for row in table.rows if row.values[metric] is not None}
    reference = rows.pop(table.reference, None)
    if reference is None:
        return
    compared = []
    for row in rows.values():
        seeds = [s for s in reference.runs.runs if s in row.runs.runs]
        if not seeds:
            table.notes.append(f"{row.system} and {table.reference} have no seed in common and are not tested.")
            continue
        users, values = user_values(row.runs, table.protocol, metric, seeds)
        theirs, others = user_values(reference.runs, table.protocol, metric, seeds)
        _, mine, its = np.intersect1d(users, theirs, assume_unique=True, return_indices=True)
        if len(mine) < max(len(users), len(theirs)):
            table.notes.append(f"{row.system} is tested on {len(users)} users, {table.reference} on {len(theirs)}; "
                               f"{len(mine)} are compared.")  # fmt: skip
        row.difference = paired(values[mine], others[its], table.test)
        compared.append(row)
    for row, p in zip(compared, holm([row.difference.p for row in compared]), strict=True):
        row.difference = replace(row.difference, p_holm=p)


def _published_for(published: Mapping[str, Any] | None, dataset: str, protocol: str,
                   *, simulated: bool) -> Mapping[str, Any] | None:  # fmt: skip
    """The paper's numbers for a data set of that name or kind (`amazon` for `amazon-...`), beside protocols with
    sampled candidates only."""
    if published is None or simulated or protocol == "full":
        return None
    for name, systems in published["datasets"].items():
        if dataset == name or dataset.startswith(f"{name}-"):
            return systems
    return None


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
        cells = [f"{_md(row.system)}{' †' if _significant(row) else ''}"]
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
    lines += [f"* {note}" for note in _footnotes(table)]
    lines += ["", *_markdown_tests(table), *_markdown_costs(table)]
    return "\n".join(lines).rstrip() + "\n"


def _footnotes(table: Table) -> list[str]:
    notes = []
    if table.published:
        fair = "" if table.warning else " The candidates here keep their own intents: not comparable, see authors100."
        notes.append(f"¹ {table.published}; measured by its authors on other data.{fair}")
    if any(_significant(row) for row in table.rows):
        notes.append(f"† differs from {table.reference} in {title(table.metrics[0])}, p < {LEVEL} after Holm's "
                     f"correction.")  # fmt: skip
    return notes + table.notes


def _markdown_tests(table: Table) -> list[str]:
    tested = [row for row in table.rows if row.difference is not None]
    if not tested:
        return []
    lines = [
        f"Against {table.reference}, {title(table.metrics[0])} of each user averaged over the seeds, "
        f"{TESTS[table.test]}, {len(tested)} comparisons:", "",
        "| system | mean difference | 95 % interval | p | p (Holm) | users |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in tested:
        d = row.difference
        interval = f"{d.low:+.4f} … {d.high:+.4f}"
        cells = [_md(row.system), f"{d.mean:+.4f}", interval, p_value(d.p), p_value(d.p_holm), f"{d.users:,}"]
        lines.append(markdown_row(cells))
    return [*lines, ""]


def _markdown_costs(table: Table) -> list[str]:
    lines = ["| system | model | s / epoch | epochs | parameters | chosen by the search | settings |", "|---" * 7 + "|"]
    for row in table.rows:
        cost = costs(row.runs)
        if cost is not None:
            tried = f" ({row.runs.tried} of {row.runs.trials} points)" if row.runs.trials > 1 else ""
            epochs = ", ".join(map(str, cost["epochs"]))
            lines.append(markdown_row([
                _md(row.system), row.runs.model, f"{cost['seconds_per_epoch']:.2f}", epochs, f"{cost['parameters']:,}",
                _md(_point(row.runs.point)) + tried, f"`{row.runs.digest}`",
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
        cells = [escape(row.system) + (r"$^\dagger$" if _significant(row) else "")]
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
    caption = " ".join(filter(None, [table.caption, table.warning, *_footnotes(table)]))
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
          "difference_high", "p", "p_holm", "users", "seconds_per_epoch", "epochs", "parameters", "search",
          "settings_hash")  # fmt: skip


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
            line |= {**cost, "epochs": " ".join(map(str, cost["epochs"]))}
            writer.writerow(line)
    return text.getvalue()


def costs(runs: SystemRuns) -> dict[str, Any] | None:
    """Seconds of training per epoch (mean over the seeds), epochs of each seed, trainable parameters."""
    if not runs.runs:
        return None
    results = list(runs.runs.values())
    per_epoch = [r["seconds"]["train"] / r["epochs"] for r in results if r["epochs"]]
    return {
        "seconds_per_epoch": math.fsum(per_epoch) / len(per_epoch) if per_epoch else 0.0,
        "epochs": [r["epochs"] for r in results],
        "parameters": results[0]["parameters"],
    }


def title(metric: str) -> str:
    """ndcg@5 as NDCG@5, hit as HR."""
    name, at, cut = metric.partition("@")
    return f"{TITLES.get(name, name)}{at}{cut}"


def shown(value: Stat | None) -> str:
    """Four digits, with the standard deviation when there is one; nothing for nothing."""
    if value is None:
        return ""
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def p_value(p: float) -> str:
    """Three digits, or a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _significant(row: Row) -> bool:
    return row.difference is not None and row.difference.p_holm is not None and row.difference.p_holm < LEVEL


def _point(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "no search"


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


FORMATS = {".md": markdown, ".csv": as_csv, ".tex": latex}


# The page -------------------------------------------------------------------------------------------------------------


def page(benchmark: Benchmark, all_tables: Sequence[Table], command: Sequence[str]) -> str:
    """report.md: what was run, how to read it, every table."""
    plan = benchmark.plan
    lines = [f"# {benchmark.title}", ""]
    if plan.get("description"):
        lines += [str(plan["description"]).strip(), ""]
    lines += ["Made by", "", "```bash", *(_shell(c) for c in plan.get("commands", [])), _shell(command), "```", ""]
    lines += [*_provenance(benchmark), "", "## How to read the tables", "", *_how_to_read(benchmark), ""]
    for dataset in benchmark.datasets:
        lines += [f"## {dataset}", ""]
        for table in all_tables:
            if table.dataset == dataset:
                lines += [f"### {table.protocol}", "", markdown(table)]
                lines += [f"[CSV]({table.name}.csv), [LaTeX]({table.name}.tex)", ""]
    return "\n".join(lines).rstrip() + "\n"


def _how_to_read(benchmark: Benchmark) -> list[str]:
    return [
        "* A cell is the mean over the seeds ± the sample standard deviation (n - 1). The best mean is **bold**, the "
        "second <u>underlined</u>.",
        "* Each system's settings were chosen by the validation score of the first seed; no test number decided "
        "anything. The run that won the search is the first seed's result, so that seed is the best of several on "
        "validation.",
        f"* Ours: {', '.join(benchmark.ours) or 'none'}. The gain is relative, over the best of the others in that "
        "column.",
        "* Tests compare users, not seeds: they tell whether the difference would be seen on other users, given these "
        "trained models. The spread over seeds is the ± in the cells.",
        "* `full` ranks all items. `popN` and `uniN` rank the target among N stored negatives, the same for every "
        "system. `authorsN` gives negatives random other intents and is no measure of recommendation; a system that "
        "scores no intents has its `popN` number there.",
        "* Seconds per epoch depend on what else the machine did; compare them only when the runs were made alone.",
    ]


def _provenance(benchmark: Benchmark) -> list[str]:
    runs = [r for systems in benchmark.datasets.values() for s in systems for r in s.runs.values()]
    if not runs:
        return ["No run is finished."]
    made_by = [r["benchmark"] for r in runs]
    commits = sorted({(b.get("commit") or "no checkout") + " with changes" * bool(b.get("dirty")) for b in made_by})
    keys = ("recbole-cafe", "recbole", "torch", "numpy", "threads")
    versions = sorted({", ".join(f"{k} {r['versions'].get(k)}" for k in keys) for r in runs})
    return [f"{len(runs)} runs in the tables; commit {'; '.join(commits)}; {'; '.join(versions)}."]


def _shell(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)


def write(out: Path, *, test: str = "t", published: Mapping[str, Any] | None = None,
          command: Sequence[str] = ()) -> list[Path]:  # fmt: skip
    """Write all tables and report.md into `out`/report.

    Args:
        published: content of props/benchmark/published.yaml.

    Returns:
        what was written, report.md first.

    Raises:
        StoreError: see :func:`read` and :func:`tables`. ValueError: an unknown test.
    """
    if test not in TESTS:
        raise ValueError(f"test={test!r} is none of {', '.join(TESTS)}")
    benchmark = read(out)
    entry = (published or {}).get(benchmark.plan.get("published"))
    made = tables(benchmark, test=test, published=entry)
    folder = Path(out) / FOLDER
    texts = {"report.md": page(benchmark, made, command or ["recbole-cafe", "report", str(out)])}
    for table in made:
        texts |= {f"{table.name}{end}": make(table) for end, make in FORMATS.items()}
    for name, text in texts.items():
        with written_whole(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in texts]
