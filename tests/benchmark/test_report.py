"""recbole_cafe.benchmark.report and .stats: numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.evaluator.metrics import MRR, NDCG, Hit

from recbole_cafe.benchmark import layout, report, stats, store
from recbole_cafe.benchmark.report import escape, write
from recbole_cafe.benchmark.results import read, tables
from recbole_cafe.cli.main import main
from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.train.metrics import per_target

PAPER = {"source": "Some paper", "datasets": {"amazon": {"CaFe": {"mrr": "0.37"}}}}


def three(made: Callable[..., Any], **plan: Any) -> Any:
    """CaFe (ours), A and B on three users and three seeds.

    hit@1 by seed: CaFe 2/3, 1, 1; A 1/3, 1/3, 1/3; B 0, 0, 1/3.
    """
    folder = made(ours=["CaFe"], systems=["A", "B", "CaFe"], **plan)
    places = {
        "CaFe": ([0, 0, 1], [0, 0, 0], [0, 0, 0]),
        "A": ([0, 1, 1], [0, 1, 1], [0, 1, 1]),
        "B": ([1, 1, 1], [1, 1, 1], [0, 3, 3]),
    }  # fmt: skip
    for system, seeds in places.items():
        folder.cell(system)
        for seed, at in enumerate(seeds, 1):
            folder.run(system, seed, at)
    return folder


# Statistics -----------------------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation() -> None:
    assert stats.stat([0.1, 0.2, 0.3]) == stats.Stat(pytest.approx(0.2), pytest.approx(0.1), 3)
    assert stats.stat([0.5]) == stats.Stat(0.5, None, 1)


def test_gain_is_relative() -> None:
    assert stats.gain(0.3, 0.2) == pytest.approx(0.5)
    assert stats.gain(0.1, 0.2) == pytest.approx(-0.5)
    assert stats.gain(0.1, 0.0) is None


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # .005 x 4, .01 x 3, .03 x 2, then .04 x 1 but not less
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.04], [0.04]),
        ([], []),
    ],
)
def test_holm(p: list[float], adjusted: list[float]) -> None:
    assert stats.holm(p) == pytest.approx(adjusted)


def test_paired_t_test() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.4641 with 2 degrees of freedom. There
    P(|T| > t) = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14), and the 97.5 % point of t is 4.30265."""
    found = stats.paired(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found.mean == pytest.approx(2)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)
    assert found.users == 3


def test_wilcoxon_test() -> None:
    """Eight differences of one sign: of the 2^8 signs two are as far out."""
    values = np.arange(1.0, 9.0)
    assert stats.paired(values, np.zeros(8), "wilcoxon").p == pytest.approx(2 / 2**8)


def test_equal_systems_do_not_differ() -> None:
    for test in layout.TESTS:
        assert stats.paired(np.ones(5), np.ones(5), test).p == 1.0


def test_metrics_of_users_are_recboles() -> None:
    rng = np.random.default_rng(1)
    above, tied = rng.integers(0, 30, 200), rng.integers(0, 3, 200)
    for metric, name in ((NDCG, "ndcg"), (Hit, "hit"), (MRR, "mrr")):
        made = metric({"topk": [5, 10], "metric_decimal_place": 12})
        for k, wanted in per_target(made, above, tied, above + 100).items():
            assert stats.per_user(f"{name}@{k}", above, tied, above + 100) == pytest.approx(wanted, abs=1e-12)
    assert stats.per_user("mrr", np.array([1, 0]), np.array([1, 0]), np.array([9, 9])).tolist() == [
        (1 / 2 + 1 / 3) / 2,
        1,
    ]
    with pytest.raises(ValueError, match="'recall@5' of single users can be made for ndcg@K"):
        stats.per_user("recall@5", above, tied, above + 100)


# Tables ---------------------------------------------------------------------------------------------------------------


