"""recbole_cafe.recommend.server over real connections: what it says is what the model says in this process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import torch
from serving import N_ITEMS, ODD_TITLE, made, running, written

from recbole_cafe.cli.main import main
from recbole_cafe.recommend import questions, together
from recbole_cafe.recommend.bundle import WEIGHTS, version_of, write
from recbole_cafe.recommend.recommender import Recommender
from recbole_cafe.recommend.together import BusyError, Together

MODELS = ("CaFePlus", "IntentBackoff", "CaFe")
HISTORIES = [["i3", "i4", "i5"], ["i7"], [], ["i9", "i3", "i9"]]


@dataclass
class Service:
    client: httpx.Client
    folders: dict[str, Path]

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, body: Any) -> tuple[int, str | None, str]:
        answer = self.client.post(path, json=body)
        said = answer.json()
        assert set(said) == {"error", "field"}
        return answer.status_code, said["field"], said["error"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bundles")
    folders = {model: written(folder / model, model) for model in MODELS}
    with running([*folders.values()]) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield Service(client, folders)


@pytest.fixture(scope="module")
def local(service: Service) -> dict[str, Recommender]:
    return {model: Recommender.load(folder) for model, folder in service.folders.items()}


def lists_of(table: pa.Table, n: int) -> list[list[dict[str, Any]]]:
    """A table of `recommend` as the service says it."""
    rows = table.to_pylist()
    return [[{k: v for k, v in row.items() if k != "user"} for row in rows if row["user"] == i] for i in range(n)]


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"k": 3, "exclude_seen": False}, {"k": 100}, {"exclude": ["i1", "i2"], "k": 20},
        {"allow": ["i1", "i2", "i3", "i8"]}, {"intents": ["cakes"]}, {"per_intent": 2}, {"reasons": True, "k": 5},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_lists_are_those_of_the_recommender(service: Service, local: dict[str, Recommender], model: str,
                                            options: dict[str, Any]) -> None:  # fmt: skip
    answer = service.post("/recommend", histories=HISTORIES, model=model, **options)
    expected = lists_of(local[model].recommend(HISTORIES, **options), len(HISTORIES))
    assert [one["items"] for one in answer["lists"]] == expected
    assert [one["unknown"] for one in answer["lists"]] == [[]] * len(HISTORIES)
    assert answer["model"] == model and answer["version"] == version_of(service.folders[model])


@pytest.mark.parametrize("model", MODELS)
def test_the_other_questions_get_what_the_recommender_says(service: Service, local: dict[str, Recommender],
                                                           model: str) -> None:  # fmt: skip
    history, own = HISTORIES[0], local[model]

    def untitled(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert all(row["title"] == made_titles[row["item"]] for row in items)
        return [{k: v for k, v in row.items() if k != "title"} for row in items]

    made_titles = dict(zip(own.items.token.to_pylist(), own.items.title.to_pylist(), strict=True))
    similar = service.post("/similar", item="i3", k=7, model=model)
    assert untitled(similar["items"]) == own.similar_items("i3", 7).to_pylist()
    items = ["i3", "i0", "i3"]
    scored = service.post("/score", history=history, items=items, model=model)
    assert untitled(scored["items"]) == own.score(history, items).to_pylist()
    intents = service.post("/intents", history=history, model=model)
    assert intents["intents"] == own.next_intents(history).to_pylist()
    assert service.post("/intents", history=history, k=1, model=model)["intents"] == intents["intents"][:1]


def test_one_history_and_the_default_model(service: Service) -> None:
    one = service.post("/recommend", history=HISTORIES[0])
    assert one["model"] == MODELS[0]
    several = service.post("/recommend", histories=HISTORIES)
    assert [row["item"] for row in one["lists"][0]["items"]] == [row["item"] for row in several["lists"][0]["items"]]
    assert service.post("/recommend", histories=[])["lists"] == []


def test_unknown_items_are_left_out_and_said(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    odd = ["i3", "nobody", "i4", 17, "nobody"]
    answer = service.post("/recommend", history=odd)
    known = service.post("/recommend", history=["i3", "i4"])
    assert answer["lists"][0] == {"items": known["lists"][0]["items"], "unknown": ["nobody", "17"]}
    for path, more in (("/intents", {}), ("/score", {"items": ["i1"]})):
        assert service.post(path, history=odd, **more)["unknown"] == ["nobody", "17"]
    assert not caplog.records  # a log that grows with what users type helps nobody


def test_items_are_found_by_token_and_title(service: Service) -> None:
    def found(**words: Any) -> list[str]:
        answer = service.client.get("/items", params=words)
        assert answer.status_code == 200, answer.text
        return [row["item"] for row in answer.json()["items"]]

    assert found(q="i5")[0] == "i5"  # the very token, then those that begin with it
    assert set(found(q="I5", k=100)) >= {"i5", *(f"i{n}" for n in range(50, 60))}
    assert found(q="title 7 ") == ["i7"] and found(q="tItLe 12 of") == ["i12"]
    assert found(q="<img") == ["i0"] and found(q=".*") == [] and found(q="nobody") == []
    assert len(found(q="", k=4)) == 4
    assert found(token=["i9", "nobody", "i1"]) == ["i9", "i1"]
    row = service.client.get("/items", params={"q": "i0", "k": 1}).json()["items"][0]
    assert row == {"item": "i0", "intent": None, "title": ODD_TITLE}
    items = made(MODELS[0]).items
    seen = dict(zip(items.token.to_pylist(), items.seen[1:].tolist(), strict=True))
    assert [seen[item] for item in found(q="")] == sorted(seen.values(), reverse=True)[:10]


def test_models_and_health(service: Service) -> None:
    models = service.client.get("/models").json()["models"]
    assert [one["name"] for one in models] == list(MODELS)
    assert [one["score"] for one in models] == ["probability", "probability", "score"]
    assert all(one["items"] == N_ITEMS and one["intents"] == 3 and one["titles"] for one in models)
    assert all(one["tells_intents"] and one["tells_reasons"] for one in models)
    health = service.client.get("/health").json()
    assert health["status"] == "ok" and set(health["models"]) == set(MODELS)


def test_the_openapi_document_says_what_is_there(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/recommend", "/similar", "/intents", "/score", "/items", "/models", "/health", "/metrics",
    }  # fmt: skip
    fields = document["components"]["schemas"]["RecommendQuestion"]["properties"]
    assert fields["k"]["maximum"] == questions.MOST_K and all("description" in field for field in fields.values())


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/recommend", {}, "history"),
        ("/recommend", {"history": [], "histories": []}, "history"),
        ("/recommend", {"history": "i3"}, "history"),
        ("/recommend", {"history": {"i3": 1}}, "history"),
        ("/recommend", {"history": ["i3", None]}, "history[1]"),
        ("/recommend", {"history": ["i3", True]}, "history[1]"),
        ("/recommend", {"history": [1.5]}, "history[0]"),
        ("/recommend", {"history": [["i3"]]}, "history[0]"),
        ("/recommend", {"histories": [["i3"], ["i3", {}]]}, "histories[1][1]"),
        ("/recommend", {"histories": ["i3"]}, "histories[0]"),
        ("/recommend", {"history": [], "k": 0}, "k"),
        ("/recommend", {"history": [], "k": "10"}, "k"),
        ("/recommend", {"history": [], "k": 1.0}, "k"),
        ("/recommend", {"history": [], "k": True}, "k"),
        ("/recommend", {"history": [], "k": questions.MOST_K + 1}, "k"),
        ("/recommend", {"histories": [[]] * 100, "k": 201}, "k"),
        ("/recommend", {"histories": [[]] * (questions.MOST_HISTORIES + 1)}, "histories"),
        ("/recommend", {"history": ["i1"] * (questions.MOST_ITEMS + 1)}, "history"),
        ("/recommend", {"history": ["x" * (questions.LONGEST + 1)]}, "history[0]"),
        ("/recommend", {"history": [], "exclude_seen": 1}, "exclude_seen"),
        ("/recommend", {"history": [], "exclude": ["nobody"]}, "exclude"),
        ("/recommend", {"history": [], "allow": ["nobody"]}, "allow"),
        ("/recommend", {"history": [], "intents": ["cake"]}, "intents"),
        ("/recommend", {"history": [], "per_intent": -1}, "per_intent"),
        ("/recommend", {"history": [], "topk": 3}, "topk"),
        ("/similar", {"item": "nobody"}, "item"),
        ("/similar", {}, "item"),
        ("/similar", {"item": ["i3"]}, "item"),
        ("/intents", {"history": []} | {"k": 0}, "k"),
        ("/score", {"history": []}, "items"),
        ("/score", {"history": [], "items": ["i1", "nobody"]}, "items"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(service: Service, path: str, body: Any, field: str) -> None:
    status, named, error = service.refused(path, body)
    assert (status, named) == (422, field)
    assert error.startswith(field) and len(error) < 300


def test_refusals_of_the_request_as_a_whole(service: Service) -> None:
    client, kind = service.client, {"content-type": "application/json"}
    assert service.refused("/recommend", {"history": [], "model": "CaFeplus"})[:2] == (404, "model")
    assert "did you mean CaFePlus" in service.refused("/recommend", {"history": [], "model": "CaFeplus"})[2]
    assert service.refused("/recommend", [1])[:2] == (422, None)
    for content in (b"", b"{", b'{"history": [NaN,}', b"\xff\xfe", b'{"history": ["\xff"]}', b"[" * 100_000):
        answer = client.post("/recommend", content=content, headers=kind)
        assert answer.status_code in (400, 422) and set(answer.json()) == {"error", "field"}, content[:20]
    half = client.post("/recommend", content=b'{"history": ["\\ud800"]}', headers=kind)
    assert (half.status_code, half.json()["field"]) == (422, "history[0]")
    # What a form on another site can send without asking the browser's leave
    for other in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.post("/recommend", content=b'{"history":[]}', headers={"content-type": other}).status_code == 422
    assert client.get("/recommend").status_code == 405
    assert client.get("/nothing").json() == {"error": "GET '/nothing': Not Found", "field": None}


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_is_too_large(service: Service, is_chunked: bool) -> None:
    content = json.dumps({"history": ["i1"], "model": " " * questions.MOST_BYTES}).encode()
    parts = (content[i : i + 65536] for i in range(0, len(content), 65536))
    answer = service.client.post(
        "/recommend", content=parts if is_chunked else content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413 and "bytes" in answer.json()["error"]
    assert service.post("/recommend", history=[])["lists"]


def test_no_request_names_a_file(service: Service) -> None:
    for path in (
        "/page/../server.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/",
        "/bundle.json",
        "/..%2f",
    ):
        assert service.client.get(path).status_code == 404, path
    for name in ("../CaFe", "/etc/passwd", str(service.folders["CaFe"])):
        assert service.refused("/recommend", {"history": [], "model": name})[0] == 404


def test_the_page_is_served_with_a_policy_against_foreign_code(service: Service) -> None:
    for path in ("/", "/docs", "/page/page.js", "/page/page.css"):
        answer = service.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text


# Together -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_concurrent_questions_get_their_own_answers(service: Service, local: dict[str, Recommender]) -> None:
    def ask(n: int) -> None:
        history = [f"i{(n * 7 + step) % N_ITEMS}" for step in range(n % 5)]
        options: dict[str, Any] = [{}, {"k": 3}, {"reasons": True, "k": 2}, {"exclude": [f"i{n % 3}"]}][n % 4]
        model = MODELS[n % len(MODELS)]
        lists = service.post("/recommend", history=history, model=model, **options)["lists"]
        expected = lists_of(local[model].recommend([history], **options), 1)[0]
        assert [row["item"] for row in lists[0]["items"]] == [row["item"] for row in expected]
        name = local[model].score_name
        # a product of another number of rows may round otherwise
        assert [row[name] for row in lists[0]["items"]] == pytest.approx([row[name] for row in expected], rel=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(240)))


def test_what_waits_is_answered_together_and_a_fault_hits_its_own_question_alone() -> None:
    sizes: list[int] = []
    free = threading.Event()

    def answer(asked: list[int]) -> list[int]:
        if asked == [0]:
            free.wait(10)
        if -1 in asked:
            raise ValueError("of -1")
        return [10 * one for one in asked]

    async def ask_all() -> list[Any]:
        first = asyncio.ensure_future(thread.ask("a", answer, 0))
        await asyncio.sleep(0.1)  # it is being answered
        others = [thread.ask(key, answer, one) for key, one in (("a", 1), ("b", 2), ("a", 3), (None, 4), (None, 5))]
        others += [thread.ask("c", answer, one) for one in (-1, 6)]
        waiting = [asyncio.ensure_future(other) for other in others]
        await asyncio.sleep(0.1)
        assert thread.waiting == 8
        free.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    thread = Together(sizes.append)
    end = thread.start()
    answers = asyncio.run(ask_all())
    end()
    assert answers[:6] == [0, 10, 20, 30, 40, 50] and answers[7] == 60
    assert isinstance(answers[6], ValueError)
    assert sizes == [1, 2, 1, 1, 1, 2, 1, 1]  # 0 alone; 1 and 3; 2; 4; 5; -1 and 6, and each of these anew
    assert thread.waiting == 0


def test_a_question_too_many_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(together, "MOST_WAITING", 0)
    with pytest.raises(BusyError):
        asyncio.run(Together().ask(None, lambda asked: asked, 1))
    with running([written(tmp_path / "b", "IntentBackoff")]) as address:
        answer = httpx.post(f"{address}/recommend", json={"history": []})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_metrics_count_what_was_asked(tmp_path: Path) -> None:
    with running([written(tmp_path / "b", "IntentBackoff")]) as address, httpx.Client(base_url=address) as client:
        for body in ({"history": []}, {"histories": [[], []]}, {"k": 0}):
            client.post("/recommend", json=body)
        client.get("/no/such/path")
        lines = client.get("/metrics").text.splitlines()
    for line in (
        'recbole_cafe_requests_total{path="/recommend",status="200"} 2.0',
        'recbole_cafe_requests_total{path="/recommend",status="422"} 1.0',
        'recbole_cafe_requests_total{path="other",status="404"} 1.0',
        'recbole_cafe_request_seconds_count{path="/recommend"} 3.0',
        'recbole_cafe_histories_total{model="b"} 3.0',
        "recbole_cafe_questions_together_count 2.0",
        "recbole_cafe_questions_waiting 0.0",
        f'recbole_cafe_bundle_items{{model="b"}} {N_ITEMS}.0',
        'recbole_cafe_bundle_swaps{model="b"} 0.0',
    ):
        assert line in lines, line


# A new bundle in the place of the old ---------------------------------------------------------------------------------


def eventually(is_so: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def test_bundles_are_swapped_under_load_and_no_request_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shop"
    bundles = [made("IntentBackoff", seed) for seed in range(3)]
    write(bundles[0], folder)
    expected = {version_of(folder): lists_of(Recommender(bundles[0]).recommend([["i3"]]), 1)[0]}
    answered: list[tuple[int, str, Any]] = []
    stopped = threading.Event()

    def hammer(address: str) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not stopped.is_set():
                answer = client.post("/recommend", json={"history": ["i3"]})
                said = answer.json()
                answered.append((answer.status_code, said["version"], said["lists"][0]["items"]))

    with running([folder]) as address, ThreadPoolExecutor(4) as pool, caplog.at_level(logging.INFO):
        hammering = [pool.submit(hammer, address) for _ in range(4)]
        try:
            for bundle in bundles[1:]:
                eventually(lambda: len(answered) > 20 * len(expected))
                write(bundle, folder, replace=True)
                expected[version_of(folder)] = lists_of(Recommender(bundle).recommend([["i3"]]), 1)[0]
                eventually(lambda: answered[-1][1] == version_of(folder))
        finally:
            stopped.set()
        for one in hammering:
            one.result(60)
        swaps = httpx.get(f"{address}/metrics").text
    assert {status for status, _, _ in answered} == {200}
    assert {version for _, version, _ in answered} == set(expected)
    assert all(items == expected[version] for _, version, items in answered)
    assert len({json.dumps(items) for items in expected.values()}) == 3
    assert 'recbole_cafe_bundle_swaps{model="shop"} 2.0' in swaps
    assert sum("answers now" in record.message for record in caplog.records) == 2


def test_a_bad_new_bundle_leaves_the_old_one_answering(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, bad = tmp_path / "shop", tmp_path / "bad"
    write(made("IntentBackoff", 0), folder)
    first = version_of(folder)
    with running([folder]) as address, httpx.Client(base_url=address, timeout=60) as client:

        def health() -> Any:
            return client.get("/health").json()

        before = client.post("/recommend", json={"history": ["i3"]}).json()
        write(made("IntentBackoff", 1), bad)
        content = bytearray((bad / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (bad / WEIGHTS).write_bytes(content)
        folder.rename(tmp_path / "old")
        bad.rename(folder)
        eventually(lambda: health()["status"] == "degraded" and "digest" in health()["models"]["shop"]["problem"])
        assert WEIGHTS in health()["models"]["shop"]["problem"] and health()["models"]["shop"]["version"] == first
        assert client.post("/recommend", json={"history": ["i3"]}).json() == before
        assert any("goes on answering" in record.message and WEIGHTS in record.message for record in caplog.records)
        shutil.rmtree(folder)
        eventually(lambda: "cannot be read" in health()["models"]["shop"]["problem"])
        assert client.post("/recommend", json={"history": ["i3"]}).json() == before
        write(made("IntentBackoff", 2), folder)
        eventually(lambda: health()["status"] == "ok")
        assert health()["models"]["shop"] == {"version": version_of(folder), "problem": None}
        assert client.post("/recommend", json={"history": ["i3"]}).json()["version"] == version_of(folder) != first
        assert 'recbole_cafe_bundle_refused{model="shop"}' in client.get("/metrics").text


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended(tmp_path: Path, end: signal.Signals) -> None:
    folder = written(tmp_path / "shop", "IntentBackoff")
    command = [sys.executable, "-m", "recbole_cafe", "serve", str(folder), "--port=0", "--threads=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(f"shop: IntentBackoff, {N_ITEMS} items, version ")
        address = process.stdout.readline().removeprefix("listening at ").strip()
        assert address.startswith("http://127.0.0.1:")
        assert httpx.post(f"{address}/recommend", json={"history": ["i3"]}).status_code == 200
        with httpx.Client(base_url=address) as client:
            seconds = []
            for _ in range(30):
                began = time.perf_counter()
                client.get("/health")
                seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.03  # no answer waits for an acknowledgement, which takes 40 ms
        process.send_signal(end)
        assert process.wait(30) == 0
        assert process.stdout.read() == "stopped\n"
        assert "Traceback" not in process.stderr.read()


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    folder, other = written(tmp_path / "shop", "IntentBackoff"), written(tmp_path / "x" / "shop", "IntentBackoff")

    def said(*arguments: object) -> tuple[int, str]:
        return main(["serve", *map(str, arguments)]), capsys.readouterr().err

    status, error = said(tmp_path)
    assert status == 1 and "is no bundle" in error
    status, error = said(folder, other)
    assert status == 2 and "both called shop" in error
    status, error = said(folder, "--port=65536")
    assert status == 1 and "--port=65536" in error
    with running([folder]) as address:
        status, error = said(folder, f"--port={address.rpartition(':')[2]}")
    assert status == 1 and "cannot listen there" in error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, error = said(folder)
    assert status == 1 and "pip install 'recbole-cafe[serve]'" in error
    assert torch.get_num_threads() == 1  # a command that fails leaves the process as it was
