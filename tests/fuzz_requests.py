"""Mutated requests against the service: each gets the answer that the model gives in this process, or a 4xx.

    python tests/fuzz_requests.py --n=10000 --seed=0 [--jobs=4] [--out=FILE]
    python tests/fuzz_requests.py --seed=0 --only=17        one case again, shown

The command `recbole-cafe serve` runs in a process of its own, under an audit hook that tells of every file that Python
opens, lists, changes or runs, and of every connection it makes, once it has answered its first questions. A case is
made by its seed and number alone. Whether a request is a good one, and what its answer is, is said here a second time,
by plain rules. A case ends as one of

    right answer      200, of a good request, and the model's numbers
    refused           4xx with a message, of a bad request
    not HTTP          400, or a closed connection, for bytes that are no request

and anything else is a failure: wrong answer, accepted (a bad request), refused a good one, 5xx, no answer. At the end
the service must be up, answer right, and have touched nothing but its bundle. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "recommend")]

from serving import N_ITEMS, written

from recbole_cafe.recommend import questions as q
from recbole_cafe.recommend.recommender import Recommender

GOOD = ("right answer", "refused", "not HTTP")
MODELS = ("CaFePlus", "IntentBackoff")
TOKENS = [f"i{n}" for n in range(N_ITEMS)]
INTENTS = ["drinks", "cakes", "<b>odd & bold</b>"]
PATHS = ("/recommend", "/similar", "/intents", "/score")
KIND = "application/json"
SECONDS = 60  # a request may take, on a busy machine

# Runs in the service before the command: tells of what it does once the signal has come
HOOK = """
import faulthandler, os, signal, sys
faulthandler.register(signal.SIGUSR2)
TOLD = ("open", "os.", "shutil.", "subprocess.", "socket.connect", "pickle.", "exec", "compile", "ctypes.dlopen", "import")
told, busy = [], []
def hook(event, arguments):
    if told and not busy and event.startswith(TOLD):
        busy.append(1)
        os.write(2, f"AUDIT {event} {arguments!r:.300}\\n".encode("utf-8", "replace"))
        busy.clear()
sys.addaudithook(hook)
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
from recbole_cafe.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Sent:
    """A request, as bytes or as its parts."""

    kind: str
    method: str = "POST"
    path: str = "/recommend"
    body: bytes = b""
    content_type: str | None = KIND
    raw: bytes | None = None
    is_chunked: bool = False


# Making ---------------------------------------------------------------------------------------------------------------


