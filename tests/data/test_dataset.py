"""recbole_cafe.data.time_order: RecBole's rows in exact order, each interaction a target once, one intent an item."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import HEADER, write_data_set
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils.case_study import full_sort_topk

from recbole_cafe import Config
from recbole_cafe.data.batch import next_items
from recbole_cafe.data.intents import item_intents
from recbole_cafe.data.rows import ROW
from recbole_cafe.data.sequences import TARGET_LIST, NetDataset, SequenceDataset
from recbole_cafe.data.time_order import TimeOrderedDataset
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.files.atomic import AtomicFileError

Click = tuple[str, str, float]
L = 5


def write(clicks: list[Click], items: list[str] | None = None, header: str = HEADER, name: str = "toy") -> None:
    """dataset/<name>/<name>.inter and .item in the working folder; `items` are the lines of the latter."""
    write_data_set(Path("dataset"), name, clicks, header=header, item_lines=items)


def config_of(model: str = "CaFe", **settings: Any) -> Config:
    plain = {"data_path": "dataset", "MAX_ITEM_LIST_LENGTH": L, "gpu_id": "", "show_progress": False, "worker": 0}
    return Config(model, "toy", config_dict=plain | settings)


def random_clicks(lengths: list[int], seed: int = 0, n_items: int = 30, unique_items: bool = False) -> list[Click]:
    """Users u0, u1, ... of these lengths, all stamps different and exact in float32, lines in random order."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    stamps = rng.choice(2**20, len(owner), replace=False)
    items = np.arange(len(owner)) if unique_items else rng.integers(0, n_items, len(owner))
    clicks = [(f"u{u}", f"i{i}", int(t)) for u, i, t in zip(owner, items, stamps, strict=True)]
    return [clicks[k] for k in rng.permutation(len(clicks))]


def histories(clicks: list[Click]) -> dict[str, list[str]]:
    """Items of each user by time, ties in the order of the lines."""
    of = defaultdict(list)
    for user, item, _ in sorted(clicks, key=lambda click: click[2]):
        of[user].append(item)
    return dict(of)


def rows(dataset: Dataset) -> Any:
    return dataset[np.arange(len(dataset))]


def tokens(dataset: Dataset, field: str, ids: torch.Tensor) -> list[str]:
    return dataset.id2token(field, ids.numpy()).tolist()


# Rows and splits ------------------------------------------------------------------------------------------------------

LENGTHS = [1, 2, 3, 4, 5, L, L + 1, L + 2, 3 * L + 1, 41, 1, 2, 3, 8, 17]


@pytest.mark.parametrize("split", [{"LS": mode} for mode in ("valid_and_test", "valid_only", "test_only")]
                         + [{"RS": [0.8, 0.1, 0.1]}], ids=str)  # fmt: skip
def test_rows_are_recboles(split: dict[str, Any]) -> None:
    clicks = random_clicks(LENGTHS)
    write([(u, i, t, t % 5) for u, i, t in clicks], header=f"{HEADER}\trating:float")
    config = config_of("SASRec", load_col={"inter": "*"}, eval_args={"split": split})
    ours, stock = SequenceDataset(config).build(), SequentialDataset(config).build()
    fields = {"user_id", "item_id", "timestamp", "rating", "item_length"}
    fields |= {"item_id_list", "timestamp_list", "rating_list"}
    for part, of_stock in zip(ours, stock, strict=True):
        assert len(part) == len(of_stock)
        if not len(of_stock):
            continue
        got, expected = rows(part), rows(of_stock)
        assert set(got.interaction) == set(expected.interaction) == fields
        for field in fields:
            assert got[field].dtype == expected[field].dtype, field
            assert torch.equal(got[field], expected[field]), field
    assert sum(map(len, ours)) == sum(n - 1 for n in LENGTHS)


def test_rows_of_short_users() -> None:
    """Two interactions make a train row, three a train and a test row, four one of each; one makes none."""
    write(random_clicks([1, 2, 3, 4]))
    users = [tokens(part, "user_id", part.inter_feat["user_id"]) for part in SequenceDataset(config_of()).build()]
    assert [sorted(part) for part in users] == [["u1", "u2", "u3"], ["u3"], ["u2", "u3"]]


@pytest.mark.parametrize("layout", ["all", "last"])
def test_the_data_make_the_targets(layout: str) -> None:
    """Of a row's positions, all or the last one; no other column is gathered for nets of ours."""
    write([(u, i, t, t % 5) for u, i, t in random_clicks(LENGTHS)], header=f"{HEADER}\trating:float")
    for part in create_dataset(config_of(load_col={"inter": "*"}, train_layout=layout)).build():
        batch = rows(part)
        given = {"user_id", "item_id", "timestamp", "rating", "item_length", "item_id_list", TARGET_LIST}
        assert set(batch.interaction) == given
        history, length, target = batch["item_id_list"], batch["item_length"], batch[TARGET_LIST]
        shown = layout if part.window_rows else "last"
        assert torch.equal(target, next_items(history, length, batch["item_id"], shown))
        for i, n in enumerate(length.tolist()):
            assert target[i, n - 1] == batch["item_id"][i]
            assert torch.equal(target[i, : n - 1], history[i, 1:n] if shown == "all" else torch.zeros(n - 1).long())


