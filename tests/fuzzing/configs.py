"""Odd keys and values: a value is used as it was given, or an error names its key. All before training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import get_trainer

from fuzzing.children import run_once
from fuzzing.data import SETTINGS
from fuzzing.data_mutations import data_set
from fuzzing.data_oracle import NAME
from fuzzing.outcomes import check, clear_text, short
from recbole_cafe import experiment
from recbole_cafe.config.config import Config
from recbole_cafe.train.trainer import trainer_class

NAN, INF = float("nan"), float("inf")
ORDER = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
SWITCH = ([True, False], ["yes", 2, [], -1, {}])
COUNT = ([1, 5], [0, -1, 2.5, "x", [1], {}, NAN, True, "1 2"])
SIZE = ([1, 64], [0, -5, 2.5, "many", [64], {}, INF])
INTERVAL = (
    [None, "[0,inf)", "[1,inf)", "(0,100]", "[1,100];[200,300]"],
    ["[5;inf)", "5", 5, "[inf,5)", "[5,2]", "x", ["[0,inf)"], "[a,b]", "[1,2", "1,2", "[1,2,3]", {}, "(,5]"],
)


def column(name: str) -> tuple[list[Any], list[Any]]:
    return [name], ["nope", 5, [name], {}, True]


# Key -> values that are right with this data set, and values that cannot be.
KEYS: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([0, 7, 2020], ["x", 1.5, [1], {}, NAN, -1]),
    "epochs": COUNT,
    "train_batch_size": SIZE,
    "eval_batch_size": SIZE,
    "learning_rate": ([0.1, 1e-5, 1], [-0.1, "fast", NAN, INF, [0.1], {}, True]),
    "weight_decay": ([0.0, 0.1], [-1, "x", NAN, [0.1]]),
    "stopping_step": ([1, 10], ["x", 1.5, -1, [1]]),
    "eval_step": ([1, 2], ["x", 1.5, -1, [1], NAN]),
    "average_from": ([0, 1], [-1, "x", 0.5, [1]]),
    "learner": (["adam", "sgd"], ["adamm", 5, [], {}, True]),
    "clip_grad_norm": ([None, {"max_norm": 5.0}], [{"maxnorm": 5}, 5, "x", {"max_norm": "x"}, {"max_norm": NAN}, []]),
    "MAX_ITEM_LIST_LENGTH": COUNT,
    "hidden_size": ([8, 16], [0, -8, "x", 7.5, [8], {}]),
    "inner_size": SIZE,
    "n_layers": ([1, 3], [-1, "x", 1.5, [2]]),
    "n_heads": ([1, 2], [0, -1, 3, "x", 1.5]),
    "hidden_dropout_prob": ([0.0, 0.5], [-0.1, 1.5, "x", NAN, [0.1]]),
    "hidden_act": (["relu", "gelu"], ["reluu", 5, []]),
    "loss_type": (["BCE", "gBCE", "CE"], ["BPRX", 5, [], {}]),
    "n_negatives": (COUNT[0], [0, -1, "x", 1.5, [1]]),
    "joint": (["product", "sum"], ["prod", 5, []]),
    "topk": ([3, [3], [1, 3], [3, 5]], [[0, 3], [-1, 3], "x", [], [1.5, 3], ["3"], {}, [[3]], True]),
    "metrics": (["MRR", ["MRR", "Hit"], ["NDCG", "MRR"]], [["MRRR", "MRR"], [], 5, {}, ["MRR", 5], [["MRR"]]]),
    "valid_metric": (["MRR@3", "Hit@3"], ["Hit", "MRR@4", "x", 3, "MRR@", "MRR@x", [], {}, "Hit@3@3", "MRR@-3"]),
    "eval_mode": (["full", ["full"], ["full", "pop5"], "uni5"],
                  ["fulll", "pop", "pop-1", "pop0", [], 5, {"a": 1}, ["full", "full"], "pop1.5", [["full"]],
                   ["full", 5]]),
    "eval_args": (
        [ORDER, {"mode": "full"}, {"split": {"LS": "valid_and_test"}}, {"split": {"RS": [0.8, 0.1, 0.1]}}],
        [{"splitt": ORDER["split"]}, {"split": {"LSS": "valid_and_test"}}, {"split": {"LS": "valid"}}, {"split": 5},
         {"split": {"RS": [0.5]}}, {"split": {"RS": "x"}}, {"order": "XX"}, {"group_by": "item"}, {"mode": "fulll"},
         {"mode": {"valid": "full", "tset": "full"}}, "full", [], 3, {"split": {"RS": [-1, 1, 1]}}, {"mod": "full"},
         {"split": {"RS": [NAN, 1, 1]}}, {"split": {}}, {"split": {"RS": [0, 0, 0]}}, {"order": 5}, {"mode": 5},
         {"group_by": ["user"]}, {"split": {"LS": "valid_and_test", "RS": [1, 1, 1]}}],
    ),
    "user_inter_num_interval": INTERVAL,
    "item_inter_num_interval": INTERVAL,
    "val_interval": (
        [None, {"timestamp": "[0,inf)"}],
        [{"timestamp": "x"}, {"nope": "[0,inf)"}, "x", {"timestamp": 5}, ["[0,inf)"], {"timestamp": "[5;6]"}, 5],
    ),
    "filter_inter_by_user_or_item": SWITCH,
    "load_col": (
        [None, {"inter": ["user_id", "item_id", "timestamp"]}, {"item": ["item_id", "intent", "price"]}],
        ["x", 5, ["inter"], {"intr": ["user_id"]}, {"inter": 5}, {"inter": ["user_idd"]}, {"inter": [5]}, {"item": {}}],
    ),
    "unload_col": ([None], ["x", 5, {"intr": ["x"]}, {"inter": ["nope"]}, {"inter": 5}]),
    "rm_dup_inter": ([None, "first", "last"], ["middle", 5, True, [], {}]),
    "intent_from": ([None, "first"], ["middle", 5, [], {}]),
    "tie_order": (["file", "random"], ["files", 3, [], {}]),
    "train_layout": (["all", "last"], ["some", 3, []]),
    "window_prob": ([0.0, 0.5], [-1, 2, "x", NAN, [0.5]]),
    "candidates": (["stored"], ["kept", 3, []]),
    "candidates_seed": ([1], ["x", 1.5, [1], NAN]),
    "candidates_dir": (["kept"], [5, ["kept"], True]),
    "intents_dir": (["kept"], [5, ["kept"], True]),
    "n_auto_intents": (["auto"], ["x", 1, 1.5, True, [], 3]),
    "checkpoint_dir": (["saved2"], [5, [], {}, True]),
    "mask_history": SWITCH,
    "normalize_all": SWITCH,
    "normalize_field": ([None], [["nope"], 5, "x", {}]),
    "shuffle": SWITCH,
    "reproducibility": SWITCH,
    "worker": ([0], ["x", -1, 1.5, []]),
    "metric_decimal_place": ([4], ["x", -1, 1.5, []]),
    "state": (["INFO", "WARNING"], ["LOUD", 5, []]),
    "USER_ID_FIELD": column("user_id"),
    "ITEM_ID_FIELD": column("item_id"),
    "TIME_FIELD": column("timestamp"),
    "INTENT_FIELD": column("intent"),
    "field_separator": (["\t"], ["", 5, ["\t"], {}, ";"]),
    "encoding": (["utf-8"], ["utf8x", 5, [], {}]),
    "benchmark_filename": ([None], ["x", ["a", "b", "c"], 5, ["train"]]),
    "alias_of_item_id": ([None], ["item_list", 5, ["nope"]]),
    "additional_feat_suffix": ([None], ["x", 5, ["nope"]]),
    "threshold": ([None], [5, {"nope": 1}, "x", []]),
    "transform": ([None], ["nope", 5, []]),
    "data_path": ([], [5, [], "/nowhere", True]),
    "resume_from": ([None], ["nope.pth", 5, ["nope.pth"]]),
    "trust_checkpoint": ([False], ["yes", 2, []]),
    "train_neg_sample_args": ([], ["x", 5, {"distribution": "x"}, {"distrib": "uniform"}]),
}  # fmt: skip
BEHIND = {"epochs": 2}  # of which RecBole makes others

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "alias_bomb": BOMB,
    "merge_bomb": BOMB.replace("a: &a [x,x,x,x,x,x,x,x,x]", "a: &a {x: 1}"),
    "bomb_in_a_value": "seed: 7\neval_args:\n  " + BOMB.replace("\n", "\n  "),
    "broken": "epochs: [1, 2\n",
    "tab": "eval_args:\n\tmode: full\n",
    "a_list": "- epochs\n",
    "a_word": "epochs\n",
    "bytes": "\x00\x01",
    "not_utf8": b"epochs: 1 # \xff\n",
    "tag": "seed: !!python/object/apply:os.getpid []\n",
    "deep": "seed: " + "[" * 20_000 + "\n",
    "deep_mapping": "seed: " + "{a: " * 5_000 + "\n",
    "key_twice": "seed: 7\nseed: 8\n",
    "list_as_key": "? [a, b]\n: 1\n",
    "number_as_key": "5: 1\n",
    "none_as_key": "~: 1\n",
    "recursive": "eval_args: &a {mode: *a}\n",
    "unknown_alias": "seed: *nope\n",
    "date": "seed: 2020-01-01\n",
    "long_number": "seed: " + "9" * 5_000 + "\n",
    "two_documents": "seed: 7\n---\nseed: 8\n",
}  # all wrong


def before() -> None:
    run_once(lambda: built(*inputs(Path.cwd())))


def wrong_file(rng: random.Random, folder: Path) -> tuple[list[Path], list[str], str]:
    kind = rng.choice([*FILES, "missing", "a_folder"])
    path = folder / "odd.yaml"
    if kind == "a_folder":
        path.mkdir()
    elif kind != "missing":
        content = FILES[kind]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [path], ["odd.yaml", "seed", "eval_args", "key 'a'", "key 'b'", "key 5", "key None"], kind


def misspelt(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key) - 1)
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    shorter, longer = key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:]
    return rng.choice([shorter, longer, swapped, key.swapcase(), key.replace("_", "-"), key + "s", " " + key])


def drawn(rng: random.Random) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Keys and values, what is wrong with each that is, and the names of the mutations."""
    given, wrong, names = {}, {}, []
    for key in rng.sample(list(KEYS), rng.choice([1, 1, 1, 2, 3])):
        right, bad = KEYS[key]
        if rng.random() < 0.2 and (other := misspelt(rng, key)) not in KEYS and other != key:
            given[other], wrong[other] = rng.choice(right + bad), "misspelt"
        elif right and rng.random() < 0.3:
            given[key] = rng.choice(right)
        else:
            given[key], wrong[key] = rng.choice(bad), "value"
        names.append(f"{wrong.get(key, 'right')} {key}" if key in given else f"misspelt {key}")
    return given, wrong, names


