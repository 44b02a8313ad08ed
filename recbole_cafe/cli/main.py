"""The command `recbole-cafe`, a verb and its arguments; `recbole-cafe help` lists the verbs."""

from __future__ import annotations

import argparse
import logging
import os
import runpy
import select
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_cafe import __version__

USAGE = """\
recbole-cafe COMMAND [ARGUMENTS]      (version {version})

  run [--model=CaFe] [--dataset=amazon] [--key=value ...]
                     train a model of ours or of RecBole's and test it; keys are RecBole's config keys
      --config_files="a.yaml b.yaml"   YAML files of keys; later ones win, the command line wins over all
      --preset=table3/base             settings of a system of props/benchmark/*.yaml
      --result_file=PATH               write the result as JSON
      --nproc=N [--ip= --port= --world_size= --group_offset=]
                                       several processes (RecBole's meaning)
  benchmark NAME|FILE.yaml [--key=value ...]
                     make all runs of a benchmark; started again it goes on; keys go to the systems that know them
      --out=DIR                        default benchmarks/NAME
      --jobs=N --threads=N             processes at a time (1), threads of each (cores / jobs)
      --datasets=a,b --systems=a,b --seeds=1,2 --protocols=full,pop100
                                       instead of all of the file's
      --search=none|grid|tpe --n_trials=N
                                       instead of the file's search of hyper-parameters
      --time_limit=MINUTES             a run that takes longer has failed
      --keep_checkpoints=True          keep the best weights of each run
  report DIR [--test=t|wilcoxon]
                     tables of a benchmark's folder, in DIR/report
  figures DIR        figures of a benchmark's folder, in DIR/figures
  slices DIR [--systems=a,b] [--reference=a] [--data_path=DIR]
                     metrics by the target's frequency, the history's length and its intents, in DIR/slices
  show-config [as run]                 print every key, its value and where it comes from
  list                                 models, data sets, benchmarks and presets
  simulate [--help]                    make a simulated data set of any size
  prepare amazon | tmall | atomic | table [--help]
                                       make a data set from raw files of any size
  check [DATASET | PATH]               whether a data set suits CaFe, with numbers; and the environment
  exec SCRIPT [ARGUMENTS]              run a script of RecBole's with recbole_cafe imported first
"""
# What the launcher takes; everything else is a key of the config.
LAUNCH = {"model": "CaFe", "dataset": "amazon", "config_files": "", "preset": "", "result_file": "", "nproc": "1",
          "ip": "localhost", "port": "5678", "world_size": "-1", "group_offset": "0"}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong usage, 130 after an interruption, 141 if
    nobody reads its output any more.
    """
    try:
        status = _command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("recbole-cafe: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the last line of defence: one line for people, the traceback on request
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141  # as a shell reports a command ended by SIGPIPE: `| head` has seen enough, nothing has failed
        if os.environ.get("RECBOLE_CAFE_TRACEBACK"):
            traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"recbole-cafe: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1


def _command(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(USAGE.format(version=__version__))
        return 0
    if name in ("-V", "--version"):
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"recbole-cafe: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[name](rest)


def _reader_is_gone() -> bool:
    """Whether it is standard output that nobody reads any more; what is left of it then goes nowhere."""
    stdout = sys.stdout.fileno()
    if not hasattr(select, "poll"):  # Windows, where a closed pipe is another error
        return False
    gone = select.poll()
    gone.register(stdout, 0)  # errors are told unasked
    if not gone.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stdout)  # else the interpreter complains when it flushes at its end
    os.close(nowhere)
    return True


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The launcher's arguments, with defaults, and the rest as keyword arguments of `recbole_cafe.run`."""
    from recbole_cafe.cli.arguments import parse_arguments
    from recbole_cafe.config.props import preset, preset_model
    from recbole_cafe.errors import ConfigError

    given = parse_arguments(arguments)
    if "model" not in given and given.get("preset"):
        given["model"] = preset_model(given["preset"])
    launch = {key: given.pop(key, default) for key, default in LAUNCH.items()}
    for key in ("nproc", "world_size", "group_offset"):
        _whole_number(key, launch[key])
    if int(launch["nproc"]) < 1:
        raise ConfigError(f"--nproc={launch['nproc']}: expected at least 1 process")
    return launch, {
        "config_file_list": launch["config_files"].split(),
        "config_dict": preset(launch["preset"]) if launch["preset"] else {},
        "overrides": given,
    }


def _whole_number(key: str, text: str, least: int | None = None) -> int:
    from recbole_cafe.errors import ConfigError

    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"--{key}={text} is not a whole number") from None
    if least is not None and number < least:
        raise ConfigError(f"--{key}={text}: expected at least {least}")
    return number