def test_next_items() -> None:
    history, length, item = torch.tensor([[3, 4, 5], [7, 0, 0]]), torch.tensor([3, 1]), torch.tensor([6, 8])
    assert next_items(history, length, item, "all").tolist() == [[4, 5, 6], [8, 0, 0]]
    assert next_items(history, length, item, "last").tolist() == [[0, 0, 6], [8, 0, 0]]


@pytest.mark.parametrize("index", [3, [4, 0, 0], np.array([2, 1]), slice(1, 4), torch.tensor([5])], ids=str)
def test_rows_by_any_index(index: Any) -> None:
    write(random_clicks([9, 4]))
    config = config_of("SASRec")
    ours, stock = SequenceDataset(config).build()[0], SequentialDataset(config).build()[0]
    assert torch.equal(ours[index]["item_id"].reshape(-1), stock[index]["item_id"].reshape(-1))
    assert torch.equal(ours[index]["item_id_list"].reshape(-1, L), stock[index]["item_id_list"].reshape(-1, L))


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only"])
@pytest.mark.parametrize("kind", [SequenceDataset, TimeOrderedDataset])
def test_leave_one_out_is_recboles(kind: type, mode: str) -> None:
    write(random_clicks(LENGTHS))
    dataset = kind(config_of("SASRec" if kind is SequenceDataset else "BPR"))
    dataset._change_feat_format()
    if kind is SequenceDataset:
        dataset.sort(by="timestamp")
    ours, stock = dataset.leave_one_out("user_id", mode), Dataset.leave_one_out(dataset, "user_id", mode)
    assert [part.inter_feat[ROW].tolist() for part in ours] == [part.inter_feat[ROW].tolist() for part in stock]
    assert sum(len(part) for part in ours) == len(dataset)


def test_leave_one_out_of_other_kinds_is_refused() -> None:
    write(random_clicks([5]))
    dataset = TimeOrderedDataset(config_of("BPR"))
    dataset._change_feat_format()
    with pytest.raises(NotImplementedError, match=r"leave_one_mode \[last_three\] has not been implemented"):
        dataset.leave_one_out("user_id", "last_three")
    with pytest.raises(ValueError, match="leave one out strategy require a group field"):
        dataset.leave_one_out(None, "valid_and_test")


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_histories_are_padded_on_the_right_and_hold_the_last_items(model: str) -> None:
    clicks = random_clicks(LENGTHS, unique_items=True)
    write(clicks)
    expected = histories(clicks)
    for part in create_dataset(config_of(model, train_layout="last")).build():
        batch = rows(part)
        assert batch["item_id_list"].shape == (len(part), L)
        real = torch.arange(L) < batch["item_length"][:, None]
        assert torch.equal(batch["item_id_list"] > 0, real)
        for i in range(len(part)):
            user, target = tokens(part, "user_id", batch["user_id"][i]), tokens(part, "item_id", batch["item_id"][i])
            before = expected[user][: expected[user].index(target)]
            assert tokens(part, "item_id", batch["item_id_list"][i][real[i]]) == before[-L:]


def test_our_column_never_reaches_a_batch() -> None:
    write(random_clicks(LENGTHS))
    for model in ("CaFe", "SASRec", "BPR"):
        config = config_of(model)
        for loader in data_preparation(config, create_dataset(config)):
            for batch in loader:
                interaction = batch[0] if isinstance(batch, tuple) else batch
                assert ROW not in interaction.interaction


# Order ----------------------------------------------------------------------------------------------------------------


def millisecond_clicks() -> list[Click]:
    """200 users, ten clicks each, a few seconds apart; lines in random order. float32 keeps 131 seconds apart."""
    rng = np.random.default_rng(5)
    clicks = [
        (f"u{u}", f"i{u}_{k}", 1_600_000_000_000 + 10**7 * u + 5_000 * k + int(rng.integers(0, 4_000)))
        for u in range(200)
        for k in range(10)
    ]
    return [clicks[k] for k in rng.permutation(len(clicks))]


def last_items(parts: list[Dataset]) -> dict[str, str]:
    test = parts[-1]
    return dict(
        zip(
            tokens(test, "user_id", test.inter_feat["user_id"]),
            tokens(test, "item_id", test.inter_feat["item_id"]),
            strict=True,
        )
    )


@pytest.mark.parametrize(("model", "stock"), [("CaFe", SequentialDataset), ("SASRec", SequentialDataset),
                                              ("BPR", Dataset)])  # fmt: skip