def inputs(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """A data set that is right, and files and keys to read it with."""
    tables = data_set(random.Random(0))
    tables.render()
    (folder / NAME).mkdir()
    for ending, blob in tables.blobs.items():
        (folder / NAME / f"{NAME}.{ending}").write_bytes(blob)
    return [], SETTINGS | {"data_path": str(folder)}


def built(files: list[Path], keys: dict[str, Any]) -> Config:
    """All that comes before training."""
    config = Config("CaFe", NAME, files, keys)
    train_data = experiment.data_preparation(config, experiment.create_dataset(config))[0]
    model = config.model_class(config, train_data._dataset)
    trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    if config["resume_from"]:
        trainer.resume_checkpoint(config["resume_from"])
    return config


def case(rng: random.Random, folder: Path, note: dict[str, Any]) -> str:
    files, keys = inputs(folder)
    given, wrong = {}, {}
    if rng.random() < 0.15:
        files, names, kind = wrong_file(rng, folder)
        wrong, note["mutations"] = {"odd.yaml": kind}, [kind]
    else:
        given, wrong, note["mutations"] = drawn(rng)
        names = list(given)
    note["input"] = given
    from_file = not files and rng.random() < 0.5
    if from_file:
        (folder / "keys.yaml").write_text(yaml.safe_dump(given, allow_unicode=True))
        files, keys = [folder / "keys.yaml"], {key: value for key, value in keys.items() if key not in given}
    else:
        keys |= given
    try:
        config = built(files, keys)
    except Exception as error:
        text = clear_text(error, names)
        check(wrong or len(given) > 1, f"nothing is wrong, but {text}", "refused")
        return "clear error"
    check(not wrong, f"taken in spite of {short({key: given.get(key, kind) for key, kind in wrong.items()})}")
    for key, value in given.items():
        used = config[key]
        if isinstance(value, dict) and isinstance(used, dict) and key in ("eval_args", "load_col"):
            continue  # completed
        check(used == value or used == [value], f"{key}: {short(used)} is used, not {short(value)}")
    return "equal"
