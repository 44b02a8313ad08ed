"""What a benchmark folder holds: the runs of each system, and the tables they make.

Every number comes from a result.json. Runs whose candidates or data differ are not compared at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.benchmark import store
from recbole_cafe.benchmark.stats import Difference, Stat, gain, holm, paired, per_user, stat
from recbole_cafe.files.candidates import AUTHORS_NOTICE, LATER, parse_protocol, protocol_of_view

DEFAULT_METRICS = {"full": ("ndcg@10", "hit@10", "mrr@10"), "sampled": ("ndcg@5", "hit@5", "mrr")}
DATA = ("users", "items", "interactions")  # what all runs on a data set must agree on
TIES = ("tie_order", "tie_seed")  # keys that decide the order of interactions at one time


@dataclass
class SystemRuns:
    """What there is of one system on one data set.

    Attributes:
        system: its label.
        model: name of the model.
        seeds: seeds that were planned.
        digest: hash of the settings that validation chose, None without a finished run.
        point: what the search chose.
        runs: seed -> result.
        folders: seed -> the folder of the run, which packed runs have in name only.
        tried: points of the search that are done; 1 without a search.
        trials: points of the search that were planned; 1 without a search.
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
        """The metric of each seed that has it.

        Args:
            protocol: name of the protocol.
            metric: name of the metric, in small letters.
        """
        values = (result["test_result"].get(protocol, {}).get(metric) for result in self.runs.values())
        return [float(value) for value in values if value is not None]


@dataclass
class Benchmark:
    """A benchmark folder as read: `datasets` holds data set -> systems in the order of the file."""

    out: Path
    plan: dict[str, Any]
    datasets: dict[str, list[SystemRuns]]

    @property
    def title(self) -> str:
        """Heading of the report."""
        return str(self.plan.get("title", self.plan["name"]))

    @property
    def ours(self) -> list[str]:
        """Labels of our systems."""
        return _as_list(self.plan.get("ours"))

    def protocols(self, dataset: str) -> list[str]:
        """Of all its systems."""
        cells = self.plan["cells"][dataset].values()
        return list(dict.fromkeys(name for cell in cells for name in cell["protocols"]))

    def views(self, dataset: str) -> list[str]:
        """The protocols, and after `full` its later targets if some run knows them."""
        of = [r for system in self.datasets[dataset] for r in system.runs.values()]
        known = any(LATER in r["test_result"] for r in of)
        return [v for name in self.protocols(dataset) for v in ((name, LATER) if name == "full" and known else (name,))]

    def shuffled(self, dataset: str) -> str | None:
        """The label under which the same data are run with ties shuffled; None if there is none, or this is it."""
        cells = self.plan["cells"]

        def in_file_order(label: str) -> dict[str, Any]:
            return {system: (cell["data"], {k: v for k, v in cell["settings"].items() if k not in TIES})
                    for system, cell in cells[label].items()}  # fmt: skip

        def is_shuffled(label: str) -> bool:
            return all(cell["settings"].get("tie_order") == "random" for cell in cells[label].values())

        if is_shuffled(dataset):
            return None
        mine = in_file_order(dataset)
        others = (label for label in cells if is_shuffled(label))
        return next((o for o in others if any(mine.get(s) == of for s, of in in_file_order(o).items())), None)

    def fair_protocols(self, dataset: str) -> list[str]:
        """Those of them that measure recommendation: none of random intents."""
        return [name for name in self.protocols(dataset) if not parse_protocol(name).random_intents]


@dataclass
class Row:
    """A system in a table; `values` and `published`: metric -> number, None where there is none.

    Published numbers are text, with the digits that were printed.
    """

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
        """Of its files."""
        return f"{store.folder_name(self.dataset)}-{self.protocol}"

    def places(self, metric: str) -> dict[str, int]:
        """system -> 1 for the best mean, 2 for the second; equal means share a place."""
        means = {row.system: value.mean for row in self.rows if (value := row.values[metric]) is not None}
        order = sorted(set(means.values()), reverse=True)[:2]
        return {system: order.index(mean) + 1 for system, mean in means.items() if mean in order}

    def gains(self) -> list[tuple[str, dict[str, tuple[float, str] | None]]]:
        """For each of our systems, metric -> (relative gain over the best baseline, its name)."""
        gains = []
        for row in self.rows:
            if row.ours and any(row.values.values()) and any(not other.ours for other in self.rows):
                gains.append((row.system, {metric: self._gain(row, metric) for metric in self.metrics}))
        return gains

    def _gain(self, row: Row, metric: str) -> tuple[float, str] | None:
        others = {r.system: v.mean for r in self.rows if not r.ours and (v := r.values[metric]) is not None}
        value = row.values[metric]
        if not others or value is None:
            return None
        best = max(others, key=others.__getitem__)
        relative = gain(value.mean, others[best])
        return None if relative is None else (relative, best)