def test_milliseconds_keep_their_order(model: str, stock: type) -> None:
    clicks = millisecond_clicks()
    write(clicks)
    truth = {user: items[-1] for user, items in histories(clicks).items()}
    config = config_of(model)
    assert last_items(create_dataset(config).build()) == truth
    by_recbole = last_items(stock(config_of("BPR" if stock is Dataset else "SASRec")).build())
    wrong = sum(by_recbole[user] != truth[user] for user in truth)
    assert wrong > 50  # RecBole sorts float32 stamps; if this fails it does no longer


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_histories_of_milliseconds_are_in_order(model: str) -> None:
    clicks = millisecond_clicks()
    write(clicks)
    test = create_dataset(config_of(model)).build()[-1]
    batch, expected = rows(test), histories(clicks)
    for i, user in enumerate(tokens(test, "user_id", batch["user_id"])):
        assert tokens(test, "item_id", batch["item_id_list"][i]) == expected[user][-1 - L : -1]


def tied_clicks() -> list[Click]:
    """Ten users with the stamps 7, 7, 7, 8, 8, 8, 9, 9, 9, the lines of a stamp among those of other users."""
    return [(f"u{u}", f"i{u}_{t}{k}", t) for t in (7, 8, 9) for k in "cab" for u in range(10)]


def sequences(dataset: Any) -> dict[str, list[str]]:
    users, items = dataset.all_interactions()
    of = defaultdict(list)
    for user, item in zip(dataset.id2token("user_id", users), dataset.id2token("item_id", items), strict=True):
        of[user].append(item)
    return dict(of)


@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
def test_ties_keep_the_order_of_the_file(model: str) -> None:
    write(tied_clicks())
    parts = create_dataset(config_of(model)).build()
    assert sequences(parts[0]) == histories(tied_clicks())
    assert last_items(parts) == {f"u{u}": f"i{u}_9b" for u in range(10)}


@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
def test_random_tie_order_is_seeded_and_permutes_ties_only(model: str) -> None:
    write(tied_clicks())

    def shuffled(seed: int) -> dict[str, list[str]]:
        return sequences(create_dataset(config_of(model, tie_order="random", seed=seed)).build()[0])

    first, again, other, file = shuffled(1), shuffled(1), shuffled(2), histories(tied_clicks())
    assert first == again
    assert first != other
    assert first != file
    for user, sequence in first.items():
        for k in (0, 3, 6):  # the three of one stamp
            assert sorted(sequence[k : k + 3]) == sorted(file[user][k : k + 3])
    assert len({tuple(item.split("_")[1] for item in sequence) for sequence in first.values()}) > 1


def test_the_order_of_ties_has_a_seed_of_its_own() -> None:
    """With `tie_seed` it is the same whatever the run's seed; without one it is that of `tie_seed` = the run's seed."""
    write(tied_clicks())

    def shuffled(**seeds: int) -> tuple[dict[str, list[str]], str]:
        parts = create_dataset(config_of("CaFe", tie_order="random", **seeds)).build()
        return sequences(parts[0]), parts[0].digests["interactions"]

    fixed = shuffled(seed=1, tie_seed=5)
    assert fixed == shuffled(seed=2, tie_seed=5) == shuffled(seed=5)
    other = shuffled(seed=1, tie_seed=6)
    assert fixed[0] != other[0] and fixed[1] != other[1]  # the digest tells the orders apart


@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
def test_a_test_target_of_the_time_of_the_item_before_is_not_later(model: str) -> None:
    clicks = [("a", "x", 5), ("a", "y", 5), ("a", "z", 5), ("b", "x", 5), ("b", "y", 7), ("b", "z", 9)]
    write(clicks)
    test = create_dataset(config_of(model)).build()[2]
    users = test.id2token("user_id", test.inter_feat["user_id"].numpy())
    assert dict(zip(users, test.later_targets().tolist(), strict=True)) == {"a": False, "b": True}
    assert test.later_unknown == ""


def test_tie_order_random_changes_nothing_without_ties() -> None:
    clicks = random_clicks(LENGTHS)
    write(clicks)
    assert sequences(create_dataset(config_of(tie_order="random")).build()[0]) == histories(clicks)


@pytest.mark.parametrize("cell", ["", "nan"])
@pytest.mark.parametrize("model", ["CaFe", "BPR"])
def test_a_missing_stamp_is_named(model: str, cell: str) -> None:
    clicks = random_clicks([5, 6])
    clicks[3], clicks[7] = (*clicks[3][:2], cell), (*clicks[7][:2], cell)
    write(clicks)
    message = rf"toy\.inter: line 5, column 'timestamp': found '{cell}', which is a missing value; expected one in each"
    with pytest.raises(DataError, match=message):
        create_dataset(config_of(model))


