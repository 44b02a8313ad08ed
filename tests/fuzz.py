"""Mutated inputs against the package: every one is read right, dropped and counted, or refused with a clear error.

    python tests/fuzz.py KIND --n=1000 --seed=0 [--jobs=2] [--out=FILE] [--keep=FOLDER]
    python tests/fuzz.py data --seed=0 --only=17 --keep=FOLDER      one case again, with its input in FOLDER

A case is made by its kind, seed and number alone. It runs in a process of its own, forked from one that has imported
everything: a hang is ended, memory is bounded, and nothing is left for the next case. Its outcome is one of

    equal                 what the package reads is what the independent parse of this file gives
    dropped and counted   the same, after rows were left out whose right number the log or report has
    another model         of bundles: whoever seals what he has changed may change the model, not break its reader
    clear error           an error of the package's own classes that names the file or key and the place or value

and anything else is a failure: silent (another result, or a fault that was not seen), refused (a good input), raw
error, unclear error, hang, memory, crash. The exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.children import be_quiet
from fuzzing.outcomes import Failure, short

KINDS = ("data", "tables", "checkpoints", "configs", "bundles")  # each a module of `fuzzing`
GOOD = ("equal", "dropped and counted", "another model", "clear error")
SECONDS = 20  # of a processor's time, of a case
PATIENCE = 180  # seconds of a case on a machine that is busy with other things
MEMORY = 4 << 30  # bytes of address space beyond what the imports take


def one_case(kind: str, seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Run a case in this process: its record."""
    note: dict[str, Any] = {"case": f"{kind}-{seed}-{number}", "mutations": [], "detail": ""}
    os.chdir(folder)
    try:
        note["outcome"] = importlib.import_module(f"fuzzing.{kind}").case(random.Random(note["case"]), folder, note)
    except Failure as failure:
        note["outcome"], note["detail"] = failure.args
    except MemoryError as error:
        note["outcome"], note["detail"] = "memory", repr(error)
    except Exception:
        note["outcome"], note["detail"] = "fault of this tool", traceback.format_exc()[-1500:]
    return note


def forked(kind: str, seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Run a case in a child of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        be_quiet()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # SIGKILL, of which Python cannot make an error
        record = json.dumps(one_case(kind, seed, number, folder), default=short).encode()
        with open(writer, "wb") as pipe:
            pipe.write(record)
        os._exit(0)
    os.close(writer)
    record, end = b"", time.monotonic() + PATIENCE
    with open(reader, "rb", buffering=0) as pipe:
        while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            block = pipe.read(1 << 16)
            if not block:
                break
            record += block
        else:
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if record and status == 0:
        return json.loads(record)
    outcome = "hang" if status == signal.SIGKILL else "crash"
    return {"case": f"{kind}-{seed}-{number}", "mutations": [], "outcome": outcome, "detail": f"wait status {status}"}


def worker(kind: str, seed: int, numbers: list[int], keep: Path | None) -> Iterator[dict[str, Any]]:
    """Run cases one after the other; the folder of one that failed is copied into `keep`."""
    importlib.import_module(f"fuzzing.{kind}").before()
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            record = forked(kind, seed, number, Path(folder))
            if (keep and record["outcome"] not in GOOD) or (keep and len(numbers) == 1):
                with contextlib.suppress(shutil.Error):  # a pipe cannot be copied
                    shutil.copytree(folder, keep / record["case"], symlinks=True, dirs_exist_ok=True)
                (keep / record["case"] / "case.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
            yield record


def run(
    kind: str, n: int, seed: int = 0, jobs: int = 1, keep: Path | None = None, only: int | None = None
) -> list[dict[str, Any]]:
    """The records of n cases, which `jobs` fresh processes run."""
    command = [sys.executable, __file__, kind, f"--n={n}", f"--seed={seed}", *([f"--keep={keep}"] if keep else [])]
    parts = (
        [f"--numbers={only}:{only + 1}:1"]
        if only is not None
        else [f"--numbers={job}:{n}:{jobs}" for job in range(jobs)]
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, part], stdout=subprocess.PIPE, text=True, env=environment) for part in parts
    ]
    records = [json.loads(line) for process in processes for line in process.stdout]
    if any(process.wait() for process in processes):
        raise RuntimeError(f"{' '.join(command)} ended with {[process.returncode for process in processes]}")
    return sorted(records, key=lambda record: int(record["case"].rpartition("-")[2]))


def failures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose outcome is not a good one."""
    return [record for record in records if record["outcome"] not in GOOD]


def summary(records: list[dict[str, Any]]) -> str:
    """Outcomes and their numbers; failures of one kind together, with the first case of each."""
    counts = collections.Counter(record["outcome"] for record in records)
    lines = [
        f"{counts[outcome]:>6}  {outcome}" for outcome in sorted(counts, key=lambda name: (name not in GOOD, name))
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in failures(records):
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "_", record["detail"])[:45]
        groups.setdefault((record["outcome"], kind), []).append(record)
    for (outcome, _), of_kind in sorted(groups.items(), key=lambda group: -len(group[1])):
        first = of_kind[0]
        lines.append(
            f"{len(of_kind):>6} x {outcome}, first {first['case']} ({', '.join(first['mutations'])}): "
            f"{short(first['detail'])}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command of the first lines of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="of one case")
    parser.add_argument("--out", type=Path, help="JSON file of the records")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the inputs of failures")
    parser.add_argument("--numbers", help=argparse.SUPPRESS)  # start:stop:step, of a worker
    given = parser.parse_args(arguments)
    keep = given.keep and given.keep.resolve()
    if given.numbers:
        numbers = list(range(*map(int, given.numbers.split(":"))))
        for record in worker(given.kind, given.seed, numbers, keep):
            print(json.dumps(record), flush=True)
        return 0
    records = run(given.kind, given.n, given.seed, given.jobs, keep, given.only)
    if given.out:
        given.out.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    print(summary(records) if given.only is None else json.dumps(records[0], indent=1))
    return 1 if failures(records) else 0


if __name__ == "__main__":
    sys.exit(main())
