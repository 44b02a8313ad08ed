"""What the keys that hold mappings, lists and intervals may hold: RecBole looks at none of it before it is too late.

RecBole reads such a key with `in` or `get`, so that a word it does not know changes nothing, and drops an interval that
it cannot read. Each check raises ConfigError with the key, the value and what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from recbole.evaluator.metrics import Recall
from recbole.evaluator.register import metric_information, metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_cafe.errors import ConfigError, did_you_mean

Check = Callable[[str, Any], None]  # (key, value), raises ConfigError

SOURCES = ("inter", "user", "item", "kg", "link", "net")  # endings of RecBole's atomic files
# What a metric's `metric_need` may name, as RecBole has it
METRIC_NEEDS = frozenset(
    {
        "rec.items",
        "rec.topk",
        "rec.meanrank",
        "rec.score",
        "data.num_items",
        "data.num_users",
        "data.count_items",
        "data.count_users",
        "data.label",
    }
)
INTERVAL = re.compile(r"\s*[\[(]([^,;]*),([^,;]*)[\])]\s*")
INTERVAL_FORM = 'an interval as text, such as "[5,inf)", or several, "[1,2];(4,5]"'


def check_values(values: Mapping[str, Any]) -> None:
    """Check every key of RecBole's that holds a mapping, a list or an interval.

    Args:
        values: key -> value, of all layers; None means that a key is not set.

    Raises:
        ConfigError: the first key at fault.
    """
    for key in REQUIRED:
        if key in values and values[key] is None:
            raise _wrong(key, None, "set")
    for key, check in CHECKS.items():
        if values.get(key) is not None:
            check(key, values[key])
    _check_files(values)


def unknown_key(key: str, value: Any, known: Collection[str], where: str) -> ConfigError:
    """The error for a key that is none, with the nearest one that is.

    Args:
        key: the key.
        value: its value.
        known: the keys there are.
        where: for what it was given.
    """
    return ConfigError(f"unknown key {key!r} (value {value!r}) for {where}{did_you_mean(key, known)}")


# Kinds of values ------------------------------------------------------------------------------------------------------


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{key}={value!r} should be {expected}")


def check_interval(key: str, value: Any) -> None:
    """Raise unless RecBole reads a value as one interval or several, which it otherwise leaves out."""
    for part in str(value).split(";"):
        match = INTERVAL.fullmatch(part)
        try:
            low, high = (float(end) for end in match.groups()) if match else (math.nan, math.nan)
        except ValueError:
            low = high = math.nan
        if not low <= high:  # NaN is not, either
            raise _wrong(key, value, f"{INTERVAL_FORM}, the lower end first")


def _one_of(*accepted: str) -> Check:
    def check(key: str, value: Any) -> None:
        if value not in accepted:
            raise _wrong(key, value, f"one of {', '.join(accepted)}{did_you_mean(value, accepted)}")

    return check


def _number(least: float, *, whole: bool = False, more: bool = False) -> Check:
    """more: than `least`, which itself is too little."""
    kinds = int if whole else (int, float)

    def check(key: str, value: Any) -> None:
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or not (value > least if more else value >= least):
            raise _wrong(key, value, f"a {'whole ' * whole}number {'above' if more else 'of at least'} {least}")

    return check


def _switch(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong(key, value, "True or False")


def _anything(key: str, value: Any) -> None:
    """Raise nothing."""


def _name(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise _wrong(key, value, "the name of a column")


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong(key, value, "text")


def _path(key: str, value: Any) -> None:
    if not isinstance(value, (str, Path)) or not str(value):
        raise _wrong(key, value, "the path of a file or folder")


def _names(key: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and one for one in value):
        raise _wrong(key, value, "a list of names")  # a single name would be read letter by letter


def _mapping(key: str, value: Any, form: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(key, value, form)


def _record(form: str, **fields: Check) -> Check:
    """A mapping with fields of these names, each with a check of its own; None is a field that is not set."""

    def check(key: str, value: Any) -> None:
        _mapping(key, value, form)
        for name, part in value.items():
            if name not in fields:
                raise unknown_key(name, part, fields, key)
            if part is not None:
                fields[name](f"{key}: {name}", part)

    return check


def _each(form: str, of: Check) -> Check:
    """A mapping from names of the data's to values of one kind."""

    def check(key: str, value: Any) -> None:
        _mapping(key, value, form)
        for name, part in value.items():
            if not isinstance(name, str):
                raise _wrong(key, value, form)
            of(f"{key}: {name}", part)

    return check


# What the keys hold ---------------------------------------------------------------------------------------------------


def _ratios(key: str, value: Any) -> None:
    fits = isinstance(value, (list, tuple)) and len(value) == 3
    fits = fits and all(isinstance(r, (int, float)) and not isinstance(r, bool) and 0 <= r < math.inf for r in value)
    if not fits or not sum(value):
        raise _wrong(key, value, "three shares, of train, valid and test, such as [0.8, 0.1, 0.1]")