@pytest.mark.parametrize("model", ["CaFe", "BPR"])
def test_a_file_without_stamps_is_refused(model: str) -> None:
    write([(u, i) for u, i, _ in random_clicks([5])], header="user_id:token\titem_id:token")
    with pytest.raises(DataError, match=r"toy\.inter has no column 'timestamp' loaded, .*: set TIME_FIELD, or load_"):
        create_dataset(config_of(model, user_inter_num_interval="[99,inf)"))  # said before filters that leave nothing


@pytest.mark.parametrize(("keep", "expected"), [("first", ["a", "b", "c", "d"]), ("last", ["c", "a", "d", "b"])])
@pytest.mark.parametrize("model", ["CaFe", "BPR"])
def test_rm_dup_inter_keeps_the_stable_order_and_says_how_many(
    model: str, keep: str, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # in time: a b c a d b, the last three tied; u2 has no duplicate
    clicks = [("u1", "a", 1), ("u1", "b", 2), ("u1", "c", 3), ("u1", "a", 9), ("u1", "d", 9), ("u1", "b", 9)]
    write([*clicks, *(("u2", item, 9) for item in "dcba")])
    dataset = create_dataset(config_of(model, rm_dup_inter=keep))
    assert sequences(dataset.build()[0]) == {"u1": expected, "u2": ["d", "c", "b", "a"]}
    assert f"rm_dup_inter={keep}: 2 of 10 interactions dropped" in caplog.text


def test_filters_say_how_many_they_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(random_clicks([2, 3, 9]))
    dataset = create_dataset(config_of(user_inter_num_interval="[3,inf)"))
    assert sorted(map(len, sequences(dataset.build()[0]).values())) == [3, 9]
    assert "filters dropped 2 of 14 interactions of toy" in caplog.text


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"LS": "test_only"}, {"RS": [0.6, 0.2, 0.2]}], ids=str)
@pytest.mark.parametrize("max_length", [1, 2, 5, 50])
def test_each_train_interaction_is_a_target_once(max_length: int, split: dict[str, Any]) -> None:
    for seed in range(3):
        lengths = [*np.random.default_rng(seed).integers(1, 40, 25).tolist(), 120]
        clicks = random_clicks(lengths, seed=seed, unique_items=True)
        write(clicks)
        config = config_of(MAX_ITEM_LIST_LENGTH=max_length, eval_args={"split": split})
        dataset = create_dataset(config)
        windows, prefixes = dataset.build()[0], SequenceDataset(config_of(
            MAX_ITEM_LIST_LENGTH=max_length, eval_args={"split": split}, train_layout="last")).build()[0]  # fmt: skip
        batch, of = rows(windows), histories(clicks)
        target = batch[TARGET_LIST]
        seen: Counter = Counter()
        for i, user in enumerate(tokens(windows, "user_id", batch["user_id"])):
            length = int(batch["item_length"][i])
            inputs = tokens(windows, "item_id", batch["item_id_list"][i, :length])
            targets = tokens(windows, "item_id", target[i, :length])
            assert 1 <= length <= max_length
            assert (target[i, length:] == 0).all()
            start = of[user].index(inputs[0])
            assert of[user][start : start + length + 1] == [*inputs, targets[-1]]  # a piece of his history
            assert targets == of[user][start + 1 : start + length + 1]  # each input's successor
            seen.update(targets)
        assert seen == Counter(tokens(prefixes, "item_id", prefixes.inter_feat["item_id"]))
        assert max(seen.values()) == 1
        users = tokens(windows, "user_id", batch["user_id"])
        of_user = Counter(tokens(prefixes, "user_id", prefixes.inter_feat["user_id"]))
        assert Counter(users) == {user: -(-n // max_length) for user, n in of_user.items()}  # as few rows as can be


def moved_windows(window_prob: float, lengths: list[int], draws: int = 1) -> list[list[tuple[int, int]]]:
    """For each user, where his rows began and how long they were in `draws` readings of the train split."""
    clicks = random_clicks(lengths, unique_items=True)
    write(clicks)
    windows, of = NetDataset(config_of(window_prob=window_prob)).build()[0], histories(clicks)
    batch = windows[np.tile(np.arange(len(windows)), draws)]
    read = (batch["user_id"][:, None], batch["item_length"][:, None], batch["item_id_list"], batch[TARGET_LIST])
    seen: dict[str, list[tuple[int, int]]] = {user: [] for user in of}
    for row, count in zip(*torch.unique(torch.cat(read, dim=1), dim=0, return_counts=True), strict=True):
        (user,), length = tokens(windows, "user_id", row[:1]), int(row[1])
        inputs, targets = (tokens(windows, "item_id", part[:length]) for part in row[2:].split(L))
        start = of[user].index(inputs[0])
        assert of[user][start : start + length] == inputs
        assert targets == of[user][start + 1 : start + length + 1]
        seen[user] += [(start, length)] * int(count)
    return [seen[f"u{i}"] for i in range(len(lengths))]


def test_windows_of_long_users_move_along_the_train_interactions() -> None:
    """Users of 14, 7, 8 and 4 interactions: 11, 4, 5 and 1 train targets, of which a row holds 5."""
    long, short, full, shortest = moved_windows(1.0, [14, 7, 8, 4], draws=3000)
    assert {length for _, length in long} == {L}
    assert len(long) == 3 * 3000
    starts = Counter(start for start, _ in long)
    assert sorted(starts) == list(range(11 - L + 1))  # never into the held-out interactions
    # 9000 draws of seven places: five standard deviations of a share are 0.019
    assert [starts[i] / 9000 for i in range(7)] == pytest.approx([1 / 7] * 7, abs=0.019)
    assert set(short) == {(0, 4)} and set(full) == {(0, 5)} and set(shortest) == {(0, 1)}


def test_windows_move_with_the_probability_asked_for() -> None:
    fixed, (some,) = moved_windows(0.0, [14]), moved_windows(0.25, [14], draws=4000)
    assert sorted(fixed[0]) == [(0, 1), (1, 5), (6, 5)]
    share = sum(place == (0, 1) for place in some) / 4000  # the shortest window is there only if it was not moved
    assert share == pytest.approx(0.75, abs=0.035)  # five standard deviations


def test_moved_windows_change_neither_the_counts_nor_the_other_splits() -> None:
    write(random_clicks(LENGTHS))
    moved, fixed = (SequenceDataset(config_of(window_prob=p)).build() for p in (1.0, 0.0))
    assert moved[0].item_counter == fixed[0].item_counter
    assert len(moved[0]) == len(fixed[0])
    for a, b in zip(moved[1:], fixed[1:], strict=True):
        for column in rows(b).interaction:
            assert torch.equal(rows(a)[column], rows(b)[column])


@pytest.mark.parametrize("settings", [{"window_prob": 0.5, "train_layout": "last"}, {"window_prob": 1.5}], ids=str)
def test_windows_that_cannot_be_moved_are_named(settings: dict[str, Any]) -> None:
    write(random_clicks(LENGTHS))
    with pytest.raises(DataError, match=rf"window_prob={settings['window_prob']} with train_layout="):
        SequenceDataset(config_of(**settings)).build()


def test_windows_leave_validation_and_test_alone() -> None:
    write(random_clicks(LENGTHS))
    windows, prefixes = (SequenceDataset(config_of(train_layout=layout)).build() for layout in ("all", "last"))
    for a, b in zip(windows[1:], prefixes[1:], strict=True):
        for field, column in rows(a).interaction.items():
            assert torch.equal(column, rows(b)[field])


def test_windows_of_a_split_with_gaps_are_refused() -> None:
    write(random_clicks([12, 9]))
    dataset = SequenceDataset(config_of(train_layout="last"))
    train = dataset.build()[0]
    message = "train_layout=all needs a split in which each user's train interactions come first"
    for keep in (np.arange(1, len(train)), np.r_[0, 2 : len(train)], np.arange(0, len(train), 2)):
        with pytest.raises(DataError, match=message):
            train.copy(train.inter_feat[keep.tolist()]).as_windows()
    shuffled = train.inter_feat[np.random.default_rng(0).permutation(len(train)).tolist()]
    assert len(train.copy(shuffled).as_windows()) == len(train.as_windows())  # the order of the rows is no gap


def test_a_random_split_is_refused() -> None:
    write(random_clicks([12, 9]))
    with pytest.raises(ValueError, match="ordering args for sequential recommendation has to be 'TO'"):
        create_dataset(config_of(eval_args={"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO"})).build()


# Counts ---------------------------------------------------------------------------------------------------------------


def train_interactions(clicks: list[Click]) -> dict[str, list[str]]:
    """What leave-last-2-out leaves of each user by RecBole's rule, his first item included."""
    left = {}
    for user, items in histories(clicks).items():
        held_out = min(2, len(items) - 2)
        if len(items) > 1:
            left[user] = items[: len(items) - held_out]
    return left


@pytest.mark.parametrize("layout", ["all", "last"])
@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_counts_of_the_train_split(layout: str, max_length: int) -> None:
    clicks = random_clicks(LENGTHS)
    write(clicks)
    settings = {"MAX_ITEM_LIST_LENGTH": max_length, "train_layout": layout}
    train = SequenceDataset(config_of(**settings)).build()[0]
    naive = Counter((user, item) for user, items in train_interactions(clicks).items() for item in items)

    users, items = train.user_items()
    pairs = zip(tokens(train, "user_id", users), tokens(train, "item_id", items), strict=True)
    assert Counter(pairs) == naive

    matrix = train.inter_matrix("csr")
    assert matrix.shape == (train.user_num, train.item_num)
    assert matrix.sum() == sum(naive.values())
    for (user, item), count in naive.items():
        assert matrix[train.token2id("user_id", user), train.token2id("item_id", item)] == count

    if layout == "all":
        per_item, per_user = Counter(), Counter()
        for (user, item), count in naive.items():
            per_user[train.token2id("user_id", user)] += count
            per_item[train.token2id("item_id", item)] += count
        assert train.item_counter == per_item
        assert train.user_counter == per_user
    else:  # RecBole's prefix rows count targets, as RecBole does
        stock = SequentialDataset(config_of("SASRec", MAX_ITEM_LIST_LENGTH=max_length)).build()[0]
        assert train.item_counter == stock.item_counter
        assert train.user_counter == stock.user_counter
        if max_length > 1:  # else RecBole takes every row for its user's first and counts inputs twice
            assert (train.inter_matrix("csr") != stock.inter_matrix("csr")).nnz == 0


def test_all_interactions_and_histories_are_whole() -> None:
    clicks = random_clicks(LENGTHS)
    write(clicks)
    for model in ("CaFe", "BPR"):
        parts = create_dataset(config_of(model)).build()
        assert sequences(parts[-1]) == histories(clicks)  # of the whole data set, whatever the split
        index = np.arange(len(parts[-1]))
        for i, items in zip(index, parts[-1].history_items(index), strict=True):
            user = tokens(parts[-1], "user_id", parts[-1].inter_feat["user_id"][i])
            assert parts[-1].id2token("item_id", items).tolist() == histories(clicks)[user][:-1]


# Case study -----------------------------------------------------------------------------------------------------------


def test_case_study_lists_the_best_items_of_a_user() -> None:
    clicks = random_clicks([9, 4, 12, 7])
    write(clicks, ["item_id:token\tintent:token", *(f"i{i}\tc{i % 4}" for i in range(30))])
    config = config_of(n_layers=1, hidden_size=8, inner_size=8)
    train, _, test = data_preparation(config, create_dataset(config))
    torch.manual_seed(1)
    model = config.model_class(config, train._dataset).eval()
    users = test.dataset.token2id("user_id", np.array(["u2", "u0"]))
    scores, items = full_sort_topk(users, model, test, k=4)
    for row, user in enumerate(("u2", "u0")):
        history = [test.dataset.token2id("item_id", item) for item in histories(clicks)[user][:-1][-L:]]
        padded = torch.tensor([history + [0] * (L - len(history))])
        expected = model.network.scores(model.network.query(padded))[0]
        expected[0] = -torch.inf
        best = expected.topk(4)
        assert items[row].tolist() == best.indices.tolist()
        torch.testing.assert_close(scores[row], best.values)


def test_case_study_answers_for_users_without_a_test_row() -> None:
    """Of one interaction nothing is held out: what comes after it is asked. RecBole leaves the row out, unsaid."""
    clicks = [*random_clicks([9, 4, 12, 7]), ("one", "i3", 5), ("two", "i5", 1), ("two", "i6", 2)]
    write(clicks, ["item_id:token\tintent:token", *(f"i{i}\tc{i % 4}" for i in range(30))])
    config = config_of(n_layers=1, hidden_size=8, inner_size=8)
    train, _, test = data_preparation(config, create_dataset(config))
    torch.manual_seed(1)
    model = config.model_class(config, train._dataset).eval()
    names, histories_of = ["one", "u2", "two", "one"], {"one": ["i3"], "two": ["i5", "i6"]}
    histories_of["u2"] = histories(clicks)["u2"][:-1][-L:]
    scores, _ = full_sort_topk(test.dataset.token2id("user_id", np.array(names)), model, test, k=3)
    assert scores.shape == (4, 3)
    for row, user in enumerate(names):
        history = [test.dataset.token2id("item_id", item) for item in histories_of[user]]
        expected = model.network.scores(model.network.query(torch.tensor([history + [0] * (L - len(history))])))[0]
        expected[0] = -torch.inf
        torch.testing.assert_close(scores[row], expected.topk(3).values)
    with pytest.raises(DataError, match=r"user id 0 is none of 1 \.\.\. 6"):
        full_sort_topk([0], model, test, k=3)


# Intents --------------------------------------------------------------------------------------------------------------

ITEMS = "abcdef"
CLICKS = [(user, item, 10 * i + t) for i, user in enumerate(("u1", "u2", "u3")) for t, item in enumerate(ITEMS)]


def intents_by_name(config: Config, dataset: Dataset) -> dict[str, str]:
    """item -> name of its intent, "none" for an item without one."""
    intents = item_intents(config, dataset)
    assert intents.item2intent.shape == (dataset.item_num,)
    assert intents.item2intent[0] == 0
    assert intents.n_intents == dataset.num(config["INTENT_FIELD"])
    names = [*dataset.id2token(config["INTENT_FIELD"], np.arange(intents.n_intents)), "none"]
    ids = range(1, dataset.item_num)
    result = {str(dataset.id2token("item_id", i)): str(names[intents.item2intent[i]]) for i in ids}
    assert intents.n_without == sum(name == "none" for name in result.values())
    return result


TOKEN = [
    "item_id:token\tprice:float\tintent:token",
    "a\t1\ttea",
    "b\t2\tjam",
    "f\t2\ttea",
    "c\t3\t",
    "d\t4\ttea",
    "e\t5\t",
]


def test_intents_from_a_token_column(caplog: pytest.LogCaptureFixture) -> None:
    write(CLICKS, TOKEN)
    config = config_of()
    dataset = create_dataset(config)
    expected = {"a": "tea", "b": "jam", "c": "none", "d": "tea", "e": "none", "f": "tea"}
    assert intents_by_name(config, dataset) == expected
    assert intents_by_name(config, dataset.build()[0]) == expected  # a DataFrame before, tensors now
    assert item_intents(config, dataset).n_intents == 3  # padding, tea, jam
    assert item_intents(config, dataset).item2intent.max() == 3
    assert "2 of 6 items have no intent in toy.item; they share one 'no intent' id" in caplog.text


def test_an_item_without_a_row_has_no_intent() -> None:
    write(CLICKS, TOKEN[:-1])
    config = config_of(filter_inter_by_user_or_item=False)
    assert intents_by_name(config, create_dataset(config))["e"] == "none"


SEQ = ["item_id:token\tintent:token_seq", "a\tx y z", "b\ty", "c\ty z", "d\t", "e\tz y x", "f\ty w"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("first", {"a": "x", "b": "y", "c": "y", "d": "none", "e": "z", "f": "y"}),
        ("last", {"a": "z", "b": "y", "c": "z", "d": "none", "e": "x", "f": "w"}),
        # w 1, x 2, z 3, y 5
        ("rarest", {"a": "x", "b": "y", "c": "z", "d": "none", "e": "x", "f": "w"}),
    ],
)
def test_intents_from_a_token_seq_column(choice: str, expected: dict[str, str]) -> None:
    write(CLICKS, SEQ)
    config = config_of(intent_from=choice)
    dataset = create_dataset(config)
    assert intents_by_name(config, dataset) == expected
    assert intents_by_name(config, dataset.build()[0]) == expected


def test_equally_rare_tokens_go_to_the_earlier_one() -> None:
    write(CLICKS, [SEQ[0], "a\tp q", "b\tq p", "c\tp q", "d\tq p", "e\tr", "f\tr"])
    config = config_of(intent_from="rarest")
    expected = {"a": "p", "b": "q", "c": "p", "d": "q", "e": "r", "f": "r"}
    assert intents_by_name(config, create_dataset(config)) == expected


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        (None, {}, r"dataset/toy/toy\.item does not exist; the intent of each item is read from it\. In the folder: "
                   r"\['toy\.inter'\]"),
        (TOKEN, {"INTENT_FIELD": "brand"}, r"toy\.item has no column 'brand' to read intents from; its columns are "
                                           r"item_id:token, price:float, intent:token\. Set INTENT_FIELD to one of"),
        (TOKEN, {"INTENT_FIELD": "price"}, r"column 'price' is of type float, intents are tokens; expected token or "
                                           r"token_seq, the columns are item_id:token, price:float, intent:token"),
        (SEQ, {}, r"column 'intent' is a token_seq, 4 items have more than one token, .* set intent_from to one of "
                  r"first, last, rarest \(got None\)"),
        ([TOKEN[0], *(f"{item}\t1\t" for item in ITEMS)], {}, "column 'intent' is empty for every item"),
        ([SEQ[0], *(f"{item}\t" for item in ITEMS)], {"intent_from": "first"}, "column 'intent' is empty for every"),
    ],
    ids=["no file", "no column", "float", "token_seq", "empty", "empty seq"],
)  # fmt: skip
def test_columns_that_hold_no_intent(items: list[str] | None, settings: dict, message: str) -> None:
    write(CLICKS, items)
    config = config_of(**settings)
    for dataset in (create_dataset(config), create_dataset(config).build()[0]):
        with pytest.raises(DataError, match=message):
            item_intents(config, dataset)


