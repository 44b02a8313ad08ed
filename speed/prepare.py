"""Seconds and peak memory of `recbole-cafe prepare amazon` on generated raw reviews of Amazon 2018's format.

Writes gzipped review and metadata files of four categories, with the fields of the published ones, some broken lines
and some reviews twice; then runs the command in a process of its own and watches it and every process it starts. The
peak is the largest sum of their VmHWM (each one's own peak, pages they share counted for each), which is more than they
hold at once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from common import COMMAND, family, parser, processor, recbole_cafe, status_mb, versions

CATEGORIES = ("Books", "Toys_and_Games", "Sports_and_Outdoors", "Home_and_Kitchen")
PER_USER, PER_ITEM = 4, 12  # reviews on average; both are spread widely
BLOCK = 1 << 16
WORDS = ("well made and it does what it says", "the colour is not quite as shown", "my daughter loves it",
         "arrived late but works", "would buy again", "not worth the price", "fits perfectly")  # fmt: skip


def main() -> None:
    """Generate, run, measure, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--reviews", type=int, default=20_000_000, help="in all (default: %(default)s)")
    arguments.add_argument("--memory", default="2GB", help="of the engine (default: %(default)s)")
    arguments.add_argument("--engine", default="duckdb", help="default: %(default)s")
    options = arguments.parse_args()
    if options.quick:
        options.reviews = 20_000
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        numbers = measured(options, Path(folder))
    result = {"benchmark": "prepare", **numbers, "quick": options.quick, "threads": options.threads, "command": COMMAND}
    line = json.dumps(result | {"processor": processor(), "versions": versions()}, default=str)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Facts of the raw files, and time, rate and memory of the command."""
    start = perf_counter()
    with ProcessPoolExecutor(options.threads) as pool:
        parts = list(pool.map(generate, [folder] * 4, range(4), [options.reviews // 4] * 4))
    facts = {
        "reviews": sum(part[0] for part in parts), "products": sum(part[1] for part in parts),
        "raw_mb": sum(path.stat().st_size for path in folder.glob("*.gz")) / 2**20,
        "raw_mb_unpacked": sum(part[2] for part in parts) / 2**20, "seconds_to_generate": perf_counter() - start,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "recbole_cafe", "prepare", "amazon", "--name=bench", f"--out={folder / 'out'}",
        "--duplicates=first", "--unknown=drop", "--min-user=5", "--min-item=2", "--core=k-core", "--min-intent=5",
        "--progress", f"--engine={options.engine}", f"--memory={options.memory}", f"--threads={options.threads}",
        "--reviews", *sorted(str(path) for path in folder.glob("[A-Z]*.json.gz")),
        "--metadata", *sorted(str(path) for path in folder.glob("meta_*.json.gz")),
    ]  # fmt: skip
    with open(folder / "said", "w+", encoding="utf-8") as said:
        watched = watch(command, said)
        said.seek(0)
        lines = [
            line.replace(f"{folder}/", "")
            for line in said.read().replace("\r", "\n").splitlines()
            if line.strip() and "%|" not in line
        ]
    print("\n".join(lines), file=sys.stderr)
    if watched["code"]:
        raise SystemExit(f"prepare ended with code {watched['code']}")
    result = folder / "out" / "bench"
    return {
        "unit": "seconds of recbole-cafe prepare amazon", "seconds": watched["seconds"],
        "reviews_per_second": facts["reviews"] / watched["seconds"], "peak_mb": watched["peak_mb"],
        "largest_process_mb": watched["largest_mb"], "processes": watched["processes"], "engine": options.engine,
        "memory": options.memory, "data": facts, "steps": lines,
        "written_mb": sum(path.stat().st_size for path in result.iterdir()) / 2**20,
        "arguments": [Path(part).name if part.startswith(str(folder)) else part for part in command[4:]],
    }  # fmt: skip


def watch(command: list[str], said: Any) -> dict[str, Any]:
    """Run a command; seconds, exit code, and the peak of resident memory in MiB, its children's included."""
    environment = os.environ | {"PYTHONPATH": str(Path(recbole_cafe.__file__).parents[1])}
    start, peak, largest, seen = perf_counter(), 0.0, 0.0, set()
    child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
    while child.poll() is None:
        running = family(child.pid)
        seen.update(running)
        sizes = [status_mb("VmHWM", process) or 0.0 for process in running]
        peak, largest = max(peak, sum(sizes)), max([largest, *sizes])
        sleep(0.1)
    return {
        "seconds": perf_counter() - start, "code": child.returncode, "peak_mb": peak, "largest_mb": largest,
        "processes": len(seen),
    }  # fmt: skip


