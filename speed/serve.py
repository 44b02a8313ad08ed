"""A question over HTTP beside the same question in this process, and many at once: what the service itself costs.

A catalogue of clustered items with drawn weights and simulated interactions is written as a bundle, which the command
`recbole-cafe serve` answers from. `ours` is the median of one client that waits for each answer before it asks again,
`theirs` that of `Recommender.recommend` here, the two in turn over the same histories. Then come questions at a fixed
rate, whether or not those before have been answered; their time begins when they are due, so that a queue shows.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import common
import numpy as np
import psutil
import pyarrow as pa
import torch
from common import machine, parser, report, workplace

import recbole_cafe
from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.config.signature import signature_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.model import net_class
from recbole_cafe.recommend.bundle import Bundle, Interactions, Items, build, sorted_order, write
from recbole_cafe.recommend.recommender import Recommender

K = 20
WALK = 20  # interactions a user
CONNECTIONS = 64
GOAL_MS = 5.0  # what HTTP may add
GOAL_TAIL = 20.0  # p99 / median


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=400)
    arguments.add_argument("--model", default="CaFe", help="default: %(default)s")
    arguments.add_argument("--items", type=int, default=100_000, help="catalogue (default: %(default)s)")
    arguments.add_argument("--rate", type=float, default=200, help="questions a second (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=60, help="of them (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options) as folder:
        if options.quick:
            options.items, options.repeats, options.rate, options.seconds = 500, 5, 20, 1
        write(simulated(options), folder / "bundle")
        here = Recommender.load(folder / "bundle")
        asked = histories(here, max(options.repeats, 500))
        with serving(options, folder / "bundle") as (port, process):
            single = one_client(here, port, process, asked, options.repeats)
            load = asyncio.run(many(port, asked, options.rate, options.seconds))
        report(
            options, "serve", machine=machine(options),
            ours=single["http"], theirs=single["here"], unit="seconds of one question, median",
            added_ms=1000 * (single["http"] - single["here"]), goal_added_ms=GOAL_MS, model=options.model,
            items=options.items, k=K, single=single, load=load, goal_p99_of_median=GOAL_TAIL,
            load_average_of_the_machine=os.getloadavg(),
        )  # fmt: skip


def simulated(options: argparse.Namespace) -> Bundle:
    """A model of clustered items with drawn weights, and interactions half of which are close to each other."""
    random = np.random.default_rng(0)
    n, n_intents = options.items, 10 if options.quick else 1_000
    intent = np.sort(random.integers(1, n_intents, n))
    n_users = n // 5
    start = random.integers(0, n, (n_users, 1))
    far = random.integers(0, n, (n_users, WALK))
    near = (start + random.integers(-50, 51, (n_users, WALK))) % n
    walks = np.where(random.random((n_users, WALK)) < 0.5, near, far) + 1
    users, items = torch.arange(n_users).repeat_interleave(WALK), torch.from_numpy(walks.ravel())
    item2intent = torch.from_numpy(np.r_[0, intent])
    facts = DataFacts(
        n_items=n + 1, n_users=n_users, max_seq_length=common.LENGTH, train_pairs=lambda: (users, items),
        intents=lambda: ItemIntents(item2intent, n_intents),
    )  # fmt: skip
    keys = read_yaml(props_dir() / "overall.yaml") | read_yaml(props_dir() / "model" / f"{options.model}.yaml")
    width = 16 if options.quick else common.WIDTH
    keys |= {"hidden_size": width, "inner_size": 2 * width, "n_layers": 2, "n_heads": 2}
    keys = {key: keys[key] for key in signature_of(net_class(options.model)).keys}
    torch.manual_seed(0)
    net = build(options.model, keys, facts, Path("in memory"))
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() == 2 and weight.shape[0] == n + 1:
                centre = torch.randn(n_intents, weight.shape[1])
                weight.copy_(0.2 * (centre[item2intent] + 0.5 * torch.randn_like(weight)))
    token = pa.array([f"item {i}" for i in range(n)])
    names = pa.array(["", *(f"intent {i}" for i in range(1, n_intents))])
    seen = torch.bincount(items, minlength=n + 1)
    known = Items(token, item2intent, seen, names, None, sorted_order(token))
    interactions = Interactions(pa.array([f"u{u}" for u in users.tolist()]), items.numpy())
    return Bundle(options.model, keys, common.LENGTH, net.eval().requires_grad_(False), known, lambda: interactions)


def histories(recommender: Recommender, n: int) -> list[list[str]]:
    """Walks of 1 to 50 items, as the simulated users take them."""
    random, n_items = np.random.default_rng(1), recommender.items.n - 1
    asked = []
    for _ in range(n):
        length, start = random.integers(1, common.LENGTH + 1), random.integers(n_items)
        near = (start + random.integers(-50, 51, length)) % n_items
        places = np.where(random.random(length) < 0.5, near, random.integers(0, n_items, length))
        asked.append([f"item {place}" for place in places])
    return asked


@contextmanager
def serving(options: argparse.Namespace, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run the command. Yields its port and process."""
    command = [sys.executable, "-m", "recbole_cafe", "serve", str(folder), "--port=0", f"--threads={options.threads}"]
    environment = os.environ | {"PYTHONPATH": str(Path(recbole_cafe.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        line = process.stdout.readline()
        try:
            yield int(line.rpartition(":")[2]), psutil.Process(process.pid)
        finally:
            process.terminate()


def body_of(history: Sequence[str]) -> bytes:
    return json.dumps({"history": history, "k": K}).encode()


def one_client(
    here: Recommender, port: int, process: psutil.Process, asked: Sequence[Sequence[str]], n: int
) -> dict[str, Any]:
    """Seconds of one question, here and over a connection that stays open, in turn; of the clock, and of the processors
    (on a busy machine these tell more)."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    seconds: dict[str, list[float]] = {"here": [], "http": [], "nothing": []}
    is_equal = True
    busy = {"here": 0.0, "client": 0.0, "server": 0.0}
    for turn in range(-20, n):  # the first ones warm up
        history = asked[turn % len(asked)]
        began, own = perf_counter(), process_time()
        table = here.recommend([history], K)
        then, own_then, server = perf_counter(), process_time(), sum(process.cpu_times()[:2])
        connection.request("POST", "/recommend", body_of(history), {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        end, own_end, server_end = perf_counter(), process_time(), sum(process.cpu_times()[:2])
        connection.request("GET", "/health")
        connection.getresponse().read()
        last = perf_counter()
        is_equal &= [row["item"] for row in answer["lists"][0]["items"]] == table["item"].to_pylist()
        if turn >= 0:
            for name, taken in (
                ("here", own_then - own),
                ("client", own_end - own_then),
                ("server", server_end - server),
            ):
                busy[name] += taken / n
            for name, taken in (("here", then - began), ("http", end - then), ("nothing", last - end)):
                seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return medians | {"equal": is_equal, "processor_seconds": busy}


async def many(port: int, asked: Sequence[Sequence[str]], rate: float, seconds: float) -> dict[str, Any]:
    """Questions at a fixed rate over a few open connections: how many were lost, and how long they took."""
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    taken: list[float] = []
    lost: list[str] = []
    began = perf_counter()

    async def one(number: int) -> None:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - perf_counter()))
        reader, writer = await free.get()
        try:
            body = body_of(asked[number % len(asked)])
            head = (
                f"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            )
            writer.write(f"{head}\r\n\r\n".encode() + body)
            said = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in said.split(b"\r\n") if line.startswith(b"content-length"))
            content = await reader.readexactly(length)
            if not said.startswith(b"HTTP/1.1 200") or b'"rank":1,' not in content:
                lost.append(said.decode()[:60])
            taken.append(perf_counter() - due)
        except (OSError, asyncio.IncompleteReadError) as error:
            lost.append(repr(error))
        finally:
            free.put_nowait((reader, writer))

    n = round(rate * seconds)
    await asyncio.gather(*(one(number) for number in range(n)))
    whole = perf_counter() - began
    while not free.empty():
        free.get_nowait()[1].close()
    p50, p99 = np.quantile(taken, (0.5, 0.99)).tolist()
    return {
        "asked": n, "rate": rate, "seconds": whole, "lost": len(lost), "reasons": lost[:3], "median": p50, "p99": p99,
        "largest": max(taken), "p99_of_median": p99 / p50,
    }  # fmt: skip


if __name__ == "__main__":
    main()
