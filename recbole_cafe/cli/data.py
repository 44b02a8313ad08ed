"""`recbole-cafe list`, `check` and `simulate`: what there is, whether it suits, and data to try things on."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recbole_cafe.cli.arguments import Verbs, add_verb
from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.errors import ConfigError, UsageError
from recbole_cafe.files.places import data_folders
from recbole_cafe.host.registry import recboles_own

VERBS = ("list", "check", "simulate")
KINDS = ("sequential", "general")  # RecBole's folders of models that run through us
# Models in them that want other data than rows of user, history and target: a knowledge graph, columns of negatives or
# a file of pre-training
OTHER_DATA = frozenset(["GRU4RecKG", "KSR", "DIEN", "S3Rec"])


def add_to(verbs: Verbs, chosen: str) -> None:
    """Add the verbs of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    add_verb(
        verbs, "list", list_command, summary="Print the models, data sets, benchmarks and presets there are.",
        examples="recbole-cafe list",
    )  # fmt: skip
    parser = add_verb(
        verbs, "check", check_command,
        summary="Say with numbers whether a data set suits CaFe, and what the environment is.",
        examples="recbole-cafe check\nrecbole-cafe check shop --data_path=dataset\n"
        "recbole-cafe check shop --intent=auto",
    )  # fmt: skip
    parser.add_argument("data", nargs="?", help="name or folder of a data set, or its .inter file")
    parser.add_argument("--data_path", type=Path, help="folder of data sets, as for run")
    parser.add_argument("--intent", metavar="COLUMN", help="default: what props/dataset/NAME.yaml says, else intent")
    for name, default in (("user", "user_id"), ("item", "item_id"), ("time", "timestamp")):
        parser.add_argument(f"--{name}", default=default, metavar="COLUMN", help="default: %(default)s")
    parser.add_argument("--encoding", default="utf-8", help="of the files, as for run (default: %(default)s)")
    parser.add_argument("--field_separator", default="\t", help="between columns, as for run (default: a tab)")
    parser.add_argument("--seq_separator", default=" ", help="inside lists, as for run (default: a space)")
    parser = add_verb(
        verbs, "simulate", simulate_command, summary="Make a simulated data set of any size.",
        examples="recbole-cafe simulate --name=mine --users=2000 --items=5000 --intents=50 --interactions=20000",
    )  # fmt: skip
    if chosen == "simulate":
        _add_shape(parser)


