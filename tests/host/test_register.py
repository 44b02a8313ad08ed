"""A user's own model: one file and one YAML in a package of theirs, known by its name to RecBole and to us."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from preloaded import Preloaded
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer

import recbole_cafe
from recbole_cafe.config.props import model_yaml, props_dir
from recbole_cafe.data.sequences import NetDataset
from recbole_cafe.errors import ConfigError
from recbole_cafe.host import registry
from recbole_cafe.model.faces import CaFe
from recbole_cafe.train.trainer import NetTrainer

TINY: dict[str, Any] = {
    "gpu_id": "", "show_progress": False, "epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 8, "eval_mode": "full", "state": "WARNING",
}  # fmt: skip
MODULE = '''"""A model of a user's own."""

import recbole_cafe
from recbole_cafe.model.faces import CaFe


class {name}(CaFe):
    pass
'''
LOAD = """
import json, sys
{first}
from recbole.quick_start import load_data_and_model
config, model, dataset, train, valid, test = load_data_and_model(sys.argv[1])
interaction = next(iter(test))[0]
scores = model.eval().full_sort_predict(interaction.to(config["device"]))
print(json.dumps([type(model).__name__, type(dataset).__name__, scores.tolist()]))
"""


@pytest.fixture(autouse=True)
def registered_for_one_test() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the user's packages lie."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def write_package(site: Path, package: str, name: str, *, more: str = "") -> None:
    """A package of one model, with CaFe's YAML under its name and one value changed."""
    folder = site / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "own.py").write_text(MODULE.format(name=name) + more)
    settings = yaml.safe_load((props_dir() / "model" / "CaFe.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings | {"joint": "sum"}))


def declare(site: Path, package: str, name: str, value: str) -> None:
    """The metadata of an installed package with an entry point."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{name} = {value}\n")


def train(name: str, toy_path: Path) -> tuple[str, list[list[float]]]:
    """Train a model for an epoch, all by RecBole's functions and its name.

    Returns:
        The checkpoint, and the trained model's scores of the first test batch.
    """
    config = Config(name, "toy", config_dict=TINY | {"data_path": str(toy_path)})
    assert config["joint"] == "sum"
    dataset = create_dataset(config)
    assert type(dataset) is NetDataset
    train_data, valid_data, test_data = data_preparation(config, dataset)
    model = get_model(name)(config, train_data._dataset)
    trainer_class = get_trainer(config["MODEL_TYPE"], name)
    assert trainer_class is NetTrainer
    trainer = trainer_class(config, model)
    trainer.fit(train_data, valid_data, saved=True, show_progress=False)
    return trainer.saved_model_file, scores_of(model, test_data)


def scores_of(model: Any, test_data: Any) -> list[list[float]]:
    scores: list[list[float]] = model.eval().full_sort_predict(next(iter(test_data))[0]).tolist()
    return scores


def loaded_elsewhere(python: Preloaded, checkpoint: str, site: Path, first: str) -> Any:
    """The model's name, the data set's class and the scores, from a fresh process that runs `first` before RecBole."""
    done = python("-c", LOAD.format(first=first), checkpoint, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_registered_model_is_trained_saved_and_loaded_again(
    site: Path, toy_path: Path, fresh_python: Preloaded
) -> None:
    write_package(site, "registering", "MyCaFe", more="\n\nrecbole_cafe.register(MyCaFe)\n")
    from registering.own import MyCaFe  # type: ignore[import-not-found]

    assert get_model("MyCaFe") is MyCaFe
    assert "MyCaFe" in recbole_cafe.install()
    checkpoint, scores = train("MyCaFe", toy_path)
    _, model, _, _, _, test_data = load_data_and_model(checkpoint)
    assert type(model) is MyCaFe
    assert scores_of(model, test_data) == scores
    name, dataset, elsewhere = loaded_elsewhere(fresh_python, checkpoint, site, "import registering.own")
    assert (name, dataset) == ("MyCaFe", "NetDataset")
    for row, known in zip(elsewhere, scores, strict=True):
        assert row == pytest.approx(known, abs=1e-6)


def test_a_model_of_an_entry_point_is_known_without_an_import(
    site: Path, toy_path: Path, fresh_python: Preloaded
) -> None:
    write_package(site, "declaring", "DeclaredCaFe")
    declare(site, "declaring", "DeclaredCaFe", "declaring.own:DeclaredCaFe")
    result = recbole_cafe.run("DeclaredCaFe", "toy", config_dict=TINY | {"data_path": str(toy_path)})
    assert (result.model, result.config["joint"]) == ("DeclaredCaFe", "sum")
    _, model, _, _, _, test_data = load_data_and_model(result.checkpoint)
    name, dataset, elsewhere = loaded_elsewhere(fresh_python, result.checkpoint, site, "import recbole_cafe")
    assert (name, dataset) == ("DeclaredCaFe", "NetDataset")
    for row, known in zip(elsewhere, scores_of(model, test_data), strict=True):
        assert row == pytest.approx(known, abs=1e-6)


def test_registering_gives_the_class_back_and_takes_a_yaml_of_any_name(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("joint: sum\n")

    class Anywhere(CaFe):
        pass

    class Plain(CaFe):
        pass

    assert recbole_cafe.register(Anywhere, yaml=file) is Anywhere
    assert recbole_cafe.register(Plain) is Plain
    assert get_model("Anywhere") is Anywhere
    assert model_yaml(Anywhere) == file
    assert model_yaml(Plain) == props_dir() / "model" / "CaFe.yaml"
    with pytest.raises(ConfigError, match="YAML of Plain is missing: no file nowhere"):
        recbole_cafe.register(Plain, yaml="nowhere.yaml")


def test_a_class_defined_anew_replaces_the_former() -> None:
    def make() -> type[CaFe]:
        class Again(CaFe):
            pass

        return recbole_cafe.register(Again)

    first = make()
    assert get_model("Again") is first
    second = make()
    assert get_model("Again") is second


def test_what_cannot_be_registered_is_refused() -> None:
    with pytest.raises(TypeError, match=r"is not a subclass of .*NetRecommender"):
        recbole_cafe.register(dict)
    with pytest.raises(TypeError, match="'CaFe' is not a subclass"):
        recbole_cafe.register("CaFe")
    with pytest.raises(ConfigError, match=r"RecBole has its own SASRec .*sasrec\.py"):
        recbole_cafe.register(type("SASRec", (CaFe,), {}))
    with pytest.raises(ConfigError, match="recbole_cafe has its own LOCKER"):
        recbole_cafe.register(type("LOCKER", (CaFe,), {}))


@pytest.mark.parametrize(
    ("value", "message"),
    [("collections:OrderedDict", "is not a subclass"), ("recbole_cafe.model.faces:CaFe", "the name of the class")],
)
def test_an_entry_point_that_cannot_be_right_is_named(site: Path, value: str, message: str) -> None:
    declare(site, "wrong", "Wrong", value)
    with pytest.raises(ConfigError, match=f"entry point Wrong = '{value}': .*{message}"):
        get_model("Wrong")


def test_an_entry_point_does_not_replace_a_model_of_recboles(site: Path) -> None:
    declare(site, "greedy", "SASRec", "recbole_cafe.model.faces:CaFe")
    assert get_model("SASRec").__module__ == "recbole.model.sequential_recommender.sasrec"
    assert get_trainer(Config("SASRec", "toy", config_dict={"gpu_id": ""})["MODEL_TYPE"], "SASRec") is not NetTrainer


def test_a_checkpoint_of_a_model_nobody_registered_says_what_to_do(site: Path, toy_path: Path) -> None:
    class Unknown(CaFe):
        pass

    result = recbole_cafe.run(Unknown, "toy", config_dict=TINY | {"data_path": str(toy_path)})
    with pytest.raises(ValueError, match=r"Unknown.*recbole_cafe\.register"):
        load_data_and_model(result.checkpoint)
