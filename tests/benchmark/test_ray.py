"""recbole_cafe.benchmark.on_ray: Ray = local to the last bit, and what a cluster can do to a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_cafe.benchmark import engines, on_ray, runner, store
from recbole_cafe.benchmark.plan import make_plan
from recbole_cafe.cli.main import main
from recbole_cafe.errors import ConfigError, DataError, MachineError, UsageError

try:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    MISSING = ""
except ImportError as error:  # RecBole 1.2.1 brings one that cannot be imported beside a new setuptools
    MISSING = f"ray cannot be imported: {error}"
needs_ray = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CAFE = {"model": "CaFe", "n_layers": 1}
SEARCHED = {**CAFE, "search": {"learning_rate": [0.00001, 0.02]}}
LONG = {**CAFE, "epochs": 100_000, "stopping_step": 100_000}
PATHS = ("checkpoint_dir", "candidates_dir", "intents_dir")


def results(out: str) -> dict[str, dict[str, Any]]:
    """Results by the run's folder, without what may differ: time, memory, versions, command and paths."""
    found = {}
    for path in sorted(Path(out).rglob(store.RESULT)):
        result = json.loads(path.read_text())
        for key in ("seconds", "versions", "command", "peak_memory_mb"):
            del result[key]
        for key in PATHS:
            assert result["config"].pop(key).startswith(str(Path(out).resolve())), key
        found[path.parent.relative_to(out).as_posix()] = result
    return found


def ranks(out: str) -> dict[str, dict[str, list[Any]]]:
    found = {}
    for path in sorted(Path(out).rglob(store.RANKS)):
        with np.load(path, allow_pickle=False) as columns:
            found[path.parent.relative_to(out).as_posix()] = {name: columns[name].tolist() for name in columns}
    return found


def local(file: str, out: str = "local", *more: str) -> int:
    return main(["benchmark", file, f"--out={out}", "--threads=1", *more])