def test_a_table_by_hand(made: Callable[..., Any]) -> None:
    (table,) = tables(read(three(made).out))
    assert [row.system for row in table.rows] == ["A", "B", "CaFe"]  # in the order of the file, not of the runs
    a, b, cafe = (row.values["hit@1"] for row in table.rows)
    assert cafe == stats.Stat(pytest.approx(8 / 9), pytest.approx(math.sqrt((4 + 1 + 1) / 81 / 2)), 3)
    assert a == stats.Stat(pytest.approx(1 / 3), pytest.approx(0), 3)
    assert b.mean == pytest.approx(1 / 9)
    assert table.places("hit@1") == {"CaFe": 1, "A": 2}
    ((system, gains),) = table.gains()
    assert system == "CaFe"
    assert gains["hit@1"] == (pytest.approx((8 / 9 - 1 / 3) / (1 / 3)), "A")
    # users averaged over seeds: CaFe 1, 1, 2/3; A 1, 0, 0; differences 0, -1, -2/3
    difference = table.rows[0].difference
    assert difference.mean == pytest.approx(-5 / 9)
    assert difference.users == 3
    assert table.reference == "CaFe"
    ps = [row.difference.p for row in table.rows[:2]]
    assert [row.difference.p_holm for row in table.rows[:2]] == pytest.approx(stats.holm(ps))
    assert table.rows[2].difference is None

    text = report.markdown(table)
    assert "| CaFe | **0.8889 ± 0.1925** | **0.9444 ± 0.0962** |" in text
    assert "| A | <u>0.3333 ± 0.0000</u> | <u>0.6667 ± 0.0000</u> |" in text
    assert "| *gain of CaFe over the best baseline* | +166.7% (A) | +41.7% (A) |" in text
    assert "| CaFe | ModelCaFe | 0.50 | 4, 4, 4 | 1,234 | no search | `CaFe0` |" in text
    assert "3 users, 200 items, 1,000 interactions, 7 intents, 5.00 interactions per item" in text
    assert "candidates sha256 cccccccccccccccc;" in text
    assert "have no result" not in text
    lines = list(csv.DictReader(report.as_csv(table).splitlines()))
    assert len(lines) == 6
    assert float(lines[2]["mean"]) == 8 / 9
    assert float(lines[0]["difference"]) == pytest.approx(-5 / 9)
    assert lines[2]["gain_over_best_baseline"] == str((8 / 9 - 1 / 3) / (1 / 3))


def test_a_number_without_a_result_is_not_printed(made: Callable[..., Any]) -> None:
    folder = three(made)
    for system, seeds in (("A", (1, 2, 3)), ("B", (2,))):
        for seed in seeds:
            (store.run_folder(folder.out, "amazon-x", system, f"{system}0", seed) / store.RESULT).unlink()
    (table,) = tables(read(folder.out))
    text = report.markdown(table)
    assert "| A |  |  |" in text
    assert "* 4 of 9 runs have no result, their cells are empty or rest on fewer seeds: A (1, 2, 3), B (2)." in text
    assert table.places("hit@1") == {"CaFe": 1, "B": 2}
    assert not [line for line in csv.DictReader(report.as_csv(table).splitlines()) if line["system"] == "A"]
    # seeds 1 and 3 are what both have: CaFe 1, 1, 1/2; B 1/2, 0, 0
    assert table.rows[1].difference.mean == pytest.approx(-2 / 3)


def test_runs_at_the_limit_of_epochs_are_named(made: Callable[..., Any]) -> None:
    folder = three(made)
    config = {"eval_mode": ["pop100"], "valid_metric": "NDCG@10", "epochs": 4, "stopping_step": 2}
    for seed, since in ((1, 0), (2, 1)):
        folder.run("C", seed, [0, 0, 0], config=config, validations_since_best=since)
    folder.cell("C", seeds=[1, 2, 3, 4])
    folder.run("C", 3, [0, 0, 0], config={**config, "epochs": 9})
    folder.run("C", 4, [0, 0, 0], config=config, validations_since_best=3)  # stopped by itself at the limit
    text = report.markdown(tables(read(folder.out))[0])
    assert "* C: 2 of 4 runs ended at the limit of 4 epochs, 1 of them with the last validation as the best." in text
    assert "A: 3 of 3" not in text


