"""Bundles with drawn weights behind a real server on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import uvicorn
from made import bundle_of

from recbole_cafe.recommend.bundle import Bundle, write
from recbole_cafe.recommend.served import open_all
from recbole_cafe.recommend.server import app_of

N_ITEMS = 60
INTENTS = ("", "drinks", "cakes", "<b>odd & bold</b>")
ODD_TITLE = "<img src=x onerror=\"document.title='broken'\">"


def made(model: str, seed: int = 0, **settings: object) -> Bundle:
    """A bundle of 60 items called i0, i1, ..., with titles; another seed, another one."""
    random = np.random.default_rng(seed)
    walks = {f"u{n}": [f"i{i}" for i in random.integers(0, N_ITEMS, 12)] for n in range(40)}
    intent = {f"i{i}": INTENTS[i % len(INTENTS)] for i in range(N_ITEMS)}
    bundle = bundle_of(model, walks, intent, **settings)
    titles = [ODD_TITLE, *(f"Title {i} of {intent[f'i{i}'] or 'none'}" for i in range(1, N_ITEMS))]
    return replace(bundle, items=replace(bundle.items, title=pa.array(titles)))


def written(folder: Path, model: str, **settings: object) -> Path:
    """The folder of such a bundle."""
    write(made(model, **settings), folder)  # type: ignore[arg-type]
    return folder


@contextmanager
def running(folders: Sequence[Path]) -> Iterator[str]:
    """Serve bundles in a thread. Yields the address."""
    app = app_of(open_all(folders))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
