"""Configuration: RecBole's layers with ours in between, values as text, unknown keys as errors.

Later layers win::

    RecBole's defaults < props/overall.yaml < props/dataset/<dataset>.yaml < props/model/<Model>.yaml
      < config files < config_dict < command line

The layers in the middle are put in by :func:`add_layers`, which also serves RecBole's own Config when it is given one
of our models (recbole_cafe.host.registry). Text is never evaluated as code; see recbole_cafe.files.literals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType, get_model
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_cafe.config.checks import check_metrics, check_valid_metric, check_values, unknown_key
from recbole_cafe.config.neutral import NEUTRAL
from recbole_cafe.config.props import known_models, model_yaml, props_dir, read_yaml
from recbole_cafe.config.signature import is_ours, net_keys
from recbole_cafe.errors import ConfigError, did_you_mean
from recbole_cafe.files.candidates import parse_protocol
from recbole_cafe.files.literals import ConfigLoader, parse_value
from recbole_cafe.files.places import find_data
from recbole_cafe.files.result import Result

# Keys RecBole reads that stand in none of its YAML files.
HOST_KEYS = frozenset(
    {
        "model",
        "dataset",
        "config_files",
        "config_file_list",
        "nproc",
        "ip",
        "port",
        "world_size",
        "group_offset",
        "offset",
        "local_rank",
        "saved",
        "reproducibility",
        "encoding",
        "numerical_features",
        "discretization",
        "reg_weight",
        "alias_of_user_id",
        "alias_of_item_id",
        "selected_features",
        "single_spec",
    }
)
AUTO = "auto"  # of INTENT_FIELD: the intents are made (recbole_cafe.data.auto_intents), as a column of this name
CHOICES: dict[str, tuple[object, ...]] = {
    "tie_order": ("file", "random"),
    "train_layout": ("all", "last"),
    "candidates": ("stored", "recbole"),
    "intent_from": (None, "first", "last", "rarest"),
    "mask_history": (True, False),
    "final": (True, False),
    "trust_checkpoint": (True, False),
    "resume": (None, "auto"),
    "shard_tables": (AUTO, True, False),
    "rm_dup_inter": (None, "first", "last"),
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),  # RecBole takes any other for adam
}
AT_LEAST = {
    "MAX_ITEM_LIST_LENGTH": 1,
    "train_batch_size": 1,
    "per_process_batch_size": 1,
    "group_timeout": 1,
    "eval_batch_size": 1,
    "epochs": 1,
    "average_from": 0,
    "seed": 0,
    "tie_seed": 0,
    "candidates_seed": 0,
    "worker": 0,
    "hidden_size": 1,
    "inner_size": 1,
    "embedding_size": 1,
    "n_heads": 1,
    "n_layers": 0,
    "n_negatives": 1,
    "stopping_step": 0,
    "eval_step": 0,
    "metric_decimal_place": 0,
    "loss_decimal_place": 0,
}  # fmt: skip  whole numbers
# Keys that a model of RecBole's reads and its YAML leaves out
UNLISTED: dict[str, set[str]] = {"FEARec": {"contrast", "tau", "sim"}}
NOT_NEGATIVE = ("learning_rate", "weight_decay")
GROUP = ("nproc", "world_size", "ip", "port", "offset")  # what a process of several is told beside its `local_rank`


# Layers -------------------------------------------------------------------------------------------------------------


def add_layers(config: RecBoleConfig, model_class: type, dataset: str) -> None:
    """Put our YAML files over RecBole's defaults and settle what depends on several keys.

    Called when RecBole has read its own files and the user's, before it merges them.

    Args:
        config: RecBole's Config.
        model_class: the model.
        dataset: name of the data set.

    Raises:
        ConfigError: an unknown key for one of our models, a value that is none of the accepted ones.
    """
    internal, external = config.internal_config_dict, config.external_config_dict
    ours, folder = is_ours(model_class), props_dir()
    files = [folder / "overall.yaml", folder / "dataset" / f"{dataset}.yaml"]
    if ours:
        files.append(model_yaml(model_class))
    for path in files:
        if path.is_file():
            config._update_internal_config_dict(str(path))
    if ours:
        internal["train_neg_sample_args"] = None  # our models draw their own negatives, RecBole's would cost time
        _refuse_unknown(config, model_class)
    else:
        internal["train_layout"] = "last"
        if external.get("train_layout", "last") != "last":
            raise ConfigError(f"train_layout={external['train_layout']} is for recbole_cafe's models; RecBole's "
                              f"{model_class.__name__} trains on prefix rows (train_layout=last)")  # fmt: skip
    for key, accepted in CHOICES.items():
        value = external.get(key, internal.get(key))
        if value not in accepted:
            raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, accepted))}")
    _refuse_other_kinds(internal, external)
    check_values({**internal, **external})
    for key, least in AT_LEAST.items():
        if (value := external.get(key)) is None:
            continue
        if value < least:
            raise ConfigError(f"{key}={value!r} should be at least {least}")
        if value != int(value):
            raise ConfigError(f"{key}={value!r} should be a whole number")
        external[key] = int(value)  # 3.0 is one, but not for range()
    for key in NOT_NEGATIVE:
        if (value := external.get(key)) is not None and value < 0:
            raise ConfigError(f"{key}={value!r} should be at least 0")
    for key, value in external.items():
        if key.endswith("dropout_prob") and value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{key}={value!r} should be a probability, from 0 to 1")
    if "local_rank" in external and (missing := [key for key in GROUP if key not in external]):
        raise ConfigError(f"local_rank={external['local_rank']!r} without {', '.join(missing)}: it is for processes "
                          f"that work together, set by nproc")  # fmt: skip
    settle_batch(external)
    _check_final(config, model_class)
    _settle_evaluation(internal, external)
    _settle_columns(internal, external, intents=is_ours(model_class) and model_class.net.needs_intents)
    if "data_path" not in external and dataset != "ml-100k":  # RecBole carries ml-100k itself
        internal["data_path"] = str(find_data(dataset))


def settle_batch(external: dict[str, Any]) -> None:
    """`train_batch_size` from `per_process_batch_size` and the number of processes, if that is given.

    Args:
        external: the user's keys, which get it.

    Raises:
        ConfigError: both are given.
    """
    if (rows := external.get("per_process_batch_size")) is None:
        return
    if "train_batch_size" in external:
        raise ConfigError(f"per_process_batch_size={rows} and train_batch_size={external['train_batch_size']}: one of "
                          f"them says how many rows a step has")  # fmt: skip
    external["train_batch_size"] = rows * int(external.get("world_size") or 1)


def known_keys(config: RecBoleConfig, model_class: type) -> set[str]:
    """Every key that means something for a model; of RecBole's models, those of its YAML files and UNLISTED."""
    listed = general_arguments + training_arguments + evaluation_arguments + dataset_arguments
    own = net_keys(model_class) if is_ours(model_class) else UNLISTED.get(model_class.__name__, set())
    return set(config.internal_config_dict) | set(listed) | HOST_KEYS | own