def list_command(_given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Print what there is."""
    from recbole_cafe.model import MODELS

    print("models:")
    for name, net in MODELS.items():
        print(f"  {name:<16} {net}  props/model/{name}.yaml")
    print("models of RecBole's that run under the same protocol:")
    for kind in KINDS:
        print(_wrapped(kind, [name for name in recboles_own(kind) if name not in OTHER_DATA]))
    print("data sets:")
    places = {"ml-100k": "inside RecBole"}
    for folder in data_folders():
        for path in sorted(folder.glob("*/*.inter")):
            places.setdefault(path.stem, str(path.parent))
    places.setdefault("amazon", "simulated sample, made on first use")
    for name, where in places.items():
        print(f"  {name:<16} {where}")
    benchmarks = {path.stem: read_yaml(path) for path in sorted((props_dir() / "benchmark").glob("*.yaml"))}
    print("benchmarks:")
    for name, content in benchmarks.items():
        if "systems" in content:
            print(f"  {name:<16} {content.get('title', '')}  props/benchmark/{name}.yaml")
    print("presets (--preset=BENCHMARK/SYSTEM):")
    for name, content in benchmarks.items():
        if "systems" in content:
            print(_wrapped(f"{name}/", content["systems"]))
    return 0


def _wrapped(title: str, names: Sequence[str]) -> str:
    line = f"{title:<17}{', '.join(names)}"
    return textwrap.fill(line, 120, initial_indent="  ", subsequent_indent=" " * 19, break_on_hyphens=False)


def _intent_of(data: str) -> str:
    """The column that a run takes for the intent if it is not told."""
    path = props_dir() / "dataset" / f"{data}.yaml"
    return str((read_yaml(path) if path.is_file() else {}).get("INTENT_FIELD", "intent"))


def _shipped_data() -> list[Path]:
    """Where RecBole has the ml-100k that comes with it; nothing without RecBole."""
    found = importlib.util.find_spec("recbole")  # not imported: that takes seconds
    places = found.submodule_search_locations if found else None
    return [Path(place) / "dataset_example" for place in places or ()]


def check_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Examine a data set and the environment; 1 if the data set has faults."""
    from recbole_cafe import environment
    from recbole_cafe.files.atomic import TextFormat
    from recbole_cafe.prepare import check

    has_faults = False
    if given.data:
        folders = [given.data_path] if given.data_path else [*data_folders(), *_shipped_data()]
        intent = given.intent or _intent_of(given.data)
        columns = {"intent": intent, "user": given.user, "item": given.item, "time": given.time}
        text = TextFormat(given.encoding, given.field_separator, given.seq_separator)
        folder, name = check.locate(given.data, folders)
        make = partial(_made_intents, folder, name, given) if intent == "auto" else None
        findings = check.examine(folder, name, **columns, text=text, make=make)
        print("\n".join(findings.lines()))
        has_faults = bool(findings.faults)
    print("\n".join(environment.lines()))
    return int(has_faults)


def _made_intents(folder: Path, name: str, given: argparse.Namespace) -> tuple[Any, str]:
    """Intent of each item as a run with ``INTENT_FIELD: auto`` makes it, and a sentence on how.

    Raises:
        ConfigError, DataError: the files cannot be loaded, or no intents made of them.
    """
    import numpy as np
    import pandas as pd

    from recbole_cafe.config.config import AUTO, Config
    from recbole_cafe.data.auto_intents import told
    from recbole_cafe.experiment import create_dataset

    if folder.name != name:
        raise ConfigError(f"--intent=auto loads the data set as a run does, from a folder of its name: {folder} should "
                          f"be named {name}")  # fmt: skip
    with tempfile.TemporaryDirectory() as kept:
        settings = {
            "data_path": str(folder.parent), "INTENT_FIELD": AUTO, "intents_dir": kept, "load_col": None,
            "USER_ID_FIELD": given.user, "ITEM_ID_FIELD": given.item, "TIME_FIELD": given.time,
            "encoding": given.encoding, "field_separator": given.field_separator, "seq_separator": given.seq_separator,
        }  # fmt: skip
        dataset = create_dataset(Config("IntentBackoff", name, config_dict=settings))
        dataset.build()
    intent, tokens = dataset.item_feat[AUTO].numpy()[1:], dataset.field2id_token[given.item][1:]
    names = np.where(intent > 0, dataset.field2id_token[AUTO][intent], None)
    return pd.Series(names, index=tokens.astype(str)), told(dataset)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    from recbole_cafe.prepare.simulate import PRESETS, SEED

    parser.add_argument("--name", default="amazon", help="name of the data set (default: %(default)s)")
    parser.add_argument("--out", default="dataset_atomic", help="folder of data sets (default: %(default)s)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="amazon", help="shape to start from (default: %(default)s)"
    )
    for key in PRESETS["amazon"]:
        word = key.removeprefix("n_")
        parser.add_argument(f"--{word}", type=int, dest=key, help=f"number of {word} (default: the preset's)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--replace", action="store_true", help="replace a simulated data set of that name")


def simulate_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Make a simulated data set.

    Raises:
        UsageError: a shape that cannot be.
    """
    from recbole_cafe.prepare.simulate import PRESETS, is_simulated, per_item, write_simulated

    asked = {key: value for key in PRESETS[given.preset] if (value := vars(given)[key]) is not None}
    folder = Path(given.out) / given.name
    began = time.perf_counter()
    try:
        written = write_simulated(
            folder, given.name, seed=given.seed, replace=given.replace, show_progress=sys.stderr.isatty(),
            **{**PRESETS[given.preset], **asked},
        )  # fmt: skip
    except ConfigError as error:  # all of its settings were typed
        typed = re.sub(r"\b(?:n_)?(users|items|intents|interactions|seed)=", r"--\1=", str(error))
        raise UsageError(f"simulate: {typed}") from error
    manifest = is_simulated(folder)
    assert manifest is not None  # it has just been written
    print(
        f"{folder}: simulated {written.users:,} users, {written.items:,} items, "
        f"{manifest['counts']['intents']:,} intents, {written.interactions:,} interactions "
        f"({per_item(written.interactions, written.items)} per item) in {time.perf_counter() - began:.1f} s"
    )
    return 0