def run_command(arguments: Sequence[str]) -> int:
    """Train and test."""
    launch, settings = split_arguments(arguments)
    settings["result_file"] = launch["result_file"] or None
    nproc, world_size = int(launch["nproc"]), int(launch["world_size"])
    if nproc == 1 and world_size <= 0:
        from recbole_cafe.experiment import run

        result = run(launch["model"], launch["dataset"], **settings)
    else:
        from recbole_cafe.experiment import run_distributed

        result = run_distributed(
            launch["model"], launch["dataset"], nproc=nproc, world_size=world_size, ip=launch["ip"],
            port=launch["port"], group_offset=int(launch["group_offset"]), **settings,
        )  # fmt: skip
    if result is not None and logging.getLogger().level > logging.INFO:  # else the log has just shown it
        print(result.table())
    return 0


def benchmark_command(arguments: Sequence[str]) -> int:
    """Make the runs of a benchmark; 1 if some failed."""
    from recbole_cafe.benchmark.plan import make_plan
    from recbole_cafe.benchmark.runner import benchmark
    from recbole_cafe.cli.arguments import parse_arguments
    from recbole_cafe.errors import ConfigError

    if not arguments or arguments[0].startswith("--"):
        raise ConfigError("benchmark needs the name of a benchmark or a YAML file; `recbole-cafe list` shows the names")
    name, given = arguments[0], parse_arguments(arguments[1:])
    out, keep = given.pop("out", ""), given.pop("keep_checkpoints", "False")
    if keep not in ("True", "False"):
        raise ConfigError(f"--keep_checkpoints={keep}: expected True or False")
    jobs = _whole_number("jobs", given.pop("jobs", "1"), 0)
    threads = _whole_number("threads", given.pop("threads"), 1) if "threads" in given else None
    time_limit = _whole_number("time_limit", given.pop("time_limit"), 1) if "time_limit" in given else None
    lists = {key: given.pop(key).split(",") for key in ("datasets", "systems", "seeds", "protocols") if key in given}
    if "seeds" in lists:
        lists["seeds"] = [_whole_number("seeds", seed) for seed in lists["seeds"]]
    n_trials = _whole_number("n_trials", given.pop("n_trials"), 1) if "n_trials" in given else None
    plan = make_plan(name, **lists, search=given.pop("search", None), n_trials=n_trials, overrides=given)
    out = Path(out or Path("benchmarks") / plan.name)
    print(f"{plan.title}: {len(plan.cells)} systems x data sets, {plan.n_runs} runs, in {out}")
    ended = benchmark(plan, out, jobs=jobs, threads=threads, keep_checkpoints=keep == "True",
                      time_limit=time_limit, command=["recbole-cafe", "benchmark", *arguments])  # fmt: skip
    print(f"{ended.before} runs were done before, {ended.done} are new, {len(ended.failed)} failed")
    for run, where in ended.failed:
        print(f"  failed: {run}: {where}", file=sys.stderr)
    return 1 if ended.failed else 0


def report_command(arguments: Sequence[str]) -> int:
    """Write the tables of a benchmark."""
    from recbole_cafe.benchmark.report import write
    from recbole_cafe.config.props import props_dir, read_yaml

    out, given = _folder_and_options("report", arguments, {"test": "t"})
    written = write(out, test=given["test"], published=read_yaml(props_dir() / "benchmark" / "published.yaml"),
                    command=["recbole-cafe", "report", *arguments])  # fmt: skip
    print(f"{written[0]} and {len(written) - 1} files beside it")
    return 0


def figures_command(arguments: Sequence[str]) -> int:
    """Draw the figures of a benchmark."""
    from recbole_cafe.benchmark.figures import write

    out, _ = _folder_and_options("figures", arguments, {})
    print("\n".join(map(str, write(out))))
    return 0


def slices_command(arguments: Sequence[str]) -> int:
    """Cut the test users of a benchmark into slices."""
    from recbole_cafe.benchmark.slices import write

    out, given = _folder_and_options("slices", arguments, {"systems": "", "reference": "", "data_path": ""})
    written = write(out, systems=given["systems"].split(",") if given["systems"] else None,
                    reference=given["reference"] or None, data_path=given["data_path"] or None)  # fmt: skip
    print("\n".join(map(str, written)))
    return 0


def _folder_and_options(command: str, arguments: Sequence[str], options: dict[str, str]) -> tuple[Path, dict[str, str]]:
    from recbole_cafe.cli.arguments import parse_arguments
    from recbole_cafe.errors import ConfigError

    if not arguments or arguments[0].startswith("--"):
        raise ConfigError(f"{command} needs the folder of a benchmark")
    given = parse_arguments(arguments[1:])
    if unknown := given.keys() - options.keys():
        raise ConfigError(f"{command}: no option --{min(unknown)}; there are {', '.join(options) or 'none'}")
    return Path(arguments[0]), {**options, **given}


