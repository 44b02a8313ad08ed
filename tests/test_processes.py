"""Several processes: where a process learns its place, and that sharing a step changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from preloaded import Preloaded

from recbole_cafe.errors import ConfigError, MachineError
from recbole_cafe.processes import ONE_STORE_EACH, Place, first_node, launch, meets_lost_ones, place_here
from recbole_cafe.train import checkpoint
from recbole_cafe.train.sharing import Sums, check_shared_folder

TESTS = Path(__file__).parent
TRAINING = TESTS / "train_toy.py"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "40007",
        "SLURM_STEP_NODELIST": "gpu[07-08,12],login"}  # fmt: skip


def test_the_place_is_what_torchrun_or_srun_has_written() -> None:
    assert place_here({}) is None
    assert place_here(TORCHRUN) == Place(3, 4, 1, "one", "29500")
    assert place_here(TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}) == Place(3, 4, 1, "one", "29500", elastic=True)
    assert place_here(SRUN) == Place(5, 8, 1, "gpu07", "20007")
    assert place_here(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == Place(5, 8, 1, "a", "7")
    assert place_here(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert place_here({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None, "a batch script is one process"
    keys = place_here(TORCHRUN).keys()
    assert (keys["local_rank"], keys["world_size"], keys["offset"], keys["ip"]) == (1, 4, 2, "one")


def test_where_processes_that_are_started_again_may_wait_in_vain() -> None:
    assert not meets_lost_ones({})
    assert not meets_lost_ones(TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "0"})
    assert meets_lost_ones(TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "2"})
    assert not meets_lost_ones({"TORCHELASTIC_MAX_RESTARTS": "2", ONE_STORE_EACH: "1"})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (TORCHRUN | {"RANK": "x"}, "RANK='x' in the environment is not a whole number"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4, WORLD_SIZE=4, LOCAL_RANK=1 in the environment do not fit"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "without SLURM_PROCID, SLURM_LOCALID"),
    ],
)
def test_an_environment_that_says_half_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        place_here(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("host", "host"), ("a,b", "a"), ("n[1-4]", "n1"), ("n[003-004,9]", "n003"), ("n[1,5]-ib,x", "n1-ib")],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(("nproc", "world", "offset"), [(2, 3, 0), (2, 4, 1), (2, 4, 4)])
def test_machines_have_equally_many_processes(nproc: int, world: int, offset: int) -> None:
    with pytest.raises(ConfigError, match=f"nproc={nproc}, world_size={world}, group_offset={offset}"):
        launch(print, nproc=nproc, world_size=world, offset=offset, ip="localhost", port="0", max_restarts=0)


def test_several_machines_need_a_port_to_meet_at() -> None:
    with pytest.raises(ConfigError, match="port=0 with 2 machines: all should be told the same port"):
        launch(print, nproc=2, world_size=4, offset=0, ip="localhost", port="0", max_restarts=0)


def end(how: str) -> None:
    """A process that ends as it is told."""
    os.kill(os.getpid(), getattr(signal, how))


@pytest.mark.slow
def test_a_process_ended_from_outside_is_named() -> None:
    with pytest.raises(MachineError, match=r"process 0 of 1 ended by SIGKILL; the system may have run out of memory"):
        launch(end, "SIGKILL", nproc=1, world_size=1, offset=0, ip="localhost", port="0", max_restarts=0)


def count_bytes(queue: Any) -> None:
    """What a step sends, with tables of 100 and of 100,000 rows, of which it touches three."""
    torch.distributed.init_process_group("gloo")
    dense = torch.nn.Parameter(torch.ones(5))
    sent = []
    for rows in (100, 100_000):
        model = torch.nn.Module()
        model.lookup, model.dense = torch.nn.Embedding(rows, 4, sparse=True), dense
        table = model.lookup.weight
        touched = torch.tensor([[7, 9, 11]]) + torch.distributed.get_rank()
        table.grad = torch.sparse_coo_tensor(touched, torch.ones(3, 4), table.shape)
        dense.grad = torch.ones(5)
        sums = Sums(model)
        assert sums(torch.tensor(1.0)) == 2.0
        assert torch.equal(dense.grad, torch.full((5,), 2.0))
        assert table.grad.coalesce().indices().tolist() == [[7, 8, 9, 10, 11, 12]]
        assert torch.equal(table.grad.to_dense().sum(), torch.tensor(24.0))
        sent.append(sums.bytes_sent)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        queue.put(sent)
    torch.distributed.destroy_process_group()


def see_folders(folders: list[str], queue: Any) -> None:
    """Each process has a folder of its own, or all have one."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    try:
        if rank == 1 and folders[0] != folders[1]:
            os.chdir(folders[1])  # its relative names are another machine's
        else:
            os.chdir(folders[0])
        check_shared_folder("checkpoint_dir", "saved")
        queue.put("shared")
    except ConfigError as error:
        queue.put(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_a_folder_that_is_not_shared_is_seen_before_training(same: bool, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "one" if same else tmp_path / "two"]
    for folder in folders:
        (folder / "saved").mkdir(parents=True, exist_ok=True)
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    launch(see_folders, [str(f) for f in folders], queue, nproc=2, world_size=2, offset=0, ip="localhost", port="0",
           max_restarts=0)  # fmt: skip
    said = {queue.get(), queue.get()}
    expected = "checkpoint_dir=saved: process 1 does not see what process 0 writes there; it should be a folder that "
    assert said == {"shared"} if same else {expected + "all machines share"} == said
    assert not list((folders[0] / "saved").iterdir())


@pytest.mark.slow
def test_what_a_step_sends_does_not_grow_with_the_catalogue() -> None:
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    launch(count_bytes, queue, nproc=2, world_size=2, offset=0, ip="localhost", port="0", max_restarts=0)
    small, large = queue.get()
    # loss, a flag and five gradients; the number of rows; three rows with their ids
    assert small == large == 4 * (1 + 1 + 5) + 8 + 4 * 3 * (1 + 4)


# Trainings ------------------------------------------------------------------------------------------------------------


def started(
    folder: Path, data: Path, model: str, n: int, *keys: str, bits: int = 32, restarts: int = 0
) -> subprocess.Popen[str]:
    """A training in `n` processes under torchrun; bits: see train_toy.py."""
    folder.mkdir()
    script = [str(TRAINING), "result.json", model, str(data), str(bits), *keys]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={n}", f"--max_restarts={restarts}",
                "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "--monitor_interval=0.1"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(torchrun if n > 1 else []), *script], cwd=folder, text=True,
        env=os.environ | ENVIRONMENT | {ONE_STORE_EACH: "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Result and weights of a training that has ended."""
    result = json.loads((folder / "result.json").read_text())
    return result, checkpoint.load(folder / result["checkpoint"])["state_dict"]


@pytest.fixture
def together(fresh_python: Preloaded) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """A training in `n` processes that are told their places as torchrun would tell them, without its seconds."""

    def run(folder: Path, data: Path, model: str, n: int, *keys: str, bits: int = 32) -> Any:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])

        def process(rank: int) -> subprocess.CompletedProcess[str]:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            told = {name: str(value) for name, value in place.items()} if n > 1 else {}
            return fresh_python(TRAINING, "result.json", model, data, bits, *keys, cwd=folder, **told)

        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(process, range(n)))

    return run


