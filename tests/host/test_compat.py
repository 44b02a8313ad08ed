"""recbole_cafe.host.compat: RecBole runs on current libraries, and is changed no more than that needs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preloaded import Preloaded

import recbole_cafe
from recbole_cafe.files.literals import parse_value
from recbole_cafe.host import compat

compat.apply()

# For a process of its own: `repair()` imports compat without the rest of the package, and applies it.
BARE = f"""
import sys, types
from pathlib import Path
def repair():
    package = types.ModuleType("recbole_cafe")
    package.__path__ = {list(recbole_cafe.__path__)!r}
    sys.modules["recbole_cafe"] = package
    from recbole_cafe.host import compat
    return compat.apply()
"""


@pytest.fixture
def run_python(fresh_python: Preloaded) -> Callable[..., str]:
    """Output of code in a fresh interpreter, in which nothing is switched off; the test fails if it does."""

    def run(code: str, **environment: str) -> str:
        done = fresh_python("-c", BARE + code, **{compat.SWITCH: "", **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes log/, saved/ and log_tensorboard/ where it stands, and reads the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])


def write_features(folder: Path) -> None:
    """Ten items, of which a, b, c, e and f have features, of every kind and with holes in each; six users."""
    folder.mkdir(parents=True)
    clicks = [(user, "abcdefghij"[(user + step) % 10], 10 * user + step) for user in range(1, 7) for step in range(5)]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in clicks)]
    (folder / "holes.inter").write_text("\n".join(lines) + "\n")
    (folder / "holes.item").write_text(
        "item_id:token\tbrand:token\tprice:float\ttags:token_seq\tvector:float_seq\n"
        "a\tx\t1.0\tred green\t0.5 1.5\n"
        "b\t\t3.0\t\t1.0\n"
        "c\ty\t\tgreen\t\n"
        "e\tx\t8.0\tblue red green\t2.0 2.0\n"
        "f\ty\t4.0\tred\t3.0\n"
    )


def config_of(model: str, folder: Path, **settings: Any) -> Any:
    from recbole.config import Config

    plain = {
        "data_path": str(folder), "gpu_id": "", "epochs": 1, "show_progress": False, "state": "WARNING",
        "topk": [2], "valid_metric": "MRR@2", "metrics": ["MRR"], "embedding_size": 8, "hidden_size": 8,
        "load_col": None, "filter_inter_by_user_or_item": False,
    }  # fmt: skip
    return Config(model=model, dataset="holes", config_dict=plain | settings)


# ----------------------------------------------------------------------------------------------------
# The table
# ----------------------------------------------------------------------------------------------------


def test_every_entry_says_what_is_wrong_when_it_applies_and_when_it_can_go() -> None:
    assert len({entry.name for entry in compat.DEFECTS}) == len(compat.DEFECTS)
    for entry in compat.DEFECTS:
        assert all((entry.what, entry.issues, entry.when, entry.until)), entry.name


def test_applying_twice_changes_nothing_more() -> None:
    from recbole.config import Config
    from recbole.trainer import Trainer

    before = [Config._set_default_parameters, Config._init_device, Trainer.__init__, Trainer.evaluate]
    names = compat.apply()
    assert names == compat.apply() == [entry.name for entry in compat.DEFECTS if entry.applied]
    assert before == [Config._set_default_parameters, Config._init_device, Trainer.__init__, Trainer.evaluate]


def test_importing_compat_anew_wraps_nothing_twice() -> None:
    from recbole.trainer import Trainer
    from recbole.utils import get_model

    before = Trainer.evaluate, get_model.__code__
    del sys.modules["recbole_cafe.host.compat"]
    try:
        import importlib

        assert importlib.import_module("recbole_cafe.host.compat").apply() == compat.apply()
    finally:
        sys.modules["recbole_cafe.host.compat"] = recbole_cafe.host.compat = compat
    assert before == (Trainer.evaluate, get_model.__code__)


@pytest.mark.slow
def test_the_environment_switches_everything_off(run_python: Any) -> None:
    run_python(
        """
import numpy, torch
import recbole.config, recbole.trainer, recbole.data.dataset, recbole.data.interaction, recbole.evaluator
from recbole.utils import get_model
from recbole.data.dataset import dataset
owners = [recbole.config.Config, recbole.trainer.Trainer, recbole.data.dataset.Dataset, numpy, dataset,
          recbole.data.interaction.Interaction, recbole.evaluator.Collector]
def state():
    return [dict(vars(owner)) for owner in owners], get_model.__code__, torch.is_anomaly_enabled()
