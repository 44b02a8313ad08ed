"""From weights to recommendations as docs/start.md has it, in an environment of what serving.txt names alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from page_code import blocks
from preloaded import Preloaded

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def commands_of(tag: str) -> list[str]:
    """The lines of the code block behind a mark in docs/start.md."""
    (code,) = (block.code for block in blocks(ROOT / "docs/start.md") if block.mark == tag)
    return [line for line in code.splitlines() if line.strip() and not line.startswith("#")]


def closure(names: list[str]) -> dict[str, Distribution]:
    """The distributions that these requirements name, and all they need."""
    found: dict[str, Distribution] = {}
    asked = [Requirement(name) for name in names]
    while asked:
        requirement = asked.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in (requirement.extras or {""})
        ):
            continue
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found[key] = distribution(name)
        for text in found[key].requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                needed.marker = None
                asked.append(needed)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with links to the packages of serving.txt, what they need, and recbole_cafe."""
    folder = tmp_path_factory.mktemp("serving") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    lines = [line.partition("#")[0].strip() for line in (ROOT / "serving.txt").read_text().splitlines()]
    for dist in closure([line for line in lines if line]).values():
        tops = {file.parts[0] for file in dist.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            source = Path(str(dist.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "recbole_cafe").symlink_to(ROOT / "recbole_cafe")
    return folder / "bin" / "python"


def run(python: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, fresh_python: Preloaded) -> Path:
    """The bundle of the training command, of fewer epochs; its folder's parent is where the commands run."""
    folder = tmp_path_factory.mktemp("readme")
    command = shlex.split(commands_of("recommend-train")[-1])
    assert command[0].endswith("recbole-cafe")
    command = [word for word in command if not word.startswith("--epochs=")]
    done = fresh_python("-m", "recbole_cafe", *command[1:], "--epochs=1", "--gpu_id=", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "shop"


def test_neither_recbole_nor_pandas_is_there(python: Path, tmp_path: Path) -> None:
    for name in ("recbole", "pandas"):
        assert "ModuleNotFoundError" in run(python, "-c", f"import {name}", cwd=tmp_path).stderr


def test_in_python(python: Path, shop: Path) -> None:
    done = run(python, "-c", "\n".join(commands_of("recommend-python")), cwd=shop.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "because you took" in done.stdout


def test_from_a_file(python: Path, shop: Path) -> None:
    made, command = commands_of("recommend-file")
    subprocess.run(["sh", "-c", made], cwd=shop.parent, check=True)
    done = run(python, "-m", "recbole_cafe", *shlex.split(command)[1:], cwd=shop.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    lists = (shop.parent / "lists.csv").read_text().splitlines()
    assert lists[0].startswith("user,rank,item") and sum(line.startswith("anna,") for line in lists) == 10


def test_by_http_and_the_page(python: Path, shop: Path) -> None:
    install, serve, ask = commands_of("recommend-serve")
    assert install.endswith("-r serving.txt")  # which the environment here was made of
    port = 18_000 + os.getpid() % 1000
    options = shlex.split(serve.rstrip("& "))[1:]
    with subprocess.Popen([python, "-m", "recbole_cafe", *options, f"--port={port}"], cwd=shop.parent,
                          env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}) as server:  # fmt: skip
        try:
            command = shlex.split(ask)
            assert command[0] == "curl"
            url = next(word for word in command if "localhost" in word).replace(":8000", f":{port}")
            url = url if "://" in url else f"http://{url}"
            body = command[command.index("-d") + 1].encode()
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            deadline = time.monotonic() + 60
            while True:
                try:
                    answer = json.load(urllib.request.urlopen(request, timeout=10))
                    break
                except urllib.error.HTTPError:
                    raise
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            assert "50" not in json.dumps(answer.get("items", answer))[:0] and answer
            page = urllib.request.urlopen(f"http://localhost:{port}/", timeout=10).read().decode()
            assert "<html" in page.lower()
        finally:
            server.terminate()
