"""Downloads go on where they broke off, are checked, and say what a person has to do where there is no network."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from recbole_cafe.cli.main import main
from recbole_cafe.prepare import fetch
from recbole_cafe.prepare.fetch import Release
from recbole_cafe.prepare.raw import PrepareError

CONTENT = bytes(range(256)) * 40


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `breaks` answers end half-way, `tag` marks the file's version."""

    breaks, tag, seen = 0, '"one"', None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content, start = self.server.files.get(self.path), 0
        asked = self.headers.get("Range")
        self.server.seen.append((self.path, asked))
        if content is None:
            self.send_error(404)
            return
        if asked and self.headers.get("If-Range") == self.server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        half = self.server.breaks > 0
        self.server.breaks -= half
        self.wfile.write(content[start : (start + len(content)) // 2 if half else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.files, made.seen = {"/x.gz": CONTENT}, []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: Server, path: str = "/x.gz") -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_a_download_that_breaks_off_is_continued(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    fetch.fetch(url(server), tmp_path / "x.gz")
    assert (tmp_path / "x.gz").read_bytes() == CONTENT
    assert [asked for _, asked in server.seen] == [None, "bytes=5120-", "bytes=7680-"]
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  x.gz\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "x.gz"]


def test_what_is_left_over_from_an_earlier_run_is_continued_unless_the_file_changed(
    server: Server, tmp_path: Path
) -> None:
    server.breaks = fetch.TRIES
    with pytest.raises(PrepareError, match=r"x\.gz\.part: has 8960 bytes of 10240; run again to continue"):
        fetch.fetch(url(server), tmp_path / "x.gz")
    server.tag, server.files["/x.gz"] = '"two"', CONTENT[::-1]
    fetch.fetch(url(server), tmp_path / "x.gz")
    assert (tmp_path / "x.gz").read_bytes() == CONTENT[::-1]


def test_a_file_with_another_checksum_than_noted_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  x.gz\n")
    with pytest.raises(PrepareError, match=f"found sha256 .*, expected {'0' * 64}"):
        fetch.fetch(url(server), tmp_path / "x.gz")
    assert not (tmp_path / "x.gz").exists()


def test_categories_are_downloaded_and_prepared(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 9}
    server.files |= {
        "/Toys.json.gz": gzip.compress(json.dumps(review).encode()),
        "/meta_Toys.json.gz": gzip.compress(json.dumps({"asin": "B", "category": ["Toys", "Games"]}).encode()),
    }
    release = Release("https://page", url(server, "/{}.json.gz"), url(server, "/meta_{}.json.gz"))
    monkeypatch.setitem(fetch.AMAZON, "2018", release)
    arguments = ["prepare", "amazon", "--version=2018", "--categories", "Toys", "--out=out"]
    assert main(arguments) == 0
    assert Path("out/amazon/amazon.item").read_text().endswith("B\tGames\n")
    asked = len(server.seen)
    assert main([*arguments, "--replace"]) == 0 and len(server.seen) == asked == 2  # the files are there


def test_without_a_network_the_page_the_file_and_its_place_are_named(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise fetch.urllib.error.URLError("no network")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", offline)
    for extra, reason in ([], "no network"), (["--no-download"], "is missing"):
        assert main(["prepare", "amazon", "--version=2018", "--categories", "Books", "--out=out", *extra]) == 1
        said = capsys.readouterr().err
        for part in (
            reason,
            "raw/amazon-2018/Books.json.gz",
            "amazon_v2/categoryFiles/Books.json.gz",
            "nijianmo.github.io",
        ):
            assert part in said
    assert main(["prepare", "tmall", "--out=out"]) == 2
    assert "https://tianchi.aliyun.com/dataset/53: IJCAI16_data.zip" in capsys.readouterr().err
    assert main(["prepare", "amazon", "--out=out"]) == 2
    assert "give --version and --categories, or --reviews and --metadata" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_file_that_the_server_does_not_have_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        fetch.fetch(url(server, "/other.gz"), tmp_path / "other.gz")
    assert not (tmp_path / "other.gz").exists()
