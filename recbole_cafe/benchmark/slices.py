"""Where a system wins: a benchmark's metrics over slices of the test users, with the CSV and the figure of each.

A test user belongs to one slice of each fact: how often the target occurs in the train split, how many interactions
stand before it, and how mixed their intents are. Means over slices weigh with the slices' shares to the number in the
report's table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.benchmark import store
from recbole_cafe.benchmark.figures import COLOURS, MARKS, STYLE, save_figure
from recbole_cafe.benchmark.report import markdown_row
from recbole_cafe.benchmark.results import (
    Benchmark,
    SystemRuns,
    check_comparable,
    metrics_of,
    read,
    reference_of,
    user_values,
)
from recbole_cafe.benchmark.stats import gain, holm, paired, stat
from recbole_cafe.benchmark.wording import title
from recbole_cafe.errors import did_you_mean, missing_package
from recbole_cafe.files.whole import written_whole

FOLDER = "slices"
LEVEL = 0.01  # of significance
SIGNIFICANT = r"\*"  # in Markdown
BEST_OTHERS = 3  # systems that are not ours, shown when none are named
FACTS = {  # fact -> title, upper ends of all slices but the last
    "item_interactions": ("interactions with the target in the train split", (0, 2, 5, 20)),
    "history_length": ("interactions before the target", (4, 6, 10, 20)),
    "intent_entropy": ("entropy of the history's intents, bits", (0.0, 1.0, 2.0, 3.0)),
    "later": ("time of the target", (0,)),
}
NAMES = {"later": ["that of the item before", "later"]}  # fact -> its slices, where upper ends do not name them


@dataclass(frozen=True)
class UserFacts:
    """What is known of every test user before anything is scored.

    Attributes:
        users: [N] tokens, sorted.
        values: fact -> [N].
        missing: fact -> why it has none.
    """

    users: np.ndarray
    values: dict[str, np.ndarray]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """One system on one slice.

    Attributes:
        dataset: label of the data set.
        protocol: name of the protocol.
        metric: name of the metric.
        fact: name of the fact.
        slice: label of the slice.
        users: how many test users.
        share: of all test users.
        system: label of the system.
        ours: whether it is one of ours.
        mean: over the seeds.
        sd: sample standard deviation over the seeds.
        seeds: how many.
        reference: label of the system it is compared with.
        gain: of the reference over this system.
        p: paired t-test of the reference's users against this system's.
        p_holm: p corrected for all of the fact.
    """

    dataset: str
    protocol: str
    metric: str
    fact: str
    slice: str
    users: int
    share: float
    system: str
    ours: bool
    mean: float
    sd: float | None
    seeds: int
    reference: str
    gain: float | None = None
    p: float | None = None
    p_holm: float | None = None


# Facts ----------------------------------------------------------------------------------------------------------------


def labels(ends: Sequence[float]) -> list[str]:
    """Names of the slices with these upper ends, and of the one above. Whole numbers count things, others measure."""
    counts = all(isinstance(end, int) for end in ends)
    first = f"{ends[0]:g}" if ends[0] == 0 else f"≤ {ends[0]:g}"
    between = [
        f"{b:g}" if counts and b == a + 1 else f"{a + 1}–{b}" if counts else f"> {a:g}, ≤ {b:g}"
        for a, b in pairwise(ends)
    ]
    return [first, *between, f"> {ends[-1]:g}"]


def entropy(intents: np.ndarray) -> float:
    """Of the intents of one history, in bits; 0 of none."""
    _, counts = np.unique(intents, return_counts=True)
    share = counts / max(1, len(intents))
    return round(float(-(share * np.log2(share)).sum()), 9) + 0.0


def user_facts(config: Any) -> UserFacts:
    """Load a run's data and describe its test users.

    Args:
        config: a :class:`recbole_cafe.config.config.Config` of a sequential model.
    """
    from recbole_cafe.data.intents import item_intents
    from recbole_cafe.errors import DataError
    from recbole_cafe.experiment import create_dataset

    dataset = create_dataset(config)
    train, _, test = dataset.build()
    seen = np.bincount(train.user_items()[1].numpy(), minlength=dataset.item_num)
    rows = test.inter_feat
    histories = test.history_items(np.arange(len(test)))
    values = {
        "item_interactions": seen[rows[dataset.iid_field].numpy()],
        "history_length": np.array([len(items) for items in histories]),
    }
    missing = {}
    try:
        of = item_intents(config, dataset)
    except DataError as error:
        missing["intent_entropy"] = str(error)
    else:
        intent = of.item2intent.numpy()
        intents = (intent[items] for items in histories)
        values["intent_entropy"] = np.array([entropy(c[c < of.n_intents]) for c in intents])
    later = test.later_targets()
    if later is None:
        missing["later"] = f"unknown, {test.later_unknown}"
    else:
        values["later"] = later.astype(int)
    tokens = np.asarray(dataset.field2id_token[dataset.uid_field])[rows[dataset.uid_field].numpy()].astype(str)
    order = np.argsort(tokens)
    return UserFacts(tokens[order], {name: value[order] for name, value in values.items()}, missing)


def facts_of(benchmark: Benchmark, dataset: str, data_path: str | None) -> UserFacts:
    """The facts of a benchmark's data set, which is loaded with the settings of one of its sequential systems.

    Raises:
        StoreError: no such system has a run, or the order of ties differs between seeds.
    """
    from recbole_cafe.config.config import Config

    run = [system for system in benchmark.datasets[dataset] if system.runs]
    for system in run:
        cell = benchmark.plan["cells"][dataset][system.system]
        given = {**cell["settings"], **system.point, "seed": system.seeds[0],
                 "intents_dir": str(benchmark.out / "intents")}  # fmt: skip
        if data_path is not None:
            given["data_path"] = data_path
        config = Config(cell["model"], cell["data"], config_dict=given)
        if config["MODEL_TYPE"].name != "SEQUENTIAL":
            continue
        if config["tie_order"] == "random" and config["tie_seed"] is None and max(len(s.runs) for s in run) > 1:
            raise store.StoreError(
                f"{dataset}: with tie_order=random each seed has targets of its own; slice runs of one seed"
            )
        return user_facts(config)
    raise store.StoreError(f"{benchmark.out}: {dataset} has no run of a sequential model, whose data could be sliced")


# Slices ---------------------------------------------------------------------------------------------------------------


def chosen_systems(benchmark: Benchmark, dataset: str, names: Sequence[str] | None) -> list[SystemRuns]:
    """The systems named, or ours and, of the others, the best of each protocol.

    Raises:
        StoreError: a name that is no system with a finished run.
    """
    run = {system.system: system for system in benchmark.datasets[dataset] if system.runs}
    if names:
        for name in names:
            if name not in run:
                raise store.StoreError(f"{benchmark.out}: {dataset} has no run of {name!r}; there are "
                                       f"{', '.join(run) or 'none'}{did_you_mean(name, run)}")  # fmt: skip
        return [run[name] for name in names]
    chosen = set(benchmark.ours)
    for protocol in benchmark.fair_protocols(dataset):
        metric = metrics_of(benchmark, protocol)[0]
        means = {n: stat(v).mean for n, s in run.items() if n not in chosen and (v := s.values(protocol, metric))}
        chosen |= set(sorted(means, key=means.__getitem__, reverse=True)[:BEST_OTHERS])
    return [system for name, system in run.items() if name in chosen]


def slices(benchmark: Benchmark, dataset: str, facts: UserFacts, systems: Sequence[SystemRuns],
           reference: str | None = None) -> list[Slice]:  # fmt: skip
    """Every system on every slice, protocol by protocol, fact by fact.

    Args:
        benchmark: the folder as read.
        dataset: name of the data set.
        facts: what is known of its test users.
        systems: which to cut.
        reference: label of the system that the others are compared with; by default the file's.

    Raises:
        StoreError: runs that cannot be compared, other test users than the data have, or no such reference.
    """
    check_comparable(dataset, systems)
    reference = reference or reference_of(benchmark, systems) or systems[0].system
    names = [system.system for system in systems]
    if reference not in names:
        hint = did_you_mean(reference, names)
        raise store.StoreError(f"reference={reference!r} is none of {', '.join(names)}{hint}")
    all_rows = []
    for protocol in benchmark.fair_protocols(dataset):
        metric = metrics_of(benchmark, protocol)[0]
        values = {system.system: _of_seeds(system, protocol, metric, facts.users) for system in systems}
        for fact in facts.values:
            ends = FACTS[fact][1]
            at = np.searchsorted(ends, facts.values[fact])  # values up to and including an end are below it
            rows = []
            for i, label in enumerate(NAMES.get(fact) or labels(ends)):
                if (inside := at == i).any():
                    rows += _slice(benchmark, (dataset, protocol, metric, fact, label), inside, values, reference)
            tested = [n for n, row in enumerate(rows) if row.p is not None]
            for n, p in zip(tested, holm([rows[n].p for n in tested]), strict=True):
                rows[n] = replace(rows[n], p_holm=p)
            all_rows += rows
    return all_rows


def _of_seeds(system: SystemRuns, protocol: str, metric: str, users: np.ndarray) -> dict[int, np.ndarray]:
    """seed -> [N] the metric of each user."""
    values = {}
    for seed in system.runs:
        tokens, values[seed] = user_values(system, protocol, metric, [seed])
        if not np.array_equal(tokens, users):
            raise store.StoreError(
                f"{system.folders[seed]}: its {len(tokens)} test users are not the {len(users)} of the data as they "
                f"are now"
            )
    return values


def _slice(benchmark: Benchmark, names: tuple[str, ...], inside: np.ndarray,
           values: Mapping[str, Mapping[int, np.ndarray]], reference: str) -> list[Slice]:  # fmt: skip
    users, share = int(inside.sum()), float(inside.mean())
    rows = []
    for system, of in values.items():
        seeds = [seed for seed in of if seed in values[reference]]
        value = stat([float(v[inside].mean()) for v in of.values()])
        row = Slice(*names, users, share, system, system in benchmark.ours, value.mean, value.sd, value.n, reference)
        if system != reference and seeds:
            best, own = (np.mean([values[name][s][inside] for s in seeds], axis=0) for name in (reference, system))
            p = paired(best, own).p if users > 1 else None
            row = replace(row, gain=gain(float(best.mean()), float(own.mean())), p=p)
        rows.append(row)
    return rows


# Files ----------------------------------------------------------------------------------------------------------------


def write(out: Path, *, systems: Sequence[str] | None = None, reference: str | None = None,
          data_path: str | None = None) -> list[Path]:  # fmt: skip
    """Write the slices of every data set of a benchmark folder.

    Args:
        out: the benchmark's folder.
        systems: see :func:`chosen_systems`.
        reference: see :func:`slices`.
        data_path: folder of the data sets, if it is no longer the one of the runs.

    Returns:
        the files, in `out`/slices: for each data set a Markdown page, and a CSV and a figure (PNG, SVG).

    Raises:
        StoreError: see :func:`facts_of`, :func:`chosen_systems` and :func:`slices`. MachineError: no matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    benchmark = read(out)
    folder, written = Path(out) / FOLDER, []
    for dataset, systems_of in benchmark.datasets.items():
        if not any(system.runs for system in systems_of):
            continue
        facts = facts_of(benchmark, dataset, data_path)
        rows = slices(benchmark, dataset, facts, chosen_systems(benchmark, dataset, systems), reference)
        name = store.folder_name(dataset)
        with matplotlib.rc_context({**STYLE, "font.size": 8}):
            written += save_figure(folder, name, _draw(rows), [asdict(row) for row in rows])
        with written_whole(folder / f"{name}.md") as file:
            file.write(markdown(rows, facts).encode())
        written.append(folder / f"{name}.md")
    if not written:
        raise store.StoreError(f"{out} has no finished run to slice")
    return written


