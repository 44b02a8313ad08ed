"""`recbole-cafe run`, `show-config` and `exec`: train a model, look at its keys, run somebody else's script."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_cafe.cli.arguments import Once, Verbs, add_verb, at_least, named, parse_arguments
from recbole_cafe.cli.closing import closing
from recbole_cafe.config.props import preset, preset_model
from recbole_cafe.errors import OF_THE_USER, UsageError
from recbole_cafe.files.result import Result
from recbole_cafe.processes import place_here

VERBS = ("run", "show-config", "exec")


def add_to(verbs: Verbs, chosen: str) -> None:  # noqa: ARG001
    """Add the verbs of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    for name, handler, summary, examples in (
        ("run", run_command, "Train a model of ours or of RecBole's and test it.",
         "recbole-cafe run --model=CaFe --dataset=amazon --result_file=result.json\n"
         "recbole-cafe run --model=SASRec --dataset=ml-100k --epochs=5 --eval_mode=\"['full','pop100']\"\n"
         "recbole-cafe run --preset=table3/base --dataset=ml-100k\n"
         "recbole-cafe run --final_from=result.json"),
        ("show-config", show_config, "Print every key of a run, its value and where it comes from.",
         "recbole-cafe show-config --model=CaFePlus --dataset=ml-100k"),
    ):  # fmt: skip
        parser = add_verb(verbs, name, handler, summary=summary, examples=examples, keys=True)
        _add_options(parser)
        if name == "run":
            parser.add_argument("--quiet", action="store_true",
                                help="show warnings and the result; the log file keeps the rest")  # fmt: skip
    parser = add_verb(
        verbs, "exec", exec_command, summary="Run a script of RecBole's with our models known to it.",
        examples="recbole-cafe exec run_recbole_group.py --model_list=CaFe,SASRec --dataset=ml-100k",
    )  # fmt: skip
    parser.add_argument("script", help="the script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")


def _add_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, default: object, text: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", default=default, action=Once, help=text, **options)

    add("model", None, "of ours or of RecBole's (default: CaFe, or that of the preset or of final_from)", type=named)
    add("dataset", None, "name of a folder of atomic files (default: amazon, or that of final_from)", type=named)
    add("config_files", "", "YAML files of keys, separated by spaces; later ones win, the command line over all")
    add("preset", "", "settings of a system of a benchmark file, BENCHMARK/SYSTEM; see `recbole-cafe list`")
    add("result_file", None, "write the result there, as JSON")
    add("export", None, "afterwards, write the model as a bundle to this folder; see `recbole-cafe help export`")
    add("nproc", 1, "processes on this machine (default: %(default)s), a short form of torchrun", type=at_least(1))
    add("max_restarts", 0, "of nproc: how often lost processes are started again (default: never)", type=at_least(0))
    add("world_size", -1, "processes on all machines; -1 for nproc", type=at_least(-1))
    add("group_offset", 0, "rank of this machine's first process", type=at_least(0))
    add("ip", "localhost", "of the first machine")
    add("port", "0", "of the first machine; 0: any, on one machine")


def settings_of(given: argparse.Namespace, rest: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """The model, the data set, and the keyword arguments of `recbole_cafe.run` for its config.

    Args:
        given: the options.
        rest: `--key=value` arguments.

    Raises:
        UsageError: an argument of another form.
        ConfigError: no such preset.
        DataError: `final_from` names no readable result file.
    """
    overrides = parse_arguments(rest)
    model, dataset = "CaFe", "amazon"
    if path := overrides.get("final_from"):
        result = Result.load(path)
        model, dataset = result.model, result.dataset
    model = given.model or (preset_model(given.preset) if given.preset else model)
    return (
        model,
        given.dataset or dataset,
        {
            "config_file_list": given.config_files.split(),
            "config_dict": preset(given.preset) if given.preset else {},
            "overrides": overrides,
        },
    )


def run_command(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train and test."""
    model, dataset, settings = settings_of(given, rest)
    from recbole_cafe.experiment import run, run_distributed

    settings |= {"result_file": given.result_file, "quiet": given.quiet}
    if given.export:
        from recbole_cafe.export import check_export

        check_export(model, given.export)  # now, not after hours of training
    place = place_here()
    if place is not None and (given.nproc > 1 or given.world_size > 0):
        raise UsageError(f"nproc={given.nproc}, world_size={given.world_size}: this is already process {place.rank} of "
                         f"{place.world_size}, started by torchrun or srun")  # fmt: skip
    if place is not None or (given.nproc == 1 and given.world_size <= 0 and not given.max_restarts):
        result = run(model, dataset, **settings)
        if place is not None and place.rank > 0:  # one voice is enough
            return 0
    else:
        distributed = run_distributed(
            model, dataset, nproc=given.nproc, world_size=given.world_size, ip=given.ip, port=given.port,
            group_offset=given.group_offset, max_restarts=given.max_restarts, **settings,
        )  # fmt: skip
        if distributed is None:  # another machine runs process 0
            return 0
        result = distributed
    if given.export:
        from recbole_cafe.export import export

        export(result.checkpoint, given.export, result=result)
    if given.quiet or logging.getLogger().level > logging.INFO:  # else the log has just shown it
        print(result.table())
    print("\n".join(closing(result, given.result_file, given.export)))
    return 0


def show_config(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the merged configuration."""
    model, dataset, settings = settings_of(given, rest)
    from recbole_cafe.config.config import Config

    rows = Config(model, dataset, **settings).described()
    width = max(len(key) for key, _, _ in rows)
    for key, value, source in rows:
        print(f"{key:<{width}} = {value!r}  # {source}")
    return 0


def exec_command(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a foreign script as `python SCRIPT ARGUMENTS` would, with our models registered.

    Raises:
        UsageError: there is no such script.
    """
    script = Path(given.script)
    if not script.is_file():
        raise UsageError(f"exec: no script {given.script!r}")
    import recbole_cafe

    recbole_cafe.install()
    sys.argv = [given.script, *rest, *given.arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(given.script, run_name="__main__")
    except (*OF_THE_USER, BrokenPipeError):
        raise
    except Exception:  # of the script: said as Python says it, since it is no bug of ours
        traceback.print_exc()
        return 1
    return 0
