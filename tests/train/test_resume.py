"""A run that is broken off and gone on with is the run that was not."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from recbole_cafe import run
from recbole_cafe.errors import ConfigError
from recbole_cafe.files.result import Result
from recbole_cafe.train import checkpoint, resume
from recbole_cafe.train.checkpoint import CheckpointError
from recbole_cafe.train.run_state import Lock, SaveEvery

EPOCHS = 3
OF_THE_PROCESS = {"seconds", "peak_memory_mb", "checkpoint"}  # what no two runs share


class Broken(Exception):
    """Ends a run in the middle of a step."""


class Steps:
    """Counts the optimisers' steps, and breaks a run off at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done, self.break_at = 0, -1
        zero_grad = torch.optim.Optimizer.zero_grad

        def counted(optimizer: Any, *arguments: Any, **options: Any) -> None:
            self.done += 1
            if self.done == self.break_at:
                raise Broken
            zero_grad(optimizer, *arguments, **options)

        patch.setattr(torch.optim.Optimizer, "zero_grad", counted)


@pytest.fixture
def train(toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """(model, folder, break_at=, **settings): a run of three epochs, broken off at a step or a share of all steps."""
    steps, in_all = Steps(monkeypatch), {}

    def of(model: str, folder: str, break_at: float | None = None, **settings: Any) -> Result | None:
        keys = {
            "data_path": str(toy_path), "checkpoint_dir": str(tmp_path / folder), "epochs": EPOCHS, "gpu_id": "",
            "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "train_batch_size": 32, "topk": [5], "metrics": ["NDCG"],
            "valid_metric": "NDCG@5", "eval_mode": ["full"], "show_progress": False, "state": "WARNING", **settings,
        }  # fmt: skip
        small = {"embedding_size": 8} if model == "BPR" else {"hidden_size": 8, "inner_size": 8}
        steps.done = 0
        if break_at is None:
            steps.break_at = -1
            result = run(model, toy.NAME, config_dict=small | keys)
            in_all[model] = steps.done
            return result
        steps.break_at = break_at if break_at >= 1 else int(in_all[model] * break_at)
        with pytest.raises(Broken):
            run(model, toy.NAME, config_dict=small | keys)
        return None

    return of


def plain(result: Result) -> dict[str, Any]:
    """What has to be equal of two results."""
    content = {key: value for key, value in dataclasses.asdict(result).items() if key not in OF_THE_PROCESS}
    content["config"] = {k: v for k, v in result.config.items() if k not in ("checkpoint_dir", "candidates_dir")}
    return content


def same_weights(one: str, other: str) -> bool:
    first, second = (checkpoint.load(path)["state_dict"] for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first) and set(first) == set(second)


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.is_file())


SETTINGS: dict[str, dict[str, Any]] = {
    "CaFe": {},  # tables updated row by row, negatives, dropout
    "CaFePlus": {"average_from": 1},
    "SSEPT": {"window_prob": 0.5},  # moves windows, shares embeddings at random
    "BERTF": {},  # masks at random
    "SASRec": {},
    "BPR": {},  # RecBole's negatives, of NumPy
}


