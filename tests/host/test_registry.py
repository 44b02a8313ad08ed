"""After `import recbole_cafe`, RecBole's own functions know our models, and treat its own as before."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole.data.dataset
import recbole.model
import recbole.trainer
from preloaded import Preloaded
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer

import recbole_cafe
from recbole_cafe import CaFe
from recbole_cafe.cli.main import main
from recbole_cafe.data.sequences import NetDataset
from recbole_cafe.host import registry
from recbole_cafe.model import MODELS
from recbole_cafe.train.trainer import NetTrainer

TINY: dict[str, Any] = {
    "gpu_id": "", "show_progress": False, "epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 8, "eval_mode": "full", "state": "WARNING",
}  # fmt: skip


@pytest.fixture
def python(fresh_python: Preloaded) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A fresh interpreter in the test's folder; the test fails if it does."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = fresh_python(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    return run


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.strip().splitlines()[-1])


def settings_of(toy_path: Path, **more: Any) -> dict[str, Any]:
    return TINY | {"data_path": str(toy_path)} | more


# Lookups --------------------------------------------------------------------------------------------------------------


def test_recboles_lookups_find_every_model() -> None:
    assert registry.install() == list(MODELS)
    for name in MODELS:
        assert get_model(name).__module__ == "recbole_cafe.model.faces"
        assert get_model(name).net.__module__ == MODELS[name].rpartition(".")[0]
        assert get_model(name).__name__ == name
        assert get_trainer(None, name) is NetTrainer
        assert getattr(recbole.data.dataset, f"{name}Dataset") is NetDataset


def test_recboles_config_takes_name_or_class_with_our_settings(toy_path: Path) -> None:
    for model in ("CaFe", CaFe):
        config = Config(model, "toy", config_dict=settings_of(toy_path))
        assert config.model_class is CaFe
        assert config["model"] == "CaFe"
        assert config["valid_metric"] == "NDCG@10"  # props/overall.yaml; RecBole's is MRR@10
        assert config["joint"] == "product"  # props/model/CaFe.yaml
        assert config["load_col"]["item"] == ["item_id", "intent"]
        assert config["train_neg_sample_args"]["distribution"] == "none"
        dataset = create_dataset(config)
        assert type(dataset) is NetDataset
        train, _, test = data_preparation(config, dataset)
        assert type(get_model("CaFe")(config, train._dataset)) is CaFe
        assert len(test._dataset) == len(set(test._dataset.inter_feat["user_id"].tolist()))


def test_registering_again_changes_nothing(toy_path: Path) -> None:
    before = Config._load_internal_config_dict
    assert registry.install() == registry.install() == list(MODELS)
    assert Config._load_internal_config_dict is before
    assert Config("CaFe", "toy", config_dict=settings_of(toy_path))["valid_metric"] == "NDCG@10"


def test_recboles_own_models_are_left_alone(toy_path: Path) -> None:
    for name in ("SASRec", "GRU4Rec", "BPR"):
        config = Config(name, "toy", config_dict={"data_path": str(toy_path), "gpu_id": ""})
        assert config["train_batch_size"] == 2048
        assert config["eval_mode"] is None
        assert config["INTENT_FIELD"] is None
        assert (
            get_model(name).__module__ == f"recbole.model.{config.model_class.__module__.split('.')[2]}.{name.lower()}"
        )
        assert get_trainer(config["MODEL_TYPE"], name) is recbole.trainer.Trainer
    settings = {"data_path": str(toy_path), "gpu_id": "", "load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    assert type(create_dataset(Config("SASRec", "toy", config_dict=settings))) is recbole.data.dataset.SequentialDataset


def test_a_subclass_of_the_user_s_own_runs(toy_path: Path) -> None:
    class Mine(CaFe):
        """CaFe that says how often it was asked."""

        losses = 0

        def calculate_loss(self, interaction: Any) -> Any:
            Mine.losses += 1
            return super().calculate_loss(interaction)

    result = recbole_cafe.run(Mine, "toy", config_dict=settings_of(toy_path, epochs=2, train_batch_size=1000))
    assert result.model == "Mine"
    assert Mine.losses == 2  # one batch an epoch
    assert result.config["joint"] == "product"
    assert 0 <= result.test_result["full"]["ndcg@10"] <= 1


def test_a_name_that_recbole_has_is_left_to_recbole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sequential_recommender").mkdir()
    (tmp_path / "sequential_recommender" / "cafe.py").write_text("")
    monkeypatch.setattr(recbole.model, "__path__", [*recbole.model.__path__, str(tmp_path)])
    assert registry.install() == [name for name in MODELS if name != "CaFe"]
    assert "RecBole has its own CaFe" in caplog.text
    assert "the name means RecBole's. Ours is recbole_cafe.model.faces.CaFe: pass the class instead" in caplog.text


@pytest.mark.parametrize(
    ("module", "attribute"), [(recbole.trainer, "CaFeTrainer"), (recbole.data.dataset, "CaFeDataset")]
)
def test_a_trainer_or_dataset_that_recbole_has_is_left_to_recbole(
    module: Any, attribute: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Theirs:
        pass

    monkeypatch.setattr(module, attribute, Theirs)
    assert "CaFe" not in registry.install()
    assert f"RecBole has its own CaFe ({module.__name__}.{attribute})" in caplog.text
    assert getattr(module, attribute) is Theirs


# Fresh processes ------------------------------------------------------------------------------------------------------

EVERYTHING = """
import json, sys
sys.argv = ["script.py", "--model_list=CaFe,SASRec", "--valid_latex=./x.tex", "-v"]     # a foreign command line
import recbole_cafe
import numpy as np
from pathlib import Path
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils.case_study import full_sort_topk
settings = json.loads(%r)
result = run_recbole(model="CaFe", dataset="toy", config_dict=dict(settings))
(saved,) = Path("saved").glob("CaFe-*.pth")
config, model, dataset, train, valid, test = load_data_and_model(str(saved))
users = dataset.token2id("user_id", np.array(["long"]))
scores, items = full_sort_topk(users, model, test, k=3)
tuned = objective_function(config_dict=settings | {"model": "CaFe", "dataset": "toy"})
print(json.dumps({
    "test": result["test_result"], "tuned": tuned["test_result"], "model": type(model).__module__,
    "top": dataset.id2token("item_id", items[0].numpy()).tolist(), "scores": scores[0].tolist(),
}))
"""


@pytest.mark.slow
def test_recboles_quick_start_runs_cafe_from_start_to_end(toy_path: Path, python: Any) -> None:
    settings = settings_of(toy_path, epochs=10, learning_rate=0.01, train_batch_size=8, loss_type="CE")
    observed = last_line(python("-c", EVERYTHING % json.dumps(settings)))
    assert observed["model"] == "recbole_cafe.model.faces"
    assert set(observed["test"]) == {f"{m}@{k}" for m in ("ndcg", "hit", "mrr") for k in (5, 10, 20)} | {"mrr"}
    assert observed["test"] == observed["tuned"]
    assert observed["scores"] == sorted(observed["scores"], reverse=True)
    mine = recbole_cafe.run("CaFe", "toy", config_dict=settings)
    assert mine.test_result["full"] == pytest.approx(observed["test"], abs=1e-6)  # our run is RecBole's, step by step
    assert observed["test"]["hit@5"] > 0.5  # the known next item; chance is 5 of 27


ORDERS = """
import json, sys, types
import numpy as np
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_      # what RecBole needs without our repairs
sys.modules.setdefault("kmeans_pytorch", types.SimpleNamespace(kmeans=None))
import recbole.config, recbole.data, recbole.utils, recbole.trainer           # RecBole first
from recbole.config import Config
from recbole.utils import get_model, get_trainer
from recbole.data import create_dataset
from recbole.model.sequential_recommender import SASRec
settings = {"gpu_id": "", "train_neg_sample_args": None}
plain = {name: Config(name, "toy", config_dict=dict(settings)).final_config_dict for name in ("SASRec", "BPR")}
import recbole_cafe, importlib
importlib.reload(recbole_cafe)                                                # and twice
same = [plain[name] == Config(name, "toy", config_dict=dict(settings)).final_config_dict for name in plain]
print(json.dumps([same, get_model("CaFe").__module__, get_trainer(None, "CaFe").__name__, get_model("SASRec") is SASRec,
                  Config("CaFe", "toy", config_dict={"gpu_id": ""})["joint"]]))
