"""recbole_cafe.benchmark.slices: facts from a naive loop, slices by hand, and the whole command on trained models."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from recbole_cafe.benchmark import slices
from recbole_cafe.benchmark.results import read
from recbole_cafe.benchmark.store import StoreError
from recbole_cafe.cli.main import main
from recbole_cafe.config.config import Config

USERS = np.array([f"u{i}" for i in range(6)])


def facts(**values: Any) -> slices.UserFacts:
    return slices.UserFacts(USERS, {name: np.array(value) for name, value in values.items()})


def test_labels_say_what_belongs_to_a_slice() -> None:
    assert slices.labels((0, 2, 5, 6)) == ["0", "1–2", "3–5", "6", "> 6"]
    assert slices.labels((4, 6)) == ["≤ 4", "5–6", "> 6"]
    assert slices.labels((0.0, 1.0, 2.5)) == ["0", "> 0, ≤ 1", "> 1, ≤ 2.5", "> 2.5"]


@pytest.mark.parametrize(
    ("intents", "bits"),
    [([], 0.0), ([3, 3], 0.0), ([1, 2], 1.0), ([1, 2, 3, 4], 2.0), ([1, 1, 2], math.log2(3) - 2 / 3)],
)
def test_entropy_by_hand(intents: list[int], bits: float) -> None:
    found = slices.entropy(np.array(intents, dtype=int))
    assert found == pytest.approx(bits, abs=1e-8)
    assert math.copysign(1.0, found) == 1.0  # no minus zero, which would print as -0


def test_facts_equal_a_naive_loop(toy_path: Path) -> None:
    found = slices.user_facts(Config("CaFe", "toy", config_dict={"data_path": str(toy_path)}))
    walks = toy.walks()
    train = Counter()
    for items in walks.values():  # the last is tested; the one before it validates unless nothing were left to train on
        train.update(items[: -1 if len(items) == 3 else -2])
    assert found.users.tolist() == sorted(walks)
    assert list(found.missing) == ["later"] and "positions in an order" in found.missing["later"]  # a second a step
    for i, user in enumerate(found.users):
        *history, target = walks[user]
        share = Counter(intent for item in history if (intent := toy.intent(item)))
        total = sum(share.values())
        bits = -sum(n / total * math.log2(n / total) for n in share.values())
        assert found.values["item_interactions"][i] == train[target]
        assert found.values["history_length"][i] == len(history)
        assert found.values["intent_entropy"][i] == pytest.approx(bits, abs=1e-8)


def pair(made: Callable[..., Any]) -> Any:
    """hit@1 of six users: CaFe 1 1 0 0 1 0 and 1 0 0 0 1 0, B 0 1 0 0 0 0."""
    folder = made(ours=["CaFe"])
    for system, seeds in {"CaFe": ([0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1]), "B": ([1, 0, 1, 1, 1, 1],)}.items():
        folder.cell(system)
        for seed, places in enumerate(seeds, 1):
            folder.run(system, seed, places)
    return folder


def test_targets_at_the_time_of_the_item_before_are_a_slice(made: Callable[..., Any]) -> None:
    """hit@1 of the users 1, 2, 4 with a later target: CaFe (2 / 3 + 1 / 3) / 2, B 1 / 3."""
    benchmark = read(pair(made).out)
    rows = slices.slices(benchmark, "amazon-x", facts(later=[0, 1, 1, 0, 1, 0]),
                         slices.chosen_systems(benchmark, "amazon-x", None))  # fmt: skip
    by = {(row.slice, row.system): (row.users, row.mean) for row in rows}
    assert by["later", "CaFe"] == (3, pytest.approx(1 / 2)) and by["later", "B"] == (3, pytest.approx(1 / 3))
    assert by["that of the item before", "B"] == (3, 0.0)


def test_slices_by_hand(made: Callable[..., Any]) -> None:
    benchmark = read(pair(made).out)
    rows = slices.slices(benchmark, "amazon-x", facts(item_interactions=[0, 1, 2, 3, 21, 99]),
                         slices.chosen_systems(benchmark, "amazon-x", None))  # fmt: skip
    by = {(row.slice, row.system): row for row in rows}
    assert [key[0] for key in by] == ["0", "0", "1–2", "1–2", "3–5", "3–5", "> 20", "> 20"]  # nobody has 6 to 20
    assert {row.reference for row in rows} == {"CaFe"}
    cafe, other = by["1–2", "CaFe"], by["1–2", "B"]
    assert (cafe.users, cafe.share, cafe.mean, cafe.sd, cafe.seeds) == (2, 2 / 6, 0.25, pytest.approx(0.5**0.5 / 2), 2)
    assert (cafe.gain, cafe.p) == (None, None)
    assert (other.mean, other.sd, other.gain) == (0.5, None, 0.0)  # on seed 1, which both have, both have .5
    assert (by["0", "B"].mean, by["0", "B"].gain, by["0", "B"].p) == (0.0, None, None)  # one user is no sample
    assert by["> 20", "B"].p == pytest.approx(0.5)  # t = 1, one degree of freedom
    assert by["> 20", "B"].p_holm == pytest.approx(1.0)  # one of two tests
    # Weighted by their shares the slices are the whole.
    assert sum(row.share * row.mean for row in rows if row.system == "CaFe") == pytest.approx(5 / 12)


def test_p_values_are_corrected_over_a_fact(made: Callable[..., Any]) -> None:
    folder = made(ours=["CaFe"])
    for system, places in {"CaFe": [0, 0, 0, 0, 0, 1], "B": [1, 1, 0, 1, 1, 1]}.items():
        folder.cell(system)
        folder.run(system, 1, places)
    benchmark = read(folder.out)
    rows = slices.slices(benchmark, "amazon-x", facts(history_length=[1, 1, 1, 30, 30, 30]),
                         slices.chosen_systems(benchmark, "amazon-x", ["CaFe", "B"]))  # fmt: skip
    tested = [row for row in rows if row.p is not None]
    assert [row.p for row in tested] == pytest.approx([0.1835034190722739] * 2)  # t = 2, two degrees of freedom
    assert [row.p_holm for row in tested] == pytest.approx([2 * 0.1835034190722739] * 2)


def test_faults(made: Callable[..., Any]) -> None:
    benchmark = read(pair(made).out)
    with pytest.raises(StoreError, match="no run of 'C'; there are CaFe, B"):
        slices.chosen_systems(benchmark, "amazon-x", ["C"])
    systems = slices.chosen_systems(benchmark, "amazon-x", None)
    with pytest.raises(StoreError, match="reference='C' is none of CaFe, B"):
        slices.slices(benchmark, "amazon-x", facts(history_length=[1] * 6), systems, "C")
    with pytest.raises(StoreError, match="its 6 test users are not the 5 of the data"):
        slices.slices(benchmark, "amazon-x", slices.UserFacts(USERS[:5], {"history_length": np.ones(5)}), systems)


def test_the_command(bench_file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    name = bench_file(systems={"Pop": {"model": "Pop"}, "Counts": {"model": "IntentBackoff"}}, ours=["Counts"],
                      settings={"MAX_ITEM_LIST_LENGTH": 8, "gpu_id": ""})  # fmt: skip
    assert main(["benchmark", name, "--out=out", "--jobs=0"]) == 0
    capsys.readouterr()
    assert main(["slices", "out"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [f"out/slices/toy.{end}" for end in ("png", "svg", "csv", "md")]
    rows = list(csv.DictReader(Path("out/slices/toy.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["protocol"] for row in rows} == {"full", "pop10"}
    assert {row["fact"] for row in rows} == set(slices.FACTS) - {"later"}
    assert {row["system"] for row in rows} == {"Pop", "Counts"}
    page = Path("out/slices/toy.md").read_text(encoding="utf-8")
    assert "## full: interactions with the target in the train split" in page
    assert main(["slices", "out", "--reference=Pop", "--systems=Counts"]) == 1
    assert "reference='Pop' is none of Counts" in capsys.readouterr().err


def test_without_intents_the_other_facts_are_left(tmp_path: Path, toy_path: Path) -> None:
    folder = tmp_path / "plain" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.inter").write_bytes((toy_path / "toy" / "toy.inter").read_bytes())
    found = slices.user_facts(Config("SASRec", "toy", config_dict={"data_path": str(tmp_path / "plain")}))
    assert set(found.values) == {"item_interactions", "history_length"}
    assert "toy.item does not exist" in found.missing["intent_entropy"]


def test_random_ties_give_each_seed_its_own_targets(bench_file: Callable[..., str]) -> None:
    name = bench_file(systems={"Counts": {"model": "IntentBackoff", "tie_order": "random"}}, seeds=[1, 2],
                      settings={"MAX_ITEM_LIST_LENGTH": 8, "gpu_id": ""})  # fmt: skip
    assert main(["benchmark", name, "--out=out", "--jobs=0"]) == 0
    with pytest.raises(StoreError, match="tie_order=random"):
        slices.write(Path("out"))