@pytest.fixture
def trained(together: Any) -> Callable[..., tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    def run(folder: Path, data: Path, model: str, n: int, *keys: str, bits: int = 32) -> Any:
        for done in together(folder, data, model, n, *keys, bits=bits):
            assert done.returncode == 0, done.stderr[-4000:]
        return outcome(folder)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("CaFe", ["loss_type=BCE"]),  # sparse table, negatives, items without an intent
        ("CaFePlus", ["softmax=levels", "average_from=0", "n_in_intent=3"]),
        ("BERTF", []),  # hidden items
    ],
)
def test_one_two_and_four_processes_give_the_same(
    model: str, keys: list[str], toy_path: Path, tmp_path: Path, trained: Any
) -> None:
    """154 rows in steps of 51: of the last one, a single row, all but one process have nothing."""
    one, weights = trained(tmp_path / "1", toy_path, model, 1, *keys, bits=64)
    ways = [(2, []), (4, ["shard_tables=True"] if model == "CaFe" else [])]
    for n, how in ways:
        several, theirs = trained(tmp_path / str(n), toy_path, model, n, *keys, *how, bits=64)
        assert several["parameters"] == one["parameters"]
        for name, weight in weights.items():
            if weight.is_floating_point() and not name.endswith("key.bias"):  # a softmax does not see it
                assert (weight - theirs[name]).abs().max() < 1e-6, name
        for protocol, values in one["test_result"].items():
            assert several["test_result"][protocol] == pytest.approx(values, abs=1e-6, nan_ok=True)
        losses = [[epoch["loss"] for epoch in result["curve"]] for result in (one, several)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.slow
def test_a_lost_process_leads_to_the_same_end(toy_path: Path, tmp_path: Path, trained: Any) -> None:
    """One of two processes, each with a part of the item table, is killed twice; they go on from their last state."""
    keys = ["epochs=30", "stopping_step=30", "group_timeout=30", "shard_tables=True", "loss_type=BCE"]
    whole, weights = trained(tmp_path / "whole", toy_path, "CaFe", 2, *keys)
    draw, killed = random.Random(1), 0
    process = started(tmp_path / "killed", toy_path, "CaFe", 2, *keys, restarts=20)
    saved = tmp_path / "killed" / "saved"
    while process.poll() is None and killed < 2:
        began = time.time()
        while process.poll() is None and not any(f.stat().st_mtime > began for f in saved.glob("*.last")):
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)
        workers = [p for p in psutil.Process(process.pid).children() if "train_toy.py" in " ".join(p.cmdline())]
        if workers:
            draw.choice(workers).kill()
            killed += 1
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said[-4000:]
    assert killed == 2, "it ended before it could be killed twice"
    result, theirs = outcome(tmp_path / "killed")
    assert result["test_result"] == whole["test_result"]
    assert [epoch["loss"] for epoch in result["curve"]] == [epoch["loss"] for epoch in whole["curve"]]
    for name, weight in weights.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("model", "keys"), [("HCRNN", []), ("SSEPT", ["window_prob=0.3"])])
