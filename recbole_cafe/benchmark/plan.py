"""A benchmark file and a command line -> the whole list of what is to be run, checked before the first run.

::

    title: ...                     # (str) heading of the report
    model: CaFe                    # (str) model of the systems that name none
    datasets:                      # label -> settings that differ for it; `dataset:` if the label is not its name
      amazon: {}
    seeds: [2020, 2021, 2022]      # the search runs on the first
    protocols: [full, pop100]      # eval_mode; validation uses the first
    settings: {epochs: 100}        # of all runs; a key goes to the systems whose model knows it
    systems:                       # label -> model, its settings, optionally `search:` (key -> values, or none)
      CaFe: {model: CaFe, search: {learning_rate: [0.001, 0.0003]}}
    search:                        # without it only systems with a `search:` of their own are searched; or none
      sampler: grid                # grid | tpe
      n_trials: ~                  # at most so many points per system: all of the grid, 20 of tpe
      seed: 2020
      grid: {}                     # key -> values for all systems; default: the model's section of props/search.yaml

Of one key, the later of these wins: settings, data set, system, search, command line. A key the benchmark or the
command line sets is not searched, unless the system's own `search:` lists it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_cafe.benchmark.layout import SAMPLERS
from recbole_cafe.benchmark.store import folder_name, settings_hash
from recbole_cafe.config.checks import unknown_key
from recbole_cafe.config.config import Config, known_keys
from recbole_cafe.config.neutral import NEUTRAL
from recbole_cafe.config.props import SYSTEM_KEYS, props_dir, read_yaml
from recbole_cafe.config.signature import is_ours
from recbole_cafe.errors import ConfigError, did_you_mean
from recbole_cafe.files.literals import parse_value
from recbole_cafe.train import checkpoint

KEYS = frozenset(
    ["title", "description", "model", "datasets", "seeds", "protocols", "settings", "systems", "search", "ours",
     "reference", "metrics", "published", "figure"]
)  # fmt: skip
SEARCH_KEYS = frozenset(["sampler", "n_trials", "seed", "grid"])
TPE_TRIALS = 20
MOST_POINTS = 10_000
LONGEST_LABEL = 100
# What a benchmark sets itself
SET_HERE = {"model": "systems", "dataset": "datasets", "seed": "seeds", "eval_mode": "protocols",
            "eval_args": "protocols", "checkpoint_dir": "--out", "candidates_dir": "--out", "intents_dir": "--out",
            "candidates": "protocols",
            "resume": "nothing", "resume_from": "nothing", "save_every": "nothing", "show_progress": "nothing",
            "saved": "nothing", "final": "nothing", "final_from": "nothing"}  # fmt: skip
NOT_HASHED = NEUTRAL | {"seed"}

# Keys that came later, with the value that changes nothing: there they are left out, so that earlier runs are found
NOT_HASHED_AT = {"average_from": 0, "final": False, "tie_seed": None, "ranking_settings": "fixed",
                 "n_auto_intents": "auto"}  # fmt: skip
# Keys that went, with the value that all earlier runs had, for the same reason
GONE = {"reader": "auto"}


@dataclass(frozen=True)
class Cell:
    """One system on one data set.

    Attributes:
        dataset: label of the data set.
        system: label of the system.
        model: name of the model.
        data: name of the data set.
        settings: the `config_dict` of its runs, without seed, folders and what is searched.
        points: hash of a run's full settings -> what is searched, {} for the one point of a system without search.
        space: key -> values, empty without search.
    """

    dataset: str
    system: str
    model: str
    data: str
    settings: dict[str, Any]
    space: dict[str, list[Any]]
    points: dict[str, dict[str, Any]]


@dataclass
class Plan:
    """What a benchmark consists of."""

    name: str
    file: str
    title: str
    protocols: list[str]
    seeds: list[int]
    cells: list[Cell]
    systems: list[str]  # all labels of the file, in its order
    sampler: str = "grid"
    n_trials: int | None = None
    search_seed: int = 2020
    report: dict[str, Any] = field(default_factory=dict)  # keys of the file that only the report reads

    def trials(self, cell: Cell) -> int:
        """Runs of a cell's search, or 1."""
        most = self.n_trials or (len(cell.points) if self.sampler == "grid" else TPE_TRIALS)
        return min(most, len(cell.points))

    @property
    def n_runs(self) -> int:
        """Runs of the whole benchmark."""
        return sum(self.trials(cell) + len(self.seeds) - 1 for cell in self.cells)

    def as_json(self, cell: Cell) -> dict[str, Any]:
        """What a report has to know of a cell."""
        return {
            "model": cell.model, "data": cell.data, "settings": cell.settings, "space": cell.space,
            "points": cell.points, "seeds": self.seeds, "trials": self.trials(cell), "sampler": self.sampler,
            "protocols": self.protocols,
        }  # fmt: skip


