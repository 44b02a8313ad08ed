"""From staged rows to a data set: filters, one intent an item, counts. The same Ibis expressions on every engine.

The order of the steps: rating and time range, duplicates, items without an intent (if they shall go), minimum counts,
sample of users, rare intents, writing. Interactions come out by user, then time; ties keep the order of the raw files.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.atomic import INTENT, ITEM, TIME, USER
from recbole_cafe.files.atomic_writer import Stream, Written, check_target, write_dataset
from recbole_cafe.files.whole import beside
from recbole_cafe.prepare import engine as engines
from recbole_cafe.prepare.raw import SEPARATOR, PrepareError

DUPLICATES = ("exact", "first", "last", "keep")
CORES = ("once", "k-core")
RARE = ("parent", "other", "drop")
OTHER = "(other)"  # the intent that takes up rare ones
PATH = " > "  # between the levels of an intent that is a whole path


@dataclass(frozen=True)
class Options:
    """What the pipeline does; docs/data.md has each in words."""

    level: str = "leaf"  # leaf, path or a depth from 1
    min_rating: float | None = None
    after: float | None = None  # seconds, first to keep
    before: float | None = None  # seconds, first to leave out
    duplicates: str = "exact"
    unknown: str = "keep"  # or drop: items without an intent, with their interactions
    min_user: int = 1
    min_item: int = 1
    core: str = "once"
    users: int | None = None  # at most so many users, chosen by hash
    min_intent: int = 1
    rare: str = "parent"
    strict: bool = False
    without_intents: bool = False  # the source has none, and a data set without any is wanted

    def __post_init__(self) -> None:
        """Check each choice.

        Raises:
            ConfigError: one that cannot be.
        """
        if self.level not in ("leaf", "path") and not (
            self.level.isascii() and self.level.isdigit() and int(self.level)
        ):
            raise ConfigError(f"--level={self.level}: expected leaf, path or a depth from 1")
        for name, choices in (
            ("duplicates", DUPLICATES),
            ("core", CORES),
            ("rare", RARE),
            ("unknown", ("keep", "drop")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"--{name}={getattr(self, name)}: expected one of {', '.join(choices)}")
        for name in ("min_user", "min_item", "min_intent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}={getattr(self, name)}: expected at least 1")
        if self.users is not None and self.users < 1:
            raise ConfigError(f"--users={self.users}: expected at least 1")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ConfigError(f"the time range is empty: it begins at {self.after:g} and ends before {self.before:g}")


@dataclass
class Report:
    """What happened: files and their faults, interactions after each step, and the numbers of the result."""

    files: list[dict[str, Any]] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """Rows of the raw files that were left out."""
        return sum(fault["count"] for file in self.files for fault in file["faults"].values())


Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def prepare(
    folder: str | Path,
    name: str,
    tasks: Sequence[dict[str, Any]],
    options: Options,
    *,
    readme: Callable[[Report, Written], str],
    engine: str = "duckdb",
    memory: str = "2GB",
    threads: int = 2,
    work: str | Path | None = None,
    replace: bool = False,
    old_files: Sequence[str] = (),
    show_progress: bool = False,
    say: Say = to_stderr,
) -> tuple[Written, Report]:
    """Read raw files and write a data set, all of it or nothing.

    Args:
        folder: as for `write_dataset`.
        name: as for `write_dataset`.
        tasks: of `tasks.run_task`, without "out", "number" and "strict".
        options: what to keep.
        readme: the text of README.md.
        engine: one of `engine.ENGINES`.
        memory: of the engine, as in "2GB".
        threads: of the engine, and files that are read at a time.
        work: folder for intermediate files; beside the data set if None.
        replace: as for `write_dataset`.
        old_files: as for `write_dataset`.
        show_progress: bars on stderr.
        say: takes a line about each step.

    Raises:
        PrepareError: raw files or choices that give no data set.
        AtomicFileError: a target that may not be replaced.
    """
    begin = time.perf_counter()
    folder = Path(folder).resolve()
    check_target(folder, name, old_files, replace)
    neighbour = folder if work is None else Path(work).resolve() / folder.name
    with beside(neighbour, "work") as place:
        run = engines.connect(engine, place, memory=memory, threads=threads)
        try:
            steps = _Pipeline(run, place, options, say, show_progress)
            steps.stage(tasks)
            steps.filter()
            inter, items, n_items = steps.result()
            report = steps.report
            report.seconds = time.perf_counter() - begin
            written = write_dataset(
                folder,
                name,
                inter,
                items,
                n_items=n_items,
                texts={"README.md": lambda written: readme(report, written)},
                replace=replace,
                old_files=old_files,
                show_progress=show_progress,
            )
        finally:
            run.close()
    report.seconds = time.perf_counter() - begin
    return written, report


class _Pipeline:
    """One run.

    Attributes:
        rows: the present table of interactions (user, item, time, place).
        items: a table with the levels of each item.
    """

    def __init__(self, engine: Any, work: Path, options: Options, say: Say, show: bool) -> None:
        self.engine, self.work, self.options, self.say, self.show = engine, work, options, say, show
        self.report = Report()
        self.rows: Any = None
        self.items: Any = None
        self.n_rows = 0

    def stage(self, tasks: Sequence[dict[str, Any]]) -> None:
        """Raw files to Parquet, then the filters that look at one row, and one intent an item."""
        import ibis
        from ibis import _

        for role in ("interactions", "items"):
            (self.work / role).mkdir()
        numbered = [
            dict(
                task,
                number=number,
                strict=self.options.strict,
                out=str(self.work / task["role"] / f"{number:05}.parquet"),
            )
            for number, task in enumerate(tasks)
        ]
        self.say(f"reading {len(tasks)} file(s)")
        self.report.files = self.engine.stage(numbered, self.show)
        for file in self.report.files:
            for kind, fault in file["faults"].items():
                self.say(f"  {fault['count']:,} x {kind}; first at {fault['first']}")
        read = sum(file["kept"] for file in self.report.files if file["role"] == "interactions")
        self._step("rows read", read)
        if not read:
            raise PrepareError(self._nothing(f"no interaction could be read from {self._paths('interactions')}"))
        staged = self.engine.read(str(self.work / "interactions" / "*.parquet"), "staged")
        described = [task for task in tasks if task["role"] == "items"]
        catalogue = (
            self.engine.read(str(self.work / "items" / "*.parquet"), "described")
            if described
            else staged.select("item", "levels", "place")
        )
        self._one_intent(catalogue)

        rows, kept = staged.select("user", "item", "time", "rating", "place"), self.options
        for what, condition in (
            (
                f"rating of at least {kept.min_rating:g}" if kept.min_rating is not None else "",
                _.rating >= kept.min_rating,
            ),
            (f"time from {kept.after:g}" if kept.after is not None else "", _.time >= kept.after),
            (f"time before {kept.before:g}" if kept.before is not None else "", _.time < kept.before),
        ):
            if what:
                rows = rows.filter(condition)
                self._step(what, self._count(rows))
        rows = rows.drop("rating")
        if kept.duplicates == "exact":
            rows = rows.group_by("user", "item", "time").agg(place=_.place.min())
        elif kept.duplicates in ("first", "last"):
            order = [_.time, _.place] if kept.duplicates == "first" else [_.time.desc(), _.place.desc()]
            window = ibis.window(group_by=[_.user, _.item], order_by=order)
            rows = rows.mutate(rank=ibis.row_number().over(window)).filter(_.rank == 0).drop("rank")
        self._keep(rows, f"duplicates: {kept.duplicates}")

    def _one_intent(self, catalogue: Any) -> None:
        """One row an item: of different intents the most frequent one, of as frequent ones the first."""
        import ibis
        from ibis import _

        counted = (
            catalogue.group_by("item", "levels").agg(n=_.count(), place=_.place.min()).mutate(known=_.levels.notnull())
        )
        order = [_.known.desc(), _.n.desc(), _.place]
        window = ibis.window(group_by=_.item, order_by=order)
        of_item = ibis.window(group_by=_.item)
        ranked = counted.mutate(rank=ibis.row_number().over(window), kinds=_.levels.count().over(of_item))
        self.items = self.engine.keep(ranked.filter(_.rank == 0).select("item", "levels", "kinds"), "items")

    def filter(self) -> None:
        """Filters that look at all rows of a user or an item."""
        from ibis import _

        kept = self.options
        if kept.unknown == "drop":
            self._keep(
                self.rows.semi_join(self.items.filter(_.levels.notnull()), "item"), "items without an intent dropped"
            )
        self._minimum()
        if kept.users is not None:
            self._sample(kept.users)
        if kept.rare == "drop" and kept.min_intent > 1:
            self._minimum_of_intents()

    def _minimum(self) -> None:
        """Minimum counts: items, then users, once or until nothing changes."""
        kept = self.options
        if kept.min_user == 1 and kept.min_item == 1:
            return
        what = f"at least {kept.min_item} an item and {kept.min_user} a user"
        rounds, before = 0, None
        while before != self.n_rows and (kept.core == "k-core" or rounds == 0):
            before, rounds = self.n_rows, rounds + 1
            rows = self._often(self.rows, "item", kept.min_item)
            self._keep(self._often(rows, "user", kept.min_user), f"{what}, round {rounds}")

    @staticmethod
    def _often(rows: Any, column: str, minimum: int) -> Any:
        from ibis import _

        if minimum == 1:
            return rows
        return rows.semi_join(rows.group_by(column).agg(n=_.count()).filter(_.n >= minimum), column)

    def _sample(self, n_users: int) -> None:
        """So many users, in the order of the MD5 of their id, which is chance and the same everywhere."""
        import ibis
        from ibis import _

        users = self.rows.select("user").distinct().mutate(hash=_.user.hexdigest("md5"))
        window = ibis.window(order_by=[_.hash, _.user])
        chosen = users.mutate(rank=ibis.row_number().over(window)).filter(_.rank < n_users)
        self._keep(self.rows.semi_join(chosen, "user"), f"{n_users} users chosen by hash")
        if self.options.min_item > 1:
            self._minimum()

    def _minimum_of_intents(self) -> None:
        """Items of intents with too few items, dropped with their interactions."""
        self._choose()
        fitting = self.items.filter(self.items.intent != OTHER)
        self._keep(
            self.rows.semi_join(fitting, "item"), f"intents of fewer than {self.options.min_intent} items dropped"
        )

    # Intents ----------------------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """The items that occur, with their intent: the chosen level, rare intents merged upwards or into one."""
        import ibis
        from ibis import _

        kept = self.options
        parts = _.levels.split(SEPARATOR)
        # every item that occurs: RecBole would leave out the interactions of one without a row
        items = self.rows.select("item").distinct().left_join(self.items, "item").select("item", "levels", "kinds")
        items = items.mutate(n=ibis.ifelse(_.levels.isnull(), 0, parts.length()))
        depth = ibis.least(_.n, int(kept.level)) if kept.level.isdigit() else _.n
        items = self.engine.keep(
            items.mutate(depth=depth.cast("int64")).select("item", "levels", "kinds", "depth"), "chosen"
        )
        while True:
            named = items.mutate(intent=self._name(items))
            if kept.min_intent == 1:
                break
            sizes = named.filter(_.intent.notnull()).group_by("intent").agg(size=_.count())
            marked = named.left_join(sizes, "intent").select("item", "levels", "kinds", "depth", "intent", "size")
            marked = marked.mutate(rare=(_.size < kept.min_intent).fill_null(False))
            if kept.rare == "parent":
                up = _.rare & (_.depth > 1)
                if self._one(marked.agg(n=up.sum().fill_null(0)))["n"]:
                    lower = marked.mutate(depth=ibis.ifelse(up, _.depth - 1, _.depth))
                    items = self.engine.keep(lower.select("item", "levels", "kinds", "depth"), "chosen")
                    continue
            named = marked.mutate(intent=ibis.ifelse(_.rare, OTHER, _.intent))
            break
        self.items = self.engine.keep(named.select("item", "levels", "kinds", "intent"), "items")

    def _name(self, items: Any) -> Any:
        import ibis

        parts = items.levels.split(SEPARATOR)
        name = parts[: items.depth].join(PATH) if self.options.level == "path" else parts[items.depth - 1]
        return ibis.ifelse(items.depth > 0, name, ibis.null(str))

    # Result -----------------------------------------------------------------------------------------------------------

    def result(self) -> tuple[Stream, Stream, int]:
        """Compute the streams of both files and the number of items; fill the report's numbers."""
        from ibis import _

        self._choose()
        rows = self.rows
        counts = self._one(
            rows.agg(
                interactions=_.count(), users=_.user.nunique(), items=_.item.nunique(), first=_.time.min(),
                last=_.time.max(), fractions=(_.time % 1 != 0).sum().fill_null(0),
                largest=_.time.abs().max(),
            )
        )  # fmt: skip
        n_rows = self._one(self.items.agg(n=_.count(), kinds=(_.kinds > 1).sum().fill_null(0)))
        per_item = self.engine.keep(rows.group_by("item").agg(n=_.count()), "counts")
        joined = per_item.left_join(self.items, "item").select("item", "n", "intent")
        known = joined.filter(_.intent.notnull()).group_by("intent").agg(items=_.count(), interactions=_.n.sum())
        sizes = self.engine.table(known)
        self.report.numbers = {
            **{key: counts[key] for key in ("interactions", "users", "items", "first", "last")},
            "items_with_several_intents": n_rows["kinds"],
            **intent_numbers(sizes, counts["items"], counts["interactions"]),
        }
        if not self.report.numbers["intents"] and not self.options.without_intents:
            role = "items" if any(file["role"] == "items" for file in self.report.files) else "interactions"
            raise PrepareError(self._nothing(f"no item has an intent in {self._paths(role)}"))
        whole = not counts["fractions"] and counts["largest"] < 2**53
        when = rows.time.cast("int64") if whole else rows.time
        ordered = rows.select("user", "item", "time", "place", when=when).order_by(["user", "time", "place"])
        inter = self.engine.batches(ordered)
        items = self.engine.batches(self.items.select("item", "intent").order_by("item"))
        return (
            Stream((_as(batch, user=USER, item=ITEM, when=TIME) for batch in inter), counts["interactions"]),
            Stream((_as(batch, item=ITEM, intent=INTENT) for batch in items), n_rows["n"]),
            counts["items"],
        )

    # Steps ------------------------------------------------------------------------------------------------------------

    def _one(self, expression: Any) -> dict[str, Any]:
        """The only row of a table."""
        return self.engine.table(expression).to_pylist()[0]

    def _count(self, rows: Any) -> int:
        from ibis import _

        return self._one(rows.agg(n=_.count()))["n"]

    def _keep(self, rows: Any, what: str) -> None:
        self.rows = self.engine.keep(rows, "rows")
        self._step(what, self._count(self.rows))

    def _step(self, what: str, n_rows: int) -> None:
        self.report.steps.append((what, n_rows))
        self.say(f"{what}: {n_rows:,} interactions")
        self.n_rows = n_rows
        if not n_rows and len(self.report.steps) > 1:
            raise PrepareError(self._nothing(f"no interaction is left after: {what}"))

    def _paths(self, role: str) -> str:
        return ", ".join(file["path"] for file in self.report.files if file["role"] == role)

    def _nothing(self, why: str) -> str:
        steps = "; ".join(f"{what}: {n:,}" for what, n in self.report.steps)
        firsts = [fault["first"] for file in self.report.files for fault in file["faults"].values()]
        first = f"; first fault at {firsts[0]}" if firsts else ""
        return f"{why} ({steps}{first}); nothing was written"


def intent_numbers(sizes: pa.Table, n_items: int, n_interactions: int) -> dict[str, Any]:
    """Compute the numbers of intents: how many, how evenly spread, and how much of the data they cover.

    `entropy` is in bits, over interactions; 2**entropy is the number of equally frequent intents that would be as hard
    to guess.

    Args:
        sizes: columns intent, items, interactions.
        n_items: in all.
        n_interactions: in all.
    """
    items, clicks = (sizes.column(name).to_pylist() for name in ("items", "interactions"))
    total = sum(clicks)
    shares = sorted(n / total for n in clicks) if total else []
    return {
        "intents": len(items),
        "entropy": -math.fsum(share * math.log2(share) for share in shares),
        "items_with_intent": sum(items),
        "coverage_items": sum(items) / n_items if n_items else 0.0,
        "coverage_interactions": total / n_interactions if n_interactions else 0.0,
    }


def _as(batch: pa.RecordBatch, **headers: str) -> pa.RecordBatch:
    """Columns of a batch under their header."""
    return pa.RecordBatch.from_arrays([batch.column(name) for name in headers], names=list(headers.values()))
