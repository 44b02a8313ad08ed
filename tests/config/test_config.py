"""recbole_cafe.config.config: which value wins, what is refused, and that text stays text."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from recbole.config import Config as RecBoleConfig

from recbole_cafe import CaFe
from recbole_cafe.cli.arguments import parse_arguments
from recbole_cafe.config import config, props
from recbole_cafe.config.config import Config, settle_batch
from recbole_cafe.config.props import preset, preset_model, read_yaml
from recbole_cafe.config.signature import arguments_of, net_keys, signature_of
from recbole_cafe.errors import ConfigError

# What the shipped YAML says; experiments may change it.
DEFAULTS = {**read_yaml(props.props_dir() / "overall.yaml"), **read_yaml(props.props_dir() / "model" / "CaFe.yaml")}


@dataclass(frozen=True, kw_only=True)
class Size:
    depth: int
    width: int


class Shaped:
    """A net."""

    def __init__(self, *, data: Any, size: Size, hidden_size: int) -> None:
        self.data, self.size, self.hidden_size = data, size, hidden_size


EVIL = "__import__('os').system('touch x')"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def sources(merged: Config) -> dict[str, str]:
    return {key: source for key, _, source in merged.described()}


def use_props(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the YAML files of a folder instead of the shipped ones."""
    for module in (config, props):
        monkeypatch.setattr(module, "props_dir", lambda: folder)


# Layers ---------------------------------------------------------------------------------------------------------------

LAYERS = (
    "RecBole overall.yaml",
    "RecBole sequential.yaml",
    "props/overall.yaml",
    "props/dataset/toy.yaml",
    "props/model/CaFe.yaml",
    "config file first.yaml",
    "config file second.yaml",
    "config_dict",
    "command line",
)