def test_the_chosen_settings_are_those_of_the_best_validation(made: Callable[..., Any]) -> None:
    folder = made(ours=[])
    folder.cell("A", points={"x": {"lr": 1}, "y": {"lr": 2}, "z": {"lr": 3}})
    folder.run("A", 1, [0, 0], digest="x", valid=0.1)
    for seed in (1, 2):
        folder.run("A", seed, [0, 1], digest="y", valid=0.2)
    (table,) = tables(read(folder.out))
    assert table.rows[0].values["hit@1"] == stats.Stat(0.5, 0.0, 2)
    assert table.reference is None
    text = report.markdown(table)
    assert "lr=2 (2 of 3 points)" in text
    assert "A: 2 of 3 points of its search are done; the choice may change." in text


def test_runs_with_other_candidates_or_data_are_not_compared(made: Callable[..., Any]) -> None:
    folder = three(made)
    folder.cell("C")
    folder.run("C", 1, [0, 0, 0], candidates="d" * 64)
    with pytest.raises(store.StoreError, match=r"amazon-x: .* candidates of pop100 differ: cc.*/A/A0-s1, dd.*/C/C0-s1"):
        tables(read(folder.out))
    folder = three(lambda **k: type(folder)(folder.out.parent / "out2", metrics=["hit@1"], **k))
    folder.cell("C")
    folder.run("C", 1, [0, 0, 0, 0])
    with pytest.raises(store.StoreError, match=r"their number of users differ: 3 in .*, 4 in .*/C/C0-s1"):
        tables(read(folder.out))


def test_ranks_of_another_run_are_found_out(made: Callable[..., Any]) -> None:
    folder = three(made)
    a, cafe = (store.run_folder(folder.out, "amazon-x", s, f"{s}0", 1) for s in ("A", "CaFe"))
    (a / store.RANKS).write_bytes((cafe / store.RANKS).read_bytes())
    with pytest.raises(
        store.StoreError, match=r"A0-s1/ranks\.npz gives pop100 hit@1 0\.66.* the result beside it 0\.3"
    ):
        tables(read(folder.out))
    (a / store.RANKS).unlink()
    with pytest.raises(store.StoreError, match=r"A0-s1/ranks\.npz cannot be read"):
        tables(read(folder.out))


def test_users_are_matched_by_token(made: Callable[..., Any]) -> None:
    folder = made(ours=["CaFe"])
    folder.cell("CaFe", seeds=[1])
    folder.cell("A", seeds=[1])
    folder.run("CaFe", 1, [0, 0, 1, 1], users=["a", "b", "c", "d"])
    folder.run("A", 1, [1, 1, 0, 0], users=["d", "c", "b", "a"])
    (table,) = tables(read(folder.out))
    assert table.rows[1].difference == stats.Difference(0.0, 0.0, 0.0, 1.0, 4, 1.0)


def test_authors_tables_carry_the_warning_and_published_numbers_their_mark(made: Callable[..., Any]) -> None:
    folder = made(ours=["CaFe"])
    protocols = ["full", "pop100", "authors100"]
    folder.cell("CaFe", protocols=protocols)
    folder.run("CaFe", 1, [0, 1], protocols=protocols)
    full, pop, authors = (report.markdown(t) for t in tables(read(folder.out), published=PAPER))
    assert "> **Warning.** authors100: each negative is scored with a random intent" in authors
    assert "it does NOT measure recommendation" in authors
    assert "Warning" not in pop + full
    assert "published" not in full
    for text in (pop, authors):
        assert "| system | HR@1 | MRR | published HR@1 ¹ | published MRR ¹ |" in text
        assert "| CaFe | **0.5000** | **0.7500** |  | 0.37 |" in text
        assert "¹ Some paper; measured by its authors on other data." in text
    assert "The candidates here keep their own intents: not comparable, see authors100." in pop
    assert "not comparable" not in authors