before, modules = state(), set(sys.modules)
assert repair() == []
assert state() == before
assert {name.split(".")[0] for name in set(sys.modules) - modules} == {"recbole_cafe"}
""",
        RECBOLE_CAFE_COMPAT="0",
    )


@pytest.mark.slow
def test_the_environment_switches_single_entries_off(run_python: Any) -> None:
    run_python(
        """
names = repair()
assert "config-eval" not in names and "anomaly-mode" not in names and "numpy-names" in names
from recbole.config import Config
assert Config._convert_config_dict.__module__ == "recbole.config.configurator"
""",
        RECBOLE_CAFE_COMPAT="-config-eval,-anomaly-mode",
    )


def test_an_unknown_name_in_the_environment_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(compat.SWITCH, "-config-evil")
    compat.apply()
    assert "-config-evil" in caplog.text
    assert "config-eval" in caplog.text


# ----------------------------------------------------------------------------------------------------
# NumPy and pandas
# ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interactions_work_in_a_process_which_never_made_a_config(run_python: Any) -> None:
    run_python(
        """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="invalid escape sequence")  # in RecBole's sources, when they are compiled
repair()
import numpy as np
from recbole.data.interaction import Interaction
assert len(Interaction({"x": [1.0, 2.0]})) == 2
assert np.bool8 is np.bool_ and np.float is np.float64 and np.dtype(np.long).kind == "i"
"""
    )


def test_a_config_sets_no_numpy_name_anew() -> None:
    before = dict(vars(np))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from recbole.config import Config

        Config.compatibility_settings(Config.__new__(Config))
    assert dict(vars(np)) == before


@pytest.mark.filterwarnings("ignore")  # pandas 2 announces what pandas 3 does
def test_missing_values_of_every_kind_are_filled(tmp_path: Path) -> None:
    from recbole.data import create_dataset

    write_features(tmp_path / "data" / "holes")
    dataset = create_dataset(config_of("Pop", tmp_path / "data"))
    dataset.build()  # which turns the tables into tensors
    item = {token: dataset.token2id("item_id", token) for token in "abcdef"}
    feat = dataset.get_item_feature()
    mean = (1 + 3 + 8 + 4) / 4

    brand = dataset.field2id_token["brand"][feat["brand"].numpy()]
    assert [brand[item[token]] for token in "abcef"] == ["x", "[PAD]", "y", "x", "y"]
    assert feat["brand"][0] == 0
    assert feat["brand"][item["d"]] == 0
    assert feat["price"].tolist()[0] == pytest.approx(mean)
    assert [feat["price"][item[token]].item() for token in "abcdef"] == pytest.approx([1, 3, mean, mean, 8, 4])

    tags = dataset.field2id_token["tags"][feat["tags"].numpy()]
    words = {token: [tag for tag in tags[item[token]] if tag != "[PAD]"] for token in "abcdef"}
    assert words == {
        "a": ["red", "green"], "b": [], "c": ["green"], "d": [], "e": ["blue", "red", "green"], "f": ["red"],
    }  # fmt: skip
    assert (feat["tags"][0] == 0).all()
    vectors = {token: feat["vector"][item[token]].tolist() for token in "abcdef"}
    assert vectors == {"a": [0.5, 1.5], "b": [1, 0], "c": [0, 0], "d": [0, 0], "e": [2, 2], "f": [3, 0]}


@pytest.mark.filterwarnings("ignore")
def test_benchmark_files_keep_the_length_of_each_history(tmp_path: Path) -> None:
    from recbole.data import create_dataset

    folder = tmp_path / "data" / "holes"
    folder.mkdir(parents=True)
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, rows in {
        "train": "1\ta b c\td\n2\tb\tc\n",
        "valid": "1\ta b c d\ta\n",
        "test": "2\tb c\td\n",
    }.items():
        (folder / f"holes.{part}.inter").write_text(head + rows)
    settings = {
        "benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"],
        "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}, "TIME_FIELD": None,
    }  # fmt: skip
    dataset = create_dataset(config_of("SASRec", tmp_path / "data", **settings))
    train, valid, test = dataset.build()
    assert [part.inter_feat["item_length"].tolist() for part in (train, valid, test)] == [[3, 1], [4], [2]]
    # the lists and the targets share one vocabulary
    assert valid.inter_feat["item_id_list"][0, 0] == valid.inter_feat["item_id"][0]


def test_interactions_sort_stably_in_both_directions() -> None:
    from recbole.data.interaction import Interaction

    def ids(by: Any, ascending: Any) -> list[int]:
        rows = Interaction({"a": [2, 1, 2, 1], "b": [[5, 0], [6, 0], [7, 0], [8, 0]], "id": [0, 1, 2, 3]})
        rows.sort(by, ascending)
        return rows["id"].tolist()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids("a", True) == [1, 3, 0, 2]
        assert ids("a", False) == [0, 2, 1, 3]
        assert ids(["a", "b"], [False, True]) == [0, 2, 1, 3]
        assert ids(["a", "b"], False) == [2, 0, 3, 1]
    with pytest.raises(ValueError, match="is not exist"):
        ids("c", True)
    with pytest.raises(ValueError, match="same length"):
        ids(["a", "b", "id"], [True, False])
    with pytest.raises(TypeError, match="Wrong type of ascending"):
        ids("a", "down")


# ----------------------------------------------------------------------------------------------------
# Imports
# ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_imported_before_us_is_repaired_too(run_python: Any) -> None:
    output = run_python(
        """
