"""The tables of the pages, made from results/, so that what is printed cannot differ from what was measured.

A table stands in a Markdown page between two comments; the first says in YAML what it is made from::

    <!-- table:
    benchmark: table2-small          # what the cells of all rows and columns share
    dataset: amazon-mix0
    corner: test
    columns:
    - {title: "`pop100` NDCG@5", protocol: pop100, metric: ndcg@5}
    rows:
    - SASRec                         # the label of a system
    - {title: counts, system: IntentBackoff, where: {popularity_exponent: 0.0}}
    - {title: over the counts, gain: [SASRec, counts]}
    -->
    ...
    <!-- /table -->

A cell is described by the keys of its row, its column and its table, of one key the first:

* `benchmark`, `dataset`, `system`, `protocol`, `metric`: whose mean over the seeds it is, with the sample standard
  deviation in brackets unless it rounds to 0 (`sd: false` leaves it out); `digits` after the point (3; of `full` 4).
  `where` names settings: of the runs with them those of the best validation score; `seeds` names the seeds, without one
  of which the cell is empty.
* `fact`: a number of the data (users, items, intents, interactions, interactions_per_item), `digits` as above (0).
* `gain`: two titles, of rows (in a row) or columns (in a column): the gain of the first over the second, which
  may be a list: then over its best.
* `text`: what is printed as it is; in a row a list, a text for each column.

The best mean of a column is bold (`bold: false` leaves that out). A cell without a result is empty.

With `head` and `cells` a table is a list of rows of text, in which `${speed/load.json:ours.seconds:.1f}` stands for a
number of a file in results/, formatted as by Python, or without the 0 before the point if the format is a single digit;
a line of a runs.jsonl is named as in `${cafe/runs.jsonl#amazon:test_result.full.ndcg@10:4}`, and the mean of several
lines as in `${cafe/runs.jsonl#s2020,s2021:best_valid_score:4}`. With `lines: x.jsonl` there is a row for each line of
that file. `cells` describes it once, with numbers as in `${*:versions.python}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_cafe.benchmark.layout import StoreError, read_json
from recbole_cafe.benchmark.packed import read_packed
from recbole_cafe.benchmark.report import markdown_row
from recbole_cafe.benchmark.results import Benchmark, SystemRuns, read
from recbole_cafe.benchmark.stats import Stat, gain, stat
from recbole_cafe.benchmark.store import choose, run_folder, score
from recbole_cafe.errors import DataError
from recbole_cafe.files.whole import written_whole

PAGES = ("README.md", "docs/**/*.md", "results/*/README.md")
RESULTS = "results"
OPENING, CLOSING = "<!-- table:", "<!-- /table -->"
TABLE = re.compile(rf"(?P<begin>{OPENING}\n(?P<spec>.*?)\n-->\n).*?(?P<end>{CLOSING})", re.DOTALL)
NUMBER = re.compile(r"\$\{(?P<file>[^:#}]+)(?:#(?P<place>[^:}]+))?:(?P<key>[^:}]+)(?::(?P<form>[^}]*))?\}")

Spec = Mapping[str, Any]


class PageError(DataError):
    """A table of a page cannot be made."""


def main(check: bool, root: Path | None = None) -> int:
    """Make the tables of all pages, or check that they are as they would be made.

    Args:
        check: write nothing; name the pages whose tables differ.
        root: the checkout; default: the folder one stands in.

    Returns:
        the exit status: 1 when a page differs or a table cannot be made.
    """
    root = Path.cwd() if root is None else root
    status, tables = 0, 0
    for path in pages(root):
        before = path.read_text(encoding="utf-8")
        tables += len(TABLE.findall(before))
        try:
            after = with_tables(before, root / RESULTS)
        except (PageError, StoreError) as error:
            print(f"{path.relative_to(root)}: {error}")
            status = 1
            continue
        if after != before and check:
            print(f"{path.relative_to(root)}: its tables differ from {RESULTS}/; run `make pages`")
            status = 1
        elif after != before:
            with written_whole(path) as file:
                file.write(after.encode())
            path.chmod(0o644)
            print(f"{path.relative_to(root)}: written")
    print(f"{tables} tables")
    return status


def pages(root: Path) -> list[Path]:
    """The pages that may hold tables.

    Args:
        root: the checkout.
    """
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def with_tables(text: str, results: Path) -> str:
    """A page with its tables made anew.

    Args:
        text: the page.
        results: folder of what was measured.

    Raises:
        PageError: a table that cannot be made.
    """

    def new(match: re.Match[str]) -> str:
        try:
            spec = yaml.safe_load(match["spec"])
            lines = table(spec, results)
        except yaml.YAMLError as error:
            raise PageError(f"a table's description is not YAML: {error}") from error
        except (KeyError, TypeError, IndexError) as error:
            raise PageError(f"a table lacks {error!r}: {match['spec'][:200]}") from error
        return match["begin"] + "\n" + "\n".join(lines) + "\n\n" + match["end"]

    n_tables = len(TABLE.findall(text))
    for mark in (OPENING, CLOSING):
        if text.count(mark) != n_tables:
            raise PageError(f"{mark!r} stands {text.count(mark)} times round {n_tables} tables")
    return TABLE.sub(new, text)


def table(spec: Spec, results: Path) -> list[str]:
    """The lines of a table.

    Args:
        spec: its description, see the module.
        results: folder of what was measured.

    Raises:
        PageError: it names what is not there.
    """
    head = [str(title) for title in spec["head"]] if "cells" in spec else []
    if "lines" in spec:
        name = str(spec["lines"])
        places = [json.loads(line)["place"] for line in (results / name).read_text(encoding="utf-8").splitlines()]
        each = [[str(cell).replace("${*:", f"${{{name}#{place}:") for cell in spec["cells"]] for place in places]
        return _lines(head, [[_filled(cell, results) for cell in row] for row in each])
    if "cells" in spec:
        rows = [[_filled(str(cell), results) for cell in row] for row in spec["cells"]]
        return _lines(head, rows)
    columns = [dict(column) for column in spec["columns"]]
    own = [_row(row) for row in spec["rows"]]
    shared = {key: value for key, value in spec.items() if key not in ("columns", "rows", "corner", "bold")}
    values = {(row["title"], column["title"]): _value({**shared, **column, **row}, results)
              for row in own if not row.keys() & {"gain", "text"}
              for column in columns if not column.keys() & {"gain", "fact", "text"}}  # fmt: skip
    best = {c["title"]: max((v.mean for (_, title), v in values.items() if v and title == c["title"]), default=None)
            for c in columns} if spec.get("bold", True) else {}  # fmt: skip
    lines = []
    for row in own:
        cells = []
        for i, column in enumerate(columns):
            cell = {**shared, **column, **row}
            if "text" in row:
                cells.append(str(row["text"][i] or ""))
            elif "text" in column:
                cells.append(str(column["text"]))
            elif "gain" in row:
                of_rows = {t: value for (t, title), value in values.items() if title == column["title"]}
                cells.append("" if column.keys() & {"gain", "fact"} else _gain(row["gain"], of_rows))
            elif "gain" in column:
                cells.append(_gain(column["gain"], {t: v for (title, t), v in values.items() if title == row["title"]}))
            elif "fact" in column:
                cells.append(_fact(cell, results))
            else:
                value = values[row["title"], column["title"]]
                text = _shown(value, cell)
                cells.append(f"**{text}**" if value and value.mean == best.get(column["title"]) else text)
        lines.append([str(row["title"]), *cells])
    return _lines([str(spec.get("corner", "")), *(str(c["title"]) for c in columns)], lines)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [markdown_row(head), "|---" * len(head) + "|", *(markdown_row(row) for row in rows)]


def _row(row: str | Spec) -> dict[str, Any]:
    """A row's keys; a row that is a text is the system of that label."""
    return {"title": row, "system": row} if isinstance(row, str) else dict(row)


