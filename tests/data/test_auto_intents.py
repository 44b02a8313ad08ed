"""Intents made from transitions: planted groups are found, from the train split alone, the same each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recbole_cafe
from recbole_cafe import Config
from recbole_cafe.cli.main import main
from recbole_cafe.data import auto_intents
from recbole_cafe.data.intents import item_intents
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.experiment import create_dataset
from recbole_cafe.export import export
from recbole_cafe.files.auto_intents import AutoIntents, stored
from recbole_cafe.recommend import Recommender

SIZES = {"a": 12, "b": 9, "c": 6}  # items of the planted groups
GIVEN = {"gpu_id": "", "show_progress": False, "state": "WARNING", "INTENT_FIELD": "auto", "n_auto_intents": 3,
         "eval_mode": "full", "MAX_ITEM_LIST_LENGTH": 8}  # fmt: skip

Clicks = list[tuple[str, str, int]]


def planted(seed: int = 3, users: int = 90) -> Clicks:
    """Users who stay inside a group for all but their validation and test items, `x0` and `x1`."""
    rng = np.random.default_rng(seed)
    clicks = []
    for user in range(users):
        group = "abc"[user % 3]
        items = [f"{group}{i}" for i in rng.choice(SIZES[group], 5, replace=False)]
        clicks += [(f"u{user:02d}", item, time) for time, item in enumerate([*items, "x0", "x1"])]
    return clicks


@pytest.fixture
def shop(write_atomic: Callable[..., Path]) -> Callable[..., Any]:
    """A built data set of clicks; no .item file unless there are intents."""

    def make(clicks: Clicks | None = None, intents: Any = None, model: str = "CaFe", **settings: Any) -> Any:
        folder = write_atomic("shop", planted() if clicks is None else clicks, intents)
        dataset = create_dataset(Config(model, "shop", config_dict={"data_path": str(folder), **GIVEN, **settings}))
        dataset.build()
        return dataset

    return make


def intents_of(dataset: Any) -> dict[str, str | None]:
    """Item -> name of its intent."""
    intents, names = dataset.auto_intents.of_item, [None, *dataset.auto_intents.names]
    return {item: names[intents[i]] for i, item in enumerate(dataset.field2id_token["item_id"]) if i}


def test_planted_groups_are_found_exactly(shop: Callable[..., Any]) -> None:
    of = intents_of(shop())
    groups = {group: {of[item] for item in of if item[0] == group} for group in "abc"}
    assert all(len(names) == 1 for names in groups.values())
    assert len(set.union(*groups.values())) == 3
    for group, (name,) in groups.items():
        assert len(set(name.split("+"))) == 3
        assert {token[0] for token in name.split("+")} == {group}  # named by items of its own


def test_many_items_are_clustered_in_batches(shop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    few = intents_of(shop(intents_dir="few"))
    monkeypatch.setattr(auto_intents, "MANY", 10)
    assert intents_of(shop(intents_dir="many")) == few


def test_the_largest_comes_first(shop: Callable[..., Any]) -> None:
    dataset = shop()
    assert np.bincount(dataset.auto_intents.of_item)[1:].tolist() == sorted(SIZES.values(), reverse=True)


def test_an_item_that_stands_beside_none_has_no_intent(shop: Callable[..., Any]) -> None:
    """x0 and x1 are in the validation and the test alone."""
    dataset = shop()
    of = intents_of(dataset)
    assert of["x0"] is None and of["x1"] is None
    facts = item_intents(dataset.config, dataset)
    assert (facts.n_intents, facts.n_without) == (4, 2)
    assert facts.item2intent[dataset.token2id("item_id", "x0")] == 4


def test_they_read_the_train_split_alone(shop: Callable[..., Any]) -> None:
    """Other validation and test items, drawn from all groups: the same intents, for a given number and a chosen one."""
    clicks = planted()
    moved = [(u, ("a0", "b1", "c2")[int(u[1:]) // 3 % 3] if item[0] == "x" else item, t) for u, item, t in clicks]
    for number in (3, 8, "auto"):  # 8: no clear cut, so that any trace of the others would move it
        first, other = (intents_of(shop(which, n_auto_intents=number)) for which in (clicks, moved[::-1]))
        assert {item: first[item] for item in first if item[0] != "x"} == other
    with_them = intents_of(shop(moved, final=True, epochs=1))
    assert with_them != intents_of(shop(moved))  # which `final` does not hold out


def test_the_same_each_time_and_whatever_the_seed(shop: Callable[..., Any]) -> None:
    first = shop(intents_dir="one").auto_intents
    again = shop(intents_dir="two", seed=7).auto_intents
    assert again.digest == first.digest and again.path != first.path


def test_the_number_that_is_chosen_tells_most_of_held_out_items(shop: Callable[..., Any]) -> None:
    """27 items: sqrt(27) = 5.2; three groups are there, and fewer intents than that mix them."""
    made = shop(n_auto_intents="auto").auto_intents
    assert list(made.tried) == [2, 3, 5, 10]
    assert len(made.names) == max(made.tried, key=lambda number: made.tried[number]) == 3


def test_the_log_probability_is_that_of_intent_backoff() -> None:
    """A history of items 1, 2 and then 3, by hand: both have intent 1, and 3 has intent 2."""
    users, items = np.array([1, 1, 1, 2, 2]), np.array([1, 2, 3, 2, 3])
    count = auto_intents.ItemVectors.of(users, items, 4).count
    np.testing.assert_allclose(count.toarray()[1:, 1:], [[0, 1, 0.8], [0, 0, 2], [0, 0, 0]])
    of_item, seen = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    found = auto_intents._log_probability(count, of_item, seen, np.array([[2, 1, 0]]), np.array([3]))
    # between intents 1 -> 1: 1, 1 -> 2: 2.8; half taken off, .5 at most of each
    told, off, total = 2.3, 1.0, 3.8
    weight = 1 + 0.3
    of_intent = (weight * told + (3 + weight * off) * 3 / 7) / (3 + weight * total)
    # items: 2 -> 1: .3 (backward), 2 -> 3: 2; 1 -> 2: 1, 1 -> 3: .8; .8 taken off, .8 times what is below 1
    evidence = 1.2 + 0.5 * 0.16
    rest = 10 + (0.24 + 0.8) + 0.5 * (0.8 + 0.64)
    expected = (evidence + rest * of_intent) / (10 + 2.3 + 0.5 * 1.8)  # item 3 is all of its intent
    assert found == pytest.approx(np.log(expected))


def test_it_is_stored_and_read_again(shop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop()
    assert first.auto_intents.path.parent == Path("saved/intents")

    def never(*_: Any) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(auto_intents, "make_intents", never)
        again = shop()
        assert again.auto_intents.digest == first.auto_intents.digest and again.digests == first.digests
        with pytest.raises(AssertionError, match="made again"):
            shop(n_auto_intents=2)
    assert shop(n_auto_intents=2).digests["intents"] != first.digests["intents"]


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_file_is_refused(shop: Callable[..., Any], damage: str) -> None:
    path = shop().auto_intents.path
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        with np.load(path) as file:
            parts = dict(file)
        parts["of_item" if damage == "changed" else "data"] = np.roll(parts["of_item"], 1)
        np.savez_compressed(path, **parts)
    with pytest.raises(DataError, match=rf"{path}: .*; delete it to make them again"):
        shop()
    path.unlink()
    shop()


def test_names_differ_where_tokens_hold_a_plus() -> None:
    vectors = auto_intents.ItemVectors(np.arange(1, 5), np.eye(4), None)
    names = auto_intents._names(vectors, np.array([0, 0, 1, 1]), np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]),
                                np.array([0, 4, 1, 4, 1]), ["[PAD]", "a", "b+c", "a+b", "c"])  # fmt: skip
    assert names == ("a+b+c", "a+b+c#2")


def test_what_cannot_be_is_refused(shop: Callable[..., Any], write_atomic: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"28 intents are to be made .* of 27 items that stand beside another one"):
        shop(n_auto_intents=28)
    with pytest.raises(ConfigError, match="n_auto_intents=1 should be auto or a whole number of at least 2"):
        shop(n_auto_intents=1)
    with pytest.raises(ConfigError, match="n_auto_intents=3 is for INTENT_FIELD=auto, and it is 'intent'"):
        shop(INTENT_FIELD="intent")
    Path("taken").write_text("")
    with pytest.raises(ConfigError, match="intents_dir=taken/x cannot be written to"):
        shop(intents_dir="taken/x")
    lonely = [(f"u{u}", f"i{u}", t) for u in range(4) for t in range(4)]
    with pytest.raises(DataError, match=r"3 intents are to be made .* of 0 items"):
        shop(lonely)
    with pytest.raises(DataError, match="0 items stand beside another one, too few to choose"):
        shop(lonely, n_auto_intents="auto")
    dataset = shop(model="BPR")
    with pytest.raises(DataError, match="intents are made when the data set of a sequential model is split; shop"):
        item_intents(dataset.config, dataset)
    file = write_atomic("shop", planted()) / "shop" / "shop.item"
    file.write_text("item_id:token\tauto:token\n" + "".join(f"{item}\tx\n" for item in {c[1] for c in planted()}))
    with pytest.raises(DataError, match="shop has a column named 'auto', and INTENT_FIELD=auto makes one of that name"):
        create_dataset(Config("CaFe", "shop", config_dict={"data_path": str(file.parents[1]), **GIVEN})).build()


def test_the_column_stands_beside_those_of_the_file(shop: Callable[..., Any]) -> None:
    """A category that says the same has NMI 1; one of its own for each item is no group and left out."""
    dataset = shop(intents={item: item[0] for item in sorted({click[1] for click in planted()})}, load_col=None)
    assert list(dataset.item_feat.interaction) == ["item_id", "intent", "auto"]
    assert auto_intents.agreement(dataset) == {"intent": pytest.approx(1.0)}
    assert auto_intents.agreement(shop(intents={click[1]: click[1] for click in planted()}, load_col=None)) == {}


def test_a_run_from_training_to_reasons(write_atomic: Callable[..., Path]) -> None:
    folder = write_atomic("shop", planted())
    tiny = {"epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "n_local_heads": 1}
    result = recbole_cafe.run("CaFe", "shop", config_dict={"data_path": str(folder), **GIVEN, **tiny})
    assert result.data["intents"] == 3 and set(result.digests) >= {"intents", "split"}
    bundle = export(result.checkpoint, "bundle")
    assert bundle.about["digests"] == result.digests
    row = Recommender.load("bundle").recommend([["a1", "a2"]], 1, reasons=True).to_pylist()[0]
    assert row["intent"] in bundle.items.intents.to_pylist() and row["intent"].count("+") == 2
    next(Path("saved/intents").glob("*.npz")).unlink()
    assert export(result.checkpoint, "again").about["digests"] == result.digests  # made again, the same


def test_check_makes_them_too(
    write_atomic: Callable[..., Path], capsys: pytest.CaptureFixture[str], in_a_folder_of_its_own: Path
) -> None:
    folder = write_atomic("shop", planted(), {click[1]: click[1][0] for click in planted()})
    assert main(["check", "shop", f"--data_path={folder}", "--intent=auto"]) == 0
    said = capsys.readouterr().out
    assert "INTENT_FIELD=auto: 3 intents of 27 items; 2 items stand beside none" in said
    assert "NMI with intent 1.000" in said
    assert [path.name for path in in_a_folder_of_its_own.glob("saved/intents/*")] == []


def test_stored_keeps_all_of_it(tmp_path: Path) -> None:
    made = AutoIntents(np.array([0, 1, 2, 0]), ("a", "ü+b"), {2: -1.5, 3: -1.25})
    stored(tmp_path, name="d", data="0" * 64, make=lambda: made)
    again = stored(tmp_path, name="d", data="0" * 64, make=lambda: pytest.fail("made again"))
    assert (again.names, again.tried, again.digest) == (made.names, made.tried, made.digest)
    assert again.of_item.tolist() == [0, 1, 2, 0] and again.path == tmp_path / "d-000000000000.npz"