def test_what_shares_no_steps_says_so(
    model: str, keys: list[str], toy_path: Path, tmp_path: Path, together: Any
) -> None:
    done = together(tmp_path / "run", toy_path, model, 2, "epochs=1", "state=WARNING", *keys)
    said = "".join(one.stdout + one.stderr for one in done)
    assert [one.returncode for one in done] == [0, 0], said[-4000:]
    assert said.count(f"{model} in several processes: other weights than in one") == 1


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_tables_in_parts(toy_path: Path, tmp_path: Path, trained: Any) -> None:
    keys = ["loss_type=BCE", "shard_tables=True", "eval_step=1"]
    whole, _ = trained(tmp_path / "whole", toy_path, "CaFe", 1, *keys, "epochs=3")
    trained(tmp_path / "first", toy_path, "CaFe", 2, *keys, "epochs=2")
    (begun,) = (tmp_path / "first" / "saved").glob("CaFe*.pth")
    several, _ = trained(tmp_path / "then", toy_path, "CaFe", 3, *keys, "epochs=3", f"resume_from={begun}")
    losses = [[epoch["loss"] for epoch in result["curve"]] for result in (whole, several)]
    assert len(losses[1]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "keys"),
    [("CaFePlus", []), ("CaFe", ["loss_type=CE"]), ("CaFe", ["candidates=recbole", "eval_mode=full"])],
)
def test_tables_that_cannot_be_parted_are_refused(
    model: str, keys: list[str], toy_path: Path, tmp_path: Path, together: Any
) -> None:
    done = together(tmp_path / "run", toy_path, model, 2, "epochs=1", "shard_tables=True", *keys)
    assert all(one.returncode for one in done)
    said = done[0].stderr
    expected = (
        "set shard_tables=False" if "candidates=recbole" in keys else f"shard_tables=True: the item table of {model}"
    )
    assert expected in said, said[-4000:]