def markdown(rows: Sequence[Slice], facts: UserFacts) -> str:
    """A table for each protocol and fact: systems down, slices across."""
    few = {row.system: row.seeds for row in rows if row.seeds < max(row.seeds for row in rows)}
    lines = [f"# {rows[0].dataset}: where it wins", "",
             f"Mean over the seeds of each slice's users; in brackets the gain of {rows[0].reference} over that system "
             f"on the seeds both have, from ten times on as a multiple, {SIGNIFICANT} where the paired t-test has "
             f"p < {LEVEL} after Holm's correction over the table."]  # fmt: skip
    lines += [f"\nOf fewer seeds: {', '.join(f'{system} ({n})' for system, n in few.items())}."] if few else []
    lines += [f"\n{FACTS[name][0]}: {why}." for name, why in facts.missing.items()]
    for (protocol, fact), group in _grouped(rows).items():
        columns = list(dict.fromkeys((row.slice, row.users, row.share) for row in group))
        lines += ["", f"## {protocol}: {FACTS[fact][0]}", "",
                  markdown_row([f"{title(group[0].metric)}", *(label for label, _, _ in columns)]),
                  "|---" * (len(columns) + 1) + "|",
                  markdown_row(["*users*", *(f"*{n:,} ({share:.0%})*" for _, n, share in columns)])]  # fmt: skip
        for system in dict.fromkeys(row.system for row in group):
            lines.append(markdown_row([system, *(_cell(row) for row in group if row.system == system)]))
    return "\n".join(lines) + "\n"