# Numbers of runs ------------------------------------------------------------------------------------------------------


def _value(cell: Spec, results: Path) -> Stat | None:
    runs = _runs(cell, results)
    if runs is None:
        return None
    seeds = cell.get("seeds", list(runs.runs))
    if any(seed not in runs.runs for seed in seeds):
        return None
    runs.runs = {seed: runs.runs[seed] for seed in seeds}
    values = runs.values(cell["protocol"], cell["metric"])
    return stat(values) if values else None


def _runs(cell: Spec, results: Path) -> SystemRuns | None:
    benchmark = _benchmark(results / cell["benchmark"])
    if cell["dataset"] not in benchmark.datasets:
        raise PageError(f"{benchmark.out} has no data set {cell['dataset']!r}; it has {', '.join(benchmark.datasets)}")
    systems = {system.system: system for system in benchmark.datasets[cell["dataset"]]}
    label = cell["system"]
    if label not in benchmark.plan["systems"]:
        raise PageError(f"{benchmark.out} has no system {label!r}; it has {', '.join(benchmark.plan['systems'])}")
    if label not in systems:
        return None
    runs = systems[label]
    if "where" in cell or "seeds" in cell:  # all that was run, not only what the plan names
        kept = _kept(benchmark, cell["dataset"], label)
        digest = _best(kept, runs.seeds[0], cell["where"]) if "where" in cell else runs.digest
        if digest is None and "where" in cell:
            raise PageError(f"{benchmark.out}: {cell['dataset']}, {label} has no run with {cell['where']}")
        if digest is None:
            return None
        return SystemRuns(**{**vars(runs), "digest": digest, "runs": kept[digest]})
    return SystemRuns(**{**vars(runs), "runs": dict(runs.runs)})


