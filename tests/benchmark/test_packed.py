"""The packed form of a benchmark says what the single files say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_cafe.benchmark import report, store
from recbole_cafe.benchmark.packed import LINES, pack, read_packed
from recbole_cafe.benchmark.results import read, user_values


def some_runs(made: Callable[..., Any]) -> Any:
    """Two systems, three seeds, two protocols, one of them with the same ranks; a point that was not chosen."""
    benchmark = made(ours=["A"])
    for system in "AB":
        benchmark.cell(system, points={f"{system}0": {}, f"{system}1": {"x": 1}}, protocols=["pop100", "full"])
        for seed in (1, 2, 3):
            benchmark.run(system, seed, [0, seed, 5, 90 + seed], protocols=["pop100", "full"])
        benchmark.run(system, 1, [9, 9, 9, 9], digest=f"{system}1", valid=0.1, protocols=["pop100", "full"])
    return benchmark


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_reports_of_both_forms_are_equal_to_the_byte(made: Callable[..., Any], tmp_path: Path) -> None:
    out = some_runs(made).out
    command = ["recbole-cafe", "report", "DIR"]
    report.write(out, command=command)
    into = pack(out, tmp_path / "kept")
    assert (into / "report" / "report.md").read_bytes() == (out / "report" / "report.md").read_bytes()
    assert {path.name for path in into.iterdir()} == {LINES, store.RANKS, store.PLAN, "report"}
    shutil.rmtree(into / "report")
    report.write(into, command=command)
    assert texts(into / "report") == texts(out / "report")
    single, packed = (read(folder).datasets["amazon-x"][0] for folder in (out, into))
    for one, other in zip(user_values(single, "pop100", "mrr", [1, 2]), user_values(packed, "pop100", "mrr", [1, 2]),
                          strict=True):  # fmt: skip
        assert np.array_equal(one, other)


def test_packing_loses_nothing_and_stores_equal_arrays_once(made: Callable[..., Any], tmp_path: Path) -> None:
    out = some_runs(made).out
    for path in out.rglob(store.RANKS):  # as they are written: int32
        with np.load(path) as archive:
            columns = {name: a.astype(np.int32) if a.dtype.kind == "i" else a for name, a in archive.items()}
        columns["full.above"] = columns["full.above"] + 70_000 * np.arange(4, dtype=np.int32)
        np.savez_compressed(path, **columns)
    packed = read_packed(pack(out, tmp_path / "kept"))
    assert len(packed.runs) == 8
    for place, run in packed.runs.items():
        assert run.result == json.loads((out / place / store.RESULT).read_text(encoding="utf-8"))
        arrays = packed.ranks(place)
        with np.load(out / place / store.RANKS) as archive:
            assert set(arrays) == set(archive.files)
            for name in archive.files:
                assert arrays[name].dtype == archive[name].dtype, name
                assert np.array_equal(arrays[name], archive[name]), name
    with np.load(packed.out / store.RANKS) as archive:
        assert sum(key.endswith("/users") for key in archive.files) == 1
        assert sum("n_candidates" in key for key in archive.files) == 1
        assert {str(archive[key].dtype) for key in archive.files if key.endswith("pop100.above")} == {"uint8"}
    again = pack(out, tmp_path / "again")
    assert all((again / name).read_bytes() == (packed.out / name).read_bytes() for name in (LINES, store.RANKS))


def test_single_runs_beside_packed_ones_are_read_and_packed_with_them(made: Callable[..., Any]) -> None:
    benchmark = some_runs(made)
    out = benchmark.out
    assert pack(out) == out
    shutil.rmtree(out / "runs")
    before = store.finished_runs(out, "amazon-x", "A", ["A0", "A1"], [1, 2, 3, 4])
    assert before.keys() == {("A0", 1), ("A0", 2), ("A0", 3), ("A1", 1)}
    benchmark.run("A", 4, [0, 0, 0, 0])
    assert len(store.finished_runs(out, "amazon-x", "A", ["A0", "A1"], [1, 2, 3, 4])) == 5
    pack(out)
    shutil.rmtree(out / "runs")
    runs = store.finished_runs(out, "amazon-x", "A", ["A0", "A1"], [1, 2, 3, 4])
    assert len(runs) == 5 and {key: runs[key] for key in before} == before
    assert store.ranks_of(store.run_folder(out, "amazon-x", "A", "A0", 4))["pop100.above"].tolist() == [0, 0, 0, 0]


def test_what_cannot_be_packed_or_read_is_named(made: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"is no folder of a benchmark: .*benchmark\.json is missing"):
        pack(tmp_path / "none")
    benchmark = made()
    benchmark.cell("A")
    with pytest.raises(store.StoreError, match="holds no finished run"):
        pack(benchmark.out)
    benchmark.run("A", 1, [0, 1])
    pack(benchmark.out)
    shutil.rmtree(benchmark.out / "runs")
    (benchmark.out / store.RANKS).write_bytes(b"damaged")
    with pytest.raises(store.StoreError, match=r"ranks\.npz cannot be read"):
        store.ranks_of(store.run_folder(benchmark.out, "amazon-x", "A", "A0", 1))
    (benchmark.out / LINES).write_text('{"place": 1}\n{}\n')
    with pytest.raises(store.StoreError, match=r"runs\.jsonl, line 1, holds no run"):
        read_packed(benchmark.out)
