"""recbole_cafe.benchmark.plan: what is to be run, and that a wrong file stops before the first run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.benchmark import plan as plan_module
from recbole_cafe.benchmark.plan import Plan, make_plan
from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.errors import ConfigError

SYSTEMS = {"CaFe": {"model": "CaFe"}, "SASRec": {"model": "SASRec"}, "Pop": {"model": "Pop"}}


def cell(plan: Plan, system: str) -> Any:
    return next(c for c in plan.cells if c.system == system)


def test_a_shared_key_goes_to_the_systems_whose_model_knows_it(bench_file: Callable[..., str]) -> None:
    file = bench_file(systems=SYSTEMS)
    plan = make_plan(file, overrides={"n_local_heads": "0", "epochs": "3"})
    assert cell(plan, "CaFe").settings["n_local_heads"] == 0
    assert "n_local_heads" not in cell(plan, "SASRec").settings
    assert cell(plan, "SASRec").settings["hidden_size"] == 16
    assert "hidden_size" not in cell(plan, "Pop").settings
    assert [c.settings["epochs"] for c in plan.cells] == [3, 3, 3]  # the command line wins over `settings`
    assert plan.n_runs == 3
    assert "hidden_size" not in make_plan(file, systems=["Pop"]).cells[0].settings  # known to a system of the file


def test_of_one_key_the_later_layer_wins(bench_file: Callable[..., str], toy_path: Path) -> None:
    of_data = {"data_path": str(toy_path), "epochs": 2, "MAX_ITEM_LIST_LENGTH": 6}
    file = bench_file(
        datasets={"short": {"dataset": "toy", **of_data}},
        systems={"CaFe": {"model": "CaFe", "MAX_ITEM_LIST_LENGTH": 5}, "SASRec": {"model": "SASRec"}},
    )
    plan = make_plan(file)
    assert [(c.dataset, c.data, c.settings["epochs"]) for c in plan.cells] == [("short", "toy", 2)] * 2
    assert [c.settings["MAX_ITEM_LIST_LENGTH"] for c in plan.cells] == [5, 6]
    assert make_plan(file, overrides={"MAX_ITEM_LIST_LENGTH": "4"}).cells[0].settings["MAX_ITEM_LIST_LENGTH"] == 4


def test_the_hash_is_of_what_decides_about_numbers(bench_file: Callable[..., str], toy_path: Path) -> None:
    def digest(**settings: str) -> str:
        (only,) = make_plan(bench_file(systems={"CaFe": {"model": "CaFe"}}), overrides=settings).cells[0].points
        return only

    same = digest()
    assert digest(n_heads="2") == same  # the default, named
    assert digest(gpu_id="0", state="WARNING", worker="1") == same
    assert digest(average_from="0") == same != digest(average_from="2")
    assert len({same, digest(n_heads="1"), digest(epochs="2"), digest(candidates_seed="7")}) == 4
    (toy_path / "toy" / "toy.link").write_text("more data")
    try:
        assert digest() != same
    finally:
        (toy_path / "toy" / "toy.link").unlink()


@pytest.mark.parametrize("key", ["average_from", "final", "ranking_settings"])
def test_a_key_that_came_later_leaves_earlier_hashes_alone(bench_file: Callable[..., str], toy_path: Path, key: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Runs from before there was the key are found; with it hashed they would not be."""
    counts = {"model": "IntentBackoff", "ranking_settings": "fixed"}
    file = bench_file(systems={"CaFe": {"model": "CaFe"}, "counts": counts})
    now = [list(cell.points) for cell in make_plan(file).cells]
    real = plan_module.checkpoint.plain_config
    earlier = lambda config: {k: v for k, v in real(config).items() if k != key}  # noqa: E731
    monkeypatch.setattr(plan_module.checkpoint, "plain_config", earlier)
    assert [list(cell.points) for cell in make_plan(file).cells] == now


