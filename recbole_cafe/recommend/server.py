"""Trained models over HTTP: an app for uvicorn, or any other ASGI server.

A request holds JSON and names no file; an answer is what :class:`Recommender` says, field by field. One thread asks the
models (recbole_cafe.recommend.together); the bundles are watched and swapped (recbole_cafe.recommend.served).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import reprlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_cafe import __version__
from recbole_cafe.errors import ConfigError, DataError, did_you_mean
from recbole_cafe.files.whole import finite
from recbole_cafe.recommend import find
from recbole_cafe.recommend import questions as q
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.served import Loaded, Served, Watcher
from recbole_cafe.recommend.together import BusyError, Together

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # bounds of the histogram of latencies
TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_logger = logging.getLogger("recbole_cafe.recommend")


class UnknownModelError(DataError):
    """A question for a bundle that is not served."""


# Answers --------------------------------------------------------------------------------------------------------------


def _json(content: object) -> bytes:
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:  # a score that is not finite
        return json.dumps(finite(content), separators=(",", ":")).encode()


def _said(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = content if isinstance(content, bytes) else _json(content)
    return Response(body, status, headers, "application/json")


def _problem(status: int, error: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    return _said({"error": error, "field": field}, status, headers)


def _known(recommender: Recommender, history: Sequence[str]) -> tuple[list[str], list[str]]:
    """A history without the items that are unknown, and those, each once."""
    ids = recommender.lookup.ids(history).tolist()
    known = [token for token, own in zip(history, ids, strict=True) if own]
    return known, list(dict.fromkeys(token for token, own in zip(history, ids, strict=True) if not own))


def _rows(recommender: Recommender, table: pa.Table) -> list[dict[str, Any]]:
    """A table of items as JSON has it, with titles."""
    if recommender.items.title is not None and "title" not in table.column_names:
        place = recommender.lookup.ids(table["item"].to_pylist()) - 1
        table = table.append_column("title", recommender.items.title.take(pa.array(place)))
    columns = [table[name].to_pylist() for name in table.column_names]
    return [dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _who(served: Served, now: Loaded) -> dict[str, Any]:
    return {"model": served.name, "version": now.version}


def recommend(served: Served, asked: Sequence[q.RecommendQuestion]) -> list[bytes]:
    """The answers to questions with the same options."""
    now, options = served.now, asked[0].options()
    if options["reasons"] and not now.reasons:
        raise ConfigError(f"reasons: {now.recommender.bundle.model} does not give any")
    split = [[_known(now.recommender, history) for history in one.asked] for one in asked]
    table = now.recommender.recommend([known for one in split for known, _ in one], **options)
    n = sum(map(len, split))
    start = np.searchsorted(table["user"].to_numpy(), np.arange(n + 1)).tolist()
    rows = _rows(now.recommender, table.drop_columns("user"))
    said, first = [], 0
    for one in split:
        lists = [
            {"items": rows[start[first + i] : start[first + i + 1]], "unknown": unknown}
            for i, (_, unknown) in enumerate(one)
        ]
        said.append(_json({**_who(served, now), "lists": lists}))
        first += len(one)
    return said


def similar(served: Served, asked: q.SimilarQuestion) -> bytes:
    """The answer to one question."""
    now = served.now
    if not now.recommender.lookup.ids([asked.item])[0]:
        raise DataError(f"item: {reprlib.repr(asked.item)} is unknown")
    table = now.recommender.similar_items(asked.item, asked.k)
    return _json({**_who(served, now), "items": _rows(now.recommender, table)})


def intents(served: Served, asked: q.IntentsQuestion) -> bytes:
    """The answer to one question."""
    now = served.now
    known, unknown = _known(now.recommender, asked.history)
    table = now.recommender.next_intents(known, asked.k)
    return _json({**_who(served, now), "intents": table.to_pylist(), "unknown": unknown})


def score(served: Served, asked: q.ScoreQuestion) -> bytes:
    """The answer to one question."""
    now = served.now
    known, unknown = _known(now.recommender, asked.history)
    table = now.recommender.score(known, asked.items)
    return _json({**_who(served, now), "items": _rows(now.recommender, table), "unknown": unknown})


def found(served: Served, text: str, tokens: Sequence[str], k: int) -> bytes:
    """The items that have a text in their names, or those of some tokens."""
    now = served.now
    table = find.known(now.recommender, tokens) if tokens else find.find(now.recommender, text, k)
    return _json({**_who(served, now), "items": _rows(now.recommender, table)})


def _described(served: Served) -> dict[str, Any]:
    now = served.now
    bundle = now.recommender.bundle
    data = bundle.about.get("dataset")
    return {
        "name": served.name, "model": bundle.model, "version": now.version, "items": bundle.items.n - 1,
        "intents": len(bundle.items.intents) - 1, "score": now.recommender.score_name,
        "titles": bundle.items.title is not None, "tells_reasons": now.reasons, "tells_intents": now.intents,
        "data": data if isinstance(data, str) else None, "since": now.since,
    }  # fmt: skip


# What is counted ------------------------------------------------------------------------------------------------------


class Metrics:
    """For Prometheus.

    Args:
        served: the bundles.
        together: the thread that asks them.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "recbole_cafe_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "recbole_cafe_request_seconds", "From the first byte of a request to the last of its answer.", ["path"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.together = Histogram(
            "recbole_cafe_questions_together", "Questions that one call of a model answered.", buckets=TOGETHER,
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("recbole_cafe_questions_waiting", "Questions that wait now.", registry=self.registry)
        self.histories = Counter("recbole_cafe_histories", "Histories asked about.", ["model"], registry=self.registry)
        about = (
            ("recbole_cafe_bundle_items", "Items of the bundle.", lambda one: one.now.recommender.items.n - 1),
            ("recbole_cafe_bundle_since_seconds", "When it was loaded.", lambda one: one.now.since),
            ("recbole_cafe_bundle_swaps", "Bundles that replaced another.", lambda one: one.swaps),
            ("recbole_cafe_bundle_refused", "Bundles that could not.", lambda one: one.refused),
        )
        for name, text, value in about:
            gauge = Gauge(name, text, ["model"], registry=self.registry)
            for one in served.values():
                gauge.labels(one.name).set_function(partial(value, one))