@pytest.mark.parametrize("top", range(2, len(LAYERS)), ids=[layer.replace("/", "-") for layer in LAYERS[2:]])
def test_each_layer_wins_over_the_former(top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is set in all layers up to `top`, each time to the layer's number."""
    copied = Path("props")
    shutil.copytree(props.props_dir(), copied)
    use_props(copied, monkeypatch)
    for number, path in ((2, "overall.yaml"), (3, "dataset/toy.yaml"), (4, "model/CaFe.yaml")):
        text = (copied / path).read_text() if (copied / path).exists() else ""
        text = "\n".join(line for line in text.splitlines() if not line.startswith("train_batch_size"))
        (copied / path).write_text(text + (f"\ntrain_batch_size: {number}\n" if number <= top else "\n"))
    files = [write(Path(f"{name}.yaml"), f"train_batch_size: {number}\n" if number <= top else "epochs: 3\n")
             for number, name in ((5, "first"), (6, "second"))]  # fmt: skip
    merged = Config(
        "CaFe",
        "toy",
        files,
        {"train_batch_size": 7} if top >= 7 else {},
        overrides={"train_batch_size": "8"} if top >= 8 else {},
    )
    assert merged["train_batch_size"] == top
    assert sources(merged)["train_batch_size"] == LAYERS[top]


def test_recboles_own_layers_are_below_ours() -> None:
    merged = Config("CaFe", "toy")
    where = sources(merged)
    assert (merged["worker"], where["worker"]) == (0, "RecBole overall.yaml")
    assert (merged["LIST_SUFFIX"], where["LIST_SUFFIX"]) == ("_list", "RecBole sample.yaml")
    assert (merged["valid_metric"], where["valid_metric"]) == ("NDCG@10", "props/overall.yaml")  # RecBole's: MRR@10
    assert (merged["hidden_act"], where["hidden_act"]) == (DEFAULTS["hidden_act"], "props/model/CaFe.yaml")
    assert where["device"] == "derived"


def test_described_lists_every_key_once_in_order() -> None:
    merged = Config("CaFe", "toy", config_dict={"epochs": 2})
    rows = merged.described()
    assert [key for key, _, _ in rows] == sorted(merged.final_config_dict)
    assert ("epochs", 2, "config_dict") in rows


def test_a_model_of_recboles_gets_our_protocol_and_its_own_yaml() -> None:
    merged = Config("SASRec", "toy")
    assert merged["hidden_dropout_prob"] == 0.5  # SASRec.yaml of RecBole
    assert merged["valid_metric"] == "NDCG@10"  # props/overall.yaml
    assert merged["train_layout"] == "last"
    assert merged["eval_mode"] == ["full", "pop100"]
    assert merged["eval_args"]["split"] == {"LS": "valid_and_test"}


def test_the_dataset_yaml_applies_to_every_model() -> None:
    for model in ("CaFe", "SASRec", "BPR"):
        merged = Config(model, "ml-100k")
        assert merged["INTENT_FIELD"] == "class"
        assert merged["load_col"]["inter"] == ["user_id", "item_id", "rating", "timestamp"]


def test_a_subclass_of_a_model_uses_its_yaml() -> None:
    class Mine(CaFe):
        pass

    subclass, model = Config(Mine, "toy"), Config("CaFe", "toy")
    assert {key: subclass[key] for key in net_keys(CaFe)} == {key: model[key] for key in net_keys(CaFe)}


def test_the_command_line_of_the_process_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=7", "--cov=x", "--seed=1"])
    merged = Config("CaFe", "toy")
    assert merged["epochs"] == DEFAULTS["epochs"] != 7
    assert merged["seed"] == DEFAULTS["seed"] != 1
    assert "cov" not in merged


# Unknown keys ---------------------------------------------------------------------------------------------------------

NEAR = r"unknown key 'learning_rat' \(value 0\.5\) for CaFe; did you mean learning_rate\?"


def test_an_unknown_key_is_refused_wherever_it_stands() -> None:
    file = write(Path("a.yaml"), "learning_rat: 0.5\n")
    for given in (
        {"config_file_list": [file]},
        {"config_dict": {"learning_rat": 0.5}},
        {"overrides": {"learning_rat": "0.5"}},
    ):
        with pytest.raises(ConfigError, match=NEAR):
            Config("CaFe", "toy", **given)
    for given in ({"config_file_list": [file]}, {"config_dict": {"learning_rat": 0.5}}):
        with pytest.raises(ConfigError, match=NEAR):
            RecBoleConfig("CaFe", "toy", **given)


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ("cafe", "toy", r"no model 'cafe'; did you mean CaFe\?; `recbole-cafe list` names"),
        ("sasrec", "toy", r"no model 'sasrec'; did you mean SASRec\?"),
        ("SASrek", "toy", r"no model 'SASrek'; did you mean SASRec\?"),
        ("zzzz", "toy", "no model 'zzzz'; `recbole-cafe list` names the models there are"),
        ("", "toy", "model='' should be the name or the class of a model"),
        (None, "toy", "model=None should be the name or the class of a model"),
        ("CaFe", "./small", "dataset='./small' should be a name, not a path: .* set data_path=. and dataset=small"),
        ("BPR", "a/b", "dataset='a/b' should be a name, not a path: .* set data_path=a and dataset=b"),
        ("CaFe", "..", r"dataset='\.\.' should be the name of a folder of atomic files below data_path"),
        ("CaFe", None, "dataset=None should be the name of a folder"),
    ],
)
def test_names_that_are_none(model: Any, dataset: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(model, dataset)


def test_an_unknown_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'zzzzqqqq' \(value 1\) for CaFe$"):
        Config("CaFe", "toy", config_dict={"zzzzqqqq": 1})


@pytest.mark.parametrize("key", ["n_items", "item2intent", "item_negatives", "max_seq_length"])
def test_what_the_data_know_is_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        Config("CaFe", "toy", config_dict={key: 5})


def test_every_key_of_a_net_and_of_recbole_is_known() -> None:
    default = Config("CaFe", "toy")
    given = {key: default[key] for key in net_keys(CaFe) | {"val_interval", "benchmark_filename", "nproc", "log_wandb"}}
    merged = Config("CaFe", "toy", config_dict=given)
    assert {key: merged[key] for key in given} == given


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_arguments_of_a_foreign_script_do_not_break_recboles_config(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model_list=CaFe,SASRec", "--valid_latex=./latex/valid.tex", "--config_files=a.yaml", "-x", "--y"]
    monkeypatch.setattr(sys, "argv", ["run_recbole_group.py", *arguments, "--epochs=7"])
    merged = RecBoleConfig(model, "toy", config_dict={"seed": 5})
    assert (merged["model"], merged["epochs"], merged["seed"]) == (model, 7, 5)


# Values ---------------------------------------------------------------------------------------------------------------


def test_text_from_the_command_line_becomes_a_value() -> None:
    merged = Config(
        "CaFe",
        "toy",
        overrides={
            "learning_rate": "1e-4", "topk": "[1,10]", "metrics": "['NDCG', 'Hit']", "intent_loss": "false",
            "joint": "sum", "rm_dup_inter": "None", "eval_mode": "[full, pop5]", "epochs": "3",
            "user_inter_num_interval": "[5,inf)", "clip_grad_norm": "{'max_norm': 1.5}", "checkpoint_dir": "2*3",
        },
    )  # fmt: skip
    expected = {
        "learning_rate": 1e-4, "topk": [1, 10], "metrics": ["NDCG", "Hit"], "intent_loss": False, "joint": "sum",
        "rm_dup_inter": None, "eval_mode": ["full", "pop5"], "user_inter_num_interval": "[5,inf)", "epochs": 3,
        "clip_grad_norm": {"max_norm": 1.5}, "checkpoint_dir": "2*3",
    }  # fmt: skip
    assert {key: merged[key] for key in expected} == expected


def test_text_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(Path("a.yaml"), f'candidates_dir: "{EVIL}"\n')
    assert Config("CaFe", "toy", overrides={"candidates_dir": EVIL})["candidates_dir"] == EVIL
    for make in (Config, RecBoleConfig):
        assert make("CaFe", "toy", config_dict={"candidates_dir": EVIL})["candidates_dir"] == EVIL
        assert make("CaFe", "toy", config_file_list=[file])["candidates_dir"] == EVIL
    monkeypatch.setattr(sys, "argv", ["script.py", f"--candidates_dir={EVIL}"])
    assert RecBoleConfig("CaFe", "toy")["candidates_dir"] == EVIL
    assert not os.path.exists("x")


def test_a_yaml_file_cannot_make_objects() -> None:
    file = write(Path("a.yaml"), 'joint: !!python/object/apply:os.system ["touch x"]\n')
    with pytest.raises(ConfigError, match=r"config file a\.yaml is not YAML: could not determine a constructor"):
        Config("CaFe", "toy", [file])
    assert not os.path.exists("x")


def test_arguments_of_a_command_line() -> None:
    assert parse_arguments(["--a=1", "--b=x=y", "--c=", "--a=1"]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in ("a=1", "--a", "-a=1", "--=1", "--epochs", "1"):
        with pytest.raises(ConfigError, match=f"argument '{wrong}' is not of the form --key=value"):
            parse_arguments([wrong])
    with pytest.raises(ConfigError, match="--a is given twice, with the values '1' and '2'"):
        parse_arguments(["--a=1", "--a=2"])


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read() -> None:
    Path("folder").mkdir()
    Path("latin.yaml").write_bytes("a: café\n".encode("latin-1"))
    for path, message in (
        ("nowhere.yaml", "config file nowhere.yaml cannot be read: No such file or directory"),
        ("folder", "config file folder cannot be read: Is a directory"),
        (write(Path("broken.yaml"), "a: [1,\n"), "config file broken.yaml is not YAML: while parsing"),
        ("latin.yaml", "config file latin.yaml is not YAML: 'utf-8' codec can't decode"),
        (write(Path("list.yaml"), "- a\n- b\n"), "config file list.yaml holds a list, expected `key: value` lines"),
        (write(Path("text.yaml"), "epochs 3\n"), "config file text.yaml holds a str, expected `key: value` lines"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config("CaFe", "toy", [path])
    assert read_yaml(write(Path("empty.yaml"), "# nothing\n")) == {}


def test_yaml_numbers_are_numbers() -> None:
    content = read_yaml(write(Path("a.yaml"), "a: 1e-3\nb: 1.5E+2\nc: .5\nd: 12\ne: 1e\nf: v1.0\n"))
    assert content == {"a": 0.001, "b": 150.0, "c": 0.5, "d": 12, "e": "1e", "f": "v1.0"}


def test_every_shipped_yaml_is_read_and_used() -> None:
    folder = props.props_dir()
    paths = sorted(folder.rglob("*.yaml"))
    assert len(paths) >= 5
    assert {path.parent.relative_to(folder).as_posix() for path in paths} == {
        ".",
        "benchmark",
        "dataset",
        "model",
    }
    for path in paths:
        assert read_yaml(path), path
    for path in (folder / "model").glob("*.yaml"):
        merged = Config(path.stem, "toy")
        needed = net_keys(merged.model_class)
        assert needed <= set(merged.final_config_dict), path
        hosts = set(RecBoleConfig("SASRec", "toy").final_config_dict) | set(read_yaml(folder / "overall.yaml"))
        dead = set(read_yaml(path)) - needed - hosts
        assert not dead, f"{path}: nothing reads {dead}"
    for path in (folder / "dataset").glob("*.yaml"):
        assert sources(Config("CaFe", path.stem))["INTENT_FIELD"] == f"props/dataset/{path.name}"


def test_every_preset_is_a_config_of_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
    read_once = cache(read_yaml)  # there are some hundred presets, and a dozen files are below each
    for module in (config, props):
        monkeypatch.setattr(module, "read_yaml", read_once)
    seen = 0
    for path in (props.props_dir() / "benchmark").glob("*.yaml"):
        for system in read_yaml(path).get("systems", {}):
            settings = preset(f"{path.stem}/{system}")
            merged = Config(preset_model(f"{path.stem}/{system}"), "toy", config_dict=settings)
            assert {key: merged[key] for key in settings} == settings
            assert not {"model", "search"} & set(settings)
            seen += 1
    assert seen >= 6
    assert preset_model("table3/base") == "CaFe"
    assert preset_model("quick/FDSA") == "FDSA"
    assert preset("table3/base") == {"intent_tower": False, "intent_loss": False, "n_local_heads": 0, "joint": "item"}


@pytest.mark.parametrize("name", ["table3", "table3/none", "none/base", ""])
def test_an_unknown_preset_lists_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no preset '{name}'; there are: .*table3/base, table3/\+1,"):
        preset(name)


def test_a_model_without_yaml_says_which_file_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("props").mkdir()
    Path("props/overall.yaml").write_text("")
    use_props(Path("props"), monkeypatch)
    with pytest.raises(ConfigError, match=r"CaFe has no YAML: props/model/CaFe\.yaml is missing"):
        Config("CaFe", "toy")


def test_a_key_missing_from_the_yaml_is_named_with_the_file() -> None:
    full = {"hidden_size": 2, "depth": 3, "width": 4, "other": 5}
    assert arguments_of(Shaped, full, Path("m.yaml")) == {"hidden_size": 2, "size": Size(depth=3, width=4)}
    with pytest.raises(ConfigError, match=r"^props/model/M\.yaml: no value for depth, width, which Shaped needs$"):
        arguments_of(Shaped, {"hidden_size": 2}, Path("props/model/M.yaml"))


def test_the_keys_of_a_net_are_those_of_its_settings_and_its_own() -> None:
    keys = signature_of(Shaped)
    assert keys.keys == {"depth", "width", "hidden_size"}
    assert (keys.settings, keys.plain, keys.takes_data) == ({"size": Size}, ("hidden_size",), True)
    assert "data" not in net_keys(CaFe)


def test_a_key_that_two_settings_claim_is_named() -> None:
    def net(*, size: Size, width: int) -> None: ...

    def twice(*, size: Size, other: Size) -> None: ...

    with pytest.raises(ConfigError, match=r"^M\.yaml: key width is claimed by size and by width of net$"):
        signature_of(net, Path("M.yaml"))
    with pytest.raises(ConfigError, match="key depth is claimed by size and by other of twice"):
        arguments_of(twice, {}, Path("M.yaml"))


# Checks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tie_order": "time"}, "tie_order='time' is not one of file, random"),
        ({"train_layout": "some"}, "train_layout='some' is not one of all, last"),
        ({"candidates": "fresh"}, "candidates='fresh' is not one of stored, recbole"),
        ({"intent_from": "second"}, "intent_from='second' is not one of None, first, last, rarest"),
        ({"mask_history": "maybe"}, "mask_history='maybe' is not one of True, False"),
        ({"epochs": "x"}, rf"epochs='x' should be a number \(default {DEFAULTS['epochs']}\)"),
        ({"learning_rate": True}, r"learning_rate=True should be a number \(default "),
        ({"epochs": 0}, "epochs=0 should be at least 1"),
        ({"average_from": -1}, "average_from=-1 should be at least 0"),
        ({"hidden_size": [64]}, r"hidden_size=\[64\] should be a number \(default "),
        ({"intent_loss": "maybe"}, r"intent_loss='maybe' should be True or False \(default True\)"),
        ({"show_progress": "yes"}, r"show_progress='yes' should be True or False \(default True\)"),
        ({"eval_mode": "pop"}, "eval_mode 'pop' is not full, popN, uniN or authorsN with N a positive number"),
        ({"eval_mode": ["full", "best"]}, "eval_mode 'best' is not full, popN"),
        ({"eval_mode": ["full", 100]}, "eval_mode 100 is not full, popN"),
        ({"eval_mode": 100}, "eval_mode 100 is not full, popN"),
        ({"eval_mode": []}, r"eval_mode=\[\] should be one protocol or a list of different ones"),
        ({"eval_mode": ["full", "full"]}, r"eval_mode=\['full', 'full'\] should be one protocol or a list of"),
        ({"eval_args": "full"}, "eval_args='full' should be a mapping with the keys split, group_by, order, mode"),
        ({"eval_args": {"mode": "labeled"}}, "eval_mode 'labeled' is not full, popN"),
        ({"valid_metric": "NDCG@7"}, r"valid_metric=NDCG@7 is not among the metrics .* at topk \[5, 10, 20\]"),
        ({"valid_metric": "NDCG"}, "valid_metric=NDCG has no cut-off: expected NDCG@5 or NDCG@10 or NDCG@20"),
        ({"valid_metric": "GAUC@10", "metrics": ["GAUC"]}, r"valid_metric=GAUC@10: GAUC has no cut-offs; expected GAU"),
        ({"valid_metric": "MRR", "candidates": "recbole", "eval_mode": "full"}, "valid_metric=MRR has no cut-off"),
        ({"metrics": ["NDGC"]}, "no metric 'NDGC'; there are .*; did you mean ndcg"),
        ({"metrics": None}, "metrics=None should be set"),
        ({"data_path": None}, "data_path=None should be set"),
        ({"data_path": 7}, "data_path=7 should be the path of a file or folder"),
        ({"checkpoint_dir": ""}, "checkpoint_dir='' should be the path of a file or folder"),
        ({"TIME_FIELD": ["timestamp"]}, r"TIME_FIELD=\['timestamp'\] should be text"),
        ({"state": "verbose"}, "state='verbose' should be one of debug, info, warning, error, critical"),
        ({"learning_rate": float("nan")}, "learning_rate=nan should be a number"),
        ({"epochs": 2.5}, "epochs=2.5 should be a whole number"),
        ({"seed": -1}, "seed=-1 should be at least 0"),
        ({"local_rank": 0}, "local_rank=0 without nproc, world_size, ip, port, offset: it is for processes that"),
        ({"metrics": []}, r"metrics=\[\] should be a list of metrics, such as \[NDCG, Hit, MRR\]"),
        ({"topk": [5, 0]}, r"topk=\[5, 0\] should be a whole number above 0 or a list of them"),
        ({"topk": "five"}, "topk='five' should be a whole number above 0 or a list of them"),
        ({"eval_args": {"splitt": {"LS": "test_only"}}}, "unknown key 'splitt' .* for eval_args; did you mean split?"),
        ({"eval_args": {"split": {"RO": [8, 1, 1]}}}, "unknown key 'RO' .* for eval_args: split"),
        ({"eval_args": {"split": {"LS": "valid"}}}, "eval_args: split: LS='valid' should be one of valid_and_test, va"),
        ({"eval_args": {"split": {"RS": [0.8, 0.2]}}}, r"eval_args: split: RS=\[0.8, 0.2\] should be three shares"),
        ({"eval_args": {"split": {"RS": [0, 0, 0]}}}, r"eval_args: split: RS=\[0, 0, 0\] should be three shares"),
        ({"eval_args": {"split": {"RS": [8, 1, 1], "LS": "test_only"}}}, "should be a mapping with one of RS, LS and"),
        ({"eval_args": {"split": "LS"}}, "eval_args: split='LS' should be a mapping such as {LS: valid_and_test}"),
        (
            {"eval_args": {"group_by": "users"}},
            "eval_args: group_by='users' should be one of user, .* did you mean user",
        ),
        ({"eval_args": {"order": "TIME"}}, "eval_args: order='TIME' should be one of RO, TO"),
        (
            {"eval_args": {"mode": {"validation": "full"}}},
            "unknown key 'validation' .* for eval_args: mode; did you mea",
        ),
        ({"train_neg_sample_args": {"sample_nums": 2}}, "unknown key 'sample_nums' .* did you mean sample_num"),
        (
            {"train_neg_sample_args": {"sample_num": 0}},
            "train_neg_sample_args: sample_num=0 should be a whole number of",
        ),
        ({"train_neg_sample_args": {"distribution": "pop"}}, "distribution='pop' should be one of uniform, popularity"),
        ({"clip_grad_norm": {"max": 5}}, "unknown key 'max' .* for clip_grad_norm; did you mean max_norm"),
        ({"clip_grad_norm": {"max_norm": 0}}, "clip_grad_norm: max_norm=0 should be a number above 0"),
        ({"load_col": {"intr": ["user_id"]}}, "unknown key 'intr' .* for load_col; did you mean inter"),
        ({"load_col": {"inter": "user_id"}}, "load_col: inter='user_id' should be a list of its columns or"),
        ({"unused_col": {"items": ["price"]}}, "unknown key 'items' .* for unused_col; did you mean item"),
        (
            {"user_inter_num_interval": "5,inf"},
            r"user_inter_num_interval='5,inf' should be an interval as text, .*5,inf",
        ),
        ({"item_inter_num_interval": 5}, r"item_inter_num_interval=5 should be an interval as text, .*\[5,inf\)"),
        ({"item_inter_num_interval": "[5,x)"}, r"item_inter_num_interval='\[5,x\)' should be an interval"),
        ({"item_inter_num_interval": "[5,2]"}, "should be an interval .* the lower end first"),
        ({"item_inter_num_interval": "[1,2];"}, "should be an interval .* or several"),
        ({"item_inter_num_interval": ""}, "item_inter_num_interval='' should be an interval"),
        ({"val_interval": {"rating": ">3"}}, "val_interval: rating='>3' should be an interval"),
        ({"val_interval": {"rating": 3}}, "val_interval: rating=3 should be an interval .* for a column of tokens a l"),
        ({"val_interval": "[3,inf)"}, "val_interval='.*' should be a mapping of a column to an interval"),
        ({"numerical_features": "price"}, "numerical_features='price' should be a list of names"),
        ({"alias_of_item_id": "item_id_list"}, "alias_of_item_id='item_id_list' should be a list of names"),
        ({"discretization": {"price": {"method": "ED"}}}, "discretization: price={'method': 'ED'} should be"),
        (
            {"discretization": {"price": {"methods": "LD"}}},
            "unknown key 'methods' .* for discretization: price; did yo",
        ),
        ({"threshold": {"rating": 3, "price": 1}}, "threshold=.* should be a mapping of one column to the least value"),
        ({"seq_len": {"tags": 0}}, "seq_len: tags=0 should be a whole number of at least 1"),
        ({"rm_dup_inter": "firts"}, "rm_dup_inter='firts' is not one of None, first, last"),
        ({"valid_metric": "Recall@10"}, r"valid_metric=Recall@10 is not among the metrics \['NDCG', 'Hit', 'MRR'\]"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1\.5 should be a probability, from 0 to 1"),
        ({"weight_decay": -1}, "weight_decay=-1 should be at least 0"),
        ({"hidden_size": 0}, "hidden_size=0 should be at least 1"),
        ({"metric_decimal_place": -1}, "metric_decimal_place=-1 should be at least 0"),
        ({"stopping_step": 1.5}, r"stopping_step=1\.5 should be a whole number"),
        ({"transform": "5"}, r"transform='?5'? should be one of mask_itemseq"),
        ({"topk": [1, 2]}, r"valid_metric=NDCG@10 is not among the metrics .* at topk \[1, 2\]"),
        ({"topk": 5}, r"valid_metric=NDCG@10 is not among the metrics .* at topk \[5\]"),
        ({"metrics": "Hit"}, r"valid_metric=NDCG@10 is not among the metrics \['Hit'\]"),
        ({"load_col": ["user_id"]}, r"load_col=\['user_id'\] should be a mapping of a file \(inter, item\) to a list"),
        (
            {"metrics": "AUC", "valid_metric": "AUC"},
            r"metrics=\['AUC'\] judge scores .*eval_mode=\['full', 'pop100'\] draws none; set eval_mode to popN",
        ),
        (
            {"metrics": ["AUC", "NDCG"], "eval_mode": "pop100"},
            r"metrics=\['AUC', 'NDCG'\]: AUC judge single scores and the others rankings",
        ),
        ({"INTENT_FIELD": None}, "INTENT_FIELD is empty; it names the column of the .item file"),
        ({"candidates": "recbole"}, r"candidates=recbole takes one eval_mode of RecBole's own .*, 'pop100'\]"),
        ({"candidates": "recbole", "eval_mode": "authors5"}, "candidates=recbole takes one .* got 'authors5'"),
    ],
)
def test_values_that_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config("CaFe", "toy", config_dict=settings)
    with pytest.raises(ConfigError, match=message):  # RecBole's own Config, given our model, as well
        RecBoleConfig("CaFe", "toy", config_dict=settings)


def test_mappings_and_intervals_that_recbole_reads() -> None:
    """Each as RecBole's documentation writes it, from Python and from a command line."""
    given = {
        "eval_args": {"split": {"RS": [8, 1, 1]}, "group_by": None, "order": "RO", "mode": {"valid": "uni5"}},
        "user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "(0,1] ; [3, 4.5)",
        "val_interval": {"rating": "[3,inf)", "user_id": ["ann", 3]}, "unused_col": {"inter": ["rating"]},
        "numerical_features": ["price"], "discretization": {"price": {"method": "ED", "bucket": 5}},
        "threshold": {"rating": 3.5}, "seq_len": {"tags": 3}, "alias_of_item_id": ["item_id_list"],
        "additional_feat_suffix": "emb", "load_col": {"inter": "*", "item": ["price"], "emb": ["eid", "vector"]},
        "preload_weight": {"eid": "vector"}, "rm_dup_inter": "last",
        "clip_grad_norm": {"max_norm": 1, "norm_type": 2.0},
        "train_neg_sample_args": {"distribution": "popularity", "sample_num": 2, "alpha": 0.5},
    }  # fmt: skip
    for model in ("BPR", "CaFe"):
        typed = Config(model, "toy", overrides={key: str(value) for key, value in given.items()})
        for merged in (Config(model, "toy", config_dict=given), typed):
            for key in given.keys() - {"eval_args", "load_col", "additional_feat_suffix", "train_neg_sample_args"}:
                assert merged[key] == given[key], key
            assert merged["eval_args"]["split"] == {"RS": [8, 1, 1]}
            assert merged["load_col"]["emb"] == ["eid", "vector"]
    assert Config("CaFe", "toy", overrides={"item_inter_num_interval": "[5,10]"})["item_inter_num_interval"] == [5, 10]


def test_train_layout_all_is_for_our_models() -> None:
    with pytest.raises(ConfigError, match=r"train_layout=all is for recbole_cafe's models; RecBole's SASRec trains on"):
        Config("SASRec", "toy", config_dict={"train_layout": "all"})
    assert Config("SASRec", "toy", config_dict={"train_layout": "last"})["train_layout"] == "last"


def test_numbers_and_switches_of_any_spelling() -> None:
    given = {"epochs": 3.0, "weight_decay": 1, "learning_rate": 1e-5, "intent_loss": False, "shuffle": 0, "seed": None}
    merged = Config("CaFe", "toy", config_dict=given)
    assert {key: merged[key] for key in given} == given


@pytest.mark.parametrize("metric", ["NDCG@10", "ndcg@10", "Hit@5", "MRR"])
def test_valid_metric_in_any_case(metric: str) -> None:
    assert Config("CaFe", "toy", config_dict={"valid_metric": metric})["valid_metric"] == metric


@pytest.mark.parametrize(
    ("given", "modes"),
    [
        ({"eval_mode": "full"}, ["full"]),
        ({"eval_mode": ["uni50", "full"]}, ["uni50", "full"]),
        ({"eval_args": {"mode": "uni50"}}, ["uni50"]),
        ({"eval_args": {"mode": {"valid": "uni50", "test": "full"}}}, ["uni50", "full"]),
        ({"eval_args": {"mode": {"valid": "uni50"}}}, ["uni50"]),
        ({"eval_args": {"mode": "uni50"}, "eval_mode": "full"}, ["full"]),
        ({"eval_args": {"order": "TO"}}, ["full", "pop100"]),
    ],
)
def test_the_split_is_kept_when_only_the_mode_is_given(given: dict[str, Any], modes: list[str]) -> None:
    merged = Config("CaFe", "toy", config_dict=given)
    assert merged["eval_mode"] == modes
    mode = {"valid": modes[0], "test": modes[0]}
    assert merged["eval_args"] == {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": mode}


def test_recbole_is_told_a_mode_it_has() -> None:
    merged = Config("CaFe", "toy", config_dict={"eval_mode": ["authors7", "full"]})
    assert merged["eval_mode"] == ["authors7", "full"]
    assert merged["eval_args"]["mode"] == {"valid": "pop7", "test": "pop7"}


def test_a_split_of_the_user_is_kept() -> None:
    merged = Config("CaFe", "toy", config_dict={"eval_args": {"split": {"LS": "test_only"}}})
    assert merged["eval_args"]["split"] == {"LS": "test_only"}
    assert merged["eval_args"]["order"] == "TO"


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load_col", "expected"),
    [
        ({"inter": ["user_id", "item_id"]},
         {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "intent"]}),
        ({"inter": ["item_id", "user_id", "rating", "timestamp"], "item": ["intent", "item_id", "price"]},
         {"inter": ["item_id", "user_id", "rating", "timestamp"], "item": ["intent", "item_id", "price"]}),
        ({"inter": "*", "item": "*"}, {"inter": "*", "item": "*"}),
        ({}, {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "intent"]}),
        ({"inter": ["user_id"], "user": ["user_id", "age"]},
         {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age"], "item": ["item_id", "intent"]}),
        (None, None),
    ],
)  # fmt: skip
def test_load_col_gets_time_and_intent(load_col: Any, expected: Any) -> None:
    assert Config("CaFe", "toy", config_dict={"load_col": load_col})["load_col"] == expected


def test_load_col_follows_the_names_of_the_fields() -> None:
    names = {"USER_ID_FIELD": "u", "ITEM_ID_FIELD": "i", "TIME_FIELD": "t", "INTENT_FIELD": "seller", "load_col": {}}
    assert Config("CaFe", "toy", config_dict=names)["load_col"] == {"inter": ["u", "i", "t"], "item": ["i", "seller"]}


def test_the_user_s_mapping_is_not_changed() -> None:
    given = {"load_col": {"inter": ["user_id"]}, "eval_args": {"mode": "full"}}
    Config("CaFe", "toy", config_dict=given)
    assert given == {"load_col": {"inter": ["user_id"]}, "eval_args": {"mode": "full"}}


def test_every_model_loads_the_same_items() -> None:
    """RecBole drops interactions with items that have no row in a loaded .item file, and counts rows without
    interactions as items; so whether the file is loaded decides about the catalogue."""
    assert len({str(Config(model, "toy")["load_col"]) for model in ("CaFe", "SASRec", "BPR")}) == 1


def test_data_are_looked_for_in_the_working_folder_first() -> None:
    for folder in ("dataset_atomic", "dataset"):
        Path(folder, "toy").mkdir(parents=True)
    assert Config("CaFe", "toy")["data_path"] == os.path.join("dataset_atomic", "toy")
    Path("dataset_atomic/toy").rmdir()
    assert Config("CaFe", "toy")["data_path"] == os.path.join("dataset", "toy")
    assert Config("CaFe", "toy", config_dict={"data_path": "else"})["data_path"] == os.path.join("else", "toy")
    assert Config("CaFe", "ml-100k")["data_path"].endswith("ml-100k")
    assert Path(Config("CaFe", "ml-100k")["data_path"], "ml-100k.inter").is_file()


def test_rows_of_each_process_make_a_step_of_all() -> None:
    group = {"local_rank": 0, "nproc": 4, "world_size": 4, "ip": "localhost", "port": "1", "offset": 0}
    external = {"per_process_batch_size": 32, **group}
    settle_batch(external)
    assert external["train_batch_size"] == 128
    alone = {"per_process_batch_size": 32}
    settle_batch(alone)
    assert alone["train_batch_size"] == 32
    with pytest.raises(ConfigError, match="per_process_batch_size=32 and train_batch_size=64: one of them says"):
        settle_batch({"per_process_batch_size": 32, "train_batch_size": 64})
