"""Data that come split already, `benchmark_filename`: as interactions and as rows with histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atomic_files import INTER, atomic_files

from recbole_cafe import Config, run
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.experiment import create_dataset, data_preparation

PARTS = ["train", "valid", "test"]
LISTS = ("user_id:token", "item_id_list:token_seq", "item_id:token", "timestamp:float")
INTENTS = {f"i{k}": "xy"[k % 2] for k in range(9)}
# The test's interactions are older than what is trained on: sorted by time over all parts they would be its history
CLICKS = {
    "train": [("a", "i1", 50), ("b", "i4", 10), ("a", "i0", 40), ("a", "i2", 60), ("b", "i5", 11)],
    "valid": [("a", "i3", 1), ("b", "i6", 12), ("c", "i8", 5)],
    "test": [("a", "i7", 2), ("b", "i7", 13), ("c", "i0", 4)],
}
ROWS = {
    "train": [("a", "i0", "i1", 50), ("a", "i0 i1", "i2", 60), ("b", "i4", "i5", 11)],
    "valid": [("a", "i0 i1 i2", "i3", 1), ("b", "i4 i5", "i6", 12)],
    "test": [("a", "i0 i1 i2 i3", "i7", 2), ("b", "i4 i5 i6", "i7", 13)],
}
ALIAS = {"alias_of_item_id": ["item_id_list"]}


def write(header: Any, parts: Any, folder: Path = Path("dataset")) -> None:
    files = {f"{part}.inter": (header, rows) for part, rows in parts.items()}
    atomic_files(folder, "parts", item=INTENTS, others=files)


def config_of(model: str, **settings: Any) -> Config:
    plain = {"data_path": "dataset", "benchmark_filename": PARTS, "gpu_id": "", "MAX_ITEM_LIST_LENGTH": 3,
             "train_layout": "last", "state": "WARNING"}  # fmt: skip
    return Config(model, "parts", config_dict=plain | settings)


def rows_of(part: Any) -> list[tuple[str, str, str]]:
    """(user, history, target) of each row, as tokens."""
    rows = part[torch.arange(len(part))]
    token = part.field2id_token["item_id"]
    return [
        (
            str(part.field2id_token["user_id"][user]),
            " ".join(token[history[:length]]),
            str(token[target]),
        )
        for user, history, length, target in zip(
            *(rows[name].tolist() for name in ("user_id", "item_id_list", "item_length", "item_id")), strict=True
        )
    ]


def built(model: str, **settings: Any) -> list[Any]:
    config = config_of(model, **settings)
    return [loader._dataset for loader in data_preparation(config, create_dataset(config))]


TRAIN = [("a", "i0", "i1"), ("a", "i0 i1", "i2"), ("b", "i4", "i5")]
VALID = [("a", "i0 i1 i2", "i3"), ("b", "i4 i5", "i6")]
TEST = [("a", "i1 i2 i3", "i7"), ("b", "i4 i5 i6", "i7")]  # the last three items of a history


@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_interactions_stay_in_the_part_they_are_given_in(model: str) -> None:
    """c has no history to predict i8 from; for the test i8 is one."""
    write(INTER, CLICKS)
    train, valid, test = built(model)
    assert sorted(rows_of(train)) == TRAIN
    assert sorted(rows_of(valid)) == VALID
    assert sorted(rows_of(test)) == [*TEST, ("c", "i8", "i0")]
    assert sorted(train.user_items()[1].tolist()) == sorted(train.token2id("item_id", i) for i in
                                                            ["i0", "i1", "i2", "i4", "i5"])  # fmt: skip


def test_windows_hold_what_is_to_be_trained_on_alone() -> None:
    write(INTER, CLICKS)
    train, *_ = built("CaFe", train_layout="all")
    assert sorted(rows_of(train)) == TRAIN[1:]


def test_a_general_model_has_every_interaction_of_its_part() -> None:
    write(INTER, CLICKS)
    parts = built("BPR", train_layout="last")
    tokens = [
        sorted((str(part.field2id_token["user_id"][u]), str(part.field2id_token["item_id"][i]))
               for u, i in zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist(), strict=True))
        for part in parts
    ]  # fmt: skip
    assert tokens == [sorted((u, i) for u, i, _ in CLICKS[name]) for name in PARTS]
    row = int(np.flatnonzero(parts[2].inter_feat["item_id"].numpy() == parts[2].token2id("item_id", "i0"))[0])
    assert parts[2].history_items(np.array([row]))[0].tolist() == [parts[2].token2id("item_id", "i8")]


@pytest.mark.parametrize("layout", ["all", "last"])
@pytest.mark.parametrize("model", ["CaFe", "SASRec"])
def test_rows_with_histories_are_taken_as_they_are(model: str, layout: str) -> None:
    write(LISTS, ROWS)
    train, valid, test = built(model, **ALIAS, **({"train_layout": layout} if model == "CaFe" else {}))
    assert sorted(rows_of(train)) == TRAIN
    assert sorted(rows_of(valid)) == VALID
    assert sorted(rows_of(test)) == TEST
    long = test.history_items(np.arange(len(test)))
    assert sorted(len(items) for items in long) == [3, 4]  # masked are all items of the history, however long
    users, items = train.user_items()
    names = [
        (str(train.id2token("user_id", u)), str(train.id2token("item_id", i)))
        for u, i in zip(users, items, strict=True)
    ]
    assert names == [("a", "i0"), ("a", "i1"), ("a", "i2"), ("b", "i4"), ("b", "i5")]
    assert len(test.all_interactions()[0]) == 9


@pytest.mark.parametrize(("header", "parts", "alias"), [(INTER, CLICKS, {}), (LISTS, ROWS, ALIAS)])
@pytest.mark.parametrize("model", ["CaFe", "CaFePlus", "SASRec"])
def test_a_run(model: str, header: Any, parts: Any, alias: Any) -> None:
    write(header, parts)
    settings = {
        "epochs": 1,
        "show_progress": False,
        "topk": [3],
        "valid_metric": "NDCG@3",
        "eval_mode": ["full", "pop2"],
    }
    config = {"data_path": "dataset", "benchmark_filename": PARTS, "gpu_id": "", "MAX_ITEM_LIST_LENGTH": 3}
    result = run(model, "parts", config_dict=config | settings | alias)
    assert set(result.test_result) == {"full", "pop2"} | ({"full_later"} if header is INTER else set())
    assert (result.later_unknown == "") == (header is INTER)
    assert result.test_result["full"]["ndcg@3"] >= 0


def test_what_cannot_be_split_so_is_named() -> None:
    write(INTER, CLICKS)
    with pytest.raises(ConfigError, match=r"benchmark_filename=\['train', 'test'\] should name three parts"):
        built("CaFe", benchmark_filename=["train", "test"])
    with pytest.raises(
        DataError,
        match=r"parts\.dev\.inter does not exist .benchmark_filename=.*; in the folder: .*parts\.train\.inter",
    ):
        built("CaFe", benchmark_filename=["train", "dev", "test"])
    write(LISTS, ROWS)
    with pytest.raises(DataError, match=r"window_prob=0\.5 needs the interactions of users"):
        built("SSEPT", window_prob=0.5, train_layout="all", **ALIAS)


def test_histories_need_names_of_parts() -> None:
    atomic_files(Path("dataset"), "parts", item=INTENTS, inter=ROWS["train"] * 3, inter_header=LISTS)
    with pytest.raises(DataError, match="histories of rows that are split already: name the parts with benchmark_fil"):
        built("CaFe", benchmark_filename=None, **ALIAS)