class Gate:
    """Around the app: limits the bytes of a request, adds headers, counts.

    Args:
        app: inside.
        metrics: to count in.
        paths: those there are; all others are counted as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, if it is not too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, n_bytes = perf_counter(), 500, 0

        async def bounded() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > q.MOST_BYTES:
                raise HTTPException(413, f"the request has more than {q.MOST_BYTES} bytes")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length) > q.MOST_BYTES:
                told = _problem(413, f"the request has {int(length)} bytes, expected at most {q.MOST_BYTES}")
                await told(scope, receive, noted)
            else:
                await self._app(scope, bounded, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(perf_counter() - began)


# The app --------------------------------------------------------------------------------------------------------------


def app_of(served: Mapping[str, Served], *, watch: bool = True) -> FastAPI:
    """An app that answers from bundles.

    Args:
        served: from :func:`recbole_cafe.recommend.served.open_all`; the first is asked where a question names none.
        watch: whether new bundles in the folders are taken.
    """
    metrics = Metrics(served)
    together = Together(metrics.together.observe)
    metrics.waiting.set_function(lambda: together.waiting)
    searching = ThreadPoolExecutor(1, "find items")  # so that a search takes no more than one core, and no turn

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        ends = [together.start(), *([Watcher([*served.values()]).start()] if watch else [])]
        yield
        for end in reversed(ends):
            end()
        searching.shutdown()

    problems = {status: {"model": q.Problem} for status in (404, 413, 422, 503)}
    app = FastAPI(
        title="recbole-cafe", version=__version__, lifespan=life, docs_url=None, redoc_url=None, responses=problems,
        description="Lists for anybody's history, with their reasons.",
    )  # fmt: skip

    def chosen(name: str | None) -> Served:
        if name is None:
            return next(iter(served.values()))
        if name not in served:
            raise UnknownModelError(f"model: there is no {reprlib.repr(name)}, there are {', '.join(served)}"
                                    f"{did_you_mean(name, served)}")  # fmt: skip
        return served[name]

    async def answer(question: Any, give: Callable[[Served, Any], bytes]) -> Response:
        one = chosen(question.model)
        metrics.histories.labels(one.name).inc()
        return _said(await together.ask(None, lambda alone: [give(one, alone[0])], question))

    @app.post("/recommend", response_model=q.Lists)
    async def _recommend(question: q.RecommendQuestion) -> Response:
        """The best items after each history, best first."""
        one, n = chosen(question.model), len(question.asked)
        metrics.histories.labels(one.name).inc(n)
        key = (one.name, question.key())
        return _said(await together.ask(key, partial(recommend, one), question, n))

    @app.post("/similar", response_model=q.Items)
    async def _similar(question: q.SimilarQuestion) -> Response:
        """Items like one, the most similar first."""
        return await answer(question, similar)

    @app.post("/intents", response_model=q.Intents)
    async def _intents(question: q.IntentsQuestion) -> Response:
        """Which intents come next, the likeliest first."""
        return await answer(question, intents)

    @app.post("/score", response_model=q.ScoredItems)
    async def _score(question: q.ScoreQuestion) -> Response:
        """What the model says of given items after a history."""
        return await answer(question, score)

    @app.get("/items", response_model=q.Items)
    async def _items(
        text: Annotated[str, Query(alias="q", max_length=100, description="Of a token or title.")] = "",
        token: Annotated[list[q.Token], Query(max_length=q.MOST_FOUND, description="These tokens, instead.")] = [],  # noqa: B006
        k: Annotated[int, Query(ge=1, le=q.MOST_FOUND, description="How many.")] = 10,
        model: Annotated[str | None, Query(max_length=q.LONGEST)] = None,
    ) -> Response:
        """Items whose token or title has a text: those that begin with it first, then by how often they were taken."""
        one = chosen(model)
        loop = asyncio.get_running_loop()
        return _said(await loop.run_in_executor(searching, found, one, text, token, k))

    @app.get("/models", response_model=q.Models)
    async def _models() -> Response:
        """The bundles that are served, the default first."""
        return _said({"models": [_described(one) for one in served.values()]})

    @app.get("/health", response_model=q.Health)
    async def _health() -> Response:
        """Whether every bundle is the one in its folder."""
        models = {one.name: {"version": one.now.version, "problem": one.problem or None} for one in served.values()}
        status = "degraded" if any(one.problem for one in served.values()) else "ok"
        return _said({"status": status, "waiting": together.waiting, "models": models})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def _metrics() -> Response:
        """What has been counted, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    _add_page(app)
    _add_errors(app)
    paths = frozenset(route.path for route in app.routes)
    app.add_middleware(Gate, metrics=metrics, paths=paths)
    return app