def on_cluster(file: str, address: str, *more: str) -> int:
    return main(["benchmark", file, "--out=ray", "--engine=ray", f"--address={address}", *more])


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def workers(nodes: Path) -> list[Path]:
    """Folders of runs that processes stand in, anywhere on this machine: all nodes are here."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                place = Path(os.readlink(entry / "cwd"))
            except OSError:
                continue
            if place.name == on_ray.RUN and place.parent.parent == nodes:
                found.append(place)
    return found


# Without a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--engine=spark"], "argument --engine: "),
        (["--engine=ray", "--address=here"], "--address=here: expected auto, or HOST:PORT as `ray start --head`"),
        (["--engine=ray", "--address=ray://a:1"], "--address=ray://a:1: expected auto, or HOST:PORT"),
        (["--engine=ray", "--jobs=0"], "--jobs=0 runs everything in this process; with --engine=ray give at least 1"),
        (["--engine=ray", "--gpus=-1"], "argument --gpus: -1 is not a number from 0 on"),
        (["--engine=ray", "--gpus=1.5"], "--gpus=1.5: more than one GPU for a run should be a whole number"),
        (["--address=auto"], "--address is for --engine=ray"),
        (["--gpus=1"], "--gpus is for --engine=ray"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "quick", *arguments]) == 2
    assert wanted in capsys.readouterr().err


def test_without_ray_the_extra_is_named(
    bench_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["benchmark", bench_file(systems={"Pop": {"model": "Pop"}}, settings={}), "--engine=ray"]) != 0
    assert "install it with pip install 'recbole-cafe[ray]'" in capsys.readouterr().err


def test_a_node_without_the_data_is_named(toy_path: Path, tmp_path: Path) -> None:
    version = on_ray.recbole_cafe.__version__
    spec = {"dataset": "toy", "config_dict": {"data_path": str(toy_path)}}
    files = on_ray._data_files(spec)
    assert files["toy.inter"] == (toy_path / "toy" / "toy.inter").stat().st_size
    on_ray._check_node(spec, files, version)
    with pytest.raises(DataError, match=rf"^node \S+: {toy_path}/toy/toy.inter has \d+ bytes, not 7; every node needs"):
        on_ray._check_node(spec, {"toy.inter": 7}, version)
    elsewhere = {"dataset": "toy", "config_dict": {"data_path": str(tmp_path)}}
    with pytest.raises(DataError, match=rf"^node \S+: {tmp_path}/toy/toy.inter is not there; every node needs"):
        on_ray._check_node(elsewhere, files, version)
    with pytest.raises(MachineError, match=r"^node \S+ has recbole-cafe \S+, this benchmark 0\.0$"):
        on_ray._check_node(spec, files, "0.0")


def test_paths_of_a_node_become_those_here() -> None:
    moved = {"/tmp/x/run": "/out/r", "/tmp/x/intents": "/out/intents"}
    there = {"a": ["/tmp/x/run/checkpoints/w.pth", "/tmp/x/runs"], "b": {"c": "/tmp/x/intents", "d": 1.5, "e": None}}
    here = {"a": ["/out/r/checkpoints/w.pth", "/tmp/x/runs"], "b": {"c": "/out/intents", "d": 1.5, "e": None}}
    assert on_ray._moved(there, moved) == here


@needs_ray
def test_where_nothing_answers_the_address_is_named_at_once(
    bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = bench_file(systems={"Pop": {"model": "Pop"}}, settings={})
    start = time.monotonic()
    assert on_cluster(file, "127.0.0.1:1") == 1
    assert time.monotonic() - start < 20
    assert "--address=127.0.0.1:1: nothing answers there" in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_what_answers_and_is_no_cluster_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "ANSWER", 5.0)
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); " \
           "time.sleep(600)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as silent:
        try:
            port = silent.stdout.readline().strip()
            with pytest.raises(ConfigError, match=rf"--address=127\.0\.0\.1:{port}: no Ray cluster answers there with"):
                on_ray._check_answer(f"127.0.0.1:{port}")
        finally:
            silent.kill()


# On a cluster of two nodes --------------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[Path]:
    """Where the nodes keep temporary folders. Short: names of sockets have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def cluster(nodes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core."""
    monkeypatch.setenv("TMPDIR", str(nodes))  # the nodes inherit it
    monkeypatch.setattr(tempfile, "tempdir", None)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    if ray.is_initialized():
        ray.shutdown()
    made.shutdown()


@needs_ray
@pytest.mark.slow
class TestCluster:
    def test_ray_is_local_to_the_last_bit_and_goes_on(
        self, cluster: Any, bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str], nodes: Path
    ) -> None:
        systems = {"CaFe": SEARCHED, "Pop": {"model": "Pop"}}
        file = bench_file(systems=systems, seeds=[1, 2])
        assert local(file) == 0
        assert on_cluster(file, cluster.address, "--systems=CaFe", "--seeds=1") == 0
        before = {path: path.stat().st_mtime_ns for path in Path("ray").rglob(store.RESULT)}
        assert len(before) == 2
        assert on_cluster(file, cluster.address) == 0
        assert "2 runs were done before, 3 are new, 0 failed" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert results("ray") == results("local")
        assert ranks("ray") == ranks("local")
        assert [path.read_bytes() for path in sorted(Path("ray/candidates").iterdir())] == [
            path.read_bytes() for path in sorted(Path("local/candidates").iterdir())
        ]
        for path in Path("ray").rglob(store.RESULT):
            assert {entry.name for entry in path.parent.iterdir()} == {store.RESULT, store.RANKS, store.LOG}
        assert not list(nodes.glob("recbole-cafe-*"))

    def test_a_failed_run_stays_alone_and_is_not_tried_again(
        self, cluster: Any, bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        systems = {"CaFe": CAFE, "Pop": {"model": "Pop"}}
        file = bench_file(systems=systems, protocols=["full", "authors9"])  # of which CaFe fails
        assert on_cluster(file, cluster.address) == 1
        told = capsys.readouterr()
        assert "0 runs were done before, 1 are new, 1 failed" in told.out
        assert "LOST" not in told.out + told.err
        (error,) = Path("ray").rglob(store.ERROR)
        assert "authors9 gives each negative another intent" in error.read_text()
        assert [r["model"] for r in results("ray").values()] == ["Pop"]

    def test_the_checkpoint_that_is_kept_is_where_the_result_says(
        self, cluster: Any, bench_file: Callable[..., str]
    ) -> None:
        assert on_cluster(bench_file(systems={"CaFe": CAFE}), cluster.address, "--keep_checkpoints=True") == 0
        ((folder, result),) = results("ray").items()
        assert Path(result["checkpoint"]).is_file()
        assert Path(result["checkpoint"]).is_relative_to(Path("ray", folder).resolve())

    def test_a_run_no_node_has_room_for_is_refused(
        self, cluster: Any, bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert on_cluster(bench_file(systems={"CaFe": CAFE}), cluster.address, "--threads=2") == 1
        assert "no node has room for a run of --threads=2 and --gpus=0" in capsys.readouterr().err
        assert not results("ray")

    def test_the_run_of_a_lost_node_is_made_again_elsewhere(
        self, cluster: Any, bench_file: Callable[..., str], nodes: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The head has no core, so the run is on the second node when it is removed; a third takes it over."""
        file = bench_file(systems={"CaFe": {**CAFE, "epochs": 400, "stopping_step": 400}})
        assert local(file) == 0
        (second,) = cluster.worker_nodes
        command = [sys.executable, "-m", "recbole_cafe", "benchmark", file, "--out=ray", "--engine=ray",
                   f"--address={cluster.address}", "--jobs=2"]  # fmt: skip
        blocker = _occupy_the_head(cluster)
        with Path("said.txt").open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
            try:
                wait_for(lambda: [p for p in workers(nodes) if _epochs(p) >= 2])
                cluster.remove_node(second, allow_graceful=False)
                cluster.add_node(num_cpus=1)
                assert process.wait(600) == 0, Path("said.txt").read_text()
            finally:
                process.kill()
        del blocker
        assert "LOST, begun again" in Path("said.txt").read_text()
        assert results("ray") == results("local")
        assert ranks("ray") == ranks("local")

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_an_interruption_leaves_nothing_half_written_and_the_next_start_goes_on(
        self, cluster: Any, bench_file: Callable[..., str], nodes: Path, how: signal.Signals
    ) -> None:
        slow = {"CaFe": LONG, "Pop": {"model": "Pop"}}
        file = bench_file(systems=slow)
        command = [sys.executable, "-m", "recbole_cafe", "benchmark", file, "--out=ray", "--engine=ray",
                   f"--address={cluster.address}"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: [p for p in workers(nodes) if _epochs(p) >= 2])
                wait_for(lambda: list(Path("ray").rglob(store.RESULT)))
                process.send_signal(how)
                process.wait(60)
            finally:
                process.kill()
        wait_for(lambda: not workers(nodes))  # the cluster has room again
        (begun,) = Path("ray/runs/toy/CaFe").iterdir()
        assert not list(begun.iterdir())
        done = results("ray")
        assert [r["model"] for r in done.values()] == ["Pop"]
        if how is signal.SIGINT:
            wait_for(lambda: not list(nodes.glob("recbole-cafe-*")), 10)
        slow["CaFe"]["epochs"] = 1
        file = bench_file(systems=slow)
        slow["CaFe"]["epochs"] = 100_000
        assert on_cluster(file, cluster.address) == 0
        assert len(results("ray")) == 2
        assert done.items() <= results("ray").items()


@needs_ray
@pytest.mark.slow
def test_without_an_address_a_cluster_is_started_and_ended(bench_file: Callable[..., str]) -> None:
    plan = make_plan(bench_file(systems={"Pop": {"model": "Pop"}}, settings={"gpu_id": ""}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which is not asked for
        ended = runner.benchmark(plan, Path("out"), on_ray.Ray(gpus=0))
    assert (ended.done, ended.failed) == (1, [])
    assert not ray.is_initialized()


def _occupy_the_head(cluster: Any) -> Any:
    """Take the head's core, from a driver in this process, so that runs go to the other nodes."""
    ray.init(address=cluster.address, log_to_driver=False)
    head = cluster.head_node.node_id

    class Blocker:
        def ready(self) -> bool:
            return True

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(head, soft=False)
    actor = ray.remote(Blocker).options(num_cpus=1, scheduling_strategy=strategy).remote()
    assert ray.get(actor.ready.remote())
    return actor


def _epochs(folder: Path) -> int:
    try:
        return (folder / store.LOG).read_text().count(" training [")
    except OSError:
        return 0


def test_engines_are_engines() -> None:
    assert engines.Local(0).room(0)
    assert not engines.Local(2).room(2)
    with pytest.raises(UsageError, match="--jobs=0"):
        on_ray.Ray(jobs=0)