# Reading --------------------------------------------------------------------------------------------------------------


def read(out: Path) -> Benchmark:
    """What a benchmark folder holds, in single files or packed.

    Args:
        out: the folder.

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
    chosen: str | None = store.choose(scores) if len(cell["points"]) > 1 else next(iter(cell["points"]))
    runs = {s: results[chosen, s] for s in cell["seeds"] if chosen is not None and (chosen, s) in results}
    return SystemRuns(
        system=label,
        model=cell["model"],
        seeds=list(cell["seeds"]),
        digest=chosen if runs else None,
        point=cell["points"][chosen] if runs else {},
        runs=runs,
        folders={s: store.run_folder(out, dataset, label, chosen, s) for s in runs if chosen is not None},
        tried=len(scores),
        trials=cell["trials"],
    )


def user_values(runs: SystemRuns, protocol: str, metric: str, seeds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """A metric of each user, averaged over seeds.

    Args:
        runs: of the system.
        protocol: name of the protocol or view.
        metric: name of the metric.
        seeds: of the runs that are averaged, one at least.

    Returns:
        [N] user tokens, sorted; [N] values. Of `full_later` the users with a later target.

    Raises:
        StoreError: the ranks are missing or do not give the metric that result.json states.
    """
    users: np.ndarray | None = None
    total: list[np.ndarray] = []
    for seed in seeds:
        path = runs.folders[seed] / store.RANKS
        ranks = store.ranks_of(runs.folders[seed])
        try:
            of = protocol_of_view(protocol).name
            columns = [ranks[f"{of}.{name}"] for name in ("above", "tied", "n_candidates")]
            tokens = ranks["users"]
            if protocol == LATER:
                chosen = ranks["full.later"]
                columns, tokens = [column[chosen] for column in columns], tokens[chosen]
        except KeyError as error:
            raise store.StoreError(f"{path} cannot be read: {error}") from error
        values = per_user(metric, *columns)
        stated = runs.runs[seed]["test_result"][protocol][metric]
        if stated is None or not math.isclose(values.mean(), stated, rel_tol=1e-9, abs_tol=1e-12):
            raise store.StoreError(f"{path} gives {protocol} {metric} {values.mean()}, the result beside it {stated}")
        order = np.argsort(tokens)
        if users is not None and not np.array_equal(users, tokens[order]):
            raise store.StoreError(f"{path}: the test users differ from those of another seed")
        users = tokens[order]
        total.append(values[order])
    if users is None:
        raise ValueError("no seed was given")
    return users, np.mean(total, axis=0)


# Tables ---------------------------------------------------------------------------------------------------------------


def tables(benchmark: Benchmark, *, test: str = "t", published: Mapping[str, Any] | None = None) -> list[Table]:
    """All tables of a benchmark.

    Args:
        benchmark: as :func:`read` gives it.
        test: t or wilcoxon.
        published: one entry of props/benchmark/published.yaml.

    Raises:
        StoreError: runs that cannot be compared.
    """
    return [
        _table(benchmark, dataset, systems, protocol, test, published)
        for dataset, systems in benchmark.datasets.items()
        for protocol in benchmark.views(dataset)
    ]


def metrics_of(benchmark: Benchmark, protocol: str) -> list[str]:
    """The columns of a protocol: the file's `metrics`, a list or protocol -> list, or the usual ones."""
    given = benchmark.plan.get("metrics")
    if isinstance(given, dict):
        given = given.get(protocol_of_view(protocol).name)
    return [str(m).lower() for m in given or DEFAULT_METRICS["full" if protocol in ("full", LATER) else "sampled"]]


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
    run = [system for system in systems if system.runs]
    facts = next(iter(run[0].runs.values())) if run else None
    paper = _published_for(published, dataset, protocol, simulated=bool(facts and facts["simulated"]))
    rows = []
    for system in systems:
        values = {m: stat(v) if (v := system.values(protocol, m)) else None for m in metrics}
        numbers = {m: paper.get(system.system, {}).get(m) for m in metrics} if paper else {}
        rows.append(Row(system.system, system.system in benchmark.ours, values, numbers, system))
    reference = reference_of(benchmark, systems)
    random_intents = protocol_of_view(protocol).random_intents
    table = Table(
        dataset=dataset,
        protocol=protocol,
        metrics=metrics,
        rows=rows,
        caption=_caption(dataset, protocol, facts),
        reference=reference,
        test=test,
        published=published["source"] if published and paper else None,
        warning=AUTHORS_NOTICE.format(n=protocol_of_view(protocol).n_negatives) if random_intents else None,
        notes=_missing(systems, protocol) + _unknown(systems, protocol),
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
    if (n := facts.get("n_targets", {}).get(protocol)) is not None:
        parts.append(f"{n:,} test targets" + (", strictly later than the item before" if protocol == LATER else ""))
    if protocol in ("full", LATER):
        random = config.get("tie_order") == "random"
        own = "an order for each seed" if config.get("tie_seed") is None else f"by tie_seed {config['tie_seed']}"
        parts.append(f"ties in time shuffled, {own}" if random else "ties in time as the file has them")
        parts.append("items of the history are " + ("no " if config.get("mask_history") else "") + "candidates")
    parts.append(f"chosen by {facts['config']['eval_mode'][0]} {config['valid_metric']} on validation")
    return "; ".join(parts) + "."


def _missing(systems: Sequence[SystemRuns], protocol: str) -> list[str]:
    notes: list[str] = []
    total, gone = 0, []
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


def _unknown(systems: Sequence[SystemRuns], protocol: str) -> list[str]:
    """Where `full` has no later targets: the reasons that the runs give; older ones did not measure them."""
    if protocol != "full":
        return []
    runs = [r for system in systems for r in system.runs.values() if LATER not in r["test_result"]]
    whys = Counter(later_unknown(r) for r in runs)
    return [f"Later targets, in {n} runs: {why}." for why, n in sorted(whys.items())]


def later_unknown(result: Mapping[str, Any]) -> str:
    """Why a result of `full` has no later targets."""
    if "later_unknown" not in result:
        return "unknown, the version that made the runs did not measure them"
    return f"unknown, {result['later_unknown']}" if result["later_unknown"] else "there are none"


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
    candidates = [*_as_list(benchmark.plan.get("reference")), *benchmark.ours]
    run = {system.system for system in systems if system.runs}
    return next((name for name in candidates if name in run), None)


def _compare(table: Table) -> None:
    """Test every system against the reference, on the first metric, over the users, on the seeds both have."""
    metric = table.metrics[0]
    rows = {row.system: row for row in table.rows if row.values[metric] is not None}
    reference = rows.pop(table.reference, None) if table.reference is not None else None
    if reference is None:
        return
    compared: list[tuple[Row, Difference]] = []
    for row in rows.values():
        seeds = [s for s in reference.runs.runs if s in row.runs.runs]
        if not seeds:
            table.notes.append(f"{row.system} and {table.reference} have no seed in common and are not tested.")
            continue
        users, values = user_values(row.runs, table.protocol, metric, seeds)
        other_users, others = user_values(reference.runs, table.protocol, metric, seeds)
        _, mine, its = np.intersect1d(users, other_users, assume_unique=True, return_indices=True)
        if len(mine) < max(len(users), len(other_users)):
            table.notes.append(f"{row.system} is tested on {len(users)} users, {table.reference} on "
                               f"{len(other_users)}; {len(mine)} are compared.")  # fmt: skip
        compared.append((row, paired(values[mine], others[its], table.test)))
    for (row, difference), p in zip(compared, holm([d.p for _, d in compared]), strict=True):
        row.difference = replace(difference, p_holm=p)


def _published_for(published: Mapping[str, Any] | None, dataset: str, protocol: str,
                   *, simulated: bool) -> Mapping[str, Any] | None:  # fmt: skip
    """The paper's numbers for a data set of that name or kind (`amazon` for `amazon-...`).

    They stand beside protocols with sampled candidates only.
    """
    if published is None or simulated or protocol in ("full", LATER):
        return None
    for name, systems in published["datasets"].items():
        if dataset == name or dataset.startswith(f"{name}-"):
            return dict(systems)
    return None


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
