"""recbole_cafe.train.checkpoint: plain data in, the same objects out, and no code run on the way."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from atomic_files import write_data_set
from preloaded import Preloaded

from recbole_cafe.errors import DataError
from recbole_cafe.experiment import run
from recbole_cafe.host import compat, reload
from recbole_cafe.prepare import simulate
from recbole_cafe.prepare.simulate import MANIFEST, write_simulated
from recbole_cafe.train import checkpoint

compat.apply()

pytestmark = pytest.mark.filterwarnings("ignore")  # of RecBole on current libraries

ORDERED = {"order": "TO", "split": {"LS": "valid_and_test"}, "group_by": "user", "mode": "full"}
SETTINGS: dict[str, Any] = {
    "gpu_id": "", "epochs": 2, "show_progress": False, "state": "WARNING", "topk": [3], "load_col": None,
    "metrics": ["MRR", "Hit"], "valid_metric": "MRR@3", "hidden_size": 8, "inner_size": 8,
    "MAX_ITEM_LIST_LENGTH": 5,
}  # fmt: skip


class Touch:
    """Pickled, it creates the file ``path`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty users who walk through twelve items from different starts; each item has a colour."""
    clicks = [(user, (user + step * step) % 12, step) for user in range(30) for step in range(8)]
    colours = {item: "red" if item % 3 else "blue" for item in range(12)}
    return str(write_data_set(tmp_path_factory.mktemp("data"), "walk", clicks, colours, intent_field="colour"))


def prepare(model: str, data_path: str, **settings: Any) -> tuple[Any, ...]:
    """(config, train, valid, test, a function which makes a fresh trainer), all by RecBole's functions."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    config = Config(model, "walk", config_dict=SETTINGS | {"data_path": data_path} | settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))

    def make_trainer() -> Any:
        model = get_model(config["model"])(config, train._dataset).to(config["device"])
        return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    return config, train, valid, test, make_trainer


# ----------------------------------------------------------------------------------------------------
# Objects
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.array(["ab", "c"]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([], dtype=np.int64), np.array(3), np.array([True, False]), np.array([1, 2], dtype=">i4"),
        np.asfortranarray(np.arange(6).reshape(2, 3)), np.array([{1: "a"}, None], dtype=object),
        np.matrix([[1.0, 2]]), np.array([2**32 - 1, 7], dtype=np.uint32),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}-{value.ndim}d",
)  # fmt: skip
def test_arrays_come_back_as_they_were(value: np.ndarray, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pth", {"value": value})
    back = checkpoint.load(tmp_path / "a.pth")["value"]
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    np.testing.assert_array_equal(back, value)


def test_no_tensor_is_kept_that_an_older_pytorch_cannot_save() -> None:
    kinds = {checkpoint.encode(np.zeros(1, dtype))["data"].dtype for dtype in ("u1", "u2", "u4", "u8", "i4", "f8")}
    assert kinds == {torch.uint8, torch.int32, torch.float64}


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "dok", "lil", "dia", "bsr"])
@pytest.mark.parametrize("make", [scipy.sparse.coo_matrix, scipy.sparse.coo_array])
def test_sparse_matrices_come_back_as_they_were(form: str, make: Any, tmp_path: Path) -> None:
    value = make(np.array([[0, 1.5, 0], [0, 0, 0], [2, 0, 3]])).asformat(form)
    checkpoint.save(tmp_path / "a.pth", {"value": value})
    back = checkpoint.load(tmp_path / "a.pth")["value"]
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back.toarray(), value.toarray())


def test_everything_else_comes_back_as_it_was(tmp_path: Path) -> None:
    from recbole.utils import EvaluatorType, InputType, ModelType

    state = {
        "enums": [ModelType.SEQUENTIAL, InputType.PAIRWISE, EvaluatorType.RANKING],
        "device": torch.device("cpu"), "set": {1, "a"}, "bytes": (b"", b"xy"), "nothing": None,
        "nested": {1: {(2, "k"): [{"x": (1.5, True)}]}}, "ordered": OrderedDict(b=1, a=2),
    }  # fmt: skip
    checkpoint.save(tmp_path / "a.pth", state)
    assert checkpoint.load(tmp_path / "a.pth") == state
    assert checkpoint.decode(state) == state
    once = checkpoint.encode(state)
    assert checkpoint.encode(once) == once


def test_numpy_scalars_and_paths_become_python_values() -> None:
    plain = checkpoint.encode({"score": np.float64(0.5), np.int64(3): np.str_("a"), "path": Path("a")})
    assert plain == {"score": 0.5, 3: "a", "path": "a"}
    assert [type(value) for value in plain.values()] == [float, str, str]
    assert type(list(plain)[1]) is int


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": [0, {"b": print}]}, r"a\[1\]\.b: a builtins\.builtin_function_or_method has no plain form"),
        ({"a": np.array([print], dtype=object)}, r"a\[0\]: "),
        ({"a": {Path: 1}}, r"a: .*cannot be a dict key"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_its_place(state: dict, place: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=place):
        checkpoint.save(tmp_path / "a.pth", state)
    assert os.listdir(tmp_path) == []


def test_a_foreign_enum_is_refused() -> None:
    from enum import Enum

    class ModelType(Enum):
        SEQUENTIAL = 2

    with pytest.raises(TypeError, match=r"kind: .*no enum of RecBole"):
        checkpoint.encode({"kind": ModelType.SEQUENTIAL})


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


def test_a_save_which_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"epoch": 1})

    def full_disk(_state: Any, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            checkpoint.save(path, {"epoch": 2})
    assert os.listdir(tmp_path) == ["a.pth"]
    assert checkpoint.load(path) == {"epoch": 1}


def test_a_missing_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint file .*gone\.pth"):
        checkpoint.load(tmp_path / "gone.pth")
    whole = tmp_path / "whole.pth"
    checkpoint.save(whole, {"x": torch.arange(1000)})
    data = whole.read_bytes()
    broken = {"cut.pth": data[: len(data) // 2], "empty.pth": b"", "text.pth": b"epoch: 3\n",
              "bits.pth": data[:60] + bytes(60) + data[120:], "zip.pth": b"PK\5\6" + bytes(18)}  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError, match=name) as caught:
            checkpoint.load(tmp_path / name)
        assert "trust_checkpoint" not in str(caught.value), name  # it would not help
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(checkpoint.CheckpointError, match=r"list\.pth .* holds a list"):
        checkpoint.load(tmp_path / "list.pth")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("archive", [True, False])
def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path, protocol: int, archive: bool) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    state = {"state_dict": {}, "config": Touch(marker)}
    if archive:
        torch.save(state, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(state, protocol=protocol))
    with pytest.raises(checkpoint.UnsafeCheckpointError, match=r"evil\.pth .*trust_checkpoint=True"):
        checkpoint.load(path)
    with pytest.raises(checkpoint.UnsafeCheckpointError, match=r"evil\.pth"):
        reload.load_data_and_model(path)
    assert not marker.exists()


# ----------------------------------------------------------------------------------------------------
# With RecBole's own models, trainers and functions
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ItemKNN", "Pop", "EASE", "SASRecF", "BPR"])
def test_a_stock_model_evaluates_from_its_checkpoint_as_it_did_in_memory(model: str, data_path: str) -> None:
    feature = {"selected_features": ["colour"], "eval_args": ORDERED} if model == "SASRecF" else {}
    _, train, valid, test, make_trainer = prepare(model, data_path, **feature)
    trainer = make_trainer()
    trainer.fit(train, valid if model == "SASRecF" else None)
    if model != "SASRecF":  # trained to the end without validation, so the file holds what is in memory
        in_memory = trainer.evaluate(test, load_best_model=False)
        kept = trainer.model.other_parameter()
    else:
        in_memory = trainer.evaluate(test, load_best_model=True)
        kept = {}

    other = make_trainer()
    other.eval_collector.data_collect(train)
    for name in kept:
        setattr(other.model, name, None)
    assert other.evaluate(test, load_best_model=True, model_file=trainer.saved_model_file) == in_memory
    assert all(type(getattr(other.model, name)) is type(value) for name, value in kept.items())


@pytest.fixture
def trained(data_path: str) -> dict[str, Any]:
    """SASRec, trained and tested by RecBole's own trainer."""
    config, train, valid, test, make_trainer = prepare("SASRec", data_path, eval_args=ORDERED, note={"a": (1, None)})
    trainer = make_trainer()
    trainer.fit(train, valid)
    result = trainer.evaluate(test, load_best_model=True)
    return {"config": config, "trainer": trainer, "file": trainer.saved_model_file, "result": result,
            "train": train, "valid": valid, "test": test, "make_trainer": make_trainer}  # fmt: skip


def test_a_process_which_knows_neither_recbole_nor_us_opens_the_file(
    trained: dict[str, Any], fresh_python: Preloaded
) -> None:
    code = """
import sys, torch
state = torch.load(sys.argv[1], weights_only=True)
assert list(state) == [
    "config", "epoch", "cur_step", "best_valid_score", "state_dict", "other_parameter", "optimizer"
]
assert type(state["best_valid_score"]) is float and state["config"]["model"] == "SASRec"
assert not {"recbole", "recbole_cafe"} & {name.split(".")[0] for name in sys.modules}
"""
    done = fresh_python("-c", code, trained["file"])
    assert done.returncode == 0, done.stderr


def test_the_restored_config_is_the_one_which_was_trained(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["test", "--epochs=99"])
    config = reload.restore_config(checkpoint.load(trained["file"])["config"])
    assert config.final_config_dict == trained["config"].final_config_dict
    assert str(config) == str(trained["config"])
    assert (config["epochs"], config["no such key"], config.model_class.__name__) == (2, None, "SASRec")


def test_a_restored_config_belongs_to_one_process_on_this_machine(trained: dict[str, Any]) -> None:
    far = {"gpu_id": "0,1", "local_rank": 3, "single_spec": False, "nproc": 4, "world_size": 8, "offset": 4,
           "ip": "10.0.0.1", "port": "5678", "device": torch.device("cuda", 3)}  # fmt: skip
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    config = reload.restore_config(checkpoint.plain_config(trained["config"]) | checkpoint.encode(far))
    assert config["single_spec"] is True
    assert config["local_rank"] == 0
    assert config["world_size"] is None
    assert config["device"] == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_a_config_with_a_key_that_is_gone_is_restored(trained: dict[str, Any]) -> None:
    """Checkpoints of earlier versions hold `reader`."""
    config = reload.restore_config(checkpoint.plain_config(trained["config"]) | {"reader": "columnar"})
    assert config["epochs"] == trained["config"]["epochs"]


@pytest.mark.parametrize(
    ("change", "message"), [({"model": None}, "names no model"), ({"model": "os.path"}, "cannot be the name")]
)
def test_a_config_without_a_usable_model_is_refused(
    trained: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=message):
        reload.restore_config(checkpoint.plain_config(trained["config"]) | change)


def test_a_setting_without_plain_form_does_not_cost_the_model(
    trained: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    trained["config"]["hook"] = print
    plain = checkpoint.plain_config(trained["config"])
    assert "hook" not in plain
    assert plain["epochs"] == 2
    assert "config.hook" in caplog.text


def test_load_data_and_model_gives_back_data_and_model(trained: dict[str, Any]) -> None:
    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer

    config, model, dataset, train, _valid, test = load_data_and_model(trained["file"])
    assert len(train.dataset) == len(trained["train"].dataset)
    assert dataset.item_num == 13
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == trained["result"]
    assert config["checkpoint_dir"] == trained["config"]["checkpoint_dir"]


def test_load_data_and_model_does_not_unpickle_a_cached_dataset(trained: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("walk-SequentialDataset.pth", "walk-for-SASRec-dataloader.pth", "elsewhere.pth"):
        (tmp_path / "saved" / name).write_bytes(pickle.dumps(Touch(marker)))
    state = checkpoint.load(trained["file"])
    state["config"] |= {
        "dataset_save_path": "saved/elsewhere.pth",
        "dataloaders_save_path": "saved/elsewhere.pth",
    }
    checkpoint.save("foreign.pth", state)
    config, *_ = reload.load_data_and_model("foreign.pth")
    assert not marker.exists()
    assert config["dataset_save_path"] == "saved/elsewhere.pth"


def test_a_stock_trainer_resumes(trained: dict[str, Any]) -> None:
    resumed = trained["make_trainer"]()
    resumed.resume_checkpoint(trained["file"])
    saved = checkpoint.load(trained["file"])
    assert resumed.start_epoch == saved["epoch"] + 1
    assert resumed.best_valid_score == saved["best_valid_score"] == float(trained["trainer"].best_valid_score)
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, saved["state_dict"][name])
    moments = resumed.optimizer.state_dict()["state"]
    assert moments
    assert all(torch.equal(moments[i]["exp_avg"], saved["optimizer"]["state"][i]["exp_avg"]) for i in moments)


def test_recboles_own_checkpoint_opens_only_when_trusted_and_can_be_made_safe(
    trained: dict[str, Any],
) -> None:
    model, optimizer = trained["trainer"].model, trained["trainer"].optimizer
    state = {"config": trained["config"], "epoch": 1, "cur_step": 0, "best_valid_score": np.float64(0.5),
             "state_dict": model.state_dict(), "other_parameter": model.other_parameter(),
             "optimizer": optimizer.state_dict()}  # fmt: skip
    torch.save(state, "recbole.pth", pickle_protocol=4)  # as RecBole 1.2 does
    with pytest.raises(checkpoint.UnsafeCheckpointError, match=r"recbole\.pth"):
        reload.load_data_and_model("recbole.pth")
    _, old, *_ = reload.load_data_and_model("recbole.pth", trust_checkpoint=True)
    checkpoint.save("safe.pth", checkpoint.load("recbole.pth", trust_checkpoint=True))
    _, new, *_ = reload.load_data_and_model("safe.pth")
    for one in (old, new):
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in one.state_dict().items())


# Simulated data -------------------------------------------------------------------------------------------------------


def small_amazon(folder: Path) -> Path:
    """A tiny simulated data set of the name that has a sample. Returns the folder for `data_path`."""
    write_simulated(folder / "amazon", "amazon", n_users=30, n_items=60, n_intents=5, n_interactions=300)
    return folder


@pytest.mark.parametrize("real", [True, False])
def test_the_sample_takes_the_place_of_simulated_data_alone(
    real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of real `amazon` whose folder is gone is refused; one of the sample gets it, and that is said."""
    folder = small_amazon(tmp_path / "dataset_atomic") / "amazon"
    if real:
        (folder / MANIFEST).unlink()
    sample = {"n_users": 30, "n_items": 60, "n_intents": 5, "n_interactions": 300}
    monkeypatch.setitem(simulate.PRESETS, "amazon", sample)
    settings = {"epochs": 1, "hidden_size": 8, "inner_size": 8, "gpu_id": "", "show_progress": False,
                "eval_mode": "full", "MAX_ITEM_LIST_LENGTH": 5}  # fmt: skip
    file = run("CaFe", "amazon", config_dict=settings).checkpoint
    assert torch.load(file, weights_only=True)["simulated"] is not real
    shutil.rmtree(folder)
    if real:
        with pytest.raises(DataError, match=r"no data set 'amazon': looked for dataset_atomic.amazon; data sets in"):
            reload.load_data_and_model(file)
        # where the package has its sample, that one is found: it is refused too
        with pytest.raises(DataError, match=r"no data set 'amazon'|was trained on other data"):
            run("CaFe", "amazon", config_dict={**settings, "resume_from": file})
        assert not folder.exists()
        write_simulated(folder, "amazon", n_users=30, n_items=60, n_intents=5, n_interactions=310)
        with pytest.raises(DataError, match="was trained on other data"):
            reload.load_data_and_model(file)
    else:
        config, *_ = reload.load_data_and_model(file)
        assert simulate.is_simulated(folder) and config["dataset"] == "amazon"
        assert "making the simulated sample there" in caplog.text


def test_the_sample_is_not_made_for_a_checkpoint_that_does_not_say(tmp_path: Path) -> None:
    """Checkpoints of earlier versions."""
    plain = {"model": "CaFe", "dataset": "amazon", "data_path": "dataset_atomic/amazon"}
    assert "data_path" in reload.restore_config(plain).external_config_dict
