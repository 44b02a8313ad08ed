"""Two hosts, made of network namespaces on one machine; one is cut off by its link, dies and comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from test_processes import ENVIRONMENT, TESTS, outcome, started

HOSTS = {"rc-one": "10.211.77.1", "rc-two": "10.211.77.2"}
KEYS = ["epochs=40", "stopping_step=40", "group_timeout=20"]

pytestmark = [pytest.mark.slow, pytest.mark.accuracy]  # two minutes, most of them waiting


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        ip("link", "add", "rc1", "netns", "rc-one", "type", "veth", "peer", "name", "rc2", "netns", "rc-two")
        for name, link in zip(HOSTS, ("rc1", "rc2"), strict=True):
            ip("-n", name, "addr", "add", f"{HOSTS[name]}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def torchrun(name: str, folder: Path, data: Path) -> subprocess.Popen[str]:
    """A training's processes on one host, in a folder that both share."""
    first, own = HOSTS["rc-one"], HOSTS[name]
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
               "--nproc_per_node=1", "--max_restarts=20", "--rdzv_backend=c10d", f"--rdzv_endpoint={first}:29400",
               f"--rdzv_conf=is_host={int(own == first)},timeout=60,join_timeout=180,read_timeout=90",
               f"--local_addr={own}", "--monitor_interval=0.2",
               str(TESTS / "train_toy.py"), "result.json", "CaFe", str(data), "32", *KEYS]  # fmt: skip
    environment = (
        os.environ
        | ENVIRONMENT
        | {
            "GLOO_SOCKET_IFNAME": "rc1" if own == first else "rc2",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else the first host does not tell a later one where to meet
        }
    )
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=log, stderr=log)


def lose(process: subprocess.Popen[str]) -> None:
    """All that a host runs is gone, at once."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


@pytest.mark.usefixtures("hosts")
def test_a_host_that_is_cut_off_and_comes_back_changes_nothing(toy_path: Path, tmp_path: Path) -> None:
    said = (undisturbed := started(tmp_path / "whole", toy_path, "CaFe", 2, *KEYS)).communicate(timeout=600)[0]
    assert undisturbed.returncode == 0, said[-4000:]
    whole, weights = outcome(tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    processes = {name: torchrun(name, folder, toy_path) for name in HOSTS}
    try:
        saved, patience = folder / "saved", time.time() + 120
        while not list(saved.glob("*.last")) and time.time() < patience:
            time.sleep(0.02)
        assert all(process.poll() is None for process in processes.values()), "it ended before its link was cut"
        ip("-n", "rc-two", "link", "set", "rc2", "down")
        lose(processes["rc-two"])
        time.sleep(30)  # longer than group_timeout: the other host waits for a message, and gives up
        assert processes["rc-one"].poll() is None
        ip("-n", "rc-two", "link", "set", "rc2", "up")
        processes["rc-two"] = torchrun("rc-two", folder, toy_path)
        for name, process in processes.items():
            assert process.wait(timeout=240) == 0, (folder / f"{name}.log").read_text()[-4000:]
    finally:
        for process in processes.values():
            if process.poll() is None:
                lose(process)
    result, theirs = outcome(folder)
    assert result["test_result"] == whole["test_result"]
    for name, weight in weights.items():
        assert torch.equal(weight, theirs[name]), name