def test_a_column_that_was_not_loaded_is_named() -> None:
    write(CLICKS, TOKEN)
    config = config_of()
    config["load_col"] = {**config["load_col"], "item": ["item_id"]}
    with pytest.raises(DataError, match=r"column 'intent' of .*toy\.item was not loaded \(loaded: \['item_id'\]\);"):
        item_intents(config, create_dataset(config))


def test_models_without_intents_need_no_item_file() -> None:
    write(CLICKS)
    for model in ("SASRec", "BPR"):
        assert len(create_dataset(config_of(model)).build()[2]) == 3


def test_every_model_sees_the_same_catalogue() -> None:
    """e occurs without a row in the .item file, g has a row and does not occur."""
    write(CLICKS, [*TOKEN[:-1], "g\t7\tjam"])
    for model in ("CaFe", "SASRec", "BPR"):
        dataset = create_dataset(config_of(model))
        assert sorted(dataset.field2id_token["item_id"][1:]) == ["a", "b", "c", "d", "f", "g"]
        assert dataset.inter_num == 15


# Files ----------------------------------------------------------------------------------------------------------------


def test_an_unknown_dataset_lists_those_there_are() -> None:
    write(CLICKS)
    write(CLICKS, name="other")
    message = "no data set 'nothere': looked for dataset/nothere; data sets in dataset: other, toy. Set data_path"
    with pytest.raises(DataError, match=message):
        create_dataset(Config("CaFe", "nothere", config_dict={"data_path": "dataset"}))
    with pytest.raises(
        DataError, match=r"no data set 'nothere': looked for dataset_atomic/nothere, .*, dataset/nothere"
    ):
        create_dataset(Config("CaFe", "nothere"))


