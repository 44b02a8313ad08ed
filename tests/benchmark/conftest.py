"""Benchmark folders made by hand: every number of a report then follows from the places written here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_cafe.benchmark import store

# What a run needs to be small, on the toy data.
SMALL = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 16, "inner_size": 16, "gpu_id": "", "epochs": 1}


class Made:
    """A benchmark folder."""

    def __init__(self, out: Path, **plan: Any) -> None:
        self.out = out
        self.plan: dict[str, Any] = {"name": "made", "title": "Made by hand", "cells": {}, **plan}

    def cell(self, system: str, dataset: str = "amazon-x", *, seeds: Sequence[int] = (1, 2, 3),
             points: Mapping[str, Any] | None = None, protocols: Sequence[str] = ("pop100",)) -> None:  # fmt: skip
        points = points or {f"{system}0": {}}
        self.plan["cells"].setdefault(dataset, {})[system] = {
            "model": f"Model{system}", "data": dataset, "settings": {}, "space": {}, "points": points,
            "seeds": list(seeds), "trials": len(points), "sampler": "grid", "protocols": list(protocols),
        }  # fmt: skip
        self.out.mkdir(exist_ok=True)
        (self.out / store.PLAN).write_text(json.dumps(self.plan), encoding="utf-8")

    def run(self, system: str, seed: int, places: Sequence[int], dataset: str = "amazon-x", *, digest: str = "",
            valid: float = 0.5, protocols: Sequence[str] = ("pop100",), candidates: str = "c" * 64,
            users: Sequence[str] | None = None, later: Sequence[bool] | None = None,
            **result: Any) -> Path:  # fmt: skip
        """Users u0, u1, ... whose targets stand at these places of 101 candidates; hit@1 is the share of zeros.

        With `later`, which of them are later than the item before, the run is of `full` and measures `full_later`.
        """
        digest = digest or f"{system}0"
        folder = store.run_folder(self.out, dataset, system, digest, seed)
        folder.mkdir(parents=True)
        above = np.array(places)
        users = users or [f"u{i}" for i in range(len(above))]
        columns: dict[str, Any] = {"users": np.array(users)}
        for protocol in protocols:
            columns |= {f"{protocol}.above": above, f"{protocol}.tied": 0 * above,
                        f"{protocol}.n_candidates": 0 * above + 101, f"{protocol}.limit": np.array(-1)}  # fmt: skip
        if later is not None:
            columns["full.later"] = np.array(later)
        np.savez(folder / store.RANKS, **columns)
        numbers = {"hit@1": float((above == 0).mean()), "mrr": float((1 / (above + 1)).mean())}
        of_protocol = dict.fromkeys(protocols, numbers)
        if later is not None:
            chosen = above[np.array(later)]
            of_protocol["full_later"] = {"hit@1": float((chosen == 0).mean()), "mrr": float((1 / (chosen + 1)).mean())}
            result |= {"n_targets": {"full": len(above), "full_later": len(chosen)}, "later_unknown": ""}
        content = {
            "seed": seed, "test_result": of_protocol, "best_valid_score": valid,
            "simulated": False,
            "candidates": {p: candidates for p in protocols if p != "full"}, "epochs": 4, "seconds": {"train": 2.0},
            "parameters": 1234, "versions": {"threads": "1"},
            "config": {"eval_mode": ["pop100"], "valid_metric": "NDCG@10"},
            "data": {"users": len(above), "items": 200, "interactions": 1000, "intents": 7,
                     "interactions_per_item": 5.0},
            "benchmark": {"hash": digest, "commit": "abc", "dirty": False}, **result,
        }  # fmt: skip
        (folder / store.RESULT).write_text(json.dumps(content), encoding="utf-8")
        return folder


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Made]:
    """Make an empty benchmark folder `out` with these keys in its plan."""

    def make(**plan: Any) -> Made:
        return Made(tmp_path / "out", metrics=["hit@1", "mrr"], **plan)

    return make


@pytest.fixture
def bench_file(tmp_path: Path, toy_path: Path) -> Callable[..., str]:
    """Write bench.yaml on the toy data; keys as in a benchmark file."""

    def write(**content: Any) -> str:
        whole = {
            "datasets": {"toy": {"data_path": str(toy_path)}}, "seeds": [1], "protocols": ["full", "pop10"],
            "settings": SMALL, **content,
        }  # fmt: skip
        (tmp_path / "bench.yaml").write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
        return "bench.yaml"

    return write
