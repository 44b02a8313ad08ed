"""What a report says in every format: names, numbers, costs, notes, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recbole_cafe.benchmark.results import Benchmark, Row, SystemRuns, Table
from recbole_cafe.benchmark.stats import Stat

TITLES = {"ndcg": "NDCG", "hit": "HR", "mrr": "MRR"}
LEVEL = 0.05
ENVIRONMENT = ("recbole-cafe", "recbole", "torch", "numpy", "device", "threads")  # entries of a result's versions


def costs(runs: SystemRuns) -> dict[str, Any] | None:
    """Seconds of training per epoch (mean over the seeds), epochs of each seed, trainable parameters, environments."""
    if not runs.runs:
        return None
    results = list(runs.runs.values())
    per_epoch = [r["seconds"]["train"] / r["epochs"] for r in results if r["epochs"]]
    return {
        "seconds_per_epoch": math.fsum(per_epoch) / len(per_epoch) if per_epoch else 0.0,
        "epochs": [r["epochs"] for r in results],
        "parameters": results[0]["parameters"],
        "environments": environments(results),
    }


def environments(results: Iterable[Mapping[str, Any]], keys: Sequence[str] = ENVIRONMENT) -> str:
    """The different ones of some runs: versions, threads and, where the result tells, the device."""
    told = [[f"{k} {r['versions'][k]}" for k in keys if k in r["versions"]] for r in results]
    return "; ".join(sorted({", ".join(parts) for parts in told}))


def differing_environments(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The entries of ENVIRONMENT in which some runs differ."""
    return [key for key in ENVIRONMENT if len({r["versions"].get(key) for r in results}) > 1]


def title(metric: str) -> str:
    """ndcg@5 as NDCG@5, hit as HR."""
    name, at, cut = metric.partition("@")
    return f"{TITLES.get(name, name)}{at}{cut}"


def shown(value: Stat | None) -> str:
    """Four digits, with the standard deviation when there is one; nothing for nothing."""
    if value is None:
        return ""
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def p_value(p: float | None) -> str:
    """Three digits, or a bound; nothing for nothing."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def significant(row: Row) -> bool:
    """Whether the row differs from the reference, see LEVEL."""
    return row.difference is not None and row.difference.p_holm is not None and row.difference.p_holm < LEVEL


def point_text(point: Mapping[str, Any]) -> str:
    """What a search chose."""
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "no search"


def footnotes(table: Table) -> list[str]:
    """What stands below a table."""
    notes = []
    if table.published:
        fair = "" if table.warning else " The candidates here keep their own intents: not comparable, see authors100."
        notes.append(f"¹ {table.published}; measured by its authors on other data.{fair}")
    if any(significant(row) for row in table.rows):
        notes.append(f"† differs from {table.reference} in {title(table.metrics[0])}, p < {LEVEL} after Holm's "
                     f"correction.")  # fmt: skip
    return notes + table.notes


def how_to_read(benchmark: Benchmark) -> list[str]:
    """Sentences in Markdown, each the text of a bullet."""
    return [
        "A cell is the mean over the seeds ± the sample standard deviation (n - 1). The best mean is **bold**, the "
        "second <u>underlined</u>.",
        "Each system's settings were chosen by the validation score of the first seed; no test number decided "
        "anything. The run that won the search is the first seed's result, so that seed is the best of several on "
        "validation.",
        f"Ours: {', '.join(benchmark.ours) or 'none'}. The gain is relative, over the best of the others in that "
        "column.",
        "Tests compare users, not seeds: they tell whether the difference would be seen on other users, given these "
        "trained models. The spread over seeds is the ± in the cells.",
        "`full` ranks all items, with ties in time as the file has them unless the caption says otherwise; "
        "`full_later` are the same ranks, of the users whose target is strictly later than the item before.",
        "`popN` and `uniN` rank the target among N stored negatives, the same for every "
        "system. `authorsN` gives negatives random other intents and is no measure of recommendation; a system that "
        "scores no intents has its `popN` number there.",
        "Seconds per epoch depend on what else the machine did; compare them only when the runs were made alone and "
        "with the same software on the same device (a column of the costs says where they were not).",
    ]


def provenance(benchmark: Benchmark) -> str:
    """How many runs there are, and what made them."""
    runs = [r for systems in benchmark.datasets.values() for s in systems for r in s.runs.values()]
    if not runs:
        return "No run is finished."
    made_by = [r["benchmark"] for r in runs]
    commits = sorted(
        {(b.get("commit") or "no checkout")[:12] + " with changes" * bool(b.get("dirty")) for b in made_by}
    )
    return f"{len(runs)} runs in the tables; commit {'; '.join(commits)}; {environments(runs)}."