import torch
for name in ("ray", "kmeans_pytorch"):  # as if they worked
    module = types.ModuleType(name)
    module.tune = module.kmeans = None
    sys.modules.setdefault(name, module)
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model
import recbole.model.sequential_recommender
assert torch.is_anomaly_enabled()
repair()
assert not torch.is_anomaly_enabled()
for call in (lambda: load_data_and_model("nowhere.pth"), lambda: get_model("Nobody")):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""
    )
    assert output.splitlines() == [
        "CheckpointError there is no checkpoint file nowhere.pth",
        "ConfigError `model_name` [Nobody] is not the name of an existing model.",
    ]


@pytest.mark.slow
def test_a_user_who_switched_anomaly_mode_on_keeps_it_and_ray_is_not_imported(run_python: Any) -> None:
    run_python(
        """
import torch
torch.autograd.set_detect_anomaly(True, check_nan=False)
repair()
from recbole.utils import get_model
import recbole.quick_start
get_model("SINE")
assert torch.is_anomaly_enabled() and not torch.is_anomaly_check_nan_enabled()
assert not [name for name in sys.modules if name.split(".")[0] in ("ray", "kmeans_pytorch")]
"""
    )


def test_anomaly_mode_is_off_whatever_model_is_fetched() -> None:
    from recbole.utils import get_model

    for name in ("SINE", "SASRec", "BPR"):
        assert get_model(name).__name__ == name
    assert not torch.is_anomaly_enabled()


def test_reporting_to_a_broken_ray_does_nothing_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("from ray import part\nimport no_such_module_at_all\n")
    (tmp_path / "ray" / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    tune = compat._Tune()
    assert tune.report(loss=1.0) is None
    assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
    with pytest.raises(ImportError):
        _ = tune.choice


def test_reporting_to_a_ray_which_works_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("")
    (tmp_path / "ray" / "tune.py").write_text("def report(**metrics): return metrics\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    assert compat._Tune().report(loss=1.0) == {"loss": 1.0}
    monkeypatch.delitem(sys.modules, "ray.tune")
    monkeypatch.delitem(sys.modules, "ray")


def test_an_unknown_model_is_called_unknown() -> None:
    from recbole.utils import get_model

    with pytest.raises(ValueError, match="is not the name of an existing model"):
        get_model("CaFee")


# ----------------------------------------------------------------------------------------------------
# Config
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1), ("1e-3", 0.001), ("-7", -7), ("[1, 2]", [1, 2]), ("(1, 'a')", (1, "a")), ("'q'", "q"),
        ("{'a': [1e-3, None]}", {"a": [0.001, None]}), ("true", True), ("FALSE", False), ("[5,40]", [5, 40]),
        ("None", None), ("null", None), ("~", None), ("[a, b]", ["a", "b"]),
        ("{a: 1e-3, b: 5}", {"a": 0.001, "b": 5}),
    ],
)  # fmt: skip
def test_text_becomes_the_value_it_spells(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "SASRec", "", "a: b", "2*3", "1+2j", "b'x'", "{1, 2}", "...", "[5,inf)", "[5,inf]", "[0,3);[5,9)",
        "{a", "[2020-01-01]", "[&a [*a]]", "(" * 5000, "!!python/name:os.system", "[!!python/name:os.system]",
        "__import__('os').system('x')",
    ],
)  # fmt: skip
def test_other_text_stays_text(text: str) -> None:
    assert parse_value(text) == text


def test_recbole_runs_no_text_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    text = f"__import__('os').system('touch {marker}')"
    monkeypatch.setattr(sys, "argv", ["test", f"--from_command_line={text}", "--epochs=3", "--topk=[1,2]"])
    config = config_of("Pop", tmp_path, from_dict=text, learning_rate="1e-2")
    assert config["from_dict"] == config["from_command_line"] == text
    assert (config["epochs"], config["topk"], config["learning_rate"]) == (3, [1, 2], 0.01)
    assert not marker.exists()