@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
def test_a_bad_header_is_named(model: str) -> None:
    write(CLICKS, header="user_id:token\titem_id\ttimestamp:float")
    with pytest.raises(AtomicFileError, match=r"toy\.inter: line 1, column 2: found 'item_id'"):
        create_dataset(config_of(model))


# Columns that keys name -----------------------------------------------------------------------------------------------

RATED = [("a", "i1", 1), ("a", "i2", 2), ("a", "i3", 3), ("1", "i1", 4), ("1", "i2", 5), ("1", "i3", 6)]


@pytest.mark.parametrize("model", ["CaFe", "BPR"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_interval": {"timestmp": "[2,inf)"}}, "val_interval names 'timestmp', .* loaded; did you mean timestamp"),
        ({"val_interval": {"timestamp": [1, 2, 3]}}, r"val_interval: timestamp=\[1, 2, 3\] should be an interval as t"),
        ({"val_interval": {"user_id": "[1,2]"}}, r"val_interval: user_id='\[1,2\]' should be a list of the tokens to"),
        ({"numerical_features": ["user_id"]}, "numerical_features names 'user_id', a column of type token of toy; exp"),
        (
            {"numerical_features": ["price"]},
            "numerical_features names 'price', and toy has no such column loaded; load",
        ),
        ({"alias_of_item_id": ["itemlist"]}, "alias_of_item_id names 'itemlist', and toy has no such column loaded"),
        ({"threshold": {"user_id": 3}}, "threshold names 'user_id', a column of type token of toy; expected float$"),
        ({"seq_len": {"user_id": 3}}, "seq_len names 'user_id', a column of type token of toy; expected token_seq or"),
        ({"load_col": {"inter": ["ratng"]}}, "load_col: inter names 'ratng', and toy has no such column loaded"),
        ({"unused_col": {"inter": ["ratng"]}}, "unused_col: inter names 'ratng', and toy has no such column loaded"),
    ],
)
def test_a_column_that_a_key_cannot_be_about_is_named(model: str, settings: dict[str, Any], message: str) -> None:
    write(RATED)
    with pytest.raises(ConfigError, match=message):
        create_dataset(config_of(model, **settings))