def find_benchmark(name: str) -> Path:
    """props/benchmark/<name>.yaml or the file of that path.

    Raises:
        ConfigError: neither is there; lists what is.
    """
    folder = props_dir() / "benchmark"
    if (path := folder / f"{name}.yaml").is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = [p.stem for p in sorted(folder.glob("*.yaml"))]
    raise ConfigError(
        f"no benchmark {name!r}: there are {', '.join(known)}, and no file of that name{did_you_mean(name, known)}"
    )


def make_plan(name: str, *, datasets: Sequence[str] | None = None, systems: Sequence[str] | None = None,
              seeds: Sequence[int] | None = None, protocols: Sequence[str] | None = None, search: str | None = None,
              n_trials: int | None = None, overrides: Mapping[str, str] | None = None) -> Plan:  # fmt: skip
    """Read and check a benchmark.

    Args:
        name: see :func:`find_benchmark`.
        datasets: labels of the file, or names of data sets; None for all.
        systems: labels; None for all.
        seeds: instead of the file's.
        protocols: instead of the file's.
        search: none, grid or tpe, instead of the file's.
        n_trials: instead of the file's.
        overrides: key -> text of the command line, for every system whose model knows the key.

    Raises:
        ConfigError: naming the file, the system and the key at fault.
    """
    path = find_benchmark(name)
    return _Reader(path, read_yaml(path), {k: parse_value(v) for k, v in (overrides or {}).items()}).plan(
        datasets, systems, seeds, protocols, search, n_trials
    )


