"""What all tests share: a working folder of their own, no command line, the same random numbers, small data sets."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import atomic_files
from preloaded import Preloaded

import recbole_cafe  # noqa: F401  first: repairs what RecBole does on import

pytest.register_assert_rewrite("contract")  # tests/contract.py holds asserts and is no test file

REPOSITORY = Path(__file__).resolve().parent.parent
# Folder of real data sets; resolved now, while the working folder is the caller's
SHARED_DATA = Path(os.environ.get("RECBOLE_CAFE_SHARED_DATA") or REPOSITORY.parent / "shared" / "data").resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a peer has to be trained for is slow; our own models are trained in every run of the tests."""
    for item in items:
        if "peers" in item.path.parts and "learned" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def away_from_the_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for fixtures of a wider scope than a test: they are made before the test's own folder is.

    Also one thread: the tensors are tiny, and sums in several threads need not agree to the last bit.
    """
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("session"))
    patch.setattr(sys, "argv", sys.argv[:1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RecBole writes log/, saved/ and log_tensorboard/ where it stands, and reads pytest's command line as its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    return tmp_path


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """`fresh_python("-c", code)`: a process of its own, without the seconds that loading PyTorch and pandas takes."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    with Preloaded(tmp_path_factory.mktemp("preloaded"), "libraries") as python:
        yield python


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser: the machine's own, or Playwright's."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def write_atomic(tmp_path: Path) -> Callable[..., Path]:
    """Write `dataset/<name>/<name>.inter` (and `.item`) in the test's folder; returns the folder for `data_path`.

    clicks: (user, item, time) rows in the order of the file; intents: item -> intent, "" for none.
    """

    def write(name: str, clicks: Iterable[tuple[object, object, object]],
              intents: Mapping[object, str] | None = None) -> Path:  # fmt: skip
        return atomic_files(tmp_path / "dataset", name, inter=clicks, item=intents).parent

    return write


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for `data_path` that holds the toy data set; see toy.py."""
    from toy import write_toy

    return write_toy(tmp_path_factory.mktemp("toy_data")).parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets, one folder each. They are not part of the repository."""
    if not SHARED_DATA.is_dir():
        named = (
            "RECBOLE_CAFE_SHARED_DATA" if os.environ.get("RECBOLE_CAFE_SHARED_DATA") else "the default ../shared/data"
        )
        pytest.skip(f"no folder of real data sets: {named} does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Folder of small data sets that once failed; it lies beside that of the real ones."""
    cases = SHARED_DATA.parent / "cases"
    if not cases.is_dir():
        pytest.skip(f"no folder {cases}")
    return cases