@pytest.mark.parametrize("reader", ["recbole", "columnar"])
@pytest.mark.parametrize(
    ("kept", "n"),
    [({"timestamp": "(2,5]"}, 3), ({"timestamp": "[1,2);[6,inf)"}, 2), ({"user_id": [1]}, 3), ({"user_id": ["a"]}, 3)],
)
def test_val_interval_keeps_what_it_says(reader: str, kept: dict[str, Any], n: int) -> None:
    write(RATED)
    assert len(create_dataset(config_of("BPR", val_interval=kept, reader=reader)).inter_feat) == n


def test_filters_that_leave_nothing_are_named() -> None:
    write(RATED)
    with pytest.raises(
        DataError, match=r"the filters leave nothing of toy\.inter; .*user_inter_num_interval='\[99,inf\)'"
    ):
        create_dataset(config_of("CaFe", user_inter_num_interval="[99,inf)"))


# Splits without rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "clicks", "split", "message"),
    [
        ("CaFe", RATED, {"LS": "valid_only"}, "the test split is empty: .* {LS: valid_only} leaves nothing for the"),
        ("CaFe", [(u, i, 1) for u in "ab" for i in "xy"], {"LS": "valid_and_test"}, "no user has three interactions"),
        ("BPR", [(u, "x", 1) for u in "ab"], {"LS": "test_only"}, "toy: the test split is empty .* no user has two in"),
        ("BPR", RATED, {"RS": [1, 0, 0]}, r"the test split is empty with .* {RS: \[1, 0, 0\]}; give it a larger share"),
    ],
)
def test_an_empty_split_says_why(model: str, clicks: list[Click], split: dict[str, Any], message: str) -> None:
    write(clicks)
    config = config_of(model, eval_args={"split": split}, eval_mode="full", train_layout="last")
    with pytest.raises(ConfigError, match=message):
        data_preparation(config, create_dataset(config))