def test_a_key_that_went_leaves_earlier_hashes_alone(bench_file: Callable[..., str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Runs from when there was `reader` are found; all had the default of that time."""
    file = bench_file(systems={"CaFe": {"model": "CaFe"}})
    (now,) = make_plan(file).cells[0].points
    real = plan_module.checkpoint.plain_config
    monkeypatch.setattr(plan_module.checkpoint, "plain_config", lambda config: real(config) | {"reader": "auto"})
    monkeypatch.setattr(plan_module, "GONE", {})
    assert list(make_plan(file).cells[0].points) == [now]


def test_where_a_search_comes_from(bench_file: Callable[..., str]) -> None:
    own = {"learning_rate": [0.1, 0.2], "loss_type": ["BCE", "CE"]}
    systems = {
        "CaFe": {"model": "CaFe", "search": own}, "fixed": {"model": "CaFe", "search": "none"}, "Pop": {"model": "Pop"},
        "SASRec": {"model": "SASRec", "learning_rate": 0.5},
    }  # fmt: skip
    plan = make_plan(bench_file(systems=systems, seeds=[1, 2, 3]))
    assert [len(c.points) for c in plan.cells] == [4, 1, 1, 1]  # without `search` only CaFe's own
    assert plan.n_runs == 4 + 2 + 3 * 3
    assert {tuple(point.values()) for point in plan.cells[0].points.values()} == {
        (0.1, "BCE"), (0.1, "CE"), (0.2, "BCE"), (0.2, "CE")
    }  # fmt: skip
    assert not {"learning_rate", "loss_type"} & plan.cells[0].settings.keys()

    plan = make_plan(
        bench_file(systems=systems, search={"grid": {"learning_rate": [1, 2, 3], "n_local_heads": [0, 1]}})
    )
    assert [len(c.points) for c in plan.cells] == [4, 1, 3, 1]  # a key a system sets is not searched
    plan = make_plan(bench_file(systems=systems, search={"n_trials": 2}))
    assert cell(plan, "SASRec").space.keys() == {"hidden_dropout_prob", "loss_type"}  # props/search.yaml
    assert [plan.trials(c) for c in plan.cells] == [2, 1, 1, 2]
    plan = make_plan(bench_file(systems=systems), overrides={"loss_type": "CE"})
    assert cell(plan, "CaFe").space == {"learning_rate": [0.1, 0.2]}
    assert all(not c.space for c in make_plan(bench_file(systems=systems, search={}), search="none").cells)
    plan = make_plan(bench_file(systems=systems, search={}), search="tpe", n_trials=3)
    assert (plan.sampler, plan.trials(cell(plan, "CaFe"))) == ("tpe", 3)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"sistems": {}}, r"unknown key 'sistems' .* for a benchmark, in bench\.yaml; did you mean systems\?"),
        ({"systems": {}}, r"bench\.yaml: systems=\{\} should be a mapping"),
        ({"systems": {"A": {}}}, r"bench\.yaml, system A: it names no model"),
        ({"systems": {"A": {"model": "Nobody"}}}, r"bench\.yaml, system A, data set toy: .*Nobody"),
        ({"systems": {"A": {"model": "SASRec", "n_local_heads": 1}}},
         r"unknown key 'n_local_heads' \(value 1\) for SASRec, in bench\.yaml, system A"),
        ({"systems": {"A": {"model": "CaFe", "n_layer": 1}}}, r"'n_layer' .* system A; did you mean n_layers\?"),
        ({"systems": {"A": {"model": "CaFe", "seed": 1}}}, r"system A: seed is set by the benchmark itself"),
        ({"systems": {"A": {"model": "CaFe", "epochs": "many"}}}, r"system A, data set toy: epochs='many' should be"),
        ({"systems": {"A": {"model": "CaFe", "search": {"epoch": [1]}}}}, r"unknown key 'epoch' .* system A, search"),
        ({"systems": {"A": {"model": "CaFe", "search": {"epochs": 3}}}}, r"epochs=3 should be a list of different"),
        ({"systems": {"A": {"model": "CaFe", "search": {"learner": ["adam", "eve"]}}}},
         r"system A, search learner, data set toy: learner='eve' is not one of"),
        ({"systems": {"A": {"model": "CaFe", "search": "yes"}}}, r"system A: search='yes' should be none or a mapping"),
        ({"settings": {"hidden_sice": 3}}, r"bench\.yaml, settings: no system knows the key 'hidden_sice'"),
        ({"settings": {"eval_mode": "full"}}, r"settings: eval_mode is set by the benchmark itself \(see protocols\)"),
        ({"datasets": {"amazon": {"epoch": 1}}}, r"bench\.yaml, data set amazon: no system knows the key 'epoch'"),
        ({"datasets": {"nowhere": {}}}, r"system CaFe: no data set 'nowhere': .*nowhere\.inter is missing"),
        ({"datasets": {}}, r"lists no data set: name some with --datasets"),
        ({"protocols": ["pop"]}, r"system CaFe, data set toy: eval_mode 'pop' is not full, popN"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] should be different whole numbers"),
        ({"ours": ["Cafe"]}, r"ours names 'Cafe', which is no system"),
        ({"search": {"sampler": "cmaes"}}, r"sampler 'cmaes' is none of grid, tpe"),
        ({"search": {"trials": 3}}, r"unknown key 'trials' .* for search, in bench\.yaml; did you mean n_trials\?"),
        ({"systems": {"..": {"model": "CaFe"}}}, r"the label of a system, '\.\.', should be text that can name a f"),
        ({"systems": {"": {"model": "CaFe"}}}, r"the label of a system, '', should be text"),
        ({"datasets": {".": {"dataset": "toy"}}}, r"the label of a data set, '\.', should be text"),
        ({"datasets": {"x" * 101: {"dataset": "toy"}}}, r"the label of a data set, 'x+', .* 100 characters at most"),
        ({"datasets": {"up": {"dataset": "../toy"}}}, r"dataset='\.\./toy' should be a name, not a path"),
        ({"systems": {"A": {"model": "cafe"}}}, r"system A, data set toy: no model 'cafe'; did you mean CaFe\?"),
        ({"systems": {"a b": {"model": "CaFe"}, "a_b": {"model": "CaFe"}}}, r"two labels of a system give one folder"),
    ],
)  # fmt: skip
def test_a_wrong_file_says_where(bench_file: Callable[..., str], content: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        make_plan(bench_file(**{"systems": {"CaFe": {"model": "CaFe"}}, **content}))


def test_a_wrong_command_line_says_what(bench_file: Callable[..., str]) -> None:
    file = bench_file(systems=SYSTEMS)
    for given, wanted in (
        ({"systems": ["Nova"]}, r"no system 'Nova'; there are CaFe, SASRec, Pop"),
        ({"datasets": ["mars"]}, r"no data set 'mars'"),
        ({"search": "random"}, r"sampler 'random' is none of grid, tpe"),
        ({"overrides": {"n_localheads": "1"}}, r"the command line: no system .* knows the key 'n_localheads'"),
        ({"overrides": {"candidates_dir": "x"}}, r"the command line: candidates_dir is set by the benchmark"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            make_plan(file, **given)
    with pytest.raises(ConfigError, match=r"no benchmark 'tabel2': there are .*table2.*, and no file of that name"):
        make_plan("tabel2")


def test_a_data_set_that_the_file_does_not_list_has_no_settings_of_its_own(bench_file: Callable[..., str],
                                                                           toy_path: Path) -> None:  # fmt: skip
    plan = make_plan(bench_file(datasets={}, systems=SYSTEMS), datasets=["toy"], overrides={"data_path": str(toy_path)})
    assert {(c.dataset, c.settings["data_path"]) for c in plan.cells} == {("toy", str(toy_path.resolve()))}


@pytest.mark.parametrize("model", read_yaml(props_dir() / "search.yaml"))
def test_a_shipped_grid_is_of_keys_its_model_knows(model: str, bench_file: Callable[..., str]) -> None:
    grid = read_yaml(props_dir() / "search.yaml")[model]
    plan = make_plan(bench_file(systems={"A": {"model": model}}, settings={}, search={}))
    assert plan.cells[0].space == grid


@pytest.mark.parametrize("path", sorted((props_dir() / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_is_a_plan(path: Path, toy_path: Path) -> None:
    content = read_yaml(path)
    if "systems" not in content:
        return  # numbers for the report
    content["datasets"] = {name: {**settings, "dataset": "toy"} for name, settings in content["datasets"].items()}
    Path("here.yaml").write_text(json.dumps(content))
    plan = make_plan("here.yaml", overrides={"data_path": str(toy_path)})
    assert len(plan.cells) == len(content["datasets"]) * len(content["systems"])
    assert set(content.get("figure", {}).get("x", {})) <= set(content["datasets"])