def _kept(benchmark: Benchmark, dataset: str, label: str) -> dict[str, dict[int, dict[str, Any]]]:
    """All runs of a system: hash of the settings -> seed -> result."""
    folder = run_folder(benchmark.out, dataset, label, "", 0).parent.relative_to(benchmark.out).as_posix()
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for place, run in read_packed(benchmark.out).runs.items():
        if place.rpartition("/")[0] == folder:
            runs.setdefault(run.result["benchmark"]["hash"], {})[run.result["seed"]] = run.result
    return runs


def _best(runs: Mapping[str, Mapping[int, dict[str, Any]]], first: int, where: Spec) -> str | None:
    """Of the runs of the first seed with these settings the hash of that with the best validation score."""
    configs = {digest: of[first]["config"] for digest, of in runs.items() if first in of}
    fits = [digest for digest, config in configs.items() if all(config.get(k) == v for k, v in where.items())]
    return choose({digest: score(runs[digest][first]) for digest in fits})


@lru_cache
def _benchmark(out: Path) -> Benchmark:
    return read(out)


def _shown(value: Stat | None, cell: Spec) -> str:
    if value is None:
        return ""
    digits = cell.get("digits", 4 if cell["protocol"] == "full" else 3)
    shown = cell.get("sd", True) and value.sd is not None and round(value.sd, digits) > 0
    deviation = f" ({_short(value.sd, digits)})" if shown and value.sd is not None else ""
    return _short(value.mean, digits) + deviation


def _short(value: float, digits: int) -> str:
    """A number without the 0 before the point."""
    text = f"{value:.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text)


def _gain(pair: Sequence[str | Sequence[str]], values: Mapping[str, Stat | None]) -> str:
    first = values[str(pair[0])]
    others = [values[title] for title in ([pair[1]] if isinstance(pair[1], str) else pair[1])]
    means = [other.mean for other in others if other]
    relative = gain(first.mean, max(means)) if first and means else None
    return "" if relative is None else f"{100 * relative:+.0f} %"


def _fact(cell: Spec, results: Path) -> str:
    benchmark = _benchmark(results / cell["benchmark"])
    for system in benchmark.datasets[cell["dataset"]]:
        for result in system.runs.values():
            return f"{result['data'][cell['fact']]:,.{cell.get('digits', 0)}f}"
    return ""


# Numbers of files -----------------------------------------------------------------------------------------------------


def _filled(text: str, results: Path) -> str:
    def number(match: re.Match[str]) -> str:
        values = []
        for place in [None] if match["place"] is None else match["place"].split(","):
            value: Any = _content(results / match["file"], place)
            for key in match["key"].split("."):
                if key not in value if isinstance(value, dict) else not key.isdigit() or int(key) >= len(value):
                    raise PageError(f"{match['file']} has no {match['key']}")
                value = value[key] if isinstance(value, dict) else value[int(key)]
            values.append(value)
        value = values[0] if len(values) == 1 else stat(values).mean
        form = match["form"] or ""
        return _short(float(value), int(form)) if form.isdigit() else format(value, form)

    return NUMBER.sub(number, text)


def _content(path: Path, place: str | None) -> dict[str, Any]:
    if place is None:
        return read_json(path)
    for line in path.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if content["place"] == place:
            return dict(content["result"])
    raise PageError(f"{path} has no line {place!r}")


if __name__ == "__main__":
    import sys

    sys.exit(main(check="--check" in sys.argv[1:]))
