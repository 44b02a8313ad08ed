"""Make RecBole's atomic files from the raw files of Amazon or Tmall, from other atomic files, or from any tables."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.atomic_writer import Written, check_target
from recbole_cafe.prepare import fetch
from recbole_cafe.prepare.engine import ENGINES
from recbole_cafe.prepare.pipeline import CORES, DUPLICATES, RARE, Options, Report, prepare
from recbole_cafe.prepare.raw import PrepareError
from recbole_cafe.prepare.report import paper_row, readme
from recbole_cafe.prepare.simulate import MANIFEST, is_simulated
from recbole_cafe.prepare.sources import amazon, atomic, sequences, table, tmall

# Settings for the data sets of arXiv:2204.01839, Table 1. The paper does not say how it filtered; these are ours, and
# the row that a run prints beside the paper's shows how near they come. docs/data.md has the reasons.
PRESETS: dict[str, dict[str, Any]] = {
    "amazon": {"duplicates": "first", "unknown": "drop", "min_user": 20, "users": 131_248},
    "tmall": {"duplicates": "exact", "unknown": "drop", "min_user": 50, "users": 131_086},
}


def add_arguments(add_source: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """The arguments of `recbole-cafe prepare`.

    Args:
        add_source: makes the parser of a source, given its name, a sentence about it, and lines to type.
    """
    one = add_source(
        "amazon", "Amazon's reviews and metadata of 2014, 2018 or 2023.",
        "recbole-cafe prepare amazon --version=2018 --categories Books Toys_and_Games --preset=paper\n"
        "recbole-cafe prepare amazon --reviews reviews_Books.json.gz --metadata meta_Books.json.gz --min-user=5",
    )  # fmt: skip
    one.add_argument("--reviews", nargs="+", metavar="FILE", help="review files, e.g. Books.json.gz")
    one.add_argument("--metadata", nargs="+", metavar="FILE", help="metadata files, e.g. meta_Books.json.gz")
    one.add_argument("--version", choices=fetch.AMAZON, help="of the files named by --categories")
    one.add_argument("--categories", nargs="+", metavar="NAME", help="e.g. Books; in --raw, downloaded if missing")
    one.add_argument("--raw", type=Path, default=Path("raw"), help="folder of downloads (default: %(default)s)")
    one.add_argument("--download", action=argparse.BooleanOptionalAction, default=True, help="default: yes")
    one.add_argument("--intent", default=amazon.CATEGORY,
                     help="category, brand, main (the department) or a column (default: %(default)s)")  # fmt: skip
    _shared(one, "amazon", preset=True)

    one = add_source(
        "tmall", "Alibaba's log of IJCAI-15 (user_log_format1.csv) or IJCAI-16 (ijcai2016_taobao.csv); sellers as "
        "intents.",
        "recbole-cafe prepare tmall --log user_log_format1.csv --preset=paper\n"
        "recbole-cafe prepare tmall --log zip://ijcai2016_taobao.csv::IJCAI16_data.zip --actions=buy",
    )  # fmt: skip
    one.add_argument("--log", nargs="+", metavar="FILE", help="log files; zip://FILE::ARCHIVE.zip reads inside a zip")
    one.add_argument("--intent", choices=tmall.INTENTS, default="seller", help="default: %(default)s")
    one.add_argument("--actions", default=",".join(tmall.ACTIONS), help="which count (default: %(default)s)")
    one.add_argument("--year", type=int, default=2014, help="of the days of IJCAI-15 (default: %(default)s)")
    _shared(one, "tmall", preset=True)

    one = add_source(
        "atomic", "A folder of RecBole's published atomic files; the intent is a column of the .item or the .inter "
        "file.",
        "recbole-cafe prepare atomic --folder=dataset/ml-100k --intent=class --name=ml-by-genre",
    )  # fmt: skip
    one.add_argument("--folder", required=True, help="folder with the .inter and .item files")
    one.add_argument("--intent", required=True, metavar="COLUMN", help="such as seller_id, brand, categories")
    _columns(one, user="user_id", item="item_id", time="timestamp")
    _shared(one, None)

    one = add_source(
        "table", "Any CSV, TSV, JSON lines or Parquet files with named columns, local or a URL that fsspec knows "
        "(s3://..., gs://..., https://...).",
        "recbole-cafe prepare table --name=shop --interactions=sales.parquet --items=products.csv --user=customer "
        "--item=sku --time=sold_at --intent=category\n"
        "recbole-cafe prepare table --name=clicks --interactions s3://bucket/clicks.jsonl --user=u --item=i --time=t "
        "--intent=path --separator=' > ' --level=2",
    )  # fmt: skip
    one.add_argument("--interactions", nargs="+", required=True, metavar="FILE")
    one.add_argument("--items", nargs="+", metavar="FILE", help="default: the interactions have the intent too")
    one.add_argument("--intent", required=True, metavar="COLUMN")
    _columns(one, user=None, item=None, time=None)
    one.add_argument("--items-item", metavar="COLUMN", help="the item in --items (default: as --item)")
    one.add_argument("--format", choices=table.FORMATS, help="default: by the name's ending")
    _shared(one, None)

    one = add_source(
        "sequences", "Text files with a line for each user, 'user item item ...' in order, as S3-Rec's Beauty, Sports, "
        "Toys and Yelp are passed around; attributes of the items as JSON; times or gaps in a file of the same lines.",
        "recbole-cafe prepare sequences --name=beauty --sequences=Beauty.txt --attributes=Beauty_item2attributes.json\n"
        "recbole-cafe prepare sequences --name=beauty --sequences=Beauty.txt --attributes=Beauty_item2attributes.json "
        "--gaps=Beauty_gaps.txt --unit=day",
    )  # fmt: skip
    one.add_argument("--sequences", required=True, metavar="FILE", help="user item item ..., a line a user")
    one.add_argument("--attributes", metavar="FILE", help="JSON object, item -> list of attributes; without it the "
                     "items have no intent")  # fmt: skip
    one.add_argument("--intent", choices=sequences.CHOICES, default="last",
                     help="which attributes; path: all, coarse to fine (default: %(default)s)")  # fmt: skip
    when = one.add_mutually_exclusive_group()
    when.add_argument(
        "--times", metavar="FILE", help="user time time ..., the lines of --sequences; default: positions"
    )
    when.add_argument("--gaps", metavar="FILE", help="the same with the time since the item before")
    one.add_argument("--unit", choices=sequences.UNITS, default="s", help="of times and gaps (default: %(default)s)")
    _shared(one, None)


def _columns(parser: argparse.ArgumentParser, **defaults: str | None) -> None:
    for name, default in defaults.items():
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(
            f"--{name}", required=default is None, default=default, metavar="COLUMN", help=f"of the {name}{shown}"
        )
    parser.add_argument("--rating", metavar="COLUMN", help="of the rating, for --min-rating")
    parser.add_argument("--time-format", default="auto", metavar="FORMAT",
                        help="auto (numbers, ISO 8601), s, ms, us, or a pattern like %%d.%%m.%%Y")  # fmt: skip
    parser.add_argument("--separator", help="between the levels inside an intent, most general first, e.g. ' > '")


def _shared(parser: argparse.ArgumentParser, name: str | None, preset: bool = False) -> None:
    parser.add_argument(
        "--name",
        required=name is None,
        default=name,
        help="of the data set" + (" (default: %(default)s)" if name else ""),
    )
    parser.add_argument("--out", default="dataset_atomic", help="folder of data sets (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="replace a data set of that name")
    parser.add_argument("--strict", action="store_true", help="stop at the first fault of a raw file")
    choice = parser.add_argument_group("what is kept")
    if preset:
        choice.add_argument("--preset", choices=["paper"], help="start from settings meant for the paper's Table 1")
    else:
        parser.set_defaults(preset=None)
    choice.add_argument("--level", help="of the intent: leaf, path, or a depth from 1 (default: leaf)")
    choice.add_argument("--min-intent", type=int, metavar="N", help="intents of fewer items are rare (default: 1)")
    choice.add_argument(
        "--rare", choices=RARE, help="what becomes of them: parent category, one intent, none (default: parent)"
    )
    choice.add_argument("--unknown", choices=("keep", "drop"), help="items without an intent (default: keep)")
    choice.add_argument("--min-user", type=int, metavar="N", help="fewest interactions of a user (default: 1)")
    choice.add_argument("--min-item", type=int, metavar="N", help="fewest interactions of an item (default: 1)")
    choice.add_argument(
        "--core",
        choices=CORES,
        help="how the two are applied: items then users, or until nothing changes (default: once)",
    )
    choice.add_argument("--duplicates", choices=DUPLICATES,
                        help="exact: user, item, time once; first, last: user, item once (default: exact)")  # fmt: skip
    choice.add_argument("--min-rating", type=float, metavar="R")
    choice.add_argument("--after", metavar="TIME", help="first to keep: 2016-01-31 or seconds since 1970")
    choice.add_argument("--before", metavar="TIME", help="first to leave out")
    choice.add_argument("--users", type=int, metavar="N", help="at most N users, chosen by the MD5 of their id")
    where = parser.add_argument_group("where it runs")
    where.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="default: %(default)s")
    where.add_argument("--memory", default="2GB", help="of the engine (default: %(default)s)")
    where.add_argument("--threads", type=int, default=_cores(), help="default: %(default)s")
    where.add_argument("--work", help="folder for intermediate files (default: beside the data set)")
    where.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty(),
                       help="bars on stderr (default: on a terminal)")  # fmt: skip


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(args: argparse.Namespace, command: Sequence[str] = ()) -> int:
    """Run `recbole-cafe prepare`.

    Returns:
        0, when the data set is written.

    Raises:
        ConfigError, PrepareError, AtomicFileError, OutputError, MachineError: nothing was written.
    """
    try:
        written, report = run(args, command)
    except pa.ArrowException as error:
        raise PrepareError(f"{args.name}: {' '.join(str(error).split())}") from error  # Arrow's may have several lines
    numbers = report.numbers
    print(
        f"{Path(args.out) / args.name}: {written.users:,} users, {written.items:,} items, "
        f"{numbers['intents']:,} intents, {written.interactions:,} interactions "
        f"({written.interactions / written.items:.2f} per item) in "
        f"{report.seconds:.1f} s; {report.faults:,} rows of the raw files left out"
    )
    if row := paper_row(args.source, written, report):
        print(row)
    return 0


def run(args: argparse.Namespace, command: Sequence[str] = ()) -> tuple[Written, Report]:
    """Prepare what the arguments say.

    Raises:
        ConfigError, PrepareError, AtomicFileError, OutputError, MachineError: nothing was written.
    """
    folder = Path(args.out) / args.name
    options = _options(args)
    replace, old_files = args.replace, []
    if is_simulated(folder) is not None:
        old_files.append(MANIFEST)
        if args.name == "amazon" and not replace:
            print(f"{folder}: holds the simulated sample, which the real data replace", file=sys.stderr)
            replace = True
    check_target(folder, args.name, old_files, replace)  # before a long download
    tasks = TASKS[args.source](args)
    shown = "recbole-cafe prepare " + " ".join(map(shlex.quote, command))
    return prepare(
        folder, args.name, tasks, options,
        readme=lambda report, written: readme(args.source, shown, options, report, written),
        engine=args.engine, memory=args.memory, threads=args.threads, work=args.work, replace=replace,
        old_files=old_files, show_progress=args.progress,
    )  # fmt: skip


def _options(args: argparse.Namespace) -> Options:
    """The pipeline's options: the preset's, then those given."""
    names = (
        "level",
        "min_intent",
        "rare",
        "unknown",
        "min_user",
        "min_item",
        "core",
        "duplicates",
        "min_rating",
        "users",
    )
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for name in ("after", "before"):
        if (text := getattr(args, name)) is not None:
            seconds = table.reader_of_times("auto")(text)
            if seconds is None:
                raise ConfigError(f"--{name}={text}: expected a date such as 2016-01-31, or seconds since 1970")
            given[name] = seconds
    if args.min_rating is not None and args.source in ("table", "atomic") and not args.rating:
        raise ConfigError("--min-rating needs --rating, the column of the rating")
    if args.min_rating is not None and args.source == "sequences":
        raise ConfigError("--min-rating: sequences have no ratings")
    if args.min_rating is not None and args.source == "tmall":
        raise ConfigError(
            "--min-rating: a log of Tmall has no ratings; --actions=buy,cart,favourite chooses among actions"
        )
    base = PRESETS[args.source] if args.preset else {}
    without = args.source == "sequences" and args.attributes is None
    return Options(**base | given, strict=args.strict, without_intents=without)


# The raw files --------------------------------------------------------------------------------------------------------


def _task(source: str, role: str, path: str, **options: Any) -> dict[str, Any]:
    return {"source": source, "role": role, "path": path, "options": options}


def _amazon(args: argparse.Namespace) -> list[dict[str, Any]]:
    reviews, metadata = args.reviews or [], args.metadata or []
    if args.categories and args.version:
        more = fetch.amazon(args.version, args.categories, args.raw / f"amazon-{args.version}", download=args.download,
                            show=args.progress)  # fmt: skip
        reviews, metadata = [*reviews, *more[0]], [*metadata, *more[1]]
    if not reviews or not metadata:
        pages = ", ".join(f"{version}: {release.page}" for version, release in fetch.AMAZON.items())
        raise ConfigError(f"give --version and --categories, or --reviews and --metadata with files from {pages}")
    return [_task("amazon", "interactions", path, intent=args.intent) for path in reviews] + [
        _task("amazon", "items", path, intent=args.intent) for path in metadata
    ]


def _tmall(args: argparse.Namespace) -> list[dict[str, Any]]:
    actions = args.actions.split(",")
    if unknown := [action for action in actions if action not in tmall.ACTIONS]:
        raise ConfigError(f"--actions: {unknown[0]!r} is none of {', '.join(tmall.ACTIONS)}")
    if not args.log:
        raise ConfigError(fetch.tmall_by_hand())
    return [
        _task("tmall", "interactions", path, intent=args.intent, actions=actions, year=args.year) for path in args.log
    ]


def _atomic(args: argparse.Namespace) -> list[dict[str, Any]]:
    inter, item, is_list = atomic.files_of(args.folder, args.intent)
    separator = args.separator or (" " if is_list else None)
    return _tables(args, "atomic", inter, item, args.item, "atomic", separator)


def _table(args: argparse.Namespace) -> list[dict[str, Any]]:
    for path in (*args.interactions, *(args.items or ())):
        table.format_of(path, args.format)  # before anything is read
    return _tables(
        args, "table", args.interactions, args.items or [], args.items_item or args.item, args.format, args.separator
    )


def _tables(args: argparse.Namespace, source: str, inter: Sequence[str], item: Sequence[str], item_column: str,
            form: str | None, separator: str | None) -> list[dict[str, Any]]:  # fmt: skip
    _check_pattern(args.time_format)
    columns = {"user": args.user, "item": args.item, "time": args.time}
    columns |= {"rating": args.rating} if args.rating else {}
    columns |= {} if item else {"intent": args.intent}
    shared = {"format": form, "time_format": args.time_format, "separator": separator}
    described = {"item": item_column, "intent": args.intent}
    return [_task(source, "interactions", path, columns=columns, **shared) for path in inter] + [
        _task(source, "items", path, columns=described, **shared) for path in item
    ]


def _check_pattern(form: str) -> None:
    if form in ("auto", "s", "ms", "us"):
        return
    now = datetime.datetime(2020, 2, 29)
    if "%" not in form or now.strftime(form) == form:
        raise ConfigError(f"--time-format={form}: expected auto, s, ms, us or a pattern such as %d.%m.%Y")


def _sequences(args: argparse.Namespace) -> list[dict[str, Any]]:
    times = {"times": args.times or args.gaps, "gaps": args.gaps is not None, "unit": args.unit}
    tasks = [_task("sequences", "interactions", args.sequences, **times)]
    if args.attributes is not None:
        tasks.append(_task("sequences", "items", args.attributes, intent=args.intent))
    return tasks


TASKS = {"amazon": _amazon, "tmall": _tmall, "atomic": _atomic, "table": _table, "sequences": _sequences}
