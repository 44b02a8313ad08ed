"""Whenever `prepare` is killed, the folder holds the old data set or the new one, whole; the next run tidies up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_cafe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# In a process that has not loaded PyTorch, which does not like to be forked: the package without its __init__.
SCRIPT = r'''
import argparse, json, os, signal, shutil, sys, time, types
package = types.ModuleType("recbole_cafe")
package.__path__, package.__version__ = [sys.argv[1]], "test"
sys.modules["recbole_cafe"] = package
from pathlib import Path
import pyarrow as pa
from recbole_cafe.prepare import command
from recbole_cafe.files import whole
from recbole_cafe.files.atomic import checksum
from recbole_cafe.files.atomic_writer import Stream, write_dataset

FOLDER = Path("out/d").resolve()

def content():
    """Letter of the data set that the folder holds; every file must be of the same one."""
    whole.restore(FOLDER)  # as whoever looks for a data set does
    files = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert sorted(files) == ["README.md", "d.inter", "d.item"], sorted(files)
    letter = files["d.inter"].splitlines()[1][0]
    for name in ("d.inter", "d.item"):
        assert len(files[name].splitlines()) == ROWS[name] + 1, name
        assert all(letter in line for line in files[name].splitlines()[1:]), name
        assert checksum(FOLDER / name) in files["README.md"] or files["README.md"] == letter, name
    return letter

def hidden():
    return [path.name for path in FOLDER.parent.iterdir() if path.name.startswith(".")]

def child(work, until=None):
    """Run in a process of its own, killed after so many seconds; whether it was."""
    pid = os.fork()
    if not pid:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        os._exit(0)
    if until is not None:
        time.sleep(until)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

# 1. Killed before and after each step of the change of places
ROWS = {"d.inter": 3, "d.item": 2}

def write(letter):
    inter = pa.table({"user_id:token": [letter] * 3, "item_id:token": [letter + "1", letter + "2", letter + "1"]})
    item = pa.table({"item_id:token": [letter + "1", letter + "2"], "intent:token": [letter, letter]})
    texts = {"README.md": letter}
    write_dataset(FOLDER, "d", Stream.of(inter), Stream.of(item), n_items=2, texts=texts, replace=True)

def write_killed(letter, point, exchange):
    steps = [0]
    def dying(function):
        def call(*arguments, **options):
            for after in (False, True):
                steps[0] += 1
                if steps[0] == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not after:
                    result = function(*arguments, **options)
            return result
        return call
    whole._exchange = dying(whole._exchange) if exchange else (lambda *_: False)
    whole.os = types.SimpleNamespace(**{**vars(os), "replace": dying(os.replace), "fsync": dying(os.fsync)})
    whole.shutil = types.SimpleNamespace(**{**vars(shutil), "rmtree": dying(shutil.rmtree)})
    write(letter)

seen = {}
for exchange in (True, False):
    held, point = [], 0
    while True:
        write("a")
        assert not hidden(), hidden()
        point += 1
        killed = child(lambda: write_killed("b", point, exchange))
        held.append(content())
        if not killed:
            break
    seen["exchange" if exchange else "renames"] = "".join(held)
write("a")
assert not hidden(), hidden()

# 2. The command, killed at many moments
N = 3000
ROWS = {"d.inter": N, "d.item": N}
parsers = argparse.ArgumentParser()
sources = parsers.add_subparsers(dest="source")
command.add_arguments(lambda name, *_: sources.add_parser(name))
for letter in "ab":
    rows = "".join(f"{letter}{i},{letter}{i},{i},{letter}\n" for i in range(N))
    Path(f"{letter}.csv").write_text("u,i,t,k\n" + rows)

def prepare(letter):
    arguments = ["table", f"--interactions={letter}.csv", "--user=u", "--item=i", "--time=t", "--intent=k",
                 "--name=d", "--out=out", "--replace", "--threads=1"]
    assert command.main(parsers.parse_args(arguments)) == 0

child(lambda: prepare("a"))
begin = time.monotonic()
child(lambda: prepare("a"))
lasts = time.monotonic() - begin
held = []
for part in (0.02, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0, 1.05):
    assert content() in "ab"
    letter = "b" if content() == "a" else "a"
    child(lambda: prepare(letter), until=part * lasts)
    held.append(content() == letter)
seen["command"] = held
child(lambda: prepare("b"))
assert content() == "b" and not hidden(), hidden()
print(json.dumps(seen))
'''


def test_old_or_new_whenever_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(Path(recbole_cafe.__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    for way, least in (("exchange", 10), ("renames", 14)):
        assert len(seen[way]) >= least, seen  # moments
        old = seen[way].rstrip("b")
        assert set(old) == {"a"} and seen[way].endswith("b"), seen  # first the old one, from some moment on the new one
    assert not seen["command"][0], seen  # killed at once: the old one