def test_cross_entropy_needs_no_setting_and_an_explicit_contradiction_is_still_refused(
    tmp_path: Path,
) -> None:
    negatives = {"distribution": "uniform", "sample_num": 1}
    assert config_of("SASRec", tmp_path)["train_neg_sample_args"]["distribution"] == "none"
    assert config_of("SASRec", tmp_path, loss_type="BPR")["train_neg_sample_args"]["distribution"] == "uniform"
    assert config_of("BPR", tmp_path)["train_neg_sample_args"]["distribution"] == "uniform"
    with pytest.raises(ValueError, match="should be None when the loss_type is CE"):
        config_of("SASRec", tmp_path, train_neg_sample_args=negatives)


# ----------------------------------------------------------------------------------------------------
# Data, training, evaluation
# ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_single_process_downloads_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.data import create_dataset
    from recbole.data.dataset import dataset as module

    config = config_of("Pop", tmp_path / "data")
    archive = tmp_path / "holes.zip"
    archive.touch()

    def extract(_archive: str, folder: str) -> None:
        os.rmdir(folder)
        write_features(Path(folder))

    monkeypatch.setattr(module.Dataset, "_get_download_url", lambda *_: "https://example.org/holes.zip")
    monkeypatch.setattr(module, "decide_download", lambda _url: True)
    monkeypatch.setattr(module, "download_url", lambda _url, _folder: str(archive))
    monkeypatch.setattr(module, "extract_zip", extract)
    monkeypatch.setattr(module, "rename_atomic_files", lambda *_: None)
    assert create_dataset(config).item_num == 11


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["LightGCN", "NGCF"])
def test_graph_models_and_the_metrics_of_popularity_run(tmp_path: Path, model: str) -> None:
    from recbole.quick_start import run_recbole

    write_features(tmp_path / "data" / "holes")
    metrics = ["ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage", "MRR"]
    settings = config_of(model, tmp_path / "data", metrics=metrics).variable_config_dict
    result = run_recbole(model=model, dataset="holes", config_dict=settings)["test_result"]
    assert len(result) == len(metrics)
    assert all(np.isfinite(value) for value in result.values())
    assert 0 < result["itemcoverage@2"] <= 1


@pytest.mark.slow
def test_two_processes_train_together_on_the_cpu(tmp_path: Path, fresh_python: Preloaded) -> None:
    script = tmp_path / "script.py"
    write_features(tmp_path / "data" / "holes")
    script.write_text(
        BARE
        + f"""
repair()
import os
from recbole.quick_start import run
from recbole.trainer import trainer
trainer.get_local_time = lambda: str(os.getpid())  # clocks which never agree
if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = dict(data_path={str(tmp_path / "data")!r}, gpu_id="0,1", epochs=1, show_progress=False,
                    state="WARNING", metrics=["MRR"], valid_metric="MRR@2", topk=[2], hidden_size=8,
                    eval_args=dict(order="TO", split=dict(LS="valid_and_test"), mode="full"), inner_size=8,
                    load_col=dict(inter=["user_id", "item_id", "timestamp"]), train_batch_size=4)
    result = run("SASRec", "holes", config_dict=settings, nproc=2, port=str(port))
    assert 0 <= result["test_result"]["mrr@2"] <= 1
    assert len(list(Path("saved").glob("*.pth"))) == 1
"""
    )
    done = fresh_python(script, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]


# ----------------------------------------------------------------------------------------------------
# Logs
# ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_is_trained_and_loaded_where_no_log_can_be_written(tmp_path: Path, fresh_python: Preloaded) -> None:
    """Files stand where RecBole wants its folders; as root, a test cannot be kept from writing otherwise."""
    write_features(tmp_path / "data" / "holes")
    for name in ("log", "log_tensorboard"):
        (tmp_path / name).write_text("in the way")
    code = f"""
import recbole_cafe
from recbole_cafe.host.reload import load_data_and_model
settings = {{"data_path": {str(tmp_path / "data")!r}, "epochs": 2, "hidden_size": 8, "inner_size": 8, "gpu_id": "",
             "checkpoint_dir": {str(tmp_path / "kept")!r}, "eval_mode": "full", "show_progress": False,
             "INTENT_FIELD": "brand"}}
file = recbole_cafe.run("CaFe", "holes", config_dict=settings).checkpoint
load_data_and_model(file)
print("loaded")
"""
    done = fresh_python("-c", code)
    assert done.stdout.splitlines()[-1:] == ["loaded"], done.stderr
    assert done.stderr.count("no log file can be written here (") == 1
    assert "test result" in done.stderr  # the log is on the console
