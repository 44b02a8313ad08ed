"""A benchmark's runs in two files, for keeping them: hundreds of small files become two.

    DIR/runs.jsonl    a line a run: `place` (its folder below DIR), `result` (all of its result.json) and `shared`
                      (array -> the key under which ranks.npz holds an equal one of another run)
    DIR/ranks.npz     `<place>/<array>` for every array of the runs' own ranks.npz

Nothing is lost: :func:`pack` reads the arrays again and compares. Arrays that are equal (the users of a data set, the
numbers of candidates, `pop100` and `authors100` of a model without intents) are stored once, and int32 in the smallest
unsigned type that holds them; they are int32 again when read.

While a benchmark runs, each run has a folder of its own (recbole_cafe.benchmark.store). Both forms may lie in one
folder, as when more runs are made beside packed ones; then a single folder wins over a line of the same place.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.benchmark.layout import PLAN, RANKS, RESULT, StoreError, read_json
from recbole_cafe.files.whole import finite, written_whole

LINES = "runs.jsonl"
PAGES = ("report/report.md", "slices/*", "figures/*")  # what goes along into another folder
SMALL_TYPES = (np.uint8, np.uint16)
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal runs give equal files

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PackedRun:
    """A line of runs.jsonl.

    Attributes:
        place: folder of the run below the benchmark's, with slashes.
        result: content of its result.json.
        shared: array -> key in ranks.npz, of the arrays that another run has stored.
    """

    place: str
    result: dict[str, Any]
    shared: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Packed:
    """The packed runs of a folder.

    Attributes:
        out: the benchmark's folder.
        runs: place -> run.
    """

    out: Path
    runs: dict[str, PackedRun]

    def has_ranks(self, place: str) -> bool:
        """Whether a run has arrays.

        Args:
            place: of the run.
        """
        path = self.out / RANKS
        return bool(self.runs[place].shared) or (path.is_file() and place in _archive(path, *_state(path))[1])

    def ranks(self, place: str) -> Arrays:
        """Read the arrays of a run.

        Args:
            place: of the run.

        Raises:
            StoreError: there are none, or the file is damaged.
        """
        path = self.out / RANKS
        try:
            archive, keys = _archive(path, *_state(path))
            names = {name: f"{place}/{name}" for name in keys.get(place, ())} | self.runs[place].shared
            if not names:
                raise KeyError(f"no arrays of {place}")
            return {name: _widened(archive[key]) for name, key in names.items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error


def read_packed(out: Path) -> Packed:
    """Read the packed runs of a folder: none where there is no runs.jsonl.

    Args:
        out: the benchmark's folder.

    Raises:
        StoreError: a line is damaged.
    """
    path = Path(out) / LINES
    return Packed(Path(out), _runs(path, *_state(path)) if path.is_file() else {})


def pack(out: Path, into: Path | None = None) -> Path:
    """Make the packed form of a benchmark's folder, of single runs and of runs that are packed already.

    The folders of the single runs stay where they are: remove `runs/` when the packed form is all you need. A run's log
    and the traces of failed runs are not packed.

    Args:
        out: the benchmark's folder.
        into: where the packed form goes, with benchmark.json, report.md, slices and figures; default: `out`.

    Returns:
        the folder of the packed form.

    Raises:
        StoreError: `out` is no benchmark folder or holds no run, or a file in it is damaged.
    """
    out = Path(out)
    into = out if into is None else Path(into)
    if not (out / PLAN).is_file():
        raise StoreError(f"{out} is no folder of a benchmark: {out / PLAN} is missing")
    before = read_packed(out)
    singles = {path.parent.relative_to(out).as_posix(): path.parent for path in out.rglob(RESULT)}
    places = sorted(before.runs.keys() | singles.keys())
    if not places:
        raise StoreError(f"{out} holds no finished run")
    results = {p: read_json(singles[p] / RESULT) if p in singles else before.runs[p].result for p in places}

    def ranks(place: str) -> Arrays:
        if place not in singles:
            return before.ranks(place) if before.has_ranks(place) else {}
        path = singles[place] / RANKS
        return load_ranks(path) if path.is_file() else {}

    content, lines = _packed(places, results, ranks)
    with written_whole(into / RANKS) as file:
        file.write(content)
    with written_whole(into / LINES) as file:
        file.writelines(lines)
    if into.resolve() != out.resolve():
        _copy(out, into, [PLAN, *PAGES])
    return into


def load_ranks(path: Path) -> Arrays:
    """Read a run's own ranks.npz.

    Args:
        path: the file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _packed(places: Iterable[str], results: Mapping[str, dict[str, Any]],
            ranks: Callable[[str], Arrays]) -> tuple[bytes, list[bytes]]:  # fmt: skip
    """Make the content of both files, and read it again before it replaces anything.

    Raises:
        StoreError: what is read is not what was written.
    """
    buffer = io.BytesIO()
    lines: list[bytes] = []
    stored: dict[bytes, str] = {}  # digest of an array -> its key
    keys: dict[str, dict[str, str]] = {}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for place in places:
            keys[place] = {}
            for name, array in ranks(place).items():
                small = _narrowed(array)
                digest = hashlib.sha256(f"{small.dtype.str}{small.shape}".encode() + small.tobytes()).digest()
                key = keys[place][name] = stored.setdefault(digest, f"{place}/{name}")
                if key == f"{place}/{name}":
                    _write_array(archive, key, small)
            shared = {name: key for name, key in keys[place].items() if key != f"{place}/{name}"}
            lines.append(_line(PackedRun(place, results[place], shared)))
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=False) as archive:
        for place, of in keys.items():
            for name, array in ranks(place).items():
                again = _widened(archive[of[name]])
                if again.dtype != array.dtype or not np.array_equal(again, array):
                    raise StoreError(f"{place}: {name} cannot be packed without a loss ({array.dtype})")
    return buffer.getvalue(), lines


def _line(run: PackedRun) -> bytes:
    content = {"place": run.place, "shared": run.shared, "result": run.result}
    return json.dumps(finite(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _narrowed(array: np.ndarray) -> np.ndarray:
    """int32 in the smallest unsigned type that holds it; any other type as it is."""
    if array.dtype == np.int32 and array.size and array.min() >= 0:
        for small in SMALL_TYPES:
            if array.max() <= np.iinfo(small).max:
                return array.astype(small)
    return array


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int32) if array.dtype in SMALL_TYPES else array


def _write_array(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    """As numpy.savez_compressed does, but for the time of day, which it would write into the file."""
    info = zipfile.ZipInfo(f"{key}.npy", EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def _copy(out: Path, into: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(out.glob(pattern)):
            if path.is_file():
                with written_whole(into / path.relative_to(out)) as file:
                    file.write(path.read_bytes())


def _state(path: Path) -> tuple[int, int]:
    """What changes with a file's content, so that a cache notices."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=8)
def _runs(path: Path, *_: int) -> dict[str, PackedRun]:
    runs = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                run = PackedRun(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise StoreError(f"{path}, line {number}, holds no run: {error}") from error
            runs[run.place] = run
    return runs


@lru_cache(maxsize=8)
def _archive(path: Path, *_: int) -> tuple[Mapping[str, np.ndarray], dict[str, list[str]]]:
    """The open archive, and the names of the arrays that each place has stored."""
    archive = np.load(path, allow_pickle=False)
    names: dict[str, list[str]] = {}
    for key in archive.files:
        place, _, name = key.rpartition("/")
        names.setdefault(place, []).append(name)
    return archive, names