class _Reader:
    def __init__(self, path: Path, content: dict[str, Any], overrides: dict[str, Any]) -> None:
        self.path, self.content, self.overrides = path, content, overrides
        for key in content:
            if key not in KEYS:
                raise unknown_key(key, content[key], set(KEYS), f"a benchmark, in {path}")
        self.settings = self._mapping("settings", {})
        self.systems = self._mapping("systems")
        self.datasets = self._mapping("datasets", {})
        for where, given in (("settings", self.settings), ("the command line", overrides)):
            self._refuse_set_here(where, given)

    def plan(self, datasets: Sequence[str] | None, systems: Sequence[str] | None, seeds: Sequence[int] | None,
             protocols: Sequence[str] | None, search: str | None, n_trials: int | None) -> Plan:  # fmt: skip
        chosen = list(systems or self.systems)
        for label in chosen:
            if label not in self.systems:
                raise ConfigError(f"{self.path}: no system {label!r}; there are {', '.join(self.systems)}"
                                  f"{did_you_mean(label, self.systems)}")  # fmt: skip
        labels = list(datasets or self.datasets)
        if not labels:
            raise ConfigError(f"{self.path} lists no data set: name some with --datasets")
        for kind, names in (("system", chosen), ("data set", labels)):
            for label in names:  # it becomes the name of a folder below --out
                if not isinstance(label, str) or not folder_name(label).strip(".") or len(label) > LONGEST_LABEL:
                    raise ConfigError(
                        f"{self.path}: the label of a {kind}, {label!r}, should be text that can name a "
                        f"folder: not empty, not dots alone, {LONGEST_LABEL} characters at most"
                    )
            if len({folder_name(n) for n in names}) < len(names):
                raise ConfigError(f"{self.path}: two labels of a {kind} give one folder name: {', '.join(names)}")
        protocols = list(protocols or self.content.get("protocols") or ["full", "pop100"])
        seeds = list(seeds or self.content.get("seeds") or [2020])
        if any(not isinstance(s, int) or isinstance(s, bool) for s in seeds) or len(set(seeds)) < len(seeds):
            raise ConfigError(f"{self.path}: seeds={seeds!r} should be different whole numbers")
        self.search = self._search(search, n_trials)
        self.spread: set[str] = set()  # shared keys that some model knows
        cells = [self._cell(d, s, protocols) for d in labels for s in chosen]
        self._check_shared(labels, chosen)
        for key in ("ours", "reference"):
            for label in _as_list(self.content.get(key)):
                if label not in self.systems:
                    raise ConfigError(f"{self.path}: {key} names {label!r}, which is no system")
        return Plan(
            name=self.path.stem,
            file=str(self.path),
            title=str(self.content.get("title", self.path.stem)),
            protocols=protocols,
            seeds=seeds,
            cells=cells,
            systems=list(self.systems),
            sampler=self.search["sampler"],
            n_trials=self.search["n_trials"],
            search_seed=self.search["seed"],
            report={k: self.content[k] for k in ("description", "ours", "reference", "metrics", "published", "figure")
                    if k in self.content},
        )  # fmt: skip

    def _check_shared(self, labels: list[str], chosen: list[str]) -> None:
        """Refuse a key that is given for several systems and known to none.

        A key of the command line has to be known to a system that is to run, one of the file to any of the file.
        """
        for key in self.overrides:
            if key not in self.spread:
                raise ConfigError(f"the command line: no system of {self.path} that is to run knows the key {key!r}")
        shared = dict.fromkeys(self.settings, "settings")
        shared |= {key: f"data set {d}" for d in labels for key in self.datasets.get(d) or {} if key != "dataset"}
        if unknown := shared.keys() - self.spread:
            known = set().union(*(self._known_to(label) for label in self.systems if label not in chosen))
            for key in sorted(unknown - known):
                raise ConfigError(f"{self.path}, {shared[key]}: no system knows the key {key!r}")

    def _known_to(self, label: str) -> set[str]:
        """Keys of a system that is not to run; none if its model cannot be found."""
        try:
            plain = Config((self.systems[label] or {}).get("model", self.content.get("model")), "none")
        except (ConfigError, ValueError, TypeError):
            return set()
        return known_keys(plain, plain.model_class)

    # Parts of the file -----------------------------------------------------------------------------------------------

    def _mapping(self, key: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        value = self.content.get(key, default)
        if not isinstance(value, dict) or (default is None and not value):
            raise ConfigError(f"{self.path}: {key}={value!r} should be a mapping")
        return value

    def _refuse_set_here(self, where: str, given: Mapping[str, Any]) -> None:
        for key in given:
            if key in SET_HERE:
                raise ConfigError(f"{self.path}, {where}: {key} is set by the benchmark itself (see {SET_HERE[key]})")

    def _search(self, given: str | None, n_trials: int | None) -> dict[str, Any]:
        """`search` of the file with its defaults; `on`: whether systems without one of their own are searched."""
        value = self.content.get("search")
        on = isinstance(value, dict)
        if not on and value is not None and not _is_none(value):
            raise ConfigError(f"{self.path}: search={value!r} should be none or a mapping of {sorted(SEARCH_KEYS)}")
        search = {"sampler": "grid", "n_trials": None, "seed": 2020, "grid": None, **(value if on else {})}
        for key in search:
            if key not in SEARCH_KEYS:
                raise unknown_key(key, search[key], set(SEARCH_KEYS), f"search, in {self.path}")
        if given is not None and not _is_none(given):
            search["sampler"] = given
        if n_trials is not None:
            search["n_trials"] = n_trials
        if search["sampler"] not in SAMPLERS:
            raise ConfigError(f"{self.path}: sampler {search['sampler']!r} is none of {', '.join(SAMPLERS)}")
        if search["n_trials"] is not None and (not isinstance(search["n_trials"], int) or search["n_trials"] < 1):
            raise ConfigError(f"{self.path}: n_trials={search['n_trials']!r} should be a positive number")
        if search["grid"] is not None:
            _check_grid(search["grid"], f"{self.path}, search")
        search["never"] = given is not None and _is_none(given)
        search["on"] = (on or given is not None) and not search["never"]
        return search

    # A cell ----------------------------------------------------------------------------------------------------------

    def _cell(self, dataset: str, system: str, protocols: list[str]) -> Cell:
        where = f"{self.path}, system {system}"
        own = self.systems[system]
        if own is not None and not isinstance(own, dict):
            raise ConfigError(f"{where}: {own!r} should be a mapping of model and settings")
        of_data = self.datasets.get(dataset) or {}
        if not isinstance(of_data, dict):
            raise ConfigError(f"{self.path}, data set {dataset}: {of_data!r} should be a mapping of settings")
        own = {"model": self.content.get("model"), **(own or {})}
        model, data = own["model"], str(of_data.get("dataset", dataset))
        if not model:
            raise ConfigError(f"{where}: it names no model")
        own_settings = {k: v for k, v in own.items() if k not in SYSTEM_KEYS}
        data_settings = {k: v for k, v in of_data.items() if k != "dataset"}
        self._refuse_set_here(f"system {system}", own_settings)
        self._refuse_set_here(f"data set {dataset}", data_settings)

        common = {"eval_mode": protocols}
        plain = self._config(where, model, data, common)
        known = known_keys(plain, plain.model_class)
        if not is_ours(plain.model_class):
            known = known - {"train_layout"}  # prefix rows are the only ones its loss can use
        for key, value in own_settings.items():
            if key not in known:
                raise unknown_key(key, value, known, f"{model}, in {where}")
        shared = [{k: v for k, v in layer.items() if k in known} for layer in (self.settings, data_settings)]
        given = {k: v for k, v in self.overrides.items() if k in known}
        self.spread.update(*shared, given)
        settings = {**common, **shared[0], **shared[1], **own_settings, **given}
        space = self._space(where, own.get("search"), plain, known, settings, given)
        settings = {k: v for k, v in settings.items() if k not in space}
        config = self._config(where, model, data, settings)
        self._check_data(where, data, Path(config["data_path"]), given="data_path" in settings)
        for key, values in space.items():
            for value in values:
                self._config(f"{where}, search {key}", model, data, {**settings, key: value})
        if data != "ml-100k":  # RecBole carries it and reads it from nowhere else
            settings["data_path"] = str(Path(config["data_path"]).resolve().parent)
        return Cell(dataset, system, config["model"], data, settings, space, _points(config, space))

    def _config(self, where: str, model: Any, data: str, settings: Mapping[str, Any]) -> Config:
        try:
            return Config(model, data, config_dict=dict(settings))
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}, data set {data}: {error}") from error

    def _check_data(self, where: str, data: str, folder: Path, *, given: bool) -> None:
        """The atomic file is there. `amazon` may be missing where it is made on first use."""
        if not (folder / f"{data}.inter").is_file() and (given or data != "amazon"):
            present = sorted(p.parent.name for p in folder.parent.glob("*/*.inter"))
            raise ConfigError(f"{where}: no data set {data!r}: {folder / f'{data}.inter'} is missing; data sets in "
                              f"{folder.parent}: {', '.join(present) or 'none'}")  # fmt: skip

    def _space(self, where: str, own: Any, config: Config, known: set[str], settings: Mapping[str, Any],
               given: Mapping[str, Any]) -> dict[str, list[Any]]:  # fmt: skip
        """key -> values of a system's search."""
        if self.search["never"] or (own is not None and _is_none(own)):
            return {}
        if isinstance(own, dict):
            grid, fixed = own, given
            for key in grid:
                if key not in known:
                    raise unknown_key(key, grid[key], known, f"{config['model']}, in {where}, search")
        elif own is not None:
            raise ConfigError(f"{where}: search={own!r} should be none or a mapping of key to values")
        elif not self.search["on"]:
            return {}
        else:
            grid, fixed = self.search["grid"], settings
            if grid is None:
                where = f"{props_dir() / 'search.yaml'}, {config.model_class.__name__}"
                grid = read_yaml(props_dir() / "search.yaml").get(config.model_class.__name__, {})
            grid = {k: v for k, v in grid.items() if k in known}
        _check_grid(grid, where)
        space = {k: list(v) for k, v in grid.items() if k not in fixed}
        self._refuse_set_here(f"{where}, search", space)
        if (n := math.prod(map(len, space.values()))) > MOST_POINTS:
            raise ConfigError(f"{where}: the search has {n} points, more than {MOST_POINTS}")
        return space


def _points(config: Config, space: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Hash -> what is searched, for every point of the space."""
    full = GONE | {k: v for k, v in checkpoint.plain_config(config).items() if k not in NOT_HASHED}
    folder = Path(config["data_path"])  # other data under one name are other settings; where they are is not
    full["files"] = {p.suffix: p.stat().st_size for p in sorted(folder.glob(f"{config['dataset']}.*")) if p.is_file()}
    points = {}
    for values in itertools.product(*space.values()):
        point = dict(zip(space, values, strict=True))
        run = {k: v for k, v in {**full, **point}.items() if k not in NOT_HASHED_AT or v != NOT_HASHED_AT[k]}
        points[settings_hash(run)] = point
    return points


def _check_grid(grid: Any, where: str) -> None:
    if not isinstance(grid, dict):
        raise ConfigError(f"{where}: {grid!r} should be a mapping of key to values")
    for key, values in grid.items():
        if not isinstance(values, list) or not values or any(v in values[:i] for i, v in enumerate(values)):
            raise ConfigError(f"{where}: {key}={values!r} should be a list of different values")


def _is_none(value: Any) -> bool:
    return value in (None, False) or str(value).lower() == "none"


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
