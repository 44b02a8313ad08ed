"""Simulated data: the same bytes everywhere, the promised shape, and a next intent that can be learned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_cafe.cli.main import main
from recbole_cafe.files.atomic import INTENT, ITEM, TIME, USER, AtomicFileError
from recbole_cafe.files.atomic_writer import Written
from recbole_cafe.files.columns import read_columns
from recbole_cafe.prepare import simulate
from recbole_cafe.prepare.simulate import PRESETS, Structure

SHIPPED = Path(__file__).parents[2] / "dataset_atomic" / "amazon"
SMALL = {"n_users": 40, "n_items": 200, "n_intents": 8, "n_interactions": 600}


@dataclass(frozen=True)
class Frames:
    """A simulated data set as pandas has it; ids are categories."""

    interactions: pd.DataFrame
    items: pd.DataFrame
    parameters: dict[str, Any]


def simulated(**parameters: Any) -> Frames:
    tables = simulate.simulate(**parameters)
    return Frames(tables.interactions.to_pandas(), tables.items.to_pandas(), tables.parameters)


@pytest.fixture(scope="module")
def amazon() -> Frames:
    return simulated(**PRESETS["amazon"])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    simulate.write_simulated(tmp_path / "small", "small", **SMALL)
    return tmp_path / "small"


def run(*options: str) -> int:
    return main(["simulate", *options])


class TestReproducible:
    def test_the_shipped_amazon_is_made_again_bit_for_bit(self, tmp_path: Path) -> None:
        made = simulate.ensure_amazon(tmp_path / "amazon")
        for file in ("amazon.inter", "amazon.item", simulate.MANIFEST, "README.md"):
            assert (made / file).read_bytes() == (SHIPPED / file).read_bytes(), file

    def test_the_bytes_are_those_of_generator_1(self, amazon: Frames) -> None:
        # From generator 1, seed 2022; the same on Python 3.11 and 3.13 with NumPy 1.26, 2.4 and 2.5. If this
        # fails, the generator changed: raise GENERATOR and make dataset_atomic/amazon again.
        assert simulate.GENERATOR == 1
        manifest = simulate.verify(SHIPPED)
        assert manifest["sha256"]["amazon.inter"].startswith("e27e316486904f17")
        assert manifest["sha256"]["amazon.item"].startswith("f1c988029a25612f")
        assert manifest["parameters"] == amazon.parameters

    def test_another_seed_gives_other_data(self) -> None:
        one, same, other = (simulated(**SMALL, seed=seed).interactions for seed in (1, 1, 2))
        pd.testing.assert_frame_equal(one, same)
        assert not one[ITEM].astype(str).equals(other[ITEM].astype(str))

    def test_the_random_integers_are_pcg64s(self) -> None:
        # The first raw outputs of NumPy's PCG64(2022), which its policy keeps; ours are their remainders.
        raw = np.random.PCG64(2022).random_raw(3)
        np.testing.assert_array_equal(simulate._Random(2022).below(1000, 3), raw % np.uint64(1000))


class TestShape:
    def test_users_items_interactions_are_exactly_as_asked(self, amazon: Frames) -> None:
        table, shape = amazon.interactions, PRESETS["amazon"]
        assert table[USER].nunique() == shape["n_users"]
        assert table[ITEM].nunique() == len(amazon.items) == shape["n_items"]
        assert amazon.items[INTENT].nunique() == shape["n_intents"]
        assert len(table) == shape["n_interactions"]

    def test_it_has_the_papers_sparsity(self) -> None:
        # arXiv:2204.01839, Amazon: 40.9 interactions a user, 2.81 an item.
        ours, paper = PRESETS["amazon"], PRESETS["amazon-paper"]
        for below in ("n_users", "n_items"):
            ratio = paper["n_interactions"] / paper[below]
            assert ours["n_interactions"] / ours[below] == pytest.approx(ratio, rel=0.002)

    def test_user_lengths_vary_from_five_to_beyond_a_hundred(self, amazon: Frames) -> None:
        lengths = amazon.interactions[USER].value_counts()
        assert lengths.min() == 5
        assert lengths.median() < 30 < lengths.mean()
        assert 0.05 < (lengths > 100).mean() < 0.15

    def test_items_are_sparse_with_a_long_tail(self, amazon: Frames) -> None:
        times = amazon.interactions[ITEM].value_counts()
        assert times.min() == 1 and times.median() <= 2 and times.max() > 100
        assert times.head(len(times) // 100).sum() > 0.1 * times.sum()  # 1% of the items, over 10% of the events

    def test_popularity_inside_an_intent_is_zipf(self, amazon: Frames) -> None:
        intent_of = amazon.items.set_index(ITEM)[INTENT]
        events = amazon.interactions[ITEM].astype(str).map(intent_of.astype(str))
        biggest = events.value_counts().index[0]
        times = amazon.interactions[ITEM][events == biggest].value_counts()
        beyond_once = times.to_numpy()[: (times > 1).sum()] - 1
        expected = 1 / (np.arange(len(beyond_once)) + Structure().item_offset)
        # One comes from rounding to whole events.
        np.testing.assert_allclose(beyond_once, expected * beyond_once[0] / expected[0], atol=1.0)

    def test_intent_sizes_are_long_tailed(self, amazon: Frames) -> None:
        sizes = amazon.items[INTENT].value_counts()
        assert sizes.max() > 20 * sizes.min() and sizes.median() < sizes.mean()

    def test_hardly_anyone_has_an_item_twice(self, amazon: Frames) -> None:
        assert amazon.interactions.duplicated([USER, ITEM]).mean() < 0.002

    def test_rows_are_sorted_by_user_and_time_even_in_float32(self, amazon: Frames) -> None:
        users = amazon.interactions[USER].cat.codes.to_numpy()
        times = amazon.interactions[TIME].to_numpy().astype(np.float32)
        assert (np.diff(users) >= 0).all()
        assert (np.diff(times)[np.diff(users) == 0] > 0).all()

    def test_times_are_whole_hours_over_several_years(self, amazon: Frames) -> None:
        times = amazon.interactions[TIME].to_numpy()
        assert (times % 3600 == 0).all()
        years = pd.to_datetime([times.min(), times.max()], unit="s").year
        assert years[0] == 2010 and 2016 <= years[1] <= 2024

    def test_names_tell_neither_popularity_nor_intent(self, amazon: Frames) -> None:
        times = np.bincount(amazon.interactions[ITEM].cat.codes)
        intents = amazon.items[INTENT].cat.codes.to_numpy()
        number = np.arange(len(times))
        assert abs(np.corrcoef(number, times)[0, 1]) < 0.02
        assert abs(np.corrcoef(number, intents)[0, 1]) < 0.02

    def test_names_are_readable(self, amazon: Frames) -> None:
        for values, pattern in ((amazon.interactions[USER], r"u\d+"), (amazon.items[ITEM], r"i\d+")):
            assert values.astype(str).str.fullmatch(pattern).all()
        assert amazon.items[INTENT].astype(str).str.fullmatch(r"c\d+").all()

    @pytest.mark.parametrize(
        "shape",
        [
            {"n_users": 1, "n_items": 1, "n_intents": 1, "n_interactions": 5},
            {"n_users": 3, "n_items": 15, "n_intents": 15, "n_interactions": 15},
            {"n_users": 50, "n_items": 60, "n_intents": 50, "n_interactions": 251},
        ],
    )
    def test_tiny_shapes_are_exact_too(self, shape: dict[str, int]) -> None:
        made = simulated(**shape)
        assert len(made.interactions) == shape["n_interactions"]
        assert made.interactions[ITEM].nunique() == len(made.items) == shape["n_items"]
        assert made.interactions[USER].value_counts().min() >= 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n_users": 0}, "n_users=0: expected at least 1"),
            ({"n_intents": 201}, "n_intents=201: expected at most n_items=200"),
            ({"n_users": 121}, "n_interactions=600: expected at least 605, 5 a user"),
            ({"n_items": 601}, "n_interactions=600: expected at least n_items=601"),
            ({"seed": -1}, "seed=-1: expected a non-negative integer"),
        ],
    )
    def test_an_impossible_shape_is_refused(self, change: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            simulate.simulate(**SMALL | change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"transition": 80}, "transition=80, favourite=30, stay=10: expected three percentages"),
            ({"taste": 101}, "taste=101: expected a percentage"),
            ({"successors": 0}, "successors=0: expected at least 1"),
        ],
    )
    def test_an_impossible_structure_is_refused(self, change: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Structure(**change)


def test_apportion_is_exact_and_gives_nothing_to_a_zero_weight() -> None:
    shares = simulate._apportion(np.array([10, 7, 0]), np.array([3, 0, 1, 2, 2, 5, 1]), np.array([3, 2, 2]))
    assert shares.tolist() == [8, 0, 2, 4, 3, 0, 0]  # 7.5 and 2.5: equal remainders, the first wins


@pytest.fixture(scope="module")
def ndcg(amazon: Frames) -> dict[str, float]:
    """NDCG@5 of counting models, leave-last-out, 100 other items drawn by popularity; chance is 0.029."""
    table = amazon.interactions
    user = table[USER].cat.codes.to_numpy()
    item = table[ITEM].cat.codes.to_numpy()
    intent_of = amazon.items[INTENT].cat.codes.to_numpy()
    n_items, n_intents = len(intent_of), intent_of.max() + 1
    test = np.flatnonzero(np.append(np.diff(user) > 0, True))
    train = np.ones(len(user), dtype=bool)
    train[test] = train[test - 1] = False
    popularity = np.bincount(item[train], minlength=n_items)
    before = np.flatnonzero(train[:-1] & train[1:] & (user[:-1] == user[1:]))
    pairs = pd.Series(1, index=zip(item[before], item[before + 1], strict=True)).groupby(level=0).sum()
    follows = np.zeros((n_intents, n_intents))
    np.add.at(follows, (intent_of[item[before]], intent_of[item[before + 1]]), 1)
    in_intent = (popularity + 0.5) / (np.bincount(intent_of, popularity)[intent_of] + 1)

    random = np.random.default_rng(0)
    others = random.choice(item, size=(len(test), 100))  # by popularity; a few repeats do no harm here
    candidates = np.column_stack([item[test], others])
    last = item[test - 1]
    seen_pair = [[pairs.get((a, b), 0) for b in row] for a, row in zip(last, candidates, strict=True)]
    scores = {
        "popularity": popularity[candidates],
        "item to item": 1e6 * np.array(seen_pair) + popularity[candidates],
        "intent to intent": (follows[intent_of[last][:, None], intent_of[candidates]] + 0.1) * in_intent[candidates],
    }
    result = {}
    for name, score in scores.items():
        target = score[:, :1]
        rank = 1 + (score > target).sum(1) + ((score == target).sum(1) - 1) / 2
        result[name] = float(np.where(rank <= 5, 1 / np.log2(rank + 1), 0).mean())
    return result


class TestCoarseToFine:
    def test_the_next_item_alone_is_hard_to_tell(self, ndcg: dict[str, float]) -> None:
        assert ndcg["popularity"] < 0.06
        assert ndcg["item to item"] < 0.08

    def test_the_next_intent_helps_much_and_not_trivially(self, ndcg: dict[str, float]) -> None:
        assert 0.22 < ndcg["intent to intent"] < 0.45
        assert ndcg["intent to intent"] > 3 * max(ndcg["popularity"], ndcg["item to item"])


class TestFiles:
    def test_the_manifest_marks_a_simulated_data_set(self, small: Path, tmp_path: Path) -> None:
        manifest = simulate.is_simulated(small)
        assert manifest is not None and manifest["parameters"]["n_users"] == 40
        assert manifest["counts"] == {"users": 40, "items": 200, "intents": 8, "interactions": 600}
        assert simulate.is_simulated(tmp_path) is None

    def test_the_readme_says_simulated_in_its_first_sentence(self) -> None:
        sentence = (SHIPPED / "README.md").read_text().split("\n\n")[1].split(". ")[0]
        assert "simulated, not Amazon data" in sentence

    def test_the_readmes_command_makes_the_data(self, small: Path) -> None:
        readme = (small / "README.md").read_text()
        command = next(line for line in readme.splitlines() if line.startswith("recbole-cafe simulate "))
        again = small.parent / "again"
        options = command.replace("--out=dataset_atomic", f"--out={again}").split()[2:]
        assert run(*options) == 0
        assert (again / "small" / "small.inter").read_bytes() == (small / "small.inter").read_bytes()

    def test_verify_accepts_what_was_written_and_names_what_was_changed(self, small: Path) -> None:
        assert simulate.verify(small)["name"] == "small"
        with open(small / "small.item", "ab") as file:
            file.write(b"i999\tc1\n")
        with pytest.raises(AtomicFileError, match=r"small\.item: found sha256 .*, expected .*not as simulated"):
            simulate.verify(small)
        (small / "small.item").unlink()
        with pytest.raises(AtomicFileError, match=r"small\.item: no such file, but simulation\.json names it"):
            simulate.verify(small)

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "expected JSON"), ("[]", "expected 'simulated': true"), ("{}", "'sha256'")],
    )
    def test_a_broken_manifest_is_an_error(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / simulate.MANIFEST).write_text(content)
        with pytest.raises(AtomicFileError, match=message):
            simulate.is_simulated(tmp_path)

    def test_verify_needs_a_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"no simulation\.json"):
            simulate.verify(tmp_path)

    def test_the_files_agree_with_the_manifest(self, small: Path) -> None:
        inter, item = (read_columns(small / f"small.{ending}", None).table() for ending in ("inter", "item"))
        distinct = {"users": inter["user_id"], "items": inter["item_id"], "intents": item["intent"]}
        counts = {key: len(column.unique()) for key, column in distinct.items()} | {"interactions": len(inter)}
        assert counts == json.loads((small / simulate.MANIFEST).read_text())["counts"]

    def test_real_data_are_never_replaced_by_simulated_ones(self, small: Path) -> None:
        (small / simulate.MANIFEST).unlink()
        before = (small / "small.inter").read_bytes()
        with pytest.raises(AtomicFileError, match=r"not simulated and will not be replaced"):
            simulate.write_simulated(small, "small", replace=True, **SMALL, seed=9)
        assert (small / "small.inter").read_bytes() == before

    def test_ensure_amazon_leaves_an_existing_data_set_alone(self, tmp_path: Path) -> None:
        real = tmp_path / "amazon" / "amazon.inter"
        real.parent.mkdir()
        real.write_text("user_id:token\titem_id:token\nreal\tdata\n")
        simulate.ensure_amazon(real.parent)
        assert [p.name for p in real.parent.iterdir()] == ["amazon.inter"]
        assert real.read_text().endswith("real\tdata\n")

    def test_ensure_amazon_accepts_a_faster_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = simulate.write_simulated

        def beaten(folder: Path, name: str, **parameters: int) -> Written:
            write(folder, name, **parameters)  # the other process
            return write(folder, name, **parameters)  # ours: the folder is there now

        monkeypatch.setattr(simulate, "write_simulated", beaten)
        assert simulate.verify(simulate.ensure_amazon(tmp_path / "amazon"))["name"] == "amazon"

    def test_ensure_amazon_does_not_hide_a_failure(self, tmp_path: Path) -> None:
        (tmp_path / "amazon").mkdir()
        (tmp_path / "amazon" / "notes.txt").write_text("mine")
        with pytest.raises(AtomicFileError, match=r"holds notes\.txt"):
            simulate.ensure_amazon(tmp_path / "amazon")


class TestCommand:
    SMALL_OPTIONS = ("--users=40", "--items=200", "--intents=8", "--interactions=600", "--name=mini")

    def test_it_prints_what_was_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(*self.SMALL_OPTIONS, f"--out={tmp_path}") == 0
        out = capsys.readouterr().out
        assert "mini: simulated 40 users, 200 items, 8 intents, 600 interactions (3.00 per item) in" in out

    def test_it_refuses_to_overwrite_and_names_the_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(*self.SMALL_OPTIONS, f"--out={tmp_path}")
        before = (tmp_path / "mini" / "mini.inter").read_bytes()
        assert run(*self.SMALL_OPTIONS, f"--out={tmp_path}", "--seed=5") == 1
        assert f"{tmp_path / 'mini'}: exists already" in capsys.readouterr().err
        assert (tmp_path / "mini" / "mini.inter").read_bytes() == before
        assert run(*self.SMALL_OPTIONS, f"--out={tmp_path}", "--seed=5", "--replace") == 0
        assert (tmp_path / "mini" / "mini.inter").read_bytes() != before
        assert [p.name for p in tmp_path.iterdir()] == ["mini"]

    def test_an_impossible_shape_leaves_nothing_behind(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(*self.SMALL_OPTIONS[:-2], "--interactions=10", f"--out={tmp_path}") == 2
        assert "--interactions=10: expected at least 200" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_the_presets_have_the_papers_shapes(self) -> None:
        assert PRESETS["amazon-paper"]["n_items"] == 1_910_226
        assert PRESETS["tmall-paper"]["n_interactions"] == 14_460_516
