"""Raw files from where they are published, with resume and checksums, or the words how to get them."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from recbole_cafe.files.atomic import checksum
from recbole_cafe.prepare.raw import PrepareError

SUMS = "SHA256SUMS"  # in the folder of raw files, as `sha256sum -c` reads it
TRIES = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Release:
    """Where a release of Amazon's reviews is: the page for people, and the files of a category."""

    page: str
    reviews: str
    metadata: str

    def urls(self, category: str) -> tuple[str, str]:
        """Return those of the reviews and of the metadata."""
        return self.reviews.format(category), self.metadata.format(category)


_LAB = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
AMAZON = {
    "2014": Release("https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
                    _SNAP + "/reviews_{}.json.gz", _SNAP + "/meta_{}.json.gz"),
    "2018": Release("https://nijianmo.github.io/amazon/",
                    _LAB + "/amazon_v2/categoryFiles/{}.json.gz", _LAB + "/amazon_v2/metaFiles2/meta_{}.json.gz"),
    "2023": Release("https://amazon-reviews-2023.github.io/",
                    _LAB + "/amazon_2023/raw/review_categories/{}.jsonl.gz",
                    _LAB + "/amazon_2023/raw/meta_categories/meta_{}.jsonl.gz"),
}  # fmt: skip
TMALL = {
    "https://tianchi.aliyun.com/dataset/53": "IJCAI16_data.zip, which holds ijcai2016_taobao.csv",
    "https://tianchi.aliyun.com/dataset/42": "data_format1.zip, which holds user_log_format1.csv",
}


def amazon(
    version: str, categories: list[str], folder: Path, *, download: bool, show: bool
) -> tuple[list[str], list[str]]:
    """List review files and metadata files of categories; what `folder` lacks is downloaded.

    Args:
        version: a key of `AMAZON`.
        categories: such as Books.
        folder: of the raw files.
        download: whether to download.
        show: a progress bar on stderr.

    Returns:
        The paths of both kinds.

    Raises:
        PrepareError: a file is missing and cannot be had; the message says where to get it and where to put it.
    """
    release = AMAZON[version]
    paths: tuple[list[str], list[str]] = ([], [])
    for category in categories:
        for files, url in zip(paths, release.urls(category), strict=True):
            path = folder / url.rpartition("/")[2]
            if not path.exists():
                if not download:
                    raise PrepareError(by_hand(path, url, release.page))
                try:
                    fetch(url, path, show)
                except (OSError, http.client.HTTPException) as error:
                    raise PrepareError(f"{url}: {error}; {by_hand(path, url, release.page)}") from error
            files.append(str(path))
    return paths


def by_hand(path: Path, url: str, page: str) -> str:
    """Say what a person has to do.

    Args:
        path: where the file belongs.
        url: of the file.
        page: that describes it.
    """
    return f"{path} is missing: download {url} (see {page}) and put it there; a download that broke off is resumed"


def tmall_by_hand() -> str:
    """Say likewise for the logs, which need an account."""
    files = "; ".join(f"{page}: {file}" for page, file in TMALL.items())
    return (
        f"give --log; Alibaba hands the logs out to people with an account only. Get one from {files}; then "
        "--log=ijcai2016_taobao.csv, or --log=zip://ijcai2016_taobao.csv::IJCAI16_data.zip without unpacking"
    )


def fetch(url: str, path: Path, show: bool = False) -> None:
    """Download a file. A part of it is continued if the server still has the same file.

    The checksum goes to `SHA256SUMS` beside the file; if that names the file already, the file must have its checksum.

    Args:
        url: of the file.
        path: where it goes.
        show: a progress bar on stderr.

    Raises:
        OSError: no network, or the server has no such file.
        PrepareError: another checksum than the one in `SHA256SUMS`, or fewer bytes than announced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    for attempt in range(1, TRIES + 1):
        try:
            total = _continue(url, part, note, show)
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            if attempt == TRIES:
                raise
            continue
        if total is None or part.stat().st_size == total:
            break
        if attempt == TRIES:
            raise PrepareError(f"{part}: has {part.stat().st_size} bytes of {total}; run again to continue")
    digest, known = checksum(part), sums(path.parent)
    if known.get(path.name, digest) != digest:
        raise PrepareError(f"{part}: found sha256 {digest}, expected {known[path.name]} ({path.parent / SUMS})")
    if path.name not in known:
        with open(path.parent / SUMS, "a", encoding="utf-8") as file:
            file.write(f"{digest}  {path.name}\n")
    os.replace(part, path)
    note.unlink(missing_ok=True)


def sums(folder: Path) -> dict[str, str]:
    """Read `SHA256SUMS` of a folder: file name -> sha256."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {name.lstrip("*"): digest for digest, name in pairs}


def _continue(url: str, part: Path, note: Path, show: bool) -> int | None:
    """Append to `part` what is missing.

    Returns:
        The whole file's size, None if the server does not say.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "recbole-cafe"})
    have = part.stat().st_size if part.exists() else 0
    mark = json.loads(note.read_text()).get("mark") if have and note.exists() else None
    if have and mark:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", mark)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return have
        raise
    with answer:
        have = have if answer.status == 206 else 0  # else it is another file now, or the server cannot resume
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        note.write_text(json.dumps({"mark": None if tag is None or tag.startswith("W/") else tag}))
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=not show) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    return total