def test_published_numbers_stand_beside_data_of_their_name_only(made: Callable[..., Any]) -> None:
    folder = made(ours=["CaFe"])
    for dataset in ("amazonas", "amazon"):
        folder.cell("CaFe", dataset)
    folder.run("CaFe", 1, [0], dataset="amazonas")
    folder.run("CaFe", 1, [0], dataset="amazon", simulated=True)
    for table in tables(read(folder.out), published=PAPER):
        assert table.published is None
    assert "the data are simulated" in report.markdown(table)


def test_the_shipped_published_numbers_are_text_with_a_source() -> None:
    for entry in read_yaml(props_dir() / "benchmark" / "published.yaml").values():
        assert "arXiv" in entry["source"]
        for systems in entry["datasets"].values():
            for numbers in systems.values():
                assert all(isinstance(v, str) and 0 < float(v) < 1 for v in numbers.values())


# LaTeX, page, command -------------------------------------------------------------------------------------------------


def test_latex_is_escaped(made: Callable[..., Any]) -> None:
    assert escape(r"50% of A_b & {C} #1 $x$ ~ ^ \ < >") == (
        r"50\% of A\_b \& \{C\} \#1 \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{} $<$ $>$"
    )
    folder = made(ours=["A_b&c"])
    folder.cell("A_b&c")
    for seed, places in ((1, [0, 1]), (2, [0, 0])):
        folder.run("A_b&c", seed, places, digest="A_b&c0")
    (table,) = tables(read(folder.out))
    text = report.latex(table)
    assert r"A\_b\&c & \textbf{0.7500 $\pm$ 0.3536} & \textbf{0.8750 $\pm$ 0.1768} \\" in text
    assert text.count("{") == text.count("}")
    assert r"\label{tab:amazon-x-pop100}" in text


def test_markdown_cells_are_escaped(made: Callable[..., Any]) -> None:
    folder = made()
    folder.cell("a|b*c")
    folder.run("a|b*c", 1, [0], digest="a|b*c0")
    assert r"| a\|b\*c |" in report.markdown(tables(read(folder.out))[0])


