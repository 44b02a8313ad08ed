"""What the benchmarks share: options, data sets, the two sides, clocks, memory, and the line of JSON at the end."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch

import recbole_cafe  # first: it repairs what RecBole does on import
from recbole_cafe.config.config import Config
from recbole_cafe.data.rows import select
from recbole_cafe.environment import versions
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.prepare.simulate import write_simulated
from recbole_cafe.train.trainer import trainer_class

import recbole.config  # isort: skip
import recbole.data  # isort: skip
from recbole.data.utils import get_dataloader
from recbole.utils import get_model, get_trainer, init_seed

COMMAND = shlex.join(["python", *sys.argv])  # before RecBole, which reads sys.argv too, is given a bare one
HERE = Path(__file__).resolve().parent
WIDTH = 128  # hidden size of every benchmark, unless --quick
LENGTH = 50  # items of history
QUICK_SETTINGS = {"hidden_size": 16, "inner_size": 32, "MAX_ITEM_LIST_LENGTH": 10}
ENCODER = ("hidden_size", "inner_size", "n_layers", "n_heads")  # keys of every model that learns


# Options --------------------------------------------------------------------------------------------------------------


def parser(description: str, *, repeats: int = 3) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    result.add_argument("--out", type=Path, help="write the JSON there as well")
    result.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    result.add_argument("--repeats", type=int, default=repeats, help="measurements per median (default: %(default)s)")
    result.add_argument(
        "--data", nargs=2, metavar=("DIR", "NAME"), help="data set DIR/NAME/NAME.inter instead of a simulated one"
    )
    result.add_argument("--work", type=Path, help="keep simulated data sets there and reuse them (default: temporary)")
    result.add_argument("--child", help=argparse.SUPPRESS)  # a part that runs in a process of its own, as JSON
    return result


@contextmanager
def workplace(options: argparse.Namespace) -> Iterator[Path]:
    """A temporary folder to stand in: RecBole writes logs and checkpoints into the current one."""
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*GradScaler.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*array is not writable.*", category=UserWarning)
    if options.quick:
        options.repeats = 1
    for name in ("out", "work"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    if options.data:
        options.data[0] = str(Path(options.data[0]).resolve())
    arguments, before = sys.argv, Path.cwd()
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            sys.argv = arguments


# Data -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a simulated data set."""

    users: int
    items: int
    intents: int
    interactions: int


AMAZON = Shape(9_673, 30_541, 1_422, 83_061)  # one user in eight of three Amazon categories
PAPER = Shape(131_248, 1_910_226, 1_392, 5_370_171)  # the Amazon of arXiv:2204.01839
QUICK = Shape(120, 700, 20, 1_200)


def large(items: int, *, interactions_of: int | None = None) -> Shape:
    """A catalogue of that many items, 42 interactions a user and 1.05 an item (or those of a catalogue of
    `interactions_of` items, so that two catalogues differ in nothing else)."""
    n = max(items, interactions_of or 0)
    return Shape(users=n // 40, items=items, intents=1_422, interactions=n + n // 20)


def tiny(shape: Shape) -> Shape:
    """What --quick makes of a shape."""
    return Shape(QUICK.users, min(shape.items, QUICK.items), QUICK.intents, QUICK.interactions)


@dataclass(frozen=True)
class Data:
    """A data set on disk."""

    folder: Path
    name: str
    facts: dict[str, Any]


def data(options: argparse.Namespace, folder: Path, shape: Shape = AMAZON) -> Data:
    """The data set asked for, or one simulated in `folder`."""
    if options.data:
        return Data(Path(options.data[0]), options.data[1], {"name": options.data[1], "simulated": False})
    if options.quick:
        shape = tiny(shape)
    name = f"sim-{shape.users}-{shape.items}-{shape.interactions}"
    parent = options.work or folder / "data"
    if not (parent / name).is_dir():
        write_simulated(
            parent / name, name, n_users=shape.users, n_items=shape.items, n_intents=shape.intents,
            n_interactions=shape.interactions,
        )  # fmt: skip
    return Data(parent, name, {"simulated": True, **vars(shape)})


# The two sides --------------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """A model with its data and trainer, ours or RecBole's."""

    config: Any
    parts: tuple[Any, Any, Any]  # data sets: train, valid, test
    samplers: tuple[Any, Any, Any]
    train_data: Any
    model: Any
    trainer: Any

    def eval_data(self, phase: str, n_users: int | None = None) -> Any:
        """The evaluation loader of this side, of the first `n_users` rows of the split."""
        place = ("train", "valid", "test").index(phase)
        part = self.parts[place]
        if n_users is not None and n_users < len(part):
            part = part.copy(select(part.inter_feat, torch.arange(n_users).numpy()))
        return get_dataloader(self.config, phase)(self.config, part, self.samplers[place], shuffle=False)


def _settings(options: argparse.Namespace, source: Data, given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        "data_path": str(source.folder), "hidden_size": WIDTH, "inner_size": 256, "n_layers": 2, "n_heads": 2,
        "MAX_ITEM_LIST_LENGTH": LENGTH, "show_progress": False, "use_gpu": False, "seed": 2020,
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "intent"]},
    }  # fmt: skip
    return settings | (QUICK_SETTINGS if options.quick else {}) | dict(given)


