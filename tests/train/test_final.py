"""`final`: every interaction is trained on, for a number of epochs that is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from atomic_files import INTER, atomic_files, atomic_text

from recbole_cafe import run
from recbole_cafe.benchmark import plan
from recbole_cafe.cli.main import main
from recbole_cafe.config.config import Config
from recbole_cafe.config.props import model_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.data.intents import item_intents
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.files.result import Result
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.model.faces import IntentBackoff
from recbole_cafe.train import checkpoint
from recbole_cafe.train.checkpoint import CheckpointError

WALKS = {"a": ["i1", "i2", "i3", "i4", "i5"], "b": ["i2", "i3"], "c": ["i5"]}  # one user of a single interaction
ITEMS = {f"i{n}": "xy"[n % 2] for n in range(1, 6)}
SMALL = {"hidden_size": 8, "inner_size": 8}


def clicks(**parts: slice) -> list[tuple[str, str, int]]:
    """Lines of the .inter file; parts: user -> which of his interactions."""
    return [(user, token, step) for user, tokens in WALKS.items()
            for step, token in list(enumerate(tokens))[parts.get(user, slice(None))]]  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Keys of every run here; its data set `tiny` is WALKS."""
    atomic_files(tmp_path, "tiny", inter=clicks(), item=ITEMS)
    return {
        "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "gpu_id": "", "topk": [1],
        "MAX_ITEM_LIST_LENGTH": 2, "metrics": ["NDCG"], "valid_metric": "NDCG@1", "eval_mode": ["full"],
        "show_progress": False, "state": "WARNING", "train_batch_size": 32, "final": True, "epochs": 3,
    }  # fmt: skip


def train_part(model: str, dataset: str = "tiny", **keys: Any) -> Any:
    """The train split as a run has it."""
    config = Config(model, dataset, config_dict=keys)
    train, valid, test = data_preparation(config, create_dataset(config))
    assert valid is None
    assert test is None
    return train._dataset


def targets(data: Any) -> list[tuple[str, list[str], list[str]]]:
    """(user, history, target at each position of it) of each row, in order."""
    rows = data[np.arange(len(data))]
    found = []
    for user, items, aims in zip(
        rows["user_id"].tolist(), rows["item_id_list"].tolist(), rows["_target_list"].tolist(), strict=True
    ):
        pairs = [(item, aim) for item, aim in zip(items, aims, strict=True) if item]
        found.append((data.id2token("user_id", user), *([data.id2token("item_id", i) for i in ids] for ids in zip(
            *pairs, strict=True))))  # fmt: skip
    return sorted((user, list(map(str, history)), list(map(str, aims))) for user, history, aims in found)


def pairs(data: Any) -> list[tuple[str, str]]:
    """(user, item) of what is counted."""
    users, items = data.user_items()
    return sorted(
        (str(data.id2token("user_id", u)), str(data.id2token("item_id", i)))
        for u, i in zip(users.tolist(), items.tolist(), strict=True)
    )


ALL_TARGETS = [("a", ["i1", "i2"], ["i2", "i3"]), ("a", ["i3", "i4"], ["i4", "i5"]), ("b", ["i2"], ["i3"])]
ALL_PAIRS = sorted((user, item) for user, items in WALKS.items() for item in items)


def test_every_interaction_with_one_before_it_is_a_target(settings: dict[str, Any]) -> None:
    data = train_part("CaFe", **settings, **SMALL)
    assert targets(data) == ALL_TARGETS
    assert pairs(data) == ALL_PAIRS
    assert sum(data.item_counter.values()) == 8


def test_prefix_rows_and_rows_of_general_models_are_all_there(settings: dict[str, Any]) -> None:
    last = train_part("SASRec", **settings)
    assert len(last) == 5  # 4 of a, 1 of b
    assert pairs(last) == ALL_PAIRS
    assert sum(last.item_counter.values()) == 8
    assert len(train_part("BPR", **settings)) == 8


def test_filters_are_as_ever(settings: dict[str, Any]) -> None:
    data = train_part("CaFe", **settings, **SMALL, user_inter_num_interval="[3,inf)")
    assert targets(data) == ALL_TARGETS[:2]