@pytest.mark.parametrize("model", SETTINGS)
def test_a_run_that_was_broken_off_gives_what_the_unbroken_one_gives(
    model: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    whole = train(model, "whole", **SETTINGS[model])
    train(model, "broken", break_at=0.6, **SETTINGS[model])
    assert files(tmp_path / "broken") == [".last", ".pth"]
    torch.rand(3)  # the process that goes on is another one
    resumed = train(model, "broken", resume="auto", **SETTINGS[model])
    assert plain(resumed) == plain(whole)
    assert resumed.epochs == EPOCHS
    assert same_weights(resumed.checkpoint, whole.checkpoint)
    assert files(tmp_path / "broken") == [".pth"]


def test_it_goes_on_from_the_best_weights_of_a_run_as_well(train: Callable[..., Any], tmp_path: Path) -> None:
    whole = train("CaFe", "whole")
    one = train("CaFe", "one", epochs=1)
    before = Path(one.checkpoint).read_bytes()
    resumed = train("CaFe", "two", resume_from=one.checkpoint)
    assert plain(resumed) == plain(whole)
    assert same_weights(resumed.checkpoint, whole.checkpoint)
    assert Path(resumed.checkpoint).parent == tmp_path / "two"
    assert Path(one.checkpoint).read_bytes() == before


def test_the_last_state_of_another_folder_brings_its_best_weights(train: Callable[..., Any], tmp_path: Path) -> None:
    whole = train("CaFe", "whole")
    train("CaFe", "broken", break_at=0.9)
    (last,) = (tmp_path / "broken").glob("*.last")
    resumed = train("CaFe", "here", resume_from=str(last))
    assert plain(resumed) == plain(whole)
    assert files(tmp_path / "here") == [".pth"]
    assert files(tmp_path / "broken") == [".last", ".pth"]
    last.with_suffix(".pth").unlink()
    with pytest.raises(CheckpointError, match=r"best weights so far should be in .*\.pth, which is not there"):
        train("CaFe", "again", resume_from=str(last))


def test_auto_takes_no_run_of_other_settings_or_data_or_of_a_living_process(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    train("CaFe", "broken", break_at=12)
    (last,) = (tmp_path / "broken").glob("*.last")

    def begins_anew(**settings: Any) -> bool:
        shutil.copytree(tmp_path / "broken", tmp_path / "copy")
        result = train("CaFe", "copy", resume="auto", epochs=settings.pop("epochs", EPOCHS), **settings)
        shutil.rmtree(tmp_path / "copy")
        return Path(result.checkpoint).stem != last.stem

    assert not begins_anew()
    assert begins_anew(seed=1)
    assert begins_anew(epochs=EPOCHS + 1)
    assert begins_anew(
        rm_dup_inter="first", eval_args={"split": {"LS": "test_only"}, "group_by": "user", "order": "TO"}
    )
    shutil.copytree(tmp_path / "broken", tmp_path / "copy")
    held = Lock(tmp_path / "copy" / last.name)
    assert held.take()
    assert Path(train("CaFe", "copy", resume="auto").checkpoint).stem != last.stem
    held.give_back()


def test_settings_that_matter_are_refused_by_name(train: Callable[..., Any]) -> None:
    one = train("CaFe", "one", epochs=1)
    for key, value in {"seed": 3, "joint": "item", "train_batch_size": 16, "hidden_dropout_prob": 0.1}.items():
        with pytest.raises(ConfigError, match=f"{key}={value!r}, there .*only .*learning_rate.* may change"):
            train("CaFe", "two", resume_from=one.checkpoint, **{key: value})


def test_settings_that_may_change_are_honoured_and_logged(
    train: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = train("CaFe", "one", epochs=1)
    with caplog.at_level(logging.INFO):
        train("CaFe", "two", 2, resume_from=one.checkpoint, learning_rate=0.5, weight_decay=0.1, state="INFO")
    assert "learning_rate was 0.001, goes on with 0.5" in caplog.text
    assert "weight_decay was 0.0, goes on with 0.1" in caplog.text
    (last,) = (tmp_path / "two").glob("*.last")
    groups = [g for part in checkpoint.load(last)["optimizer"]["parts"] for g in part["param_groups"]]
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.5, 0.1)}


def test_a_checkpoint_of_other_data_is_refused(train: Callable[..., Any], tmp_path: Path) -> None:
    """The same tokens in another order have other ids."""
    one = train("CaFe", "one", epochs=1)
    other = toy.write_toy(tmp_path / "other")
    inter = other / f"{toy.NAME}.inter"
    header, *rows = inter.read_text().splitlines(keepends=True)
    inter.write_text(header + "".join(rows[::-1]))
    before = Path(one.checkpoint).read_bytes()
    with pytest.raises(CheckpointError, match=r"trained on other data. What differs: the users.*, the items"):
        train("CaFe", "two", resume_from=one.checkpoint, data_path=str(other.parent))
    assert Path(one.checkpoint).read_bytes() == before


def changed(file: str, **parts: Any) -> str:
    """A copy of a checkpoint with other parts; None takes one away."""
    state = {**checkpoint.load(file), **parts}
    copy = str(Path(file).with_name("changed.pth"))
    checkpoint.save(copy, {key: value for key, value in state.items() if value is not None})
    return copy


def test_what_does_not_fit_is_refused_with_the_file(train: Callable[..., Any]) -> None:
    file = train("CaFe", "one", epochs=1).checkpoint
    weights = checkpoint.load(file)["state_dict"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"epoch": -1}, "says epoch -1"),
        ({"epoch": "3"}, "epoch should be a int, found str"),
        ({"cur_step": None}, "cur_step should be a int, found no such key"),
        ({"config": None}, "config should be a dict, found no such key"),
        ({"state_dict": {}}, "does not fit CaFe"),
        ({"state_dict": {name: weight[:1] for name, weight in weights.items()}}, "does not fit CaFe"),
        ({"optimizer": {}}, "the optimiser's state does not fit"),
        ({"random": []}, "not of a run in 1 process"),
        ({"random": [{"python": 1}]}, "random streams cannot be restored"),
    ]
    for parts, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            train("CaFe", "two", resume_from=changed(file, **parts))
        assert "changed.pth" in str(caught.value) or "random" in str(caught.value)