def _refuse_unknown(config: RecBoleConfig, model_class: type) -> None:
    known = known_keys(config, model_class)
    # A foreign script's own command line also lands in RecBole's Config (it reads sys.argv); only ours is strict there.
    strict = isinstance(config, Config)
    layers = [config.file_config_dict, config.variable_config_dict] + ([config.cmd_config_dict] if strict else [])
    for key in (k for layer in layers for k in layer):
        if key not in known:
            raise unknown_key(key, config.external_config_dict.get(key), known, model_class.__name__)


def _refuse_other_kinds(internal: dict[str, Any], external: dict[str, Any]) -> None:
    """A switch is a switch and a number a number, as its default is.

    Unchecked, any text counts as True, and text in place of a number fails far from its key, or late.
    """
    for key, value in external.items():
        default = internal.get(key)
        if isinstance(default, bool):
            fits, expected = value in (True, False), "True or False"
        elif isinstance(default, (int, float)):
            fits, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
            fits = fits and math.isfinite(value)
        else:
            continue
        if value is not None and not fits:
            raise ConfigError(f"{key}={value!r} should be {expected} (default {default})")


def _check_final(config: RecBoleConfig, model_class: type) -> None:
    """`final` is for our own run, and takes a number of epochs from nobody but the user: nothing can stop it early."""
    external = config.external_config_dict
    if not external.get("final") and not external.get("final_from"):
        return
    if not isinstance(config, Config):
        raise ConfigError("final is for recbole_cafe.run and `recbole-cafe run`; RecBole's run_recbole needs a "
                          "validation and a test")  # fmt: skip
    learns = model_class.net.learns if is_ours(model_class) else model_class.type != ModelType.TRADITIONAL  # type: ignore[attr-defined]  # RecBole's own class
    if learns and external.get("epochs") is None:
        raise ConfigError("final=True without epochs: nothing is held out to tell when to stop, so set epochs, or "
                          "final_from to the result file of a run that has found them")  # fmt: skip