def ours(options: argparse.Namespace, source: Data, model: str = "CaFe", **given: Any) -> Side:
    """A model as recbole_cafe.run sets it up."""
    settings = _settings(options, source, given)
    if model == "IntentBackoff":
        settings = {key: value for key, value in settings.items() if key not in ENCODER}
    config = Config(model, source.name, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    built = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, built)
    return _side(config, train_data, valid_data, test_data, config.model_class, trainer_class)


def recboles(options: argparse.Namespace, source: Data, model: str = "SASRec", **given: Any) -> Side:
    """A model of RecBole's as its run_recbole sets it up: its Config, data set, prefix rows, loaders and Trainer."""
    split = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": given.pop("mode", "full")}
    settings = {"eval_args": split, "train_neg_sample_args": None, **given}
    config = recbole.config.Config(model, source.name, config_dict=_settings(options, source, settings))
    init_seed(config["seed"], config["reproducibility"])
    built = recbole.data.create_dataset(config)
    train_data, valid_data, test_data = recbole.data.data_preparation(config, built)
    side = _side(config, train_data, valid_data, test_data, get_model(model), lambda trainer: trainer)
    for part in (type(built), type(train_data), type(test_data), type(side.model), type(side.trainer)):
        if not part.__module__.startswith("recbole."):
            raise RuntimeError(f"RecBole's side runs {part.__module__}.{part.__name__}, which is not RecBole's")
    return side


