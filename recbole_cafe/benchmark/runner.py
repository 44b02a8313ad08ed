"""Run a plan: what is done stays done, what fails stays alone, and a kill costs the runs it interrupts and no other."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from tqdm import tqdm

from recbole_cafe.benchmark import store, worker
from recbole_cafe.benchmark.engines import Engine, Job
from recbole_cafe.benchmark.plan import Cell, Plan
from recbole_cafe.benchmark.search import Search
from recbole_cafe.errors import ConfigError
from recbole_cafe.files.places import PACKAGE, check_folder
from recbole_cafe.files.whole import write_json

POLL = 0.1  # seconds between looks at the jobs


@dataclass(frozen=True)
class Run:
    """A run to make: a point of a cell with a seed."""

    cell: Cell
    digest: str
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cell.dataset} / {self.cell.system} {self.digest}-s{self.seed}"


class CellState:
    """How far a cell is: first its search, on the first seed, then the other seeds with the settings it chose.

    The winning run of the search is the first seed's result. Validation alone decides.
    """

    def __init__(self, plan: Plan, cell: Cell, out: Path) -> None:
        self.cell, self.plan = cell, plan
        self.results = store.finished_runs(out, cell.dataset, cell.system, cell.points, plan.seeds)
        self.asked: set[tuple[str, int]] = set()
        self.failed: set[tuple[str, int]] = set()
        self.search: Search | None = None
        self.chosen: str | None = None
        first = plan.seeds[0]
        if len(cell.points) > 1:
            scores = {digest: store.score(r) for (digest, seed), r in self.results.items() if seed == first}
            begun = [
                digest
                for digest in cell.points
                if digest not in scores and store.run_folder(out, cell.dataset, cell.system, digest, first).is_dir()
            ]
            self.search = Search(
                cell.space, cell.points, n_trials=plan.trials(cell), sampler=plan.sampler, seed=plan.search_seed,
                finished=scores, begun=begun,
            )  # fmt: skip
            self._choose()
        else:
            self.chosen = next(iter(cell.points))

    @property
    def n_left(self) -> int:
        """Runs that are still to be begun, as far as can be known."""
        if self.search is not None and self.chosen is None:
            return self.search.n_left + (0 if self.search.over else len(self.plan.seeds) - 1)
        return len(self._open_seeds())

    def next(self) -> Run | None:
        """A run that can begin now."""
        if self.search is not None and self.chosen is None:
            digest = self.search.ask()
            return None if digest is None else Run(self.cell, digest, self.plan.seeds[0])
        for seed in self._open_seeds():
            self.asked.add((self.chosen, seed))
            return Run(self.cell, self.chosen, seed)
        return None

    def finish(self, run: Run, result: dict[str, Any] | None) -> None:
        """A run has ended, with a result or without."""
        key = (run.digest, run.seed)
        if result is None:
            self.failed.add(key)
        else:
            self.results[key] = result
        if self.search is not None and run.digest in self.search.running:
            self.search.tell(run.digest, None if result is None else store.score(result))
            self._choose()

    def _choose(self) -> None:
        if self.search.over:
            first = self.plan.seeds[0]
            self.chosen = store.choose({d: store.score(r) for (d, seed), r in self.results.items() if seed == first})

    def _open_seeds(self) -> list[int]:
        keys = [(self.chosen, seed) for seed in self.plan.seeds] if self.chosen is not None else []
        return [s for d, s in keys if not {(d, s)} & (self.results.keys() | self.asked | self.failed)]


@dataclass
class Ended:
    """What a benchmark came to."""

    done: int = 0  # runs made now
    before: int = 0  # runs that were there
    failed: list[tuple[str, Path]] = field(default_factory=list)


def benchmark(plan: Plan, out: Path, engine: Engine, *, keep_checkpoints: bool = False,
              command: Sequence[str] = ()) -> Ended:  # fmt: skip
    """Make all runs of a plan that are not done.

    Args:
        plan: what is to be run.
        out: the folder of the benchmark.
        engine: what makes the runs; it is entered when the folder has been checked.
        keep_checkpoints: keep the best weights of each run.
        command: what was typed, for the record.

    Raises:
        ConfigError: another process works in the folder, or it holds another benchmark.
    """
    out = Path(out).resolve()
    check_folder("--out", out)
    _make_amazon(plan)
    with _alone(out), engine:
        _write_plan(plan, out, command)
        states = {(c.dataset, c.system): CellState(plan, c, out) for c in plan.cells}
        common = {"keep_checkpoints": keep_checkpoints, "command": list(command)}
        ended = Ended(before=sum(len(_counted(state)) for state in states.values()))
        with tqdm(total=sum(s.n_left for s in states.values()) + ended.before, initial=ended.before, unit="run",
                  desc=plan.name, dynamic_ncols=True, disable=None) as bar:  # fmt: skip
            for run, seconds in _all_runs(states, out, engine, common):
                state = states[run.cell.dataset, run.cell.system]
                folder = store.run_folder(out, run.cell.dataset, run.cell.system, run.digest, run.seed)
                result = store.finished(folder, run.digest)
                state.finish(run, result)
                if result is None:
                    ended.failed.append((run.name, folder / store.ERROR))
                    told = f"FAILED, see {folder / store.ERROR}"
                else:
                    ended.done += 1
                    best = result["best_valid_score"]
                    told = "no validation" if best is None else f"valid {best:.4f}"
                point = " ".join(f"{k}={v}" for k, v in run.cell.points[run.digest].items())
                name = f"{run.cell.system:<16} {run.cell.dataset:<16} seed {run.seed}"
                tqdm.write(f"{name}  {told}  {seconds:.0f} s  {point}".rstrip())
                bar.total = ended.before + ended.done + len(ended.failed) + _left(states)
                bar.update()
    return ended


def _left(states: dict[Any, CellState]) -> int:
    running = sum(
        len(s.asked - s.results.keys() - s.failed) + (len(s.search.running) if s.search else 0) for s in states.values()
    )
    return running + sum(s.n_left for s in states.values())


def _counted(state: CellState) -> list[Any]:
    """Runs on disk that are part of the plan as it stands now."""
    first = state.plan.seeds[0]
    return [key for key in state.results if key[1] == first or key[0] == state.chosen]


# Runs -----------------------------------------------------------------------------------------------------------------


def _all_runs(states: dict[Any, CellState], out: Path, engine: Engine,
              common: dict[str, Any]) -> Iterator[tuple[Run, float]]:  # fmt: skip
    """Begin runs in the order of the cells and yield each when it has ended, with its wall-clock seconds."""
    running: list[tuple[Run, Job, float]] = []
    try:
        while True:
            while engine.room(len(running)) and (run := _next(states)) is not None:
                folder = store.run_folder(out, run.cell.dataset, run.cell.system, run.digest, run.seed)
                worker.fresh_folder(folder)
                start = perf_counter()
                running.append((run, engine.begin({**common, **_spec(run, folder, out)}), start))
            if not running:
                return
            ended = [entry for entry in running if entry[1].ended()]
            for entry in ended:
                running.remove(entry)
                yield entry[0], perf_counter() - entry[2]
            if not ended:
                sleep(POLL)
    finally:
        for _, job, _ in running:
            job.stop()


def _next(states: dict[Any, CellState]) -> Run | None:
    for state in states.values():
        if (run := state.next()) is not None:
            return run
    return None


def _spec(run: Run, folder: Path, out: Path) -> dict[str, Any]:
    cell = run.cell
    point = cell.points[run.digest]
    return {
        "folder": str(folder),
        "model": cell.model,
        "dataset": cell.data,
        "config_dict": {**cell.settings, **point, "seed": run.seed, "show_progress": False, "state": "INFO",
                        "candidates_dir": str(out / "candidates"), "intents_dir": str(out / "intents")},
        "benchmark": {"system": cell.system, "dataset": cell.dataset, "seed": run.seed, "hash": run.digest,
                      "search": point or None, **checkout()},
    }  # fmt: skip


# Folder ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another benchmark is running in {out}") from None
        yield


def _write_plan(plan: Plan, out: Path, command: Sequence[str]) -> None:
    """benchmark.json: this plan, and the cells of earlier ones that it does not hold.

    Raises:
        ConfigError: the folder holds another benchmark.
    """
    path = out / store.PLAN
    before = store.read_json(path) if path.is_file() else {}
    if before.get("name", plan.name) != plan.name:
        raise ConfigError(f"{out} holds the benchmark {before['name']!r}, not {plan.name!r}; give another --out")
    cells = before.get("cells", {})
    for cell in plan.cells:
        cells.setdefault(cell.dataset, {})[cell.system] = plan.as_json(cell)
    commands = before.get("commands", [])
    if command and list(command) not in commands:
        commands = [*commands, list(command)]
    write_json(path, {
        "name": plan.name, "title": plan.title, "file": plan.file, "commands": commands, **plan.report,
        "systems": plan.systems, "cells": cells,
    })  # fmt: skip


def _make_amazon(plan: Plan) -> None:
    """The shipped sample, made on first use: once, before several processes want it."""
    from recbole_cafe.prepare.simulate import ensure_amazon

    for folder in {Path(c.settings["data_path"], c.data) for c in plan.cells if c.data == "amazon"}:
        if not folder.is_dir():
            ensure_amazon(folder)


def checkout() -> dict[str, Any]:
    """`commit` of the checkout the package lies in and whether it has changes (`dirty`); None without a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != PACKAGE.parent.resolve():
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