def _settle_evaluation(internal: dict[str, Any], external: dict[str, Any]) -> None:
    """`eval_mode` (a protocol or a list of them) and RecBole's `eval_args`, which it is a shorthand for."""
    given = external.get("eval_args")
    args = {**internal["eval_args"], **(given or {})}  # RecBole would forget our split when only `mode` is given
    mode = external.get("eval_mode")
    if mode is None and given and "mode" in given:
        mode = given["mode"]
        if isinstance(mode, dict):
            mode = [mode.get("valid", mode.get("test")), mode.get("test", mode.get("valid"))]
            mode = list(dict.fromkeys(mode))
    if mode is None:
        mode = internal["eval_mode"]
    names = [mode] if isinstance(mode, str) else list(mode) if isinstance(mode, (list, tuple)) else [mode]
    try:
        protocols = [parse_protocol(name) for name in names]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not protocols or len(set(names)) < len(names):
        raise ConfigError(f"eval_mode={mode!r} should be one protocol or a list of different ones")
    first = protocols[0]
    if external.get("candidates", internal.get("candidates")) == "recbole" and (len(names) > 1 or first.random_intents):
        raise ConfigError(f"candidates=recbole takes one eval_mode of RecBole's own (full, popN, uniN), got {mode!r}")
    as_recbole = f"pop{first.n_negatives}" if first.random_intents else first.name
    args["mode"] = {"valid": as_recbole, "test": as_recbole}
    external["eval_args"], external["eval_mode"] = args, names
    by_ranks = external.get("candidates", internal.get("candidates")) != "recbole"
    check_valid_metric({**internal, **external}, by_ranks=by_ranks)
    check_metrics(external.get("metrics", internal["metrics"]), names)


def _settle_columns(internal: dict[str, Any], external: dict[str, Any], *, intents: bool) -> None:
    """Make sure `load_col` loads the time column and the intent column.

    The latter for models without intents too: RecBole leaves out interactions with items that a loaded .item file does
    not list and counts the items it lists, so models compare on one catalogue only if all load the file.
    """

    def value(key: str) -> Any:
        return external.get(key, internal.get(key))

    intent = value("INTENT_FIELD")
    if intents and not intent:
        raise ConfigError("INTENT_FIELD is empty; it names the column of the .item file that holds the intents")
    if intent != AUTO and value("n_auto_intents") not in (None, AUTO):
        raise ConfigError(
            f"n_auto_intents={value('n_auto_intents')!r} is for INTENT_FIELD={AUTO}, and it is {intent!r}"
        )
    columns = value("load_col")
    if columns is None:
        return  # everything is loaded
    needed = {
        "inter": [
            value("USER_ID_FIELD"),
            value("ITEM_ID_FIELD"),
            value("TIME_FIELD"),
            *(value("alias_of_user_id") or ()),
            *(value("alias_of_item_id") or ()),
        ],
        "item": [value("ITEM_ID_FIELD"), *([intent] if intent and intent != AUTO else [])],
    }
    columns = dict(columns)
    for part, fields in needed.items():
        if columns.get(part) != "*":
            columns[part] = list(dict.fromkeys([*(columns.get(part) or []), *fields]))
    (external if "load_col" in external else internal)["load_col"] = columns


# Names ----------------------------------------------------------------------------------------------------------------


def _no_model(name: str) -> ConfigError:
    hint = did_you_mean(name, known_models())
    return ConfigError(f"no model {name!r}{hint}; `recbole-cafe list` names the models there are")


def _check_dataset(dataset: Any) -> None:
    """Raise unless this can be the name of a folder below data_path and of the files in it."""
    if not isinstance(dataset, str) or not dataset.strip(". "):
        raise ConfigError(f"dataset={dataset!r} should be the name of a folder of atomic files below data_path")
    path = Path(dataset)
    if path.name != dataset:
        raise ConfigError(f"dataset={dataset!r} should be a name, not a path: for the folder {path} set "
                          f"data_path={path.parent} and dataset={path.name}")  # fmt: skip


# A finished run's settings --------------------------------------------------------------------------------------------

# What a Config derives from other keys
DERIVED = frozenset(
    ["model", "dataset", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger", "valid_neg_sample_args",
     "test_neg_sample_args", "eval_neg_sample_args", "final"]
)  # fmt: skip