def _add_page(app: FastAPI) -> None:
    """The page, each file of it under a path of its own: no request can name another."""
    for file in sorted(PAGE.iterdir()):
        content, kind = file.read_bytes(), KINDS[file.suffix]
        path = {"index.html": "/", "docs.html": "/docs"}.get(file.name, f"/page/{file.name}")
        app.add_api_route(path, _constant(content, kind), methods=["GET"], include_in_schema=False)


def _constant(content: bytes, kind: str) -> Callable[[], Any]:
    async def give() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return give


def _field_of(error: str) -> str | None:
    """The field that a message begins with."""
    named = re.match(r"([a-z_]+(?:\[\d+\])*)[:=]", error)
    return named[1] if named else None


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = first["loc"][1:]
        if first["type"] == "json_invalid":
            return _problem(422, f"the request is not JSON, from character {place[0]} on")
        if not place and first["type"] != "value_error":
            return _problem(422, "expected a JSON object, of the content-type application/json")
        said = first["msg"].removeprefix("Value error, ").removeprefix(": ")
        if not place:  # a fault of several fields together names one of them
            return _problem(422, said, _field_of(said))
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        found = "" if first["type"] in ("missing", "value_error") else f", found {reprlib.repr(first['input'])}"
        return _problem(422, f"{field}: {said}{found}", field)

    @app.exception_handler(ConfigError)
    @app.exception_handler(DataError)
    async def _refused(_request: Request, error: Exception) -> Response:
        return _problem(404 if isinstance(error, UnknownModelError) else 422, str(error), _field_of(str(error)))

    @app.exception_handler(BusyError)
    async def _busy(_request: Request, error: Exception) -> Response:
        return _problem(503, str(error), headers={"retry-after": "1"})

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {reprlib.repr(request.url.path)}: " if error.status_code in (404, 405) else ""
        return _problem(error.status_code, f"{what}{error.detail}", headers=error.headers)

    @app.exception_handler(Exception)
    async def _bug(_request: Request, _error: Exception) -> Response:
        return _problem(500, "a fault of the service; its log has more")
