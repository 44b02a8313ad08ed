"""Every benchmark runs to its end with --quick and closes with the line of JSON it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preloaded import Preloaded

FOLDER = Path(__file__).resolve().parents[2] / "speed"
ALWAYS = {"benchmark", "ours", "theirs", "ratio", "versions", "threads", "command", "processor", "quick", "machine"}
PROMISED = {
    "train_epoch": {"theirs_anomaly_off", "ratio_anomaly_off", "theirs_steps", "floor_ours", "floor_theirs", "note"},
    "step_scaling": {"memory", "floor_large", "n_measured", "data_small", "data_large"},
    "sampled_eval": {"ours_cafe", "ratio_cafe", "users", "note", "floor_sasrec"},
    "full_eval": {"ours_sasrec", "share_of_products", "large", "floor_dense", "users"},
    "topk": {"results", "rank", "rank_at_most", "all_equal_to_brute_force", "trained"},
    "recommend": {"results", "all_equal_to_brute_force", "train_steps", "data"},
    "optimizer": {"sparse_adam", "ratio_sparse_adam", "table", "difference_to_adam"},
    "cafe_plus": {"growth", "data_small", "data_large"},
    "calibration": {"systems", "data"},
    "serve": {"added_ms", "single", "load"},
    "recommend_files": {"models", "items", "machine"},
    "open_bundle": {"memory_of_files", "files_mb", "runs"},
    "updates": {"models", "epochs", "before", "every"},
    "processes": {"throughput", "seconds", "loss", "tables", "loading"},
    "whole_training": {"epochs", "parts", "data"},
    "choosing": {"epochs", "runs", "data"},
    "gpu": {"train", "ranking", "ranking_memory"},
}  # fmt: skip
OPTIONS = {"gpu": ["--device=cpu"]}

pytestmark = pytest.mark.slow


def run(python: Preloaded, name: str, *options: str) -> dict:
    """The JSON of the last line."""
    done = python(FOLDER / f"{name}.py", "--quick", "--threads=1", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROMISED)
def test_a_quick_run_ends_in_the_promised_json(
    name: str, tmp_path: Path, toy_path: Path, fresh_python: Preloaded
) -> None:
    # on the few simulated interactions of --quick no list of ten holds what comes next
    options = ["--data", str(toy_path), "toy"] if name == "updates" else OPTIONS.get(name, [])
    result = run(fresh_python, name, *options, "--out=result.json")
    assert result.keys() >= ALWAYS | PROMISED[name]
    assert result["benchmark"] == name and result["threads"] == 1 and result["quick"] is True
    assert f"{name}.py --quick" in result["command"]
    assert result["ratio"] == pytest.approx(result["ours"] / result["theirs"]) and result["ratio"] > 0
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]  # RecBole's logs went elsewhere
    CHECKS.get(name, lambda result: None)(result)


def check_topk(result: dict) -> None:
    assert result["all_equal_to_brute_force"] is True
    assert {row["items"] for row in result["results"]} == {100, 400}
    assert all(0 < row["share_of_products"] <= 1 for row in result["results"] if "skipped" not in row)


def check_recommend(result: dict) -> None:
    assert result["all_equal_to_brute_force"] is True
    works = {row["work"].partition(" of ")[0] for row in result["results"]}
    assert works == {"rank", "20 best"} and all(row["ratio"] > 0 for row in result["results"])


def check_full_eval(result: dict) -> None:
    """Both sides rank the same weights, so their metrics agree to the digits RecBole keeps."""
    assert result["ndcg10"]["ours"] == pytest.approx(result["ndcg10"]["recbole"], abs=6e-5)
    assert result["large"]["ours"]["ndcg10"] == pytest.approx(result["large"]["theirs"]["ndcg10"], abs=6e-5)


def check_optimizer(result: dict) -> None:
    """Ours is dense Adam, SparseAdam is not."""
    assert result["difference_to_adam"]["mean"] < 0.05 * result["difference_of_sparse_adam"]["mean"]


def check_calibration(result: dict) -> None:
    for system in result["systems"].values():
        assert sum(b["users"] for b in system["bins"]) == system["users"] > 0
        assert 0 <= system["ece"] <= 1 and 0 <= system["first_intent_right"] <= 1 and system["nll"] > 0
        came = sum(b["users"] * b["came"] for b in system["bins"]) / system["users"]
        assert came == pytest.approx(system["first_intent_right"])


def check_serve(result: dict) -> None:
    assert result["single"]["equal"] is True and result["load"]["lost"] == 0 and result["load"]["asked"] == 20


def check_step_scaling(result: dict) -> None:
    assert result["memory"]["peak_mb"] > 0
    assert result["data_large"]["items"] > result["data_small"]["items"]
    assert result["data_large"]["interactions"] == result["data_small"]["interactions"]


CHECKS = {
    "topk": check_topk,
    "recommend": check_recommend,
    "full_eval": check_full_eval,
    "optimizer": check_optimizer,
    "step_scaling": check_step_scaling,
    "calibration": check_calibration,
    "serve": check_serve,
}  # fmt: skip


def test_every_benchmark_here_is_tested() -> None:
    """cpu_step.py, first_hour.py, load.py and prepare.py start processes and have tests of their own."""
    others = {"common", "cpu_step", "first_hour", "load", "prepare"}
    assert {path.stem for path in FOLDER.glob("*.py")} - others == set(PROMISED)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_without_a_gpu_the_gpu_benchmark_says_so(fresh_python: Preloaded) -> None:
    assert "no CUDA device" in run(fresh_python, "gpu")["skipped"]