def good(pick: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body that is right."""
    path = pick.choice(PATHS)

    def some(most: int, source: list[str] = TOKENS) -> list[Any]:
        found: list[Any] = [pick.choice(source) for _ in range(pick.randint(0, most))]
        return [pick.choice(["nobody", 17, "", "ı", "\x00", one]) if source is TOKENS and pick.random() < 0.05 else one
                for one in found]  # fmt: skip

    def known(most: int) -> list[str]:
        return [pick.choice(TOKENS) for _ in range(pick.randint(0, most))]

    body: dict[str, Any] = {"model": pick.choice([None, *MODELS])} if pick.random() < 0.5 else {}
    if path == "/recommend":
        body |= (
            {"histories": [some(8) for _ in range(pick.randint(0, 4))]}
            if pick.random() < 0.5
            else {"history": some(30)}
        )
        optional = {
            "k": pick.randint(1, 100), "exclude_seen": pick.random() < 0.5, "exclude": known(5), "allow": known(9),
            "intents": [pick.choice(INTENTS)], "per_intent": pick.randint(1, 5), "reasons": pick.random() < 0.5,
        }  # fmt: skip
        body |= {name: value for name, value in optional.items() if pick.random() < 0.3}
    elif path == "/similar":
        body |= {"item": pick.choice(TOKENS), "k": pick.randint(1, 20)}
    elif path == "/intents":
        body |= {"history": some(9)} | ({"k": pick.randint(1, 5)} if pick.random() < 0.5 else {})
    else:
        body |= {"history": some(9), "items": known(9)}
    return path, body


def nested(depth: int) -> Any:
    value: Any = "i1"
    for _ in range(depth):
        value = [value]
    return value


def odd_value(pick: random.Random) -> Any:
    """Something of a wrong type, size or kind; sometimes a right one in the wrong place."""
    return pick.choice([
        None, True, False, 0, -1, 1, 3, 10**6, 2**63, -(2**70), 10**400, 1.0, 0.5, math.nan, math.inf, -math.inf, 1e308, "", " ",
        "i1", "1", "nobody", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "CaFePlus/../CaFePlus", "\x00", "\ud800",
        "i1\ud800", "\u202e", "é" * 400, "x" * 1000, "x" * 1001, "𝒳" * 300, "__import__('os').system('id')", "{{7*7}}", "$(id)",
        "'; DROP TABLE items; --", "<script>alert(1)</script>", "cos\nsystem\n(S'id'\ntR.", [], [[]], {}, [None], ["i1"], [1],
        [True], [1.5], [["i1"]], [{}], {"i1": 1}, {"__class__": "x"}, ["i1"] * 1000, ["i1"] * 10_001, [["i1"]] * 257, [[]] * 256,
        [list("i")] * 10, nested(50), nested(500), {"a": {"b": {"c": []}}}, list(range(300)), "i1,i2", ["\ud800"], ["i1", None],
    ])  # fmt: skip


def of_values(pick: random.Random) -> Sent:
    path, body = good(pick)
    for _ in range(pick.randint(1, 2)):
        what = pick.random()
        fields = ["model", "history", "histories", "k", "exclude_seen", "exclude", "allow", "intents", "per_intent", "reasons",
                  "item", "items", "path", "file", "__class__", "topk", "K", "history ", "\ud800", ""]  # fmt: skip
        if what < 0.15 and body:
            body.pop(pick.choice(sorted(body)))
        elif what < 0.5 and (lists := [name for name in sorted(body) if isinstance(body[name], list) and body[name]]):
            name = pick.choice(lists)
            body[name] = list(body[name])
            body[name][pick.randrange(len(body[name]))] = odd_value(pick)
        elif what < 0.75 and body:
            body[pick.choice(sorted(body))] = odd_value(pick)
        else:
            body[pick.choice(fields)] = odd_value(pick)
    return Sent("values", path=path, body=json.dumps(body).encode())


def of_text(pick: random.Random) -> Sent:
    path, body = good(pick)
    text = bytearray(json.dumps(body, ensure_ascii=pick.random() < 0.5).encode("utf-8", "replace"))
    for _ in range(pick.randint(1, 4)):
        at = pick.randrange(len(text) + 1)
        what = pick.randrange(7)
        if what == 0:
            del text[at:]
        elif what == 1:
            text[at:at] = bytes(pick.randrange(256) for _ in range(pick.randint(1, 4)))
        elif what == 2 and text:
            text[at % len(text)] ^= 1 << pick.randrange(8)
        elif what == 3:
            text[at:at] = pick.choice([b"NaN", b"Infinity", b"1e999", b"0x10", b"[" * 5000, b'{"a":' * 3000, b"9" * 5000, b"//",
                                       b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xff", b'"k":3,', b",", b"}", b"null"])  # fmt: skip
        elif what == 4:
            del text[at : at + pick.randint(1, 9)]
        elif what == 5:
            text += text[at:]
        else:
            text = bytearray(pick.choice([b"", b"\xef\xbb\xbf", b"\xff\xfe", b" ", b"\n"])) + text
    if pick.random() < 0.02:
        text = bytearray(b"[" * pick.choice([2000, 200_000]))
    if pick.random() < 0.02:
        text = bytearray(b" " * pick.choice([q.MOST_BYTES - 10, q.MOST_BYTES + 1, 2 * q.MOST_BYTES])) + text
    return Sent("text", path=path, body=bytes(text), is_chunked=pick.random() < 0.2)


def of_type(pick: random.Random) -> Sent:
    path, body = good(pick)
    types = [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
             "application/octet-stream", "application/x-pickle", "application/json; charset=utf-16", "application/json;",
             "APPLICATION/JSON", "application/vnd.api+json", "json", "*/*", "application/json, text/plain"]  # fmt: skip
    content = json.dumps(body).encode()
    if pick.random() < 0.2:
        content = pick.choice(
            [b"history=i1", b"--x\r\n\r\n", b"\x80\x04K\x01.", b"<a/>", json.dumps(body).encode("utf-16")]
        )
    return Sent("content type", path=path, body=content, content_type=pick.choice(types))


def of_path(pick: random.Random) -> Sent:
    parts = ["..", "%2e%2e", "%2f", "etc", "passwd", "page", "page.js", "bundle.json", "weights.safetensors", "recommend", "%00",
             "C:%5c", "~", "proc/self/environ", "", ".", "items", "%c0%ae", "é".encode().decode("latin-1"), "docs", "server.py"]  # fmt: skip
    path = "/" + "/".join(pick.choice(parts) for _ in range(pick.randint(1, 6)))
    if pick.random() < 0.4:
        words = [(pick.choice(["q", "k", "token", "model", "path", ""]), pick.choice(
            ["", "1", "i1", "0", "-1", "101", "1e3", "nan", "../CaFePlus", "CaFePlus", "(", ".*", "\\", "%", "x" * 101, "\x00", "ı", "9" * 400]
        )) for _ in range(pick.randint(0, 4))]  # fmt: skip
        path = "/items?" + urllib.parse.urlencode(words)
    method = pick.choice(["GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
    path = "".join(c if c.isascii() and c.isprintable() and c != " " else urllib.parse.quote(c) for c in path)
    return Sent("path", method, path, b"", None)


def of_raw(pick: random.Random) -> Sent:
    path, body = good(pick)
    content = json.dumps(body).encode()
    right = (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {KIND}\r\nContent-Length: {len(content)}\r\n"
             "Connection: close\r\n\r\n").encode()  # fmt: skip
    what = pick.randrange(8)
    if what == 0:
        raw = bytes(pick.randrange(256) for _ in range(pick.randint(1, 200)))
    elif what == 1:
        raw = right.replace(
            b"Content-Length: ",
            pick.choice([b"Content-Length: -", b"Content-Length: x", b"Content-Length: 9" + b"9" * 30]),
        )
    elif what == 2:
        raw = right.replace(b"HTTP/1.1", pick.choice([b"HTTP/9.9", b"HTTP/1.1 x", b"", b"http/1.1"]))
    elif what == 3:
        raw = (
            right.replace(b"Host: x\r\n", b"Host: x\r\nX: " + b"y" * pick.choice([100, 70_000, 300_000]) + b"\r\n")
            + content
        )
    elif what == 4:
        raw = right.replace(b"Host: x", b"Transfer-Encoding: chunked\r\nHost: x") + b"zz\r\n" + content
    elif what == 5:
        raw = right + content[: pick.randrange(len(content))]
    elif what == 6:
        cut = bytearray(right)
        for _ in range(3):
            cut[pick.randrange(len(cut))] = pick.randrange(256)
        raw = bytes(cut) + content
    else:
        raw = (
            right.replace(
                path.encode(), pick.choice([b"/" + b"a" * 100_000, b"http://other/recommend", b"*", b"/\x00", b"/\xff"])
            )
            + content
        )
    return Sent("raw", raw=raw)


def of_good(pick: random.Random) -> Sent:
    path, body = good(pick)
    return Sent("good", path=path, body=json.dumps(body).encode(), is_chunked=pick.random() < 0.1)


MAKERS: list[Callable[[random.Random], Sent]] = [
    of_values,
    of_values,
    of_text,
    of_text,
    of_type,
    of_path,
    of_raw,
    of_good,
]


def case(seed: int, number: int) -> Sent:
    pick = random.Random(f"requests-{seed}-{number}")
    return pick.choice(MAKERS)(pick)


# Judging --------------------------------------------------------------------------------------------------------------


def is_token(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 10**q.LONGEST and len(str(value)) <= q.LONGEST
    if type(value) is not str or len(value) > q.LONGEST:
        return False
    return not any(0xD800 <= ord(c) < 0xE000 for c in value)


def are_tokens(value: Any) -> bool:
    return type(value) is list and len(value) <= q.MOST_ITEMS and all(map(is_token, value))


def are_known(value: Any) -> bool:
    return are_tokens(value) and all(str(one) in TOKENS for one in value)


def is_k(value: Any) -> bool:
    return type(value) is int and 1 <= value <= q.MOST_K


def is_good(path: str, body: Any) -> bool:
    """Whether a question keeps the rules."""
    if type(body) is not dict:
        return False
    optional: dict[str, Callable[[Any], bool]] = {"model": lambda value: value is None or value in MODELS}
    needed: dict[str, Callable[[Any], bool]] = {}

    def or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: value is None or rule(value)

    if path == "/recommend":
        several = or_none(
            lambda value: type(value) is list and len(value) <= q.MOST_HISTORIES and all(map(are_tokens, value))
        )
        optional |= {
            "history": or_none(are_tokens), "histories": several, "k": is_k, "exclude": or_none(are_known),
            "exclude_seen": lambda value: type(value) is bool, "reasons": lambda value: type(value) is bool,
            "allow": or_none(are_known), "per_intent": or_none(is_k),
            "intents": or_none(lambda value: are_tokens(value) and all(one in INTENTS for one in value)),
        }  # fmt: skip
    elif path == "/similar":
        needed, optional = {"item": lambda value: is_token(value) and str(value) in TOKENS}, optional | {"k": is_k}
    elif path == "/intents":
        needed, optional = {"history": are_tokens}, optional | {"k": or_none(is_k)}
    else:
        needed = {"history": are_tokens, "items": are_known}
    rules = optional | needed
    if not set(needed) <= set(body) <= set(rules) or not all(rules[name](value) for name, value in body.items()):
        return False
    if path == "/recommend":
        one, several = body.get("history"), body.get("histories")
        if (one is None) == (several is None):
            return False
        return (1 if several is None else len(several)) * body.get("k", 10) <= q.MOST_ROWS
    return True


def answers(models: dict[str, Recommender], path: str, body: dict[str, Any]) -> list[list[tuple[str | None, float]]]:
    """What the model says: names and numbers."""
    own = models[body.get("model") or MODELS[0]]

    def known(history: list[Any]) -> list[str]:
        return [str(one) for one in history if str(one) in TOKENS]

    if path == "/similar":
        table = own.similar_items(body["item"], body.get("k", 10))
        return [list(zip(table["item"].to_pylist(), table["similarity"].to_pylist(), strict=True))]
    if path == "/intents":
        table = own.next_intents(known(body["history"]), body.get("k"))
        return [list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))]
    if path == "/score":
        table = own.score(known(body["history"]), body["items"])
        return [list(zip(table["item"].to_pylist(), table[own.score_name].to_pylist(), strict=True))]
    histories = [body["history"]] if body.get("history") is not None else body["histories"]
    options = {name: value for name, value in body.items() if name not in ("model", "history", "histories")}
    rows = own.recommend([known(one) for one in histories], **options).to_pylist()
    return [[(row["item"], row[own.score_name]) for row in rows if row["user"] == i] for i in range(len(histories))]


def said(path: str, content: Any) -> list[list[tuple[str | None, float]]]:
    """The same of an answer of the service."""
    lists = (
        content["lists"] if path == "/recommend" else [{"items": content["intents" if path == "/intents" else "items"]}]
    )
    name = "intent" if path == "/intents" else "item"
    return [
        [(row[name], next(row[n] for n in ("probability", "score", "similarity") if n in row)) for row in one["items"]]
        for one in lists
    ]


def same(one: Any, other: Any) -> bool:
    """Equal names, and numbers that differ by the rounding of another batch at most; so two of them may change places."""
    return len(one) == len(other) and all(
        len(a) == len(b)
        and all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-9) and (m == n or _is_tied(a, y))
                for (m, x), (n, y) in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def _is_tied(row: Any, value: float) -> bool:
    return sum(math.isclose(value, x, rel_tol=1e-4) for _, x in row) > 1


def judge(models: dict[str, Recommender], sent: Sent, status: int | None, body: bytes) -> str:
    """How a case ends."""
    if status is None:
        return "not HTTP" if sent.kind == "raw" else "no answer"
    if status >= 500:
        return f"{status}"
    if sent.kind == "path":
        return _of_path(sent, status, body)
    path, content, is_json = sent.path, sent.body, _is_json(sent.content_type)
    if sent.kind == "raw":
        if status != 200:
            return "not HTTP" if status == 400 else "refused"
        head, _, content = sent.raw.partition(b"\r\n\r\n")  # type: ignore[union-attr]
        path, is_json = head.split()[1].decode(), True
        if path not in PATHS:  # the changes hit it, and made another path that there is
            return "right answer" if b'"error"' not in body else "wrong answer"
    try:
        asked = json.loads(content.decode("utf-8") if sent.kind == "raw" else content)
        fine = len(content) <= q.MOST_BYTES and is_json and is_good(path, asked)
    except (ValueError, RecursionError):
        fine = False
    if status != 200:
        told = json.loads(body)
        if fine:
            return f"refused a good one: {told}"
        return "refused" if set(told) == {"error", "field"} and told["error"] else "refused without a word"
    if not fine:
        return "accepted"
    return "right answer" if same(said(path, json.loads(body)), answers(models, path, asked)) else "wrong answer"


def _is_json(content_type: str | None) -> bool:
    main = (content_type or "").partition(";")[0].strip().lower()
    return main == KIND or (main.startswith("application/") and main.endswith("+json"))


def _of_path(sent: Sent, status: int, body: bytes) -> str:
    if sent.path.startswith("/items?"):
        words = urllib.parse.parse_qsl(sent.path.partition("?")[2], keep_blank_values=True)
        last = dict(words)
        try:
            fine = 1 <= int(last.get("k", "10")) <= q.MOST_FOUND
        except ValueError:
            fine = False
        fine &= len(last.get("q", "")) <= 100 and last.get("model", MODELS[0]) in MODELS and sent.method == "GET"
        if status == 200:
            return (
                "right answer"
                if fine and all(row["item"] in TOKENS for row in json.loads(body)["items"])
                else "accepted"
            )
        return "refused a good one" if fine else "refused"
    if status == 200:
        return (
            "right answer"
            if sent.path in ("/", "/items", "/docs", "/page/page.js") and sent.method == "GET"
            else "accepted"
        )
    is_secret = b"root:" in body or b"PATH=" in body
    return "gave a file away" if is_secret else "refused"


# Running --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service(folders: list[Path], log: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The command under the hook. Yields its port and process."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HOOK, "serve", *map(str, folders), "--port=0", "--threads=1"]
    with open(log, "w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True,
                                                   env=environment) as process:  # fmt: skip
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("listening"))
        try:
            yield int(line.rpartition(":")[2]), process
        finally:
            process.terminate()
            try:
                process.wait(2 * SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGUSR2)  # where does it hang?
                time.sleep(1)
                process.kill()


def send(port: int, sent: Sent) -> tuple[int | None, bytes]:
    """The status and body of the answer; None if the connection was closed without one."""
    if sent.raw is not None:
        data = sent.raw
    else:
        head = [f"{sent.method} {sent.path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        head += [f"Content-Type: {sent.content_type}"] if sent.content_type is not None else []
        body = sent.body
        if sent.is_chunked:
            head.append("Transfer-Encoding: chunked")
            parts = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            head.append(f"Content-Length: {len(body)}")
        data = "\r\n".join([*head, "", ""]).encode() + body
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        with contextlib.suppress(ConnectionError):  # it may refuse before it has read everything
            connection.sendall(data)
        if sent.raw is not None:  # it may lack something that the service would wait for
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while block := connection.recv(1 << 16):
                received += block
    head_bytes, _, body = received.partition(b"\r\n\r\n")
    if not head_bytes.startswith(b"HTTP/1."):
        return None, received
    if b"transfer-encoding: chunked" in head_bytes.lower():
        body = b"".join(part for part in body.split(b"\r\n")[1::2])
    return int(head_bytes.split()[1]), body


def main(arguments: list[str] | None = None) -> int:
    """The command of the first lines of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4, help="connections at a time")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="of one case")
    parser.add_argument("--out", type=Path, help="JSON file of the counts and failures")
    given = parser.parse_args(arguments)
    numbers = range(given.n) if given.only is None else [given.only]
    with tempfile.TemporaryDirectory(prefix="fuzz-requests-") as name:
        folder = Path(name).resolve()
        folders = [written(folder / "bundles" / model, model) for model in MODELS]
        models = {model: Recommender.load(path) for model, path in zip(MODELS, folders, strict=True)}
        before = _files(folder / "bundles")
        with service(folders, folder / "log") as (port, process):
            run = functools.partial(one, models, port, given.seed)
            warm = [of_good(random.Random(i)) for i in range(40)]
            odd = [
                Sent("text", body="{}".encode(code)) for code in ("utf-8-sig", "utf-16", "utf-32")
            ]  # codecs are loaded
            odd += [Sent("text", body=b"{"), Sent("text", path="/nothing"), Sent("path", "GET", "/items?q=i1")]
            for sent in [*warm, *odd]:
                send(port, sent)
            size = _resident(process.pid)
            process.send_signal(signal.SIGUSR1)
            with ThreadPoolExecutor(given.jobs) as pool:
                records = list(pool.map(run, numbers))
            grown = _resident(process.pid) - size
            last = [judge(models, sent, *send(port, sent)) for sent in warm]
            is_up = process.poll() is None
        touched = _touched(folder / "log", folder / "bundles")
        faults = [
            line
            for line in (folder / "log").read_text(errors="replace").splitlines()
            if "Traceback" in line or "Current thread" in line
        ]
        if faults:
            print((folder / "log").read_text(errors="replace")[-3000:])
        is_same = _files(folder / "bundles") == before
    counts = collections.Counter((record["kind"], record["outcome"]) for record in records)
    bad = [record for record in records if record["outcome"] not in GOOD]
    for (kind, outcome), n in sorted(counts.items()):
        print(f"{n:>6}  {kind:<14} {outcome[:150]}")
    for record in bad[:10]:
        print(record)
    result = {
        "cases": len(records), "failures": len(bad), "up": is_up, "right_afterwards": set(last) == {"right answer"},
        "bundles_unchanged": is_same, "touched_elsewhere": touched, "tracebacks": len(faults), "grown_mb": round(grown, 1),
    }  # fmt: skip
    print(json.dumps(result))
    if given.out:
        by_kind = {f"{kind}: {outcome}": n for (kind, outcome), n in sorted(counts.items())}
        given.out.write_text(json.dumps(result | {"counts": by_kind, "bad": bad[:50]}, indent=1) + "\n")
    fine = is_up and result["right_afterwards"] and is_same and not touched and not faults and not bad
    return 0 if fine else 1


def one(models: dict[str, Recommender], port: int, seed: int, number: int) -> dict[str, Any]:
    """The record of a case."""
    sent = case(seed, number)
    try:
        status, body = send(port, sent)
        outcome = judge(models, sent, status, body)
    except TimeoutError:
        status, body, outcome = None, b"", "no answer in time"
    record: dict[str, Any] = {"case": number, "kind": sent.kind, "outcome": outcome, "status": status}
    if outcome not in GOOD:
        record |= {"sent": repr(sent)[:600], "answer": repr(body)[:300]}
    return record


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _touched(log: Path, bundles: Path) -> list[str]:
    """What the hook told of that is not the look at the bundles' folders."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("AUDIT ")]
    return sorted({line for line in lines if not line.startswith(f"AUDIT os.scandir ('{bundles}/")})[:20]


if __name__ == "__main__":
    sys.exit(main())