def test_parts_that_are_given_are_joined_in_order_of_time(settings: dict[str, Any], tmp_path: Path) -> None:
    atomic_files(tmp_path, "parts", item=ITEMS)
    of = {"valid": {"a": slice(1, 2)}, "test": {"a": slice(4, 5), "b": slice(1, 2)}}
    held = {line for part in of.values() for line in clicks(**{u: slice(0) for u in WALKS} | part)}
    lines = {name: clicks(**{u: slice(0) for u in WALKS} | part) for name, part in of.items()}
    lines["train"] = [line for line in clicks() if line not in held]
    for name, rows in lines.items():
        (tmp_path / "parts" / f"parts.{name}.inter").write_text(atomic_text(INTER, rows))
    data = train_part("CaFe", "parts", **settings, **SMALL, benchmark_filename=["train", "valid", "test"])
    assert targets(data) == ALL_TARGETS
    assert pairs(data) == ALL_PAIRS


def test_histories_that_are_given_are_rows_whatever_their_part(settings: dict[str, Any], tmp_path: Path) -> None:
    atomic_files(tmp_path, "given", item=ITEMS)
    header = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    rows = {"train": [("a", "i1", "i2")], "valid": [("a", "i1 i2", "i3")], "test": [("a", "i1 i2 i3", "i4")]}
    for name, lines in rows.items():
        (tmp_path / "given" / f"given.{name}.inter").write_text(atomic_text(header, lines))
    columns = {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id", "intent"]}
    data = train_part("CaFe", "given", **settings, **SMALL, benchmark_filename=[*rows], load_col=columns,
                      alias_of_item_id=["item_id_list"])  # fmt: skip
    assert len(data) == 3
    assert pairs(data) == [("a", "i1"), ("a", "i2"), ("a", "i3"), ("a", "i4")]


def test_a_model_of_counts_counts_all_and_needs_no_epochs(settings: dict[str, Any]) -> None:
    del settings["epochs"]
    result = run("IntentBackoff", "tiny", config_dict=settings)
    assert (result.final, result.epochs, result.test_result, result.best_valid_result) == (True, 1, {}, {})
    net = load_data_and_model(result.checkpoint)[1].network
    config = Config("IntentBackoff", "tiny", config_dict=settings)
    data = train_part("IntentBackoff", **settings)
    ids = [(data.token2id("user_id", user), [data.token2id("item_id", item) for item in items])
           for user, items in WALKS.items()]  # fmt: skip
    flat = torch.tensor([(user, item) for user, items in sorted(ids) for item in items])
    facts = DataFacts(
        n_items=6, n_users=4, max_seq_length=2, train_pairs=lambda: (flat[:, 0], flat[:, 1]),
        intents=lambda: item_intents(config, data),
    )  # fmt: skip
    arguments = arguments_of(IntentBackoff.net, config, model_yaml(IntentBackoff))
    counted = IntentBackoff.net(data=facts, **arguments)
    assert net.state_dict().keys() == counted.state_dict().keys()
    assert all(torch.equal(value.cpu(), counted.state_dict()[name]) for name, value in net.state_dict().items())
    held_out = run("IntentBackoff", "tiny", config_dict={**settings, "final": False})
    before = checkpoint.load(held_out.checkpoint, map_location="cpu")["state_dict"]
    assert any(before[name].shape != value.shape or not torch.equal(before[name], value)
               for name, value in net.state_dict(prefix="network.").items())  # fmt: skip


@pytest.fixture
def toy_keys(toy_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Keys of a run on the toy data."""
    return {**settings, **SMALL, "data_path": str(toy_path), "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH}


def weights(result: Result) -> dict[str, torch.Tensor]:
    """Of the checkpoint."""
    return checkpoint.load(result.checkpoint, map_location="cpu")["state_dict"]


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_it_trains_just_so_many_epochs_whatever_stops_others(toy_keys: dict[str, Any], model: str) -> None:
    result = run(model, toy.NAME, config_dict={**toy_keys, "stopping_step": 0, "eval_step": 1})
    assert result.epochs == 3
    assert result.table().startswith(f"final: {model} after 3 epochs on all {result.data['interactions']} interactions")
    assert checkpoint.load(result.checkpoint, map_location="cpu")["epoch"] == 2
    config, _, _, train, valid, test = load_data_and_model(result.checkpoint)
    assert config["final"] is True
    assert train._dataset.digests == result.digests
    assert valid is None
    assert test is None


class Broken(Exception):
    """Ends a run."""


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_to_the_same_weights(
    toy_keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_keys |= {"average_from": 2}
    whole = run("CaFePlus", toy.NAME, config_dict=toy_keys)
    zero_grad, steps = torch.optim.Optimizer.zero_grad, []

    def breaking(optimizer: Any, *arguments: Any, **options: Any) -> None:
        steps.append(0)
        if len(steps) == 12:  # of 15
            raise Broken
        zero_grad(optimizer, *arguments, **options)

    toy_keys["checkpoint_dir"] = str(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "zero_grad", breaking)
        with pytest.raises(Broken):
            run("CaFePlus", toy.NAME, config_dict=toy_keys)
    assert len([*(tmp_path / "other").glob("*.last")]) == 1
    with pytest.raises((ConfigError, CheckpointError), match=r"final=False, there True|trained on other data"):
        run("CaFePlus", toy.NAME, config_dict={
            **toy_keys, "final": False, "resume_from": str(next((tmp_path / "other").glob("*.last")))})  # fmt: skip
    with pytest.raises(ConfigError, match=r"2 epochs behind it, and epochs=1 with final=True"):
        run("CaFePlus", toy.NAME, config_dict={
            **toy_keys, "epochs": 1, "resume_from": str(next((tmp_path / "other").glob("*.last")))})  # fmt: skip
    resumed = run("CaFePlus", toy.NAME, config_dict={**toy_keys, "resume": "auto"})
    assert resumed.epochs == 3
    assert not [*(tmp_path / "other").glob("*.last")]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.fixture
def finished(toy_keys: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """(**changes): the result file of a run that validated, with some of its values changed."""
    path = tmp_path / "result.json"
    run("CaFe", toy.NAME, config_dict={**toy_keys, "final": False, "epochs": 2, "learning_rate": 0.02},
        result_file=path)  # fmt: skip

    def of(**changes: Any) -> Path:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return path

    return of


def test_a_finished_run_gives_settings_and_epochs(
    toy_keys: dict[str, Any], finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished(epochs=7, validations_since_best=3)
    config = Config("CaFe", toy.NAME, config_dict={"final_from": str(path), "data_path": toy_keys["data_path"]})
    assert (config["final"], config["epochs"], config["learning_rate"], config["hidden_size"]) == (True, 4, 0.02, 8)
    assert config.sources["epochs"] == f"result file {path}"
    out = tmp_path / "final.json"
    arguments = {"final_from": path, "epochs": 1, "result_file": out, "state": "WARNING", "show_progress": False,
                 **{key: toy_keys[key] for key in ("data_path", "checkpoint_dir")}}  # fmt: skip
    assert main(["run", *(f"--{key}={value}" for key, value in arguments.items())]) == 0
    assert "\nfinal: CaFe after 1 epoch on all 845 " in "\n" + capsys.readouterr().out
    result = Result.load(out)
    assert (result.final, result.epochs, result.dataset) == (True, 1, toy.NAME)


def test_the_best_number_of_epochs_counts_validations(finished: Callable[..., Path]) -> None:
    result = Result.load(finished())
    result.config |= {"eval_step": 5, "epochs": 100}
    for epochs, since, best in ((40, 3, 25), (42, 3, 25), (5, 0, 5), (40, None, None)):
        assert dataclasses.replace(result, epochs=epochs, validations_since_best=since).best_epochs == best
    assert dataclasses.replace(result, epochs=9, best_valid_score=None, best_valid_result={}).best_epochs == 9


def test_errors_come_before_training(toy_keys: dict[str, Any], finished: Callable[..., Path], tmp_path: Path) -> None:
    def refused(message: str, model: str = "CaFe", dataset: str = toy.NAME, error: type = ConfigError, **keys: Any):
        with pytest.raises(error, match=message):
            Config(model, dataset, config_dict={"data_path": toy_keys["data_path"], **keys})

    path = finished()
    refused(r"final=True without epochs", final=True)
    refused(r"model=CaFe, and model=SASRec is to be trained", model="SASRec", final_from=str(path))
    refused(r"dataset=toy, and dataset=ml-100k is to be trained", dataset="ml-100k", final_from=str(path))
    refused(r"with final=False", final_from=str(path), final=False)
    refused(r"no-such\.json: not a readable result", error=DataError, final_from="no-such.json")
    refused(r"does not tell after how many epochs", final_from=str(finished(validations_since_best=None)))
    refused(r"final='perhaps' is not one of", final="perhaps")
    with pytest.raises(ConfigError, match=r"ranks_file=.* nothing is held out"):
        run("CaFe", toy.NAME, config_dict=toy_keys, ranks_file=tmp_path / "ranks.npz")
    assert plan.SET_HERE["final"] == "nothing"
