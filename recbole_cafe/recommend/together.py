"""One thread that asks the models, so that requests which wait at the same time are answered together.

A batch costs little more than one question. Nobody waits for company: what is asked while the thread is busy is what it
takes next.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TOGETHER = 256  # histories of one batch
MOST_WAITING = 2_000  # questions


class BusyError(RuntimeError):
    """Too many questions wait already."""


@dataclass(frozen=True)
class Question:
    """One of the questions that wait.

    Attributes:
        key: questions with the same one may be answered together; None for one that stands alone.
        answer: gives the answers to some questions of that key, in their order.
        asked: what `answer` is given of this one.
        size: how many histories it has.
        future: takes the answer, or the exception.
    """

    key: Hashable | None
    answer: Callable[[Sequence[Any]], Sequence[Any]]
    asked: Any
    size: int
    future: asyncio.Future[Any]


class Together:
    """The thread.

    Args:
        observe: is told how many questions were answered together.
    """

    def __init__(self, observe: Callable[[int], None] = lambda _: None) -> None:
        self._observe = observe
        self._queue: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ask models", daemon=True)
        self.waiting = 0

    def start(self) -> Callable[[], None]:
        """Begin. Returns what ends it, once every question has its answer."""
        self._thread.start()
        return self._stop

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    async def ask(self, key: Hashable | None, answer: Callable[[Sequence[Any]], Sequence[Any]], asked: Any,
                  size: int = 1) -> Any:  # fmt: skip
        """Wait for the answer to a question; see :class:`Question`.

        Raises:
            BusyError: too many wait.
        """
        if self.waiting >= MOST_WAITING:
            raise BusyError(f"{self.waiting} questions wait already; ask again later")
        future = asyncio.get_running_loop().create_future()
        self.waiting += 1  # changed in the thread of the event loop alone
        try:
            self._queue.put(Question(key, answer, asked, size, future))
            return await future
        finally:
            self.waiting -= 1

    def _run(self) -> None:
        while True:
            one, n = self._queue.get(), 0
            groups: dict[Hashable, list[Question]] = {}
            while one is not None:
                groups.setdefault(id(one) if one.key is None else one.key, []).append(one)
                n += one.size
                if n >= MOST_TOGETHER or self._queue.empty():
                    break
                one = self._queue.get()
            for group in groups.values():
                self._answer(group)
            if one is None:
                return

    def _answer(self, group: list[Question]) -> None:
        self._observe(len(group))
        try:
            answers: Sequence[Any] = group[0].answer([one.asked for one in group])
        except Exception as error:
            if len(group) > 1:  # the fault of one is not that of the others
                for one in group:
                    self._answer([one])
                return
            answers = [error]
        loop = group[0].future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, group, answers)


def _settle(group: Sequence[Question], answers: Sequence[Any]) -> None:
    for one, answer in zip(group, answers, strict=True):
        if one.future.done():  # whoever asked has gone
            continue
        if isinstance(answer, Exception):
            one.future.set_exception(answer)
        else:
            one.future.set_result(answer)