def _side(config: Any, train_data: Any, valid_data: Any, test_data: Any, model_class: type,
          wrap: Callable[[type], type]) -> Side:  # fmt: skip
    loaders = (train_data, valid_data, test_data)
    init_seed(config["seed"], config["reproducibility"])
    model = model_class(config, train_data._dataset).to(config["device"])
    trainer = wrap(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    trainer.eval_collector.data_collect(train_data)
    parts = tuple(None if loader is None else loader._dataset for loader in loaders)
    samplers = tuple(None if loader is None else loader._sampler for loader in loaders)
    return Side(config, parts, samplers, train_data, model, trainer)


class LastCatalogue:
    """Keeps the catalogue that a side's evaluations rank in, for its counters.

    Args:
        side: ours.
    """

    def __init__(self, side: Side) -> None:
        self.catalogue: Any = None
        self._make = side.model.catalogue
        side.model.catalogue = self._remembered

    def _remembered(self) -> Any:
        self.catalogue = None  # not two at a time
        self.catalogue = self._make()
        return self.catalogue


class Steps:
    """The first `n` batches of a loader, for a trainer to run as an epoch; measures each step, loading included."""

    def __init__(self, loader: Any, n: int | None = None) -> None:
        self.loader = loader
        self.n = len(loader) if n is None else min(n, len(loader))
        self.shuffle = loader.shuffle
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        start = clock()
        for batch in islice(self.loader, self.n):
            yield batch
            now = clock()
            self.seconds.append(now - start)
            start = now


def train_steps(side: Side, n: int) -> list[float]:
    """Train for n steps, over as many epochs as that takes; returns the seconds of each."""
    taken: list[float] = []
    while len(taken) < n:
        steps = Steps(side.train_data, n - len(taken))
        side.trainer._train_epoch(steps, len(taken))
        taken += steps.seconds
    return taken


# Clocks and memory ----------------------------------------------------------------------------------------------------


def clock() -> float:
    """Seconds; waits for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


@dataclass
class Timing:
    """Seconds of repeated calls."""

    all: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.all)


def alternate(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Each call in turn, `repeats` rounds: what else the machine does falls on all of them."""
    timings = {name: Timing() for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            timings[name].all.append(seconds(call))
    return timings


def peak_mb() -> float:
    """Largest resident size of this process in MiB, by the operating system's count.

    In a process started by another one, Linux's ru_maxrss begins with what the parent held; VmHWM does not.
    """
    peak = status_mb("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def resident_mb() -> float | None:
    """Present resident size in MiB, None where the system does not tell."""
    return status_mb("VmRSS")


def status_mb(key: str, process: int | str = "self") -> float | None:
    """A size in MiB that Linux tells of a process; None elsewhere, and when the process is gone."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), None)


def family(process: int) -> list[int]:
    """A process and all that it has started, which still run."""
    with suppress(psutil.NoSuchProcess):
        return [process, *(child.pid for child in psutil.Process(process).children(recursive=True))]
    return []


def trim() -> None:
    """Give freed memory back to the system, so that the resident size is what is in use."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak() -> None:
    """Begin a new count of :func:`peak_mb` (Linux; elsewhere the count goes on from the start of the process)."""
    trim()
    path = Path("/proc/self/clear_refs")
    with suppress(OSError):
        path.write_text("5")


def in_child(options: argparse.Namespace, **task: Any) -> dict[str, Any]:
    """Run this script with --child in a fresh process; returns its result, or `failed` with the reason."""
    command = [sys.executable, str(HERE / Path(sys.argv[0]).name), f"--threads={options.threads}"]
    command += ["--quick"] * options.quick + [f"--child={json.dumps(task)}"]
    environment = os.environ | {"PYTHONPATH": str(Path(recbole_cafe.__file__).parents[1])}  # however we came to it
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"failed": f"exit code {done.returncode}: {last[:300]}"}


# Floors ---------------------------------------------------------------------------------------------------------------


def machine(options: argparse.Namespace, device: str = "cpu") -> dict[str, float]:
    """What the hardware reaches here and now, so that floors in bytes and operations become seconds: the product of
    two 2048 x 2048 float32 matrices, and a copy of 256 MiB (read and written bytes both counted)."""
    n, m = (64, 2**12) if options.quick else (2048, 2**26)
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    source, target = torch.rand(m, device=device), torch.empty(m, device=device)
    product = alternate({"_": lambda: a @ b}, 6)["_"].all
    copy = alternate({"_": lambda: target.copy_(source)}, 6)["_"].all
    return {"gflops": 2 * n**3 / min(product) / 1e9, "gbytes_per_s": 2 * 4 * m / min(copy) / 1e9}


def floor(speed: Mapping[str, float], *, flops: float, moved: float) -> dict[str, float]:
    """The least time for so many operations and moved bytes at the measured speed."""
    by = flops / speed["gflops"] / 1e9, moved / speed["gbytes_per_s"] / 1e9
    return {"flops": flops, "bytes": moved, "seconds": max(by)}


def encoder_flops(dim: int, inner: int, layers: int) -> float:
    """Of one position through an encoder, forward: four D x D projections and two D x F layers a block."""
    return layers * 2.0 * (4 * dim * dim + 2 * dim * inner)


# Result ---------------------------------------------------------------------------------------------------------------


def report(options: argparse.Namespace, name: str, *, ours: float | None = None, theirs: float | None = None,
           **facts: Any) -> None:  # fmt: skip
    """Print one line of JSON, the last of the output, and write it to --out."""
    ratio = None if ours is None or not theirs else ours / theirs
    result = {
        "benchmark": name, "ours": ours, "theirs": theirs, "ratio": ratio, **facts, "quick": options.quick,
        "threads": options.threads, "repeats": options.repeats, "command": COMMAND,
        "versions": versions() | {"faiss-cpu": _version("faiss-cpu")}, "processor": processor(),
    }  # fmt: skip
    line = json.dumps(result, default=str)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


def processor() -> str:
    """Name of the processor and how many of its cores this process may use."""
    path = Path("/proc/cpuinfo")
    lines: Sequence[str] = path.read_text().splitlines() if path.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor()}, {cores} cores"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