def test_when_the_last_state_is_saved() -> None:
    assert [epoch for epoch in range(7) if SaveEvery(3).due(epoch)] == [0, 3, 6]
    assert not any(SaveEvery(0).due(epoch) for epoch in range(7))
    assert all(SaveEvery("0min").due(epoch) for epoch in range(1)) is False
    assert not SaveEvery("10min").due(5)
    for wrong in ("often", -1, 1.5, True, "10 min"):
        with pytest.raises(ConfigError, match=r"save_every=.* minutes as in 10min"):
            SaveEvery(wrong)


def test_without_saving_a_broken_run_leaves_only_its_best_weights(train: Callable[..., Any], tmp_path: Path) -> None:
    train("CaFe", "broken", break_at=12, save_every=0)
    assert files(tmp_path / "broken") == [".pth"]


def test_recboles_own_run_leaves_its_checkpoint_alone(toy_path: Path, tmp_path: Path) -> None:
    """Who trains without `recbole_cafe.run` cannot resume by `auto`: no last state, no lock, nothing held open."""
    from contract import build

    from recbole_cafe.train.trainer import NetTrainer

    prepared = build("CaFe", toy_path, epochs=2, hidden_size=8, inner_size=8, checkpoint_dir=str(tmp_path / "stock"))
    trainer = NetTrainer(prepared.config, prepared.model)
    trainer.fit(prepared.train, prepared.test, verbose=False)
    assert files(tmp_path / "stock") == [".pth"]
    assert trainer.lock._handle is None


def test_a_run_leaves_its_checkpoint_and_no_thread(train: Callable[..., Any], tmp_path: Path) -> None:
    train("CaFe", "first")  # RecBole starts threads that every run shares
    before = threading.active_count()
    result = train("CaFe", "second")
    assert threading.active_count() == before
    assert list((tmp_path / "second").rglob("*.*")) == [Path(result.checkpoint)]


def test_whether_data_are_simulated_is_read_once(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(resume, "is_simulated", lambda folder: read.append(folder) or {"simulated": True})
    result = train("CaFe", "saved")
    assert len(read) == 1
    assert result.simulated is True and checkpoint.load(result.checkpoint)["simulated"] is True
