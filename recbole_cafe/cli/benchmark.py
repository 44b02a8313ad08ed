"""`recbole-cafe benchmark`, `benchmark pack`, `report`, `figures` and `slices`: compare models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_cafe.benchmark.layout import ENGINES, SAMPLERS, TESTS
from recbole_cafe.cli.arguments import Once, Verbs, add_verb, at_least, listed, numbers, parse_arguments, share
from recbole_cafe.errors import UsageError

if TYPE_CHECKING:
    from recbole_cafe.benchmark.engines import Engine

VERBS = ("benchmark", "benchmark pack", "report", "figures", "slices")
SWITCH = {"True": True, "False": False}


def add_to(verbs: Verbs, chosen: str) -> None:  # noqa: ARG001
    """Add the verbs of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "benchmark", benchmark_command, keys=True,
        summary="Make all runs of a benchmark; started again it goes on.",
        examples="recbole-cafe benchmark quick --jobs=2\n"
                 "recbole-cafe benchmark table2 --datasets=ml-100k --systems=CaFe,SASRec --seeds=2020,2021\n"
                 "recbole-cafe benchmark pack runs/quick",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME|FILE.yaml", help="see `recbole-cafe list`")
    parser.add_argument("--out", type=Path, action=Once, help="folder of the runs (default: runs/NAME)")
    parser.add_argument("--engine", choices=ENGINES, default="local", action=Once,
                        help="who makes the runs: this machine or a Ray cluster (default: %(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=at_least(0), action=Once,
                        help="runs at a time; 0 for one in this very process, for debugging (default: 1; ray: as many "
                             "as there is room for)")  # fmt: skip
    parser.add_argument("--threads", type=at_least(1), action=Once,
                        help="of each run (default: cores / jobs; ray: 1)")  # fmt: skip
    parser.add_argument("--address", action=Once, metavar="auto|HOST:PORT",
                        help="ray: a running cluster (default: one is started here, and ended)")  # fmt: skip
    parser.add_argument("--gpus", type=share, action=Once, metavar="SHARE", help="ray: GPUs of each run, such as 0.5")
    parser.add_argument("--datasets", type=listed, action=Once, metavar="a,b", help="instead of the file's")
    parser.add_argument("--systems", type=listed, action=Once, metavar="a,b", help="instead of all of the file's")
    parser.add_argument("--seeds", type=numbers, action=Once, metavar="1,2", help="instead of the file's")
    parser.add_argument("--protocols", type=listed, action=Once, metavar="full,pop100", help="instead of the file's")
    parser.add_argument("--search", choices=("none", *SAMPLERS), action=Once, help="instead of the file's search")
    parser.add_argument("--n_trials", type=at_least(1), action=Once, help="most points of a search")
    parser.add_argument("--time_limit", type=at_least(1), action=Once, metavar="MINUTES",
                        help="a run that takes longer has failed")  # fmt: skip
    parser.add_argument("--keep_checkpoints", choices=SWITCH, default="False", action=Once,
                        help="keep the best weights of each run (default: %(default)s)")  # fmt: skip

    parser = add_verb(
        verbs, "benchmark pack", pack_command,
        summary="Put the runs of a folder into two files, for keeping.",
        examples="recbole-cafe benchmark pack runs/quick --out=results/quick",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder of a benchmark")
    parser.add_argument("--out", type=Path, help="where the files go (default: the folder itself)")

    parser = add_verb(
        verbs, "report", report_command, summary="Write the tables of a benchmark's folder, in FOLDER/report.",
        examples="recbole-cafe report runs/quick --test=wilcoxon",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder of a benchmark")
    parser.add_argument("--test", choices=TESTS, default="t", help="paired test over users (default: %(default)s)")

    parser = add_verb(
        verbs, "figures", figures_command,
        summary="Draw the figures of a benchmark's folder, in FOLDER/figures; or what one run has learned, beside it.",
        examples="recbole-cafe figures runs/figure4\n"
                 "recbole-cafe figures --curve result.json\n"
                 "recbole-cafe figures --attention saved/CaFe-ml-100k-....pth saved/CaFe-amazon-....pth\n"
                 "recbole-cafe figures --items saved/CaFe-ml-100k-....pth",
    )  # fmt: skip
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("folder", type=Path, nargs="?", help="folder of a benchmark")
    text = "what the first layers of CaFe, CaFePlus or SAIR attend to, mean over the test users; several on one scale"
    of.add_argument("--attention", type=Path, nargs="+", metavar="CHECKPOINT", help=text)
    text = "t-SNE of the item vectors of CaFe, CaFePlus or SAIR, and how they agree with intents"
    of.add_argument("--items", type=Path, metavar="CHECKPOINT", help=text)
    of.add_argument("--curve", type=Path, metavar="RESULT.json", help="loss and validation of a run, epoch by epoch")

    parser = add_verb(
        verbs, "slices", slices_command,
        summary="Show where a system wins: by the target's frequency, the history's length and its intents.",
        examples="recbole-cafe slices runs/quick --systems=CaFe,SASRec --reference=CaFe",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder of a benchmark")
    parser.add_argument("--systems", type=listed, metavar="a,b", help="default: ours and the best others")
    parser.add_argument("--reference", help="the system that others are compared with")
    parser.add_argument("--data_path", help="folder of data sets, if it has moved since")


def benchmark_command(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make the runs of a benchmark; 1 if some failed."""
    keys = parse_arguments(rest)
    engine = _engine(given)
    from recbole_cafe.benchmark.plan import make_plan
    from recbole_cafe.benchmark.runner import benchmark

    plan = make_plan(
        given.name, datasets=given.datasets, systems=given.systems, seeds=given.seeds, protocols=given.protocols,
        search=given.search, n_trials=given.n_trials, overrides=keys,
    )  # fmt: skip
    out = given.out or Path("runs") / plan.name
    print(f"{plan.title}: {len(plan.cells)} systems x data sets, {plan.n_runs} runs, in {out}")
    ended = benchmark(plan, out, engine, keep_checkpoints=SWITCH[given.keep_checkpoints], command=given.command)
    print(f"{ended.before} runs were done before, {ended.done} are new, {len(ended.failed)} failed")
    for run, where in ended.failed:
        print(f"  failed: {run}: {where}", file=sys.stderr)
    return 1 if ended.failed else 0


def _engine(given: argparse.Namespace) -> Engine:
    if given.engine == "ray":
        from recbole_cafe.benchmark.on_ray import Ray

        return Ray(given.address, jobs=given.jobs, threads=given.threads, gpus=given.gpus, time_limit=given.time_limit)
    for option in ("address", "gpus"):
        if getattr(given, option) is not None:
            raise UsageError(f"--{option} is for --engine=ray")
    from recbole_cafe.benchmark.engines import Local

    jobs = 1 if given.jobs is None else given.jobs
    return Local(jobs, given.threads, given.time_limit)


def pack_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Pack a folder."""
    from recbole_cafe.benchmark.packed import pack

    print(pack(given.folder, given.out))
    return 0


def report_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Write the tables of a benchmark."""
    from recbole_cafe.benchmark.report import write
    from recbole_cafe.config.props import props_dir, read_yaml

    published = read_yaml(props_dir() / "benchmark" / "published.yaml")
    written = write(given.folder, test=given.test, published=published, command=given.command)
    print(f"{written[1]}, {written[0].name} and {len(written) - 2} files beside them")
    return 0


def figures_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Draw the figures of a benchmark."""
    if given.attention or given.items:
        from recbole_cafe.benchmark import inside

        written = inside.write_attention(given.attention) if given.attention else inside.write_items(given.items)
    else:
        from recbole_cafe.benchmark.figures import write, write_curve

        written = write_curve(given.curve) if given.curve else write(given.folder)
    print("\n".join(map(str, written)))
    return 0


def slices_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Cut the test users of a benchmark into slices."""
    from recbole_cafe.benchmark.slices import write

    written = write(given.folder, systems=given.systems, reference=given.reference, data_path=given.data_path)
    print("\n".join(map(str, written)))
    return 0