def final_settings(path: str | Path, model: str | type | None, dataset: str | None) -> dict[str, Any]:
    """The settings of a finished run for one on all interactions, with its best number of epochs.

    Args:
        path: its result file.
        model: that is to be trained.
        dataset: to train it on.

    Raises:
        ConfigError: the value is no path; the result is of another model or data set, or tells no best epoch.
        DataError: no readable result file.
    """
    if not isinstance(path, (str, Path)):
        raise ConfigError(f"final_from={path!r} should be the result file of a finished run")
    result = Result.load(path)
    name = model.__name__ if isinstance(model, type) else model
    for key, here, there in (("model", name, result.model), ("dataset", dataset, result.dataset)):
        if here is not None and str(here).lower() != there.lower():
            raise ConfigError(f"final_from={path} is the result of {key}={there}, and {key}={here} is to be trained")
    if not (epochs := result.best_epochs) or epochs < 1:
        raise ConfigError(f"final_from={path} does not tell after how many epochs validation was best; give the "
                          f"settings and epochs with final=True instead")  # fmt: skip
    settings = {key: value for key, value in result.config.items() if key not in NEUTRAL | DERIVED}
    drawn = settings.get("train_neg_sample_args")
    if isinstance(drawn, dict) and drawn.get("distribution") == "none":
        settings["train_neg_sample_args"] = None  # what RecBole makes of it
    return {**settings, "final": True, "epochs": epochs}


# Our Config -----------------------------------------------------------------------------------------------------------


class Config(RecBoleConfig):  # type: ignore[misc]  # RecBole is untyped
    """RecBole's Config without its two surprises: it does not look at `sys.argv`, and it evaluates no text.

    Args:
        model: name or class of a model of ours or of RecBole's.
        dataset: name of a data set.
        config_file_list: YAML files, later ones win.
        config_dict: settings from Python; they win over files.
        overrides: ``key -> text`` from a command line; they win over everything.

    Raises:
        ConfigError: see :func:`add_layers`.
    """

    def __init__(self, model: str | type | None = None, dataset: str | None = None,
                 config_file_list: Sequence[str | Path] | None = None, config_dict: Mapping[str, Any] | None = None,
                 overrides: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self._overrides = dict(overrides or {})
        self._given = dict(config_dict or {})
        self._asked = model, dataset
        self.sources: dict[str, str] = {}  # key -> the layer its value comes from
        super().__init__(model, dataset, list(config_file_list or []), dict(config_dict or {}))

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return ConfigLoader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {k: parse_value(v) if isinstance(v, str) else v for k, v in config_dict.items()}

    def _load_config_files(self, file_list: Sequence[str | Path]) -> dict[str, Any]:
        self._file_of: dict[str, str] = {}
        merged: dict[str, Any] = {}
        for path in file_list:
            content = read_yaml(path)
            merged.update(content)
            self._file_of.update(dict.fromkeys(content, f"config file {path}"))
        given = {**merged, **self._convert_config_dict({**self._given, **self._overrides})}
        if given.get("final_from") is None:
            return merged
        path = given["final_from"]
        found = final_settings(path, *self._asked)
        if given.get("final", True) is not True:
            raise ConfigError(f"final_from={path} with final={given['final']}: it is for final=True")
        self._file_of = {**dict.fromkeys(found, f"result file {path}"), **self._file_of}
        return {**found, **merged}

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._convert_config_dict(self._overrides)

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        """RecBole's look-up, whose own errors name neither the key nor what there is."""
        name = self.external_config_dict.get("model") if model is None else model
        if not isinstance(name, type):
            if not name or not isinstance(name, str):
                raise ConfigError(f"model={name!r} should be the name or the class of a model")
            try:
                get_model(name)
            except (ValueError, AttributeError) as error:  # AttributeError: the file is there, the class is not
                if isinstance(error, AttributeError) and f"has no attribute {name!r}" not in str(error):
                    raise
                raise _no_model(name) from None
        given = self.external_config_dict.get("dataset") if dataset is None else dataset
        _check_dataset(given)
        found: tuple[str, type, str] = super()._get_model_and_dataset(name, given)
        return found

    def _update_internal_config_dict(self, file: str) -> dict[str, Any]:
        content = read_yaml(file)
        self.internal_config_dict.update(content)
        path = Path(file).resolve()
        ours = path.is_relative_to(props_dir().resolve())
        name = f"props/{path.relative_to(props_dir().resolve()).as_posix()}" if ours else f"RecBole {path.name}"
        self.sources.update(dict.fromkeys(content, name))
        return content

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        if not is_ours(model_class):  # for our models recbole_cafe.host.registry has put the layers in already
            add_layers(self, model_class, dataset)

    def _get_final_config_dict(self) -> dict[str, Any]:
        for key in self.external_config_dict:
            if key in self.cmd_config_dict:
                self.sources[key] = "command line"
            elif key in self.variable_config_dict:
                self.sources[key] = "config_dict"
            elif key in self._file_of:
                self.sources[key] = self._file_of[key]
        final: dict[str, Any] = super()._get_final_config_dict()
        return final

    def described(self) -> list[tuple[str, Any, str]]:
        """(key, value, where it comes from), sorted by key: what `recbole-cafe show-config` prints."""
        return [(k, v, self.sources.get(k, "derived")) for k, v in sorted(self.final_config_dict.items())]