_SPLIT = _record(
    "a mapping such as {LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}",
    RS=_ratios, TS=_ratios, LS=_one_of("valid_and_test", "valid_only", "test_only"),
)  # fmt: skip


def _split(key: str, value: Any) -> None:
    _SPLIT(key, value)
    if len(value) != 1:
        raise _wrong(key, value, "a mapping with one of RS, LS and TS")


def _modes(key: str, value: Any) -> None:
    if isinstance(value, dict):  # the protocols themselves are read where eval_mode is
        _record("a mapping with the keys valid, test", valid=_anything, test=_anything)(key, value)


def _columns(key: str, value: Any) -> None:
    form = "a list of its columns" + (' or "*"' if key.startswith("load_col") else "")
    if value is None or (value == "*" and key.startswith("load_col")):
        return
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and one for one in value):
        raise _wrong(key, value, form)


def _kept_values(key: str, value: Any) -> None:
    """Of one column: an interval for numbers, a list for tokens; the data know which it has to be."""
    if isinstance(value, (list, tuple)) and value:
        return
    if not isinstance(value, str):
        raise _wrong(key, value, f"{INTERVAL_FORM}, or for a column of tokens a list of those to keep")
    check_interval(key, value)


_BUCKETS = _record("a mapping with the keys method, bucket", method=_one_of("ED", "LD"), bucket=_number(1, whole=True))


def _discretization(key: str, value: Any) -> None:
    _each("a mapping of a column to {method: ED, bucket: 10} or {method: LD}", _BUCKETS)(key, value)
    for name, part in value.items():
        if part.get("method") is None or (part["method"] == "ED" and part.get("bucket") is None):
            raise _wrong(f"{key}: {name}", part, "{method: ED, bucket: 10} or {method: LD}")


def _threshold(key: str, value: Any) -> None:
    form = "a mapping of one column to the least value that counts as liked, such as {rating: 3}"
    _each(form, _number(-math.inf))(key, value)
    if len(value) != 1:
        raise _wrong(key, value, form)


def _metrics(key: str, value: Any) -> None:
    metrics = [value] if isinstance(value, str) else value
    if not isinstance(metrics, (list, tuple)) or not metrics:
        raise _wrong(key, value, "a list of metrics, such as [NDCG, Hit, MRR]")
    for metric in metrics:
        if str(metric).lower() not in metric_types:  # RecBole's own table, to which a user may add
            known = ", ".join(sorted(metric_types))
            raise ConfigError(f"{key}={value!r}: no metric {metric!r}; there are {known}"
                              f"{did_you_mean(str(metric).lower(), metric_types)}")  # fmt: skip


def _cutoffs(key: str, value: Any) -> None:
    cutoffs = value if isinstance(value, (list, tuple)) else [value]
    whole = all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in cutoffs)
    if not cutoffs or not whole:
        raise _wrong(key, value, "a whole number above 0 or a list of them")


_NEGATIVES = _record(
    "a mapping with the keys distribution, sample_num, alpha, dynamic, candidate_num",
    distribution=_one_of("uniform", "popularity", "none", "None"), sample_num=_number(1, whole=True),
    alpha=_number(-math.inf), dynamic=_switch, candidate_num=_number(0, whole=True),
)  # fmt: skip


def _negatives(key: str, value: Any) -> None:
    if value == "None":
        return  # RecBole's other way to write None
    _NEGATIVES(key, value)
    if "distribution" in value and value["distribution"] in (None, "none", "None"):
        return
    if value.get("dynamic") and not value.get("candidate_num"):
        raise _wrong(key, value, "with a candidate_num of at least 1 where dynamic is True")


def _check_files(values: Mapping[str, Any]) -> None:
    """`load_col`, `unload_col` and `unused_col` name files by their endings; a file that is none has no effect."""
    more = values.get("additional_feat_suffix")
    files = [*SOURCES, *([more] if isinstance(more, str) else more or [])]
    for key in ("load_col", "unload_col", "unused_col"):
        for name, columns in (values.get(key) or {}).items():
            if name not in files:
                raise unknown_key(name, columns, files, key)
    loaded, left_out = values.get("load_col") or {}, values.get("unload_col") or {}
    for name in loaded.keys() & left_out.keys():
        if loaded[name] and left_out[name] and loaded[name] != "*":
            raise ConfigError(f"unload_col: {name}={left_out[name]!r} leaves columns out of those that load_col lists "
                              f"({loaded[name]!r}): RecBole takes one of the two for a file")  # fmt: skip


_COLUMNS = _each("a mapping of a file (inter, item) to a list of its columns", _columns)


def _suffixes(key: str, value: Any) -> None:
    if not isinstance(value, str):
        _names(key, value)


def _ranking(key: str, value: Any) -> None:
    """What was chosen comes back as a mapping, from a checkpoint or a result."""
    if value not in ("auto", "fixed"):
        _each("auto, fixed, or a mapping of settings of the ranking to their values", _number(-math.inf))(key, value)


def _auto_or_number(key: str, value: Any) -> None:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 2):
        raise _wrong(key, value, "auto or a whole number of at least 2")


