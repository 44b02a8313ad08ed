"""The command `recbole-cafe`: run | list | show-config | simulate | prepare | check | exec."""

from __future__ import annotations

import argparse
import logging
import os
import runpy
import sys
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
  show-config [as run]                 print every key, its value and where it comes from
  list                                 models, data sets and presets
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
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
    try:
        return COMMANDS[name](rest)
    except KeyboardInterrupt:
        print("recbole-cafe: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the last line of defence: one line for people, the traceback on request
        if os.environ.get("RECBOLE_CAFE_TRACEBACK"):
            traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"recbole-cafe: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The launcher's arguments, with defaults, and the rest as keyword arguments of `recbole_cafe.run`."""
    from recbole_cafe.config import ConfigError, parse_arguments, preset

    given = parse_arguments(arguments)
    launch = {key: given.pop(key, default) for key, default in LAUNCH.items()}
    for key in ("nproc", "world_size", "group_offset"):
        try:
            int(launch[key])
        except ValueError:
            raise ConfigError(f"--{key}={launch[key]} is not a whole number") from None
    if int(launch["nproc"]) < 1:
        raise ConfigError(f"--nproc={launch['nproc']}: expected at least 1 process")
    return launch, {
        "config_file_list": launch["config_files"].split(),
        "config_dict": preset(launch["preset"]) if launch["preset"] else {},
        "overrides": given,
    }


def run_command(arguments: Sequence[str]) -> int:
    """Train and test."""
    launch, settings = split_arguments(arguments)
    settings["result_file"] = launch["result_file"] or None
    nproc, world_size = int(launch["nproc"]), int(launch["world_size"])
    if nproc == 1 and world_size <= 0:
        from recbole_cafe.quick_start import run

        result = run(launch["model"], launch["dataset"], **settings)
    else:
        from recbole_cafe.quick_start import run_distributed

        result = run_distributed(
            launch["model"], launch["dataset"], nproc=nproc, world_size=world_size, ip=launch["ip"],
            port=launch["port"], group_offset=int(launch["group_offset"]), **settings,
        )  # fmt: skip
    if result is not None and logging.getLogger().level > logging.INFO:  # else the log has just shown it
        print(result.table())
    return 0


def show_config(arguments: Sequence[str]) -> int:
    """Print the merged configuration."""
    from recbole_cafe.config import Config

    launch, settings = split_arguments(arguments)
    config = Config(launch["model"], launch["dataset"], **settings)
    rows = config.described()
    width = max(len(key) for key, _, _ in rows)
    for key, value, source in rows:
        print(f"{key:<{width}} = {value!r}  # {source}")
    return 0


def list_command(arguments: Sequence[str]) -> int:
    """Print what there is."""
    from recbole_cafe.config import ConfigError, data_folders, props_dir, read_yaml
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
    print("presets:")
    for path in sorted((props_dir() / "benchmark").glob("*.yaml")):
        for system in read_yaml(path).get("systems", {}):
            print(f"  {path.stem}/{system}")
    return 0


def simulate(arguments: Sequence[str]) -> int:
    """Make a simulated data set."""
    from recbole_cafe.data import simulate as simulator

    parser = argparse.ArgumentParser(prog="recbole-cafe simulate", description=simulator.__doc__)
    simulator.add_arguments(parser)
    return simulator.main(parser.parse_args(list(arguments)))


def prepare(arguments: Sequence[str]) -> int:
    """Make a data set from raw files."""
    from recbole_cafe.data.prepare import cli as preparation

    parser = argparse.ArgumentParser(prog="recbole-cafe prepare", description=preparation.__doc__)
    preparation.add_arguments(parser)
    return preparation.main(parser.parse_args(list(arguments)), arguments)


def check(arguments: Sequence[str]) -> int:
    """Examine a data set and the environment; 1 if the data set has faults."""
    from recbole_cafe import environment
    from recbole_cafe.config import data_folders
    from recbole_cafe.data.prepare import check as checker

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
    "list": list_command,
    "show-config": show_config,
    "simulate": simulate,
    "prepare": prepare,
    "check": check,
    "exec": exec_command,
}

if __name__ == "__main__":
    sys.exit(main())
