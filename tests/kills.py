"""A tool: kill training runs at random moments, resume them, compare them bit by bit with the run that was let be.

    python tests/kills.py --models=CaFe,CaFePlus,SASRec --n=34 --seed=0 --out=kills.json
    python tests/kills.py --models=CaFe --n=20 --nproc=2
    python tests/kills.py --models=CaFe --n=20 --nproc=2 --worker=True   # one process of two; its launcher goes on

A run is a forked child that trains on the toy data, killed with all its children by SIGKILL; the moment is uniform over
the time that the unbroken run took, one time in six from its start, else from its first saved state. It is killed again
while it resumes, now and then. Weights, metrics and result file have to be equal, but for times, memory, names of files
and the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
import toy

from recbole_cafe.cli.main import main as command
from recbole_cafe.train import checkpoint

OF_THE_PROCESS = ("seconds", "peak_memory_mb", "checkpoint", "command")


def arguments(model: str, folder: Path, data: Path, nproc: int) -> list[str]:
    """The command line of a run."""
    keys: dict[str, Any] = {
        "model": model, "dataset": toy.NAME, "data_path": data, "checkpoint_dir": folder / "saved", "gpu_id": "",
        "epochs": 12, "train_batch_size": 16, "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "eval_mode": "[full,pop10]",
        "topk": "[5]", "valid_metric": "NDCG@5", "show_progress": False, "state": "ERROR",
        "result_file": folder / "result.json", "resume": "auto", "stopping_step": 6, "learning_rate": 0.01,
        "worker": 0, **({"nproc": nproc, "group_timeout": 30} if nproc > 1 else {}),
    }  # fmt: skip
    return ["run", *(f"--{key}={value}" for key, value in keys.items())]


def start(line: list[str], folder: Path) -> int:
    """Run the command in a child; its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["recbole-cafe", *line]
    os._exit(command(line))


def has_ended(child: int) -> bool:
    """Whether a child is done; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for_state(child: int, folder: Path) -> None:
    """Wait until a child has saved a state of its own, or is done."""
    began = time.time()
    while not has_ended(child):
        with contextlib.suppress(FileNotFoundError):  # the last state goes when the run is done
            if any(file.stat().st_mtime > began for file in (folder / "saved").glob("*.last")):
                return
        time.sleep(0.005)


def kill_worker(child: int, rng: random.Random) -> bool:
    """Kill one of the processes that a launcher has started; whether there was one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = [p for p in psutil.Process(child).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        if workers:
            rng.choice(workers).kill()
            return True
    return False


def kill(child: int) -> bool:
    """Kill a child and its children; whether it was still running."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(child).children(recursive=True), psutil.Process(child)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Result and weights of a run that has ended."""
    result = json.loads((folder / "result.json").read_text())
    weights = checkpoint.load(result["checkpoint"])["state_dict"]
    for key in OF_THE_PROCESS:
        del result[key]
    result["config"] = {
        k: v for k, v in result["config"].items() if k not in ("checkpoint_dir", "candidates_dir", "port")
    }
    return result, weights


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs differ."""
    (result, weights), (result_2, weights_2) = outcome(one), outcome(other)
    keys = [key for key in result | result_2 if result.get(key) != result_2.get(key)]
    return keys + [name for name in weights | weights_2 if not torch.equal(weights[name], weights_2[name])]


def main() -> int:
    """Kill, resume, compare. Returns the exit status: 1 when a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="CaFe,CaFePlus,SASRec")
    parser.add_argument("--n", type=int, default=10, help="killed runs of each model")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--worker", type=bool, default=False, help="kill one process of several, not the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write what happened there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    importlib.import_module("recbole_cafe.experiment")  # here, so that most of a child's time is training
    rng, records, bad = random.Random(options.seed), [], 0
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    data = toy.write_toy(work / "data").parent
    for model in options.models.split(","):
        whole = work / f"{model}-whole"
        began = time.monotonic()
        child = start(arguments(model, whole, data, options.nproc), whole)
        wait_for_state(child, whole)
        saved = time.monotonic()
        status = os.waitpid(child, 0)[1]
        start_up, training = saved - began, time.monotonic() - saved
        if status:
            print((whole / "log.txt").read_text())
            return 1
        number = 0
        while number < options.n:
            folder = work / f"{model}-{number}"
            line = arguments(model, folder, data, options.nproc)
            kills = 0
            while options.worker:
                child = start([*line, "--max_restarts=20"], folder)
                for _ in range(rng.choice((1, 1, 2))):
                    wait_for_state(child, folder)
                    time.sleep(rng.uniform(0, training / 2))
                    if not has_ended(child) and kill_worker(child, rng):
                        kills += 1
                        epochs = [checkpoint.load(f)["epoch"] + 1 for f in (folder / "saved").glob("*.last")]
                os.waitpid(child, 0)
                break
            while not options.worker:
                child = start(line, folder)
                if kills == 0 or rng.random() < 0.3:
                    if rng.random() < 1 / 6:
                        time.sleep(rng.uniform(0, start_up + training))
                    else:
                        wait_for_state(child, folder)
                        time.sleep(rng.uniform(0, training))
                    if kill(child):
                        kills += 1
                        epochs = [checkpoint.load(f)["epoch"] + 1 for f in (folder / "saved").glob("*.last")]
                        continue
                    break
                os.waitpid(child, 0)
                break
            try:
                differs = differences(whole, folder)
            except (OSError, KeyError) as error:
                differs = [f"{type(error).__name__}: {error}", (folder / "log.txt").read_text()[-2000:]]
            left = sorted(p.name for p in (folder / "saved").iterdir() if p.suffix != ".pth" and p.is_file())
            number += bool(kills)  # a run that was done before its kill proves nothing
            records.append({"model": model, "nproc": options.nproc, "kills": kills, "differs": differs, "left": left,
                            "epochs_done_at_last_kill": epochs[0] if kills and epochs else 0})  # fmt: skip
            bad += bool(differs or left)
            print(records[-1], flush=True)
            shutil.rmtree(folder)
    counted = Counter((r["model"], r["nproc"], not r["differs"]) for r in records if r["kills"])
    print("model, processes, equal: kills' resumes", dict(counted))
    done = [r["epochs_done_at_last_kill"] for r in records if r["kills"]]
    print(f"epochs done at the last kill, on average: {sum(done) / max(len(done), 1):.2f}")
    if options.out:
        Path(options.out).write_text(json.dumps(records, indent=1) + "\n")
    shutil.rmtree(work)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
