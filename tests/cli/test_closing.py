"""What `run` shows: a closing summary, no bars in a file, and little with --quiet."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import toy
from preloaded import Preloaded

from recbole_cafe.cli.closing import closing, duration, next_commands
from recbole_cafe.cli.main import main
from recbole_cafe.files.result import Result

ROOT = str(Path(__file__).parents[2])
RESULT = Result(
    model="CaFe", dataset="shop", seed=7, simulated=False, test_result={"full": {"ndcg@5": 0.25}},
    best_valid_score=0.5, best_valid_result={"ndcg@5": 0.5}, epochs=3, validations_since_best=1,
    seconds={"data": 1.0, "train": 60.0, "evaluation": 4.0}, peak_memory_mb=100.0, parameters=12, data={},
    candidates={}, digests={}, versions={}, config={"valid_metric": "NDCG@5", "eval_step": 1, "epochs": 3},
    checkpoint="saved/a b.pth",
)  # fmt: skip


def test_the_lines() -> None:
    assert closing(RESULT, "r.json") == [
        "CaFe on shop: 3 epochs in 1 min 5 s, best validation NDCG@5 0.5000 after epoch 2",
        "weights in saved/a b.pth; result in r.json",
        "next: recbole-cafe export 'saved/a b.pth' --out=CaFe-shop",
        "next: recbole-cafe run --final_from=r.json  # on all interactions, for use",
    ]
    assert closing(RESULT, bundle="shop")[1:] == [
        "weights in saved/a b.pth; bundle in shop",
        "next: recbole-cafe serve shop",
    ]


def test_what_comes_next_depends_on_what_there_is() -> None:
    of_recbole = dataclasses.replace(RESULT, model="SASRec", best_valid_score=None, best_valid_result={}, epochs=1)
    assert next_commands(of_recbole) == []  # RecBole's models cannot be exported
    assert next_commands(of_recbole, "r.json") == [
        "recbole-cafe run --final_from=r.json  # on all interactions, for use"
    ]
    assert closing(dataclasses.replace(of_recbole, checkpoint="")) == ["SASRec on shop: 1 epoch in 1 min 5 s"]
    (command,) = next_commands(dataclasses.replace(RESULT, final=True), "r.json")
    assert command.startswith("recbole-cafe export")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def command(toy_path: Path) -> list[str]:
    """The arguments of a small run, for a process of its own: what pytest does to logging would hide the log."""
    keys = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 8, "inner_size": 8, "gpu_id": "", "epochs": 2}
    given = [f"--{key}={value}" for key, value in keys.items()]
    return ["-m", "recbole_cafe", "run", "--model=CaFe", f"--dataset={toy.NAME}", f"--data_path={toy_path}", *given]


@pytest.mark.slow
def test_a_file_gets_plain_lines_and_a_terminal_gets_bars(command: list[str], fresh_python: Preloaded) -> None:
    done = fresh_python(*command)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and "\x1b" not in done.stderr and "it/s" not in done.stderr
    assert "epoch 1 training" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("next: recbole-cafe export saved/CaFe-toy-")

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))  # tqdm draws nothing on no lines
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # on Linux the end of a terminal is an error
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"Train     1" in seen and b"it/s" in seen


@pytest.mark.slow
def test_quiet_and_the_learning_curve(
    command: list[str], capfd: pytest.CaptureFixture[str], fresh_python: Preloaded
) -> None:
    done = fresh_python(*command, "--quiet", "--result_file=r.json")
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr
    assert "WARNING" in done.stderr  # an item without an intent
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| test |")
    assert [line.split(" ")[0] for line in lines[-4:]] == ["CaFe", "weights", "next:", "next:"]
    (log,) = Path("log/CaFe").glob("*.log")
    assert "epoch 1 training" in log.read_text()

    curve = Result.load("r.json").curve
    assert [at["epoch"] for at in curve] == [1, 2]
    assert all(at["loss"] > 0 and 0 <= at["score"] <= 1 for at in curve)  # type: ignore[operator]
    assert max(at["score"] for at in curve) == Result.load("r.json").best_valid_score  # type: ignore[type-var]
    assert main(["figures", "--curve", "r.json"]) == 0
    assert capfd.readouterr().out.split() == ["r.curve.png", "r.curve.svg", "r.curve.csv"]
    assert Path("r.curve.csv").read_text().splitlines()[0] == "epoch,loss,score"


def test_a_result_without_a_curve(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    RESULT.save(tmp_path / "r.json")
    assert main(["figures", "--curve", str(tmp_path / "r.json")]) == 1
    assert "r.json keeps no learning curve: nothing was trained, or an earlier version" in capfd.readouterr().err
    assert main(["figures"]) == 2
    assert "figures: one of the arguments folder --attention --items --curve" in capfd.readouterr().err
    assert main(["figures", "out", "--curve=r.json"]) == 2
