"""What cannot be written is known before a training, not after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe import run
from recbole_cafe.errors import ConfigError
from recbole_cafe.experiment import run_distributed
from recbole_cafe.files.places import check_folder
from recbole_cafe.files.whole import write_json
from recbole_cafe.train.trainer import NetTrainer

SETTINGS: dict[str, Any] = {
    "gpu_id": "", "epochs": 1, "hidden_size": 8, "inner_size": 8, "show_progress": False, "eval_mode": ["full", "uni5"],
    "MAX_ITEM_LIST_LENGTH": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("checkpoint_dir", r"^checkpoint_dir=taken/x cannot be written to \(Not a directory\): set checkpoint_dir to "),
        ("candidates_dir", r"^candidates_dir=taken/x cannot be written to \(Not a directory\): set candidates_dir to "),
        ("result_file", r"^result_file=taken/x cannot be written: File exists"),
        ("ranks_file", r"^ranks_file=taken/x cannot be written: File exists"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_training(
    key: str, message: str, toy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(NetTrainer, "fit", fit)
    Path("taken").write_text("a file")
    settings: dict[str, Any] = {**SETTINGS, "data_path": str(toy_path)}
    files: dict[str, Any] = {}
    (settings if key.endswith("_dir") else files)[key] = "taken/x"
    with pytest.raises(ConfigError, match=message):
        run("CaFe", "toy", config_dict=settings, **files)


def test_so_is_the_result_file_of_several_processes() -> None:
    Path("taken").write_text("a file")
    with pytest.raises(ConfigError, match="result_file=taken/x cannot be written"):
        run_distributed("CaFe", "toy", nproc=2, result_file="taken/x")


def test_candidates_that_are_stored_need_no_folder_that_can_be_written(
    toy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data_path": str(toy_path), "candidates_dir": "shared"}
    first = run("CaFe", "toy", config_dict=settings)

    def refuse(key: str, folder: Path) -> None:
        raise ConfigError(f"{key}={folder} cannot be written to")

    monkeypatch.setattr("recbole_cafe.train.evaluation.check_folder", refuse)
    assert run("CaFe", "toy", config_dict=settings).candidates == first.candidates
    with pytest.raises(ConfigError, match="candidates_dir=shared cannot be written to"):
        run("CaFe", "toy", config_dict={**settings, "candidates_seed": 1})


def test_a_folder_is_made_and_left_empty() -> None:
    check_folder("checkpoint_dir", "new/folder")
    assert list(Path("new/folder").iterdir()) == []


def test_others_may_read_what_is_written_as_the_umask_says() -> None:
    before = os.umask(0o027)
    try:
        write_json(Path("r.json"), {})
    finally:
        os.umask(before)
    assert Path("r.json").stat().st_mode & 0o777 == 0o640