def test_the_page_has_every_table_and_the_commands(
    made: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = three(made, commands=[["recbole-cafe", "benchmark", "made", "--item_inter_num_interval=[5,inf)"]])
    assert main(["report", "out", "--test=wilcoxon"]) == 0
    assert "out/report/report.html, report.md and 3 files beside them" in capsys.readouterr().out
    assert {path.name for path in Path("out/report").iterdir()} == {
        "report.md", "report.html", "amazon-x-pop100.md", "amazon-x-pop100.csv", "amazon-x-pop100.tex"
    }  # fmt: skip
    page = Path("out/report/report.md").read_text()
    assert (
        "recbole-cafe benchmark made '--item_inter_num_interval=[5,inf)'\nrecbole-cafe report out --test=wilcoxon"
        in page
    )
    assert Path("out/report/amazon-x-pop100.md").read_text() in page
    assert "Wilcoxon signed-rank test, 2 comparisons" in page
    assert "9 runs in the tables; commit abc;" in page
    assert write(folder.out)[0].name == "report.md"


def test_costs_say_with_what_runs_were_made_if_they_differ(made: Callable[..., Any]) -> None:
    folder = made()
    for system in ("A", "B"):
        folder.cell(system)
    here = {"recbole": "1.2.1", "torch": "2.13.0+cpu", "threads": "1"}
    there = {**here, "torch": "2.11.0", "device": "A GPU"}
    folder.run("A", 1, [0, 1], versions=here)
    folder.run("B", 1, [0, 1], versions=here)
    write(folder.out)
    text = Path("out/report/amazon-x-pop100.md").read_text()
    assert "made with" not in text
    folder.run("B", 2, [0, 1], versions=there)
    folder.run("B", 3, [0, 1], versions=there)
    write(folder.out)
    cells = [line.split(" | ")[-1] for line in Path("out/report/amazon-x-pop100.md").read_text().splitlines()
             if "`A0`" in line or "`B0`" in line or "made with" in line]  # fmt: skip
    assert cells == ["made with |", "torch 2.13.0+cpu |", "torch 2.11.0, device A GPU; torch 2.13.0+cpu |"]
    both = "recbole 1.2.1, torch 2.11.0, device A GPU, threads 1; recbole 1.2.1, torch 2.13.0+cpu, threads 1"
    assert f"4 runs in the tables; commit abc; {both}." in Path("out/report/report.md").read_text()
    with Path("out/report/amazon-x-pop100.csv").open() as file:
        assert [line["environments"] for line in csv.DictReader(file)][1] == both


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere"], 1, "nowhere is no folder of a benchmark: nowhere/benchmark.json is missing"),
        (["out", "--test=z"], 2, "--test: 'z' is none of t, wilcoxon"),
    ],
)
def test_a_wrong_report(arguments: list[str], status: int, message: str, made: Callable[..., Any],
                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    made().cell("A")
    assert main(["report", *arguments]) == status
    assert message in capsys.readouterr().err


# Views of `full` ------------------------------------------------------------------------------------------------------


def viewed(made: Callable[..., Any]) -> Any:
    """Four users, two of them with a later target. hit@1 in the file's order, shuffled (two orders), of later targets:
    CaFe 3/4, mean of 2/4 and 1/4, 1/2; A 2/4, 1/4 and 1/4, 0."""
    folder = made(ours=["CaFe"], systems=["CaFe", "A"])
    later = [True, True, False, False]
    at = {"CaFe": [0, 1, 0, 0], "A": [1, 1, 0, 0]}
    shuffled = {"CaFe": ([0, 0, 1, 1], [0, 1, 1, 1]), "A": ([0, 1, 1, 1], [1, 0, 1, 1])}
    for system in at:
        folder.cell(system, "beauty", protocols=["full"])
        folder.cell(system, "mixed", protocols=["full"])
        folder.plan["cells"]["mixed"][system] |= {"data": "beauty", "settings": {"tie_order": "random"}}
    (folder.out / store.PLAN).write_text(json.dumps(folder.plan), encoding="utf-8")
    for system, places in at.items():
        folder.run(system, 1, places, "beauty", protocols=["full"], later=later)
        for seed, of in enumerate(shuffled[system], 1):
            folder.run(system, seed, of, "mixed", protocols=["full"], later=later)
    return folder


def test_full_has_three_views_side_by_side(made: Callable[..., Any]) -> None:
    lines = report.views(read(viewed(made).out), "beauty")
    assert lines[2:] == [
        "| system | file order | ties shuffled | later targets |", "|---|---|---|---|",
        "| *test targets* | *4* | *4* | *2* |",
        "| CaFe | 0.7500 | 0.3750 ± 0.1768 | 0.5000 |", "| A | 0.5000 | 0.2500 ± 0.0000 | 0.0000 |", "",
    ]  # fmt: skip
    assert report.views(read(made().out), "mixed") == []


def test_later_targets_have_a_table_of_their_users(made: Callable[..., Any]) -> None:
    of = {table.protocol: table for table in tables(read(viewed(made).out)) if table.dataset == "beauty"}
    assert list(of) == ["full", "full_later"]
    assert "2 test targets, strictly later than the item before" in of["full_later"].caption
    assert "ties in time as the file has them" in of["full"].caption
    row = next(row for row in of["full_later"].rows if row.system == "A")
    assert (row.values["hit@1"].mean, row.difference.users, row.difference.mean) == (0.0, 2, -0.5)


def test_results_that_do_not_know_later_targets_say_so(made: Callable[..., Any]) -> None:
    folder = made()
    folder.cell("A", protocols=["full"])
    folder.run("A", 1, [0, 1], protocols=["full"])
    folder.run("A", 2, [0, 1], protocols=["full"], later_unknown="the stamps are positions", n_targets={"full": 2})
    (table,) = tables(read(folder.out))
    assert table.notes[-2:] == [
        "Later targets, in 1 runs: unknown, the stamps are positions.",
        "Later targets, in 1 runs: unknown, the version that made the runs did not measure them.",
    ]
    page = report.views(read(folder.out), "amazon-x")
    assert "| A | 0.5000 ± 0.0000 |  |  |" in page
    assert page[-3:-1] == ["Ties shuffled: not run.", "Later targets: unknown or none, see the notes of `full`."]