"""


def test_recbole_may_be_imported_first(python: Any) -> None:
    observed = last_line(python("-c", ORDERS))
    assert observed == [[True, True], "recbole_cafe.model.faces", "NetTrainer", True, "product"]


FIRST = """
import json, sys, types
sys.modules.setdefault("kmeans_pytorch", types.SimpleNamespace(kmeans=None))    # RecBole 1.2.0 without our repairs
sys.modules.setdefault("ray", types.SimpleNamespace(tune=None))
%s
from recbole.config import Config
from recbole.quick_start import quick_start
from recbole.utils import get_model, get_trainer
import recbole
print(json.dumps([get_model("CaFe").__module__, get_trainer(None, "CaFe").__name__, quick_start.run_recboles.__module__,
                  hasattr(recbole.trainer, "CaFeeTrainer"), "extended_by_recbole_cafe" in
                  vars(Config._load_internal_config_dict), bool(vars(recbole).get("_recbole_cafe_compat"))]))
"""


@pytest.mark.parametrize(
    "first",
    [
        "import recbole_cafe; from recbole.quick_start import run_recbole",
        "import recbole_cafe.train.checkpoint",  # compat needs it, and it is imported by what imports RecBole
        "import recbole_cafe.model.base",  # meets RecBole in the middle of its import
        "from recbole.trainer import Trainer; import recbole_cafe",
    ],
)
def test_recbole_knows_us_whatever_is_imported_first(first: str, python: Any) -> None:
    known = ["recbole_cafe.model.faces", "NetTrainer", "recbole_cafe.host.workers", False, True]
    assert last_line(python("-c", FIRST % first)) == [*known, True]


def test_recbole_knows_us_without_the_repairs(monkeypatch: pytest.MonkeyPatch, python: Any) -> None:
    monkeypatch.setenv("RECBOLE_CAFE_COMPAT", "0")
    known = ["recbole_cafe.model.faces", "NetTrainer", "recbole_cafe.host.workers", False, True]
    assert last_line(python("-c", FIRST % "import recbole_cafe")) == [*known, False]


SHADOW = """
import json, sys
from pathlib import Path
import recbole.model
import recbole.model.sequential_recommender as package
folder = Path("later/sequential_recommender")
folder.mkdir(parents=True)
(folder / "cafe.py").write_text("class CaFe:\\n    pass\\n")
recbole.model.__path__.append("later")
package.__path__.append(str(folder))
import recbole_cafe
from recbole.config import Config
from recbole.utils import get_model
ours = Config(recbole_cafe.CaFe, "toy", config_dict={"gpu_id": ""})
print(json.dumps([get_model("CaFe").__module__, ours["joint"], ours.model_class.__module__]))
"""


def test_a_later_recbole_with_a_cafe_of_its_own(python: Any) -> None:
    done = python("-c", SHADOW)
    module, joint, ours = last_line(done)
    assert module == "recbole.model.sequential_recommender.cafe"
    assert (joint, ours) == ("product", "recbole_cafe.model.faces")
    assert done.stderr.count("RecBole has its own CaFe (later/sequential_recommender/cafe.py)") == 1


MAIN = """
import json
if __name__ == "__main__":                                   # spawned processes do not come here
    import recbole_cafe
    from recbole.quick_start import run
    settings = json.loads(%r)
    result = run(model="CaFe", dataset="toy", config_dict=settings, nproc=2, port="%d")
    print(json.dumps(result["test_result"]))
