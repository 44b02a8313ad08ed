"""The commands of docs/start.md as a stranger types them: one after another, from nothing, each with its seconds.

What is committed is copied to a fresh folder, HOME is an empty one, and pip has no cache. The first command makes the
virtual environment and installs into it, the last one asks the service. Nothing is changed in a command and none is
left out. The Python named by the page has to be there, and port 8000 has to be free.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from page_code import Block, blocks  # noqa: E402

PAGE = ROOT / "docs" / "start.md"
PORT = 8000  # of `recbole-cafe serve`
LONGEST = 60  # signs of a command in the result


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", PORT)):  # raises if something else answers there
        pass
    with tempfile.TemporaryDirectory() as folder:
        result = first_hour(blocks(PAGE), Path(folder))
    line = json.dumps(result | {"command": shlex.join(["python", *sys.argv])})
    if options.out:
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def first_hour(steps: list[Block], folder: Path) -> dict[str, Any]:
    """Run the blocks of the page in one shell.

    Args:
        steps: in order, of bash or Python.
        folder: an empty one.

    Returns:
        the total in seconds and minutes, the seconds of each block, what the processors worked, and how many programs
        wanted one (the system's load) before and after: other work makes the time longer.

    Raises:
        SystemExit: a command failed; with the end of what it said.
    """
    checkout, home, times = folder / "checkout", folder / "home", folder / "times"
    checkout.mkdir()
    home.mkdir()
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    said, load = folder / "said", os.getloadavg()[0]
    own = ("PYTHON", "VIRTUAL_ENV", "OMP_")  # what a stranger has not set
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    environment |= {"HOME": str(home), "PIP_NO_CACHE_DIR": "1"}
    with said.open("wb") as out:
        shell = subprocess.Popen(["bash", "-c", script(steps, folder, times)], cwd=checkout, env=environment,
                                 stdout=out, stderr=out, start_new_session=True)  # fmt: skip
        try:
            status = shell.wait()
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGTERM)
    text = said.read_text(encoding="utf-8", errors="replace")
    moments = [float(moment) for moment in times.read_text().split()]
    if status:
        raise SystemExit(f"{steps[len(moments) - 1]} failed with status {status}:\n{text[-3000:]}")
    if '"reason"' not in text.splitlines()[-1]:
        raise SystemExit(f"the service gave no list with reasons:\n{text[-1000:]}")
    seconds = [round(after - before, 1) for before, after in pairwise(moments)]
    total, used = moments[-1] - moments[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "benchmark": "first_hour", "seconds": round(total, 1), "minutes": total / 60,
        "processor_minutes": (used.ru_utime + used.ru_stime) / 60, "load": [load, os.getloadavg()[0]],
        "steps": [{"line": step.line, "command": shortened(step.code), "seconds": taken}
                  for step, taken in zip(steps, seconds, strict=True)],
        "machine": {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform()},
        "packages": installed(checkout / ".venv"),
    }  # fmt: skip


def script(steps: list[Block], folder: Path, times: Path) -> str:
    """The blocks as one script of bash, which notes the time before the first and after each."""
    note = f"echo $EPOCHREALTIME >> {shlex.quote(str(times))}"
    lines = ["set -eo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", note]
    for number, step in enumerate(steps):
        if step.language == "python":
            file = folder / f"{number}.py"
            file.write_text(step.code, encoding="utf-8")
            lines.append(f"python {shlex.quote(str(file))}")
        elif step.language == "bash":
            lines.append(step.code.rstrip())
        else:
            raise SystemExit(f"{step} is of the language {step.language!r}, expected bash or python")
        lines.append(note)
    return "\n".join(lines)


def shortened(code: str) -> str:
    """The first line of a block, for a table."""
    line = code.strip().splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def installed(environment: Path) -> dict[str, str]:
    """Versions of what the first command installed."""
    listed = subprocess.check_output([environment / "bin" / "pip", "list", "--format=json"], text=True)
    found = {one["name"].lower(): one["version"] for one in json.loads(listed)}
    return {name: found[name] for name in ("recbole-cafe", "recbole", "torch", "numpy", "pandas")}


if __name__ == "__main__":
    main()