def _cell(row: Slice) -> str:
    if row.gain is None:
        return f"{row.mean:.4f}"
    gain = f"{row.gain:+.0%}" if row.gain < 9 else f"×{1 + row.gain:.0f}"
    return f"{row.mean:.4f} ({gain}{SIGNIFICANT if row.p_holm is not None and row.p_holm < LEVEL else ''})"


def _grouped(rows: Sequence[Slice]) -> dict[tuple[str, str], list[Slice]]:
    groups: dict[tuple[str, str], list[Slice]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.fact), []).append(row)
    return groups


def _draw(rows: Sequence[Slice]) -> Any:
    """A panel for each protocol (down) and fact (across), a line for each system."""
    from matplotlib.figure import Figure

    groups = _grouped(rows)
    protocols, names = (list(dict.fromkeys(key[i] for key in groups)) for i in (0, 1))
    figure = Figure(figsize=(3.4 * len(names), 2.5 * len(protocols) + 0.5))
    axes = figure.subplots(len(protocols), len(names), squeeze=False)
    for (protocol, fact), group in groups.items():
        place = axes[protocols.index(protocol), names.index(fact)]
        ticks = dict.fromkeys((row.slice, row.users) for row in group)
        for i, system in enumerate(dict.fromkeys(row.system for row in group)):
            own = [row for row in group if row.system == system]
            place.errorbar(range(len(own)), [row.mean for row in own], yerr=[row.sd or 0.0 for row in own],
                           fmt=f"{MARKS[i % len(MARKS)]}-", color=COLOURS[i % len(COLOURS)], markersize=4, capsize=2,
                           linewidth=1, label=system)  # fmt: skip
        place.set_xticks(range(len(ticks)), [f"{label}\nn = {n:,}" for label, n in ticks], fontsize=6.5)
        place.set_ylim(bottom=0)
        place.grid(axis="y", linewidth=0.4, alpha=0.5)
        place.set_xlabel(FACTS[fact][0])
        place.set_ylabel(f"{protocol}, {title(group[0].metric)}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=5)
    return figure