"""


@pytest.mark.slow
def test_spawned_processes_know_our_models(toy_path: Path, python: Any) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    Path("main.py").write_text(MAIN % (json.dumps(settings_of(toy_path, epochs=2)), port))
    observed = last_line(python("main.py"))
    assert 0 <= observed["ndcg@10"] <= observed["hit@10"] <= 1
    assert len(list(Path("saved").glob("CaFe-toy-*.pth"))) == 1  # both processes agree on one file


# exec -----------------------------------------------------------------------------------------------------------------


def test_exec_runs_a_script_as_python_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("tools").mkdir()
    Path("tools/beside.py").write_text("word = 'beside'\n")
    Path("tools/script.py").write_text(
        "import sys, beside\nfrom recbole.utils import get_model\n"
        "print(__name__, sys.argv, beside.word, get_model('CaFe').__name__)\n"
    )
    assert main(["exec", "tools/script.py", "--a=1", "b"]) == 0
    assert capsys.readouterr().out == "__main__ ['tools/script.py', '--a=1', 'b'] beside CaFe\n"


def test_exec_returns_what_the_script_returns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("leaves.py").write_text("import sys\nsys.exit(3)\n")
    Path("fails.py").write_text("raise KeyError('of the script')\n")
    with pytest.raises(SystemExit) as left:
        main(["exec", "leaves.py"])
    assert left.value.code == 3
    assert main(["exec", "fails.py"]) == 1
    said = capsys.readouterr().err  # as Python says it: it is no bug of ours
    assert said.startswith("Traceback") and said.endswith("KeyError: 'of the script'\n")
    assert main(["exec"]) == 2
    assert "exec: the following arguments are required: script" in capsys.readouterr().err
    assert main(["exec", "nowhere.py", "--a=1"]) == 2
    assert capsys.readouterr().err == "recbole-cafe: exec: no script 'nowhere.py'\n"


@pytest.mark.slow
def test_exec_lets_a_script_of_recboles_train_cafe(toy_path: Path, python: Any) -> None:
    """A script that knows nothing of us and takes its settings from the command line, as RecBole's own do."""
    Path("run_recbole.py").write_text(
        "import argparse, json\nfrom recbole.quick_start import run_recbole\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--model')\nparser.add_argument('--dataset')\nparser.add_argument('--config_files')\n"
        "known, _ = parser.parse_known_args()\n"
        "result = run_recbole(model=known.model, dataset=known.dataset, config_file_list=known.config_files.split())\n"
        "print(json.dumps(result['test_result']))\n"
    )
    Path("tiny.yaml").write_text(json.dumps(settings_of(toy_path)))
    arguments = ["--model=CaFe", "--dataset=toy", "--config_files=tiny.yaml", "--topk=[1,10]", "--seed=4"]
    observed = last_line(python("-m", "recbole_cafe", "exec", "run_recbole.py", *arguments))
    assert set(observed) == {"ndcg@1", "ndcg@10", "hit@1", "hit@10", "mrr@1", "mrr@10", "mrr"}
    assert np.isfinite(list(observed.values())).all()
