"""`recbole-cafe serve`: ask trained models over HTTP, and on a page."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
from collections.abc import Sequence

from recbole_cafe.cli.arguments import Verbs, add_verb, at_least
from recbole_cafe.errors import MachineError, missing_package

VERBS = ("serve",)
MOST_THREADS = 4  # of PyTorch unless told otherwise: a question is too small to profit from more
KEPT = 60  # seconds that a connection without a request stays open
GRACE = 10  # seconds that open requests are given at the end


def add_to(verbs: Verbs, _chosen: str) -> None:
    """Add the verbs of this file. _chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "serve", serve_command,
        summary="Serve bundles over HTTP, with a page to try them on. A new bundle in the place of an old one is taken "
                "without a pause.",
        examples="recbole-cafe serve bundles/cafe\nrecbole-cafe serve bundles/cafe bundles/counts --port=8080",
    )  # fmt: skip
    parser.add_argument("bundles", nargs="+", metavar="DIR", help="what `recbole-cafe export` has written; the first "
                        "is asked where a request names none")  # fmt: skip
    parser.add_argument("--port", type=at_least(0), default=8000, help="0 for any free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all, which others can reach unless a "
        "firewall is between (default: %(default)s)"
    )  # fmt: skip
    parser.add_argument("--threads", type=at_least(1), help=f"of PyTorch (default: one a core, at most {MOST_THREADS})")


def serve_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Serve until interrupted or ended.

    Raises:
        BundleError: a bundle that cannot be read.
        MachineError: a package is missing, or the port is taken.
        UsageError: two bundles of the same name.
    """
    try:
        import prometheus_client
        import torch
        import uvicorn

        from recbole_cafe.recommend.served import open_all
        from recbole_cafe.recommend.server import app_of
    except ImportError as error:
        raise missing_package(error, "serve") from error
    served = open_all(given.bundles)
    listening = _listening(given.host, given.port)
    # There is something to serve: what belongs to the whole process is set now, and not by a command that fails
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    prometheus_client.disable_created_metrics()  # twice as many lines, which few collectors read
    torch.set_num_threads(given.threads or min(MOST_THREADS, os.cpu_count() or 1))
    host, port = listening.getsockname()[:2]
    for one in served.values():
        print(f"{one.name}: {one.now.recommender.bundle.model}, {one.now.recommender.items.n - 1:,} items, version "
              f"{one.now.version[:12]}")  # fmt: skip
    print(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    config = uvicorn.Config(
        app_of(served), log_level="warning", access_log=False, server_header=False, timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    for end in (signal.SIGINT, signal.SIGTERM):  # a shell ignores the first for what it starts in the background
        signal.signal(end, signal.default_int_handler)  # the end of a service is no failure
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn passes signals on when all requests have been answered
        print("stopped")
    return 0


def _listening(host: str, port: int) -> socket.socket:
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=kind, backlog=2048)
        # Its connections inherit it. asyncio does so only for sockets that name their protocol; without it the body of
        # an answer waits 40 ms for the client to acknowledge the head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise MachineError(f"--host={host} --port={port}: cannot listen there ({said})") from error
