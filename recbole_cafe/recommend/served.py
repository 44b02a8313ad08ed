"""Bundles that are being served: each is loaded, tried, watched for a new one in its place, and swapped for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_cafe.errors import OF_THE_USER, ConfigError, UsageError
from recbole_cafe.files.whole import restore
from recbole_cafe.recommend.bundle import BundleError, version_of
from recbole_cafe.recommend.recommender import Recommender

EVERY = 1.0  # seconds between two looks at the folders
TRIES = 3  # to read a folder that is replaced meanwhile

_logger = logging.getLogger("recbole_cafe.recommend")


@dataclass(frozen=True)
class Loaded:
    """A bundle in memory that has answered a question.

    Attributes:
        recommender: to be asked.
        version: seal of its manifest.
        reasons: whether it can say why an item is in a list.
        intents: whether it can say which intents come next.
        since: seconds since 1970 at which it was loaded.
    """

    recommender: Recommender
    version: str
    reasons: bool
    intents: bool
    since: float = field(default_factory=time.time)


@dataclass
class Served:
    """A folder and the bundle of it that answers now.

    Attributes:
        name: of the folder.
        folder: of the bundle.
        now: what answers; replaced as a whole, so whoever has taken it keeps it to the end of a question.
        problem: why the bundle in the folder is not the one that answers; empty if it is.
        swaps: how many bundles have replaced another.
        refused: how many bundles, or halves of one, could not replace it.
    """

    name: str
    folder: Path
    now: Loaded
    problem: str = ""
    swaps: int = 0
    refused: int = 0
    _examined: object = None  # the files as they were when they were looked at last

    def look(self) -> None:
        """Take what is in the folder now, if it is another bundle and a good one; else go on with the old one."""
        restore(self.folder)
        files = _signature(self.folder)
        if files == self._examined:
            return
        self._examined = files
        try:
            version = version_of(self.folder)
            if version != self.now.version:
                self.now = load(self.folder)
                self.swaps += 1
                _logger.info(f"{self.name}: version {self.now.version[:12]} answers now, instead of an older one")
            self.problem = ""
        except OF_THE_USER as error:
            self.problem = str(error)
        except Exception as error:  # whatever is wrong with the new one, the old one has to go on
            _logger.exception(f"{self.name}: the bundle in {self.folder} cannot be asked")
            self.problem = f"the bundle cannot be asked: {type(error).__name__}"
        if self.problem:
            self.refused += 1
            _logger.warning(f"{self.name}: version {self.now.version[:12]} goes on answering: {self.problem}")


def load(folder: Path) -> Loaded:
    """Read a bundle and ask it something.

    Raises:
        BundleError: see :func:`recbole_cafe.recommend.bundle.read`; or it is replaced again and again.
    """
    for _ in range(TRIES):
        version = version_of(folder)
        try:
            recommender = Recommender.load(folder)
        except BundleError:
            if version_of(folder) == version:
                raise
            continue
        if version_of(folder) == version:
            return Loaded(recommender, version, *_tried(recommender))
    raise BundleError(f"{folder} was replaced {TRIES} times while it was read")


def _tried(recommender: Recommender) -> tuple[bool, bool]:
    """Whether it gives reasons, and intents.

    It is asked what will be asked, so that a bundle that cannot answer is not served, and the first user does not wait.
    """
    history = recommender.items.token[:1].to_pylist()
    recommender.recommend([history, []], 1)
    can = []
    for question in (
        lambda: recommender.recommend([history], 1, reasons=True),
        lambda: recommender.next_intents(history, 1),
    ):
        try:
            question()
            can.append(True)
        except ConfigError:
            can.append(False)
    return can[0], can[1]


def _signature(folder: Path) -> tuple[Any, ...]:
    """What changes when a file of the folder does."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries]
    except OSError as error:
        return (error.errno,)
    return tuple(sorted((name, of.st_ino, of.st_size, of.st_mtime_ns) for name, of in files))


def open_all(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Served]:
    """Load bundles.

    Args:
        folders: of them; the first is asked where a question names none.

    Returns:
        by the folders' names.

    Raises:
        BundleError: one cannot be read.
        UsageError: two have the same name.
    """
    opened: dict[str, Served] = {}
    for folder in folders:
        path = Path(folder).absolute()
        name = path.resolve().name if path.name in ("", "..") else path.name
        if name in opened:
            raise UsageError(f"{path} and {opened[name].folder} are both called {name}; rename one of the folders")
        restore(path)
        files = _signature(path)
        opened[name] = Served(name, path, load(path), _examined=files)
    return opened


class Watcher:
    """A thread that looks at the folders again and again.

    Args:
        served: to look at.
        every: seconds between two looks.
    """

    def __init__(self, served: Sequence[Served], every: float = EVERY) -> None:
        self._served, self._every = served, every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch bundles", daemon=True)

    def start(self) -> Callable[[], None]:
        """Begin. Returns what ends it."""
        self._thread.start()
        return self._stop

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            for one in self._served:
                one.look()