def _level(key: str, value: Any) -> None:
    _one_of("debug", "info", "warning", "error", "critical")(key, value.lower() if isinstance(value, str) else value)


REQUIRED = ("data_path", "checkpoint_dir", "metrics", "topk", "valid_metric")
CHECKS: dict[str, Check] = {
    "transform": _one_of("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined"),
    **dict.fromkeys(
        ("data_path", "checkpoint_dir", "candidates_dir", "intents_dir", "resume_from", "final_from"), _path
    ),
    **dict.fromkeys(
        ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "INTENT_FIELD", "RATING_FIELD", "LABEL_FIELD", "NEG_PREFIX",
         "LIST_SUFFIX", "ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD", "field_separator", "seq_separator", "encoding",
         "valid_metric", "hidden_act"), _text,
    ),
    "state": _level,
    "eval_args": _record(
        "a mapping with the keys split, group_by, order, mode",
        split=_split, group_by=_one_of("user", "none", "None"), order=_one_of("RO", "TO"), mode=_modes,
    ),
    "train_neg_sample_args": _negatives,
    "clip_grad_norm": _record(
        "a mapping such as {max_norm: 5.0}", max_norm=_number(0, more=True), norm_type=_number(0, more=True)
    ),
    "metrics": _metrics,
    "ranking_settings": _ranking,
    "n_auto_intents": _auto_or_number,
    "topk": _cutoffs,
    "load_col": _COLUMNS,
    "unload_col": _COLUMNS,
    "unused_col": _COLUMNS,
    "additional_feat_suffix": _suffixes,
    "val_interval": _each('a mapping of a column to an interval, such as {rating: "[3,inf)"}', _kept_values),
    **dict.fromkeys(
        ("user_inter_num_interval", "item_inter_num_interval", "entity_kg_num_interval", "relation_kg_num_interval"),
        check_interval,
    ),
    "threshold": _threshold,
    "seq_len": _each("a mapping of a column to its greatest length", _number(1, whole=True)),
    "preload_weight": _each("a mapping of a column of ids to one of vectors", _name),
    "discretization": _discretization,
    **dict.fromkeys(
        ("numerical_features", "normalize_field", "alias_of_user_id", "alias_of_item_id", "alias_of_entity_id",
         "alias_of_relation_id", "benchmark_filename", "selected_features"), _names,
    ),
}  # fmt: skip


# The validation metric ------------------------------------------------------------------------------------------------


def check_metrics(metrics: Any, protocols: Collection[str]) -> None:
    """Raise for metrics that nobody can compute, or that these protocols cannot give.

    Args:
        metrics: one or a list, all known to RecBole.
        protocols: of `eval_mode`.

    Raises:
        ConfigError: naming the metric and what it lacks.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for metric in metrics:
        if unknown := sorted(set(metric_information[str(metric).lower()]) - METRIC_NEEDS):
            raise ConfigError(f"metrics={metrics}: {metric} needs {', '.join(unknown)}, which nobody collects; "
                              f"its metric_need may name {', '.join(sorted(METRIC_NEEDS))}")  # fmt: skip
    values = [str(metric) for metric in metrics if metric_types[str(metric).lower()] == EvaluatorType.VALUE]
    if values and len(values) < len(metrics):
        raise ConfigError(f"metrics={metrics}: {', '.join(values)} judge single scores and the others rankings; "
                          f"RecBole takes metrics of one kind in a run")  # fmt: skip
    if values and "full" in protocols:
        raise ConfigError(f"metrics={metrics} judge scores of targets and drawn negatives, and full in "
                          f"eval_mode={[*protocols]} draws none; set eval_mode to popN or uniN (pop100)")  # fmt: skip


def check_valid_metric(values: Mapping[str, Any], *, by_ranks: bool) -> None:
    """Raise unless the metric that decides about the best epoch is among those that are computed.

    Args:
        values: key -> value; `metrics` and `topk` have been checked.
        by_ranks: metrics come from our exact ranks, which give MRR without a cut-off too.

    Raises:
        ConfigError: naming `valid_metric`, and what it can be.
    """
    given, metrics, topk = values["valid_metric"], values["metrics"], values["topk"]
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    topk = list(topk) if isinstance(topk, (list, tuple)) else [topk]
    name, at, k = str(given).partition("@")
    if name.lower() not in [str(metric).lower() for metric in metrics] or (at and k not in map(str, topk)):
        raise ConfigError(f"valid_metric={given} is not among the metrics {metrics} at topk {topk}")
    if metrics_dict[name.lower()].__module__ != Recall.__module__:
        return  # a user's own, which names its values as it likes
    has_cutoffs = bool({"rec.topk", "rec.items"} & set(metric_information[name.lower()]))
    if has_cutoffs and not at and not (by_ranks and name.lower() == "mrr"):
        raise ConfigError(f"valid_metric={given} has no cut-off: expected {' or '.join(f'{name}@{n}' for n in topk)}")
    if at and not has_cutoffs:
        raise ConfigError(f"valid_metric={given}: {name} has no cut-offs; expected {name}")
