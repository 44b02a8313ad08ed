"""recbole_cafe.benchmark.runner: nothing done twice, nothing lost, validation alone decides, failures stay alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_cafe.benchmark import engines, runner, store, worker
from recbole_cafe.benchmark.plan import make_plan
from recbole_cafe.benchmark.stats import per_user
from recbole_cafe.cli.main import main
from recbole_cafe.errors import ConfigError

POP = {"model": "Pop"}
QUICK = {
    "CaFe": {"model": "CaFe", "n_layers": 1, "search": {"learning_rate": [0.00001, 0.02]}},
    "Pop": POP,
}


def results(out: str = "out") -> dict[Path, dict[str, Any]]:
    return {path.parent: json.loads(path.read_text()) for path in sorted(Path(out).rglob(store.RESULT))}


def stamps(out: str = "out") -> dict[Path, int]:
    return {folder: (folder / store.RESULT).stat().st_mtime_ns for folder in results(out)}


def bench(file: str, *more: str) -> int:
    return main(["benchmark", file, "--out=out", "--jobs=0", *more])


def test_the_search_chooses_and_its_best_run_is_the_first_seeds_result(
    bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(bench_file(systems=QUICK, seeds=[1, 2])) == 0
    assert "0 runs were done before, 5 are new, 0 failed" in capsys.readouterr().out
    found = [r for r in results().values() if r["benchmark"]["system"] == "CaFe"]
    first = {r["benchmark"]["search"]["learning_rate"]: r for r in found if r["seed"] == 1}
    second = [r for r in found if r["seed"] == 2]
    assert len(first) == 2
    assert first[0.02]["best_valid_score"] > first[0.00001]["best_valid_score"]
    assert [r["benchmark"]["hash"] for r in second] == [first[0.02]["benchmark"]["hash"]]
    assert second[0]["config"]["learning_rate"] == 0.02
    assert second[0]["config"]["seed"] == 2

    before = stamps()  # started again nothing is made; with one more seed, its runs alone
    assert bench("bench.yaml") == 0
    assert stamps() == before
    assert bench("bench.yaml", "--seeds=1,2,3", "--systems=Pop") == 0
    assert {r["seed"] for folder, r in results().items() if folder not in before} == {3}
    assert {folder: stamp for folder, stamp in stamps().items() if folder in before} == before


def test_validation_decides_and_never_test(made: Callable[..., Any], bench_file: Callable[..., str]) -> None:
    plan = make_plan(bench_file(systems={"CaFe": QUICK["CaFe"]}, seeds=[1, 2]))
    good, bad = plan.cells[0].points
    folder = made()
    for digest, valid, places in ((good, 0.3, [5, 5]), (bad, 0.2, [0, 0])):  # the other way round on test
        folder.run("CaFe", 1, places, dataset="toy", digest=digest, valid=valid)
    state = runner.CellState(plan, plan.cells[0], folder.out)
    assert state.chosen == good
    assert [state.next(), state.next()] == [runner.Run(plan.cells[0], good, 2), None]


def test_a_run_folder_holds_what_redoes_its_numbers(bench_file: Callable[..., str]) -> None:
    systems = {"CaFe": {"model": "CaFe"}, "Pop": {"model": "Pop"}}  # Pop has ties
    assert bench(bench_file(systems=systems, protocols=["full", "pop10", "authors3"], settings={
        "MAX_ITEM_LIST_LENGTH": 8, "gpu_id": "", "epochs": 1})) == 0  # fmt: skip
    users = []
    for folder, result in results().items():
        assert {path.name for path in folder.iterdir()} == {store.RESULT, store.RANKS, store.LOG}
        assert result["benchmark"] | {"commit": 0, "dirty": 0} == {
            "system": result["model"], "dataset": "toy", "seed": 1, "hash": folder.name.removesuffix("-s1"),
            "search": None, "commit": 0, "dirty": 0,
        }  # fmt: skip
        assert result["command"][:2] == ["recbole-cafe", "benchmark"]
        with np.load(folder / store.RANKS, allow_pickle=False) as ranks:
            users.append(ranks["users"].tolist())
            for protocol, values in result["test_result"].items():
                columns = [ranks[f"{protocol}.{name}"] for name in ("above", "tied", "n_candidates")]
                for metric in ("ndcg@5", "hit@10", "mrr@20", "mrr"):
                    assert per_user(metric, *columns).mean() == pytest.approx(values[metric], abs=1e-12), metric
            if result["model"] == "Pop":
                assert ranks["pop10.tied"].any()
    assert sorted(users[0]) == sorted(users[1])
    assert len(set(users[0])) == 151
    first, second = (r["candidates"] for r in results().values())
    assert first == second
    assert len(list(Path("out/candidates").iterdir())) == 2


def test_a_failed_run_stays_alone_and_is_tried_again(
    bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = bench_file(systems={"CaFe": {"model": "CaFe"}, "Pop": {"model": "Pop"}}, protocols=["full", "authors9"])
    for before in (0, 1):  # toy has 4 intents, authors9 needs 10 of a model that scores them
        assert bench(file) == 1
        told = capsys.readouterr()
        assert f"{before} runs were done before, {1 - before} are new, 1 failed" in told.out
        assert "failed: toy / CaFe" in told.err
        (error,) = Path("out").rglob(store.ERROR)
        assert "authors9 gives each negative another intent" in error.read_text()
        assert [r["model"] for r in results().values()] == ["Pop"]
        assert not list(error.parent.glob("*.pth"))


def test_a_run_that_fails_does_not_stop_the_search(bench_file: Callable[..., str]) -> None:
    search = {"n_heads": [2, 3]}  # 16 is no multiple of 3
    assert bench(bench_file(systems={"CaFe": {"model": "CaFe", "search": search}}, seeds=[1, 2])) == 1
    assert [(r["config"]["n_heads"], r["seed"]) for r in results().values()] == [(2, 1), (2, 2)]


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def alive(folder: Path) -> bool:
    """Whether a process works in a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder.resolve()):
                    return True
            except OSError:
                continue
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_a_kill_costs_the_run_it_interrupts_and_no_other(
    bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL, which no one can catch, in the middle of the second run; then the command once more."""
    slow = {"model": "CaFe", "epochs": 100_000, "stopping_step": 100_000}
    file = bench_file(systems={"Pop": POP, "CaFe": slow})
    with subprocess.Popen([sys.executable, "-m", "recbole_cafe", "benchmark", file, "--out=out", "--jobs=1"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        try:
            wait_for(
                lambda: [log for log in Path("out/runs/toy").glob("CaFe/*/log.txt") if "epoch 1 " in log.read_text()]
            )
        finally:
            process.send_signal(signal.SIGKILL)
    (begun,) = Path("out/runs/toy/CaFe").iterdir()
    wait_for(lambda: not alive(begun))  # the worker ends with its parent
    before = stamps()
    assert [r["model"] for r in results().values()] == ["Pop"]
    assert not (begun / store.RESULT).exists()
    assert list((begun / worker.CHECKPOINTS).iterdir())  # it was in the middle

    slow["epochs"] = 1
    again = bench_file(systems={"Pop": POP, "CaFe": slow})
    assert bench(again) == 0
    assert "1 runs were done before, 1 are new, 0 failed" in capsys.readouterr().out
    assert stamps().items() > before.items()
    assert len(results()) == 2


def test_a_worker_that_is_killed_is_a_failed_run(tmp_path: Path) -> None:
    spec = {"folder": str(tmp_path), "model": "CaFe"}
    process = engines.Process(spec, threads=1)
    process._process.kill()
    wait_for(process.ended)
    assert "ended by signal 9 (signal 9: the system may have run out of memory)" in (tmp_path / store.ERROR).read_text()


def test_a_run_beyond_the_time_limit_is_ended(tmp_path: Path) -> None:
    process = engines.Process({"folder": str(tmp_path), "model": "CaFe"}, threads=1, time_limit=0.0001)
    wait_for(process.ended)
    assert process._process.returncode is not None
    assert "the run took longer than the time limit of 0.0001 minutes; its log" in (tmp_path / store.ERROR).read_text()


def test_threads_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(engines.subprocess, "Popen", lambda *a, **k: seen.append(k["env"]) or pytest.fail("started"))
    with pytest.raises(pytest.fail.Exception):
        engines.Process({"folder": str(tmp_path)}, threads=3)
    assert seen[0]["OMP_NUM_THREADS"] == "3"


def test_two_benchmarks_do_not_work_in_one_folder(bench_file: Callable[..., str]) -> None:
    plan = make_plan(bench_file(systems={"Pop": POP}, settings={}))
    Path("out").mkdir()
    with runner._alone(Path("out")), pytest.raises(ConfigError, match=r"another benchmark is running in .*out"):
        runner.benchmark(plan, Path("out"), engines.Local(0))


def test_a_folder_of_another_benchmark_is_left_alone(made: Callable[..., Any], bench_file: Callable[..., str]) -> None:
    made().cell("A")
    with pytest.raises(ConfigError, match=r"out holds the benchmark 'made', not 'bench'; give another --out"):
        runner.benchmark(make_plan(bench_file(systems={"Pop": POP}, settings={})), Path("out"), engines.Local(0))


def test_a_result_of_other_settings_in_a_run_folder_is_refused(made: Callable[..., Any]) -> None:
    folder = made().run("A", 1, [0])
    assert store.finished(folder, "A0")["benchmark"]["hash"] == "A0"
    with pytest.raises(store.StoreError, match=r"result\.json has the hash 'A0', its folder 'B0'; remove the folder"):
        store.finished(folder, "B0")
    (folder / store.RESULT).write_text("{")
    with pytest.raises(store.StoreError, match=r"result\.json is not JSON"):
        store.finished(folder, "A0")


def test_checkpoints_stay_when_asked_for(bench_file: Callable[..., str]) -> None:
    assert bench(bench_file(systems={"CaFe": {"model": "CaFe"}}), "--keep_checkpoints=True") == 0
    (result,) = results().values()
    assert Path(result["checkpoint"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "benchmark: the following arguments are required: NAME|FILE.yaml"),
        (["--out=x"], "benchmark: the following arguments are required: NAME|FILE.yaml"),
        (["quick", "--jobs=two"], "argument --jobs: two is not a whole number"),
        (["quick", "--threads=0"], "argument --threads: 0: expected at least 1"),
        (["quick", "--seeds=1,b"], "argument --seeds: b is not a whole number"),
        (["quick", "--keep_checkpoints=maybe"], "argument --keep_checkpoints: 'maybe' is none of True, False"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    assert wanted in capsys.readouterr().err


def test_a_time_limit_needs_processes(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "a time limit needs processes that can be ended"
    assert main(["benchmark", "quick", "--time_limit=5", "--jobs=0"]) == 1
    assert wanted in capsys.readouterr().err