def show_config(arguments: Sequence[str]) -> int:
    """Print the merged configuration."""
    from recbole_cafe.config.config import Config

    launch, settings = split_arguments(arguments)
    config = Config(launch["model"], launch["dataset"], **settings)
    rows = config.described()
    width = max(len(key) for key, _, _ in rows)
    for key, value, source in rows:
        print(f"{key:<{width}} = {value!r}  # {source}")
    return 0


def list_command(arguments: Sequence[str]) -> int:
    """Print what there is."""
    from recbole_cafe.config.props import props_dir, read_yaml
    from recbole_cafe.errors import ConfigError
    from recbole_cafe.files.places import data_folders
    from recbole_cafe.model import MODELS

    if arguments:
        raise ConfigError(f"list takes no arguments, got {' '.join(arguments)}")
    print("models (and RecBole's own sequential and general ones):")
    for name, module in MODELS.items():
        print(f"  {name:<16} {module}  props/model/{name}.yaml")
    print("data sets:")
    found = {"ml-100k": "inside RecBole"}
    for folder in data_folders():
        for path in sorted(folder.glob("*/*.inter")):
            found.setdefault(path.stem, str(path.parent))
    found.setdefault("amazon", "simulated sample, made on first use")
    for name, where in found.items():
        print(f"  {name:<16} {where}")
    benchmarks = {path.stem: read_yaml(path) for path in sorted((props_dir() / "benchmark").glob("*.yaml"))}
    print("benchmarks:")
    for name, content in benchmarks.items():
        if "systems" in content:
            print(f"  {name:<16} {content.get('title', '')}  props/benchmark/{name}.yaml")
    print("presets (--preset=BENCHMARK/SYSTEM):")
    for name, content in benchmarks.items():
        if "systems" in content:
            line = f"{name + '/':<17}{', '.join(content['systems'])}"
            print(textwrap.fill(line, 120, initial_indent="  ", subsequent_indent=" " * 19, break_on_hyphens=False))
    return 0


def simulate(arguments: Sequence[str]) -> int:
    """Make a simulated data set."""
    from recbole_cafe.prepare import simulate as simulator

    parser = argparse.ArgumentParser(prog="recbole-cafe simulate", description=simulator.__doc__)
    simulator.add_arguments(parser)
    return simulator.main(parser.parse_args(list(arguments)))


def prepare(arguments: Sequence[str]) -> int:
    """Make a data set from raw files."""
    from recbole_cafe.cli import prepare as preparation

    parser = argparse.ArgumentParser(prog="recbole-cafe prepare", description=preparation.__doc__)
    preparation.add_arguments(parser)
    return preparation.main(parser.parse_args(list(arguments)), arguments)


def check(arguments: Sequence[str]) -> int:
    """Examine a data set and the environment; 1 if the data set has faults."""
    from recbole_cafe import environment
    from recbole_cafe.files.places import data_folders
    from recbole_cafe.prepare import check as checker

    parser = argparse.ArgumentParser(prog="recbole-cafe check", description=checker.__doc__)
    parser.add_argument("data", nargs="?", help="name or folder of a data set, or its .inter file")
    parser.add_argument("--data_path", type=Path, help="folder of data sets, as for run")
    for name, default in (("intent", "intent"), ("user", "user_id"), ("item", "item_id"), ("time", "timestamp")):
        parser.add_argument(f"--{name}", default=default, metavar="COLUMN", help="default: %(default)s")
    given = parser.parse_args(list(arguments))
    faults = False
    if given.data:
        folders = [given.data_path] if given.data_path else data_folders()
        columns = {name: getattr(given, name) for name in ("intent", "user", "item", "time")}
        found = checker.examine(*checker.locate(given.data, folders), **columns)
        print("\n".join(found.lines()))
        faults = bool(found.faults)
    print("\n".join(environment.lines()))
    return int(faults)


def exec_command(arguments: Sequence[str]) -> int:
    """Run a foreign script as `python SCRIPT ARGUMENTS` would, with our models registered."""
    if not arguments or not Path(arguments[0]).is_file():
        raise FileNotFoundError(f"no script {arguments[0]!r}" if arguments else "exec needs a script: exec SCRIPT ARGS")
    script = str(arguments[0])
    sys.argv = [script, *arguments[1:]]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run_command,
    "benchmark": benchmark_command,
    "report": report_command,
    "figures": figures_command,
    "slices": slices_command,
    "list": list_command,
    "show-config": show_config,
    "simulate": simulate,
    "prepare": prepare,
    "check": check,
    "exec": exec_command,
}

if __name__ == "__main__":
    sys.exit(main())