# Raw files ------------------------------------------------------------------------------------------------------------


def generate(folder: Path, number: int, n_reviews: int) -> tuple[int, int, int]:
    """A category's files. Returns its reviews, products, and bytes before compression."""
    rng = np.random.default_rng(number)
    n_users, n_items = n_reviews // PER_USER, n_reviews // PER_ITEM
    texts = ["; ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(500)]
    size = 0
    with gzip.open(folder / f"{CATEGORIES[number]}.json.gz", "wb", compresslevel=1) as file:
        for start in range(0, n_reviews, BLOCK):
            lines = reviews(rng, min(BLOCK, n_reviews - start), n_users, n_items, number, texts)
            size += len(lines)
            file.write(lines)
    with gzip.open(folder / f"meta_{CATEGORIES[number]}.json.gz", "wb", compresslevel=1) as file:
        for start in range(0, n_items, BLOCK):
            lines = products(rng, range(start, min(start + BLOCK, n_items)), number)
            size += len(lines)
            file.write(lines)
    return n_reviews, n_items, size


def reviews(rng: np.random.Generator, n: int, n_users: int, n_items: int, number: int, texts: list[str]) -> bytes:
    """Make lines of reviews: popular items and busy users by the square of a uniform number.

    One line in 10,000 is broken, one in 50 comes twice.
    """
    users = (n_users * rng.random(n) ** 2).astype(np.int64)
    items = (n_items * rng.random(n) ** 2).astype(np.int64)
    days = 14_000 + rng.integers(0, 3_500, n)
    stars, text = rng.integers(1, 6, n), rng.integers(0, len(texts), n)
    lines = [
        f'{{"overall": {s}.0, "verified": true, "reviewTime": "09 1, 2016", "reviewerID": "A{u:013X}", "asin": '
        f'"B{number}{i:08X}", "style": {{"Format:": " Paperback"}}, "reviewerName": "A customer", "reviewText": '
        f'"{texts[t]}", "summary": "{texts[t][:30]}", "unixReviewTime": {d * 86_400}}}'
        for s, u, i, t, d in zip(
            stars.tolist(), users.tolist(), items.tolist(), text.tolist(), days.tolist(), strict=True
        )
    ]
    lines[1::50] = lines[:-1:50]
    lines[7::10_000] = [line[:90] for line in lines[7::10_000]]
    return ("\n".join(lines) + "\n").encode()


def products(rng: np.random.Generator, items: range, number: int) -> bytes:
    """Lines of metadata: three levels of categories, one product in 20 without."""
    groups = np.sort(rng.integers(0, 40, (len(items), 2)), axis=1).tolist()
    department = CATEGORIES[number].replace("_", " ")
    lines = []
    for item, (one, two) in zip(items, groups, strict=True):
        path = f'["{department}", "Group {one} &amp; more", "Kind {one}-{two}"]' if item % 20 else "[]"
        lines.append(
            f'{{"category": {path}, "tech1": "", "description": ["A thing of many uses."], "title": "Thing {item}", '
            f'"also_buy": ["B{number}{item // 2:08X}"], "brand": "Brand {item % 999}", "rank": "{item} in it", '
            f'"main_cat": "{department}", "price": "$9.99", "asin": "B{number}{item:08X}"}}'
        )
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    main()
