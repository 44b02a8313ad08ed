"""recbole_cafe.data.columnar and reader: the data set that RecBole's reader gives, whatever the files look like."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers as recboles_samplers

from recbole_cafe import Config
from recbole_cafe.data import reader
from recbole_cafe.data.columnar import TokenIds, Vocabulary, missing_texts, read_columns
from recbole_cafe.data.intents import item_intents
from recbole_cafe.data.rows import ROW, TargetRows
from recbole_cafe.data.samplers import create_samplers
from recbole_cafe.errors import DataError
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.files.atomic import AtomicFileError

INTER = "user_id:token\titem_id:token\ttimestamp:float\trating:float\ttag:token"
ITEM = "item_id:token\tprice:float\tintent:token"
USER = "age:float\tuser_id:token\tcity:token"
# Cells as they stand in a file: missing ones, numbers that are tokens, quotation marks, other alphabets
TOKENS = ["007", "7", "7.0", "NA", "None", "null", "N/A", "nan", "", "NaN", "none", " x", "x ", "x", "a b", 'a"b',
          "é", "日本", '"q"', '"two ""marks"""', '"tab\tin"', '"line\nin"', '"NA"', "True", "1e5", "[PAD]"]  # fmt: skip
NUMBERS = ["1", "-2.5", "0.1", "1e3", "007", "", "NA", " 4", "1600000000.1234567", "1234567890123456789", "5.", ".5",
           "inf", "0.30000000000000004", "9007199254740993", "2.2250738585072014e-308", "+3"]  # fmt: skip
FILES = {"load_col": {"inter": "*", "item": "*", "user": "*"}}


def write(name: str, *lines: str, ending: str = "\n", last: str = "\n") -> Path:
    path = Path("dataset", "toy", f"toy.{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((ending.join(lines) + last).encode())
    return path


def write_odd(seed: int) -> None:
    """A data set full of oddities; each seed has others."""
    rng = np.random.default_rng(seed)
    ending = "\r\n" if seed % 3 == 1 else "\n"
    plain = seed % 2 == 0  # without quotation marks
    tokens = [t for t in TOKENS if not (plain and '"' in t)] + [f"t{i}" for i in range(20)]
    numbers = [NUMBERS, ["12", "1.25", "-3", ""], ["1600000000123456789", "17"]][seed % 3]
    stamps = [["1600000000{:03}", "{}.5"], ["16000000000000{:05}"], ["{}", "1e{}"]][seed // 2 % 3]

    def some(values: list[str]) -> str:
        return str(rng.choice(values))

    def stamp() -> str:
        return some(stamps).format(int(rng.integers(0, 99)))

    # RecBole drops the wrong rows, or fails, when both ids of the interactions are missing somewhere, or those of an
    # .item file in which another id occurs twice: it takes labels of an index for positions
    present = [t for t in tokens if t.strip('"') not in missing_texts()]
    owners, things = (tokens[:12], present) if plain else (present[:9], tokens)
    inter = [
        f"{some(owners)}\t{some(things)}\t{stamp()}\t{some(numbers)}\t{some(tokens)}"
        for _ in range(int(rng.integers(60, 160)))
    ]
    listed = [*rng.permutation([*present, "NA"])] if plain else [some(present) for _ in range(60)]
    items = [f"{token}\t{some(numbers)}\t{some(tokens)}" for token in [*listed, "new1", "new2"]]
    users = [f"{some(numbers)}\t{token}\t{some(tokens)}" for token in rng.permutation(["NA", *present])]
    if seed % 4 == 3:
        inter.insert(5, "")  # a blank line
    write("inter", INTER, *inter, ending=ending, last="" if seed % 5 == 0 else ending)
    write("item", ITEM, *items, ending=ending)
    if seed % 2:
        write("user", USER, *users, ending=ending)


def prepared(model: str, how: str, **settings: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Config, data set before the split, loaders."""
    plain = {"data_path": "dataset", "MAX_ITEM_LIST_LENGTH": 5, "gpu_id": "", "show_progress": False, "worker": 0}
    config = Config(model, "toy", config_dict=plain | settings | {"reader": how})
    dataset = create_dataset(config)
    before = dataset.item_feat if dataset.item_feat is None else dataset.item_feat.copy()
    dataset.before = before
    return config, dataset, data_preparation(config, dataset)


def assert_equal_feats(ours: Any, stock: Any) -> None:
    assert (ours is None) == (stock is None)
    if stock is not None:
        assert list(ours.interaction) == list(stock.interaction)
        for name in stock.interaction:
            assert ours[name].dtype == stock[name].dtype, name
            torch.testing.assert_close(ours[name], stock[name], rtol=0, atol=0, equal_nan=True)


def assert_same(model: str, **settings: Any) -> Any:
    """Columnar and RecBole's reader give one data set; returns the columnar one."""
    config, ours, loaders = prepared(model, "columnar", **settings)
    _, stock, stock_loaders = prepared(model, "recbole", **settings)
    assert isinstance(ours.field2token_id["item_id"], TokenIds)
    assert isinstance(stock.field2token_id["item_id"], dict)
    assert list(ours.field2id_token) == list(stock.field2id_token)
    for field, tokens in stock.field2id_token.items():
        assert ours.field2id_token[field].dtype == tokens.dtype
        assert ours.field2id_token[field].tolist() == tokens.tolist()
        assert ours.field2token_id[field] == stock.field2token_id[field]
    for name in ("field2type", "field2source", "field2seqlen", "field2bucketnum"):
        assert getattr(ours, name) == getattr(stock, name), name
    if stock.before is not None:
        pd.testing.assert_frame_equal(ours.before, stock.before, check_dtype=False)
    for name in ("user_feat", "item_feat", "flat"):
        assert_equal_feats(getattr(ours, name), getattr(stock, name))
    assert torch.equal(ours.user_start, stock.user_start)
    for loader, other in zip(loaders, stock_loaders, strict=True):
        assert (loader is None) == (other is None)
        if other is not None:
            index = np.arange(len(other._dataset))
            assert len(loader._dataset) == len(index)
            assert loader._dataset.inter_feat[ROW].tolist() == other._dataset.inter_feat[ROW].tolist()
            assert_equal_feats(loader._dataset[index], other._dataset[index])
    if config["INTENT_FIELD"] in stock.field2id_token and model == "CaFe":
        one, other = item_intents(config, ours), item_intents(config, stock)
        assert one.item2intent.tolist() == other.item2intent.tolist()
        assert (one.n_intents, one.n_without) == (other.n_intents, other.n_without)
    return ours


@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
@pytest.mark.parametrize("seed", range(12))
def test_same_as_recboles_reader(seed: int, model: str) -> None:
    write_odd(seed)
    assert_same(model, **FILES)


def test_the_columns_of_the_experiments() -> None:
    write_odd(2)
    ours = assert_same("CaFe")
    assert set(ours.field2id_token) == {"user_id", "item_id", "intent"}


FILTERS = [
    {"filter_inter_by_user_or_item": False},
    {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[2,inf)"},
    {"user_inter_num_interval": "[0,inf)", "item_inter_num_interval": "[0,inf)"},
    {"item_inter_num_interval": "(0,9];[11,12)"},
    {"rm_dup_inter": "first"},
    {"rm_dup_inter": "last", "user_inter_num_interval": "[3,inf)"},
    {"val_interval": {"rating": "[-5,100]"}},
    {"val_interval": {"price": "[-5,100]"}},
    {"tie_order": "random"},
    {"normalize_all": True},
    {"threshold": {"rating": 1.0}},
    {"load_col": None, "unload_col": {"inter": ["rating", "tag"]}},
    {"eval_args": {"split": {"LS": "test_only"}}},
    {"train_layout": "last"},
]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 6])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_filters_are_recboles(seed: int, settings: dict[str, Any]) -> None:
    write_odd(seed)
    assert_same("CaFe", **FILES | settings)


def test_lists_in_the_item_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_odd(0)
    cells = ["7\tx y", "007\ty", "NA\tz", "x\t", "t1\tz x", "x\tagain", *(f"t{i}\tw" for i in range(2, 20))]
    write("item", "item_id:token\tintent:token_seq", *cells)
    assert_same("CaFe", intent_from="rarest", **FILES)
    assert "toy.item is read by RecBole's reader: intent holds a list in each row" in caplog.text


def test_blocks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and numbers of many blocks, of which some are of integers only."""
    from recbole_cafe.data import columnar

    monkeypatch.setattr(columnar, "BLOCK_BYTES", 256)
    rng = np.random.default_rng(0)
    stamps = [str(k) if k < 200 or k % 2 else f"{k}.25" for k in range(400)]
    stamps[7], stamps[390] = "1234567890123456789", "0.30000000000000004"
    lines = [f"u{rng.integers(9)}\ti{rng.integers(50)}\t{stamp}" for stamp in stamps]
    write("inter", "user_id:token\titem_id:token\ttimestamp:float", *lines)
    assert_same("SASRec")


@pytest.mark.parametrize(
    "numbers", [["1600000000123456789", "3"], ["9007199254740993", "1.5"], ["", "12345678901234567"]]
)
def test_numbers_beyond_float64(numbers: list[str]) -> None:
    """pandas rounds them differently in a column of integers and in others."""
    path = write("inter", "user_id:token\tn:float", *(f"u\t{number}" for number in numbers))
    by_pandas = pd.read_csv(path, sep="\t", engine="python", dtype={"user_id:token": str, "n:float": np.float64})
    got = read_columns(path, ["n"], {})["n"]
    assert got.tobytes() == by_pandas["n:float"].to_numpy().tobytes()


def test_missing_texts_are_those_of_pandas() -> None:
    assert {"", "NA", "NULL", "nan", "<NA>"} <= missing_texts()
    assert "none" not in missing_texts()


def test_a_vocabulary_grows_over_files() -> None:
    tokens = Vocabulary()
    assert tokens.of_texts(np.array(["b", None, "a", "b"], dtype=object)).tolist() == [0, -1, 1, 0]
    assert tokens.of_texts(np.array(["c", "a"], dtype=object)).tolist() == [2, 1]
    assert tokens.id_token(np.array([2, 0])).tolist() == ["[PAD]", "c", "b"]
    assert len(tokens) == 3
    assert Vocabulary().id_token(np.array([], dtype=np.int64)).tolist() == ["[PAD]"]


def test_token_ids_are_a_mapping() -> None:
    ids = TokenIds(np.array(["[PAD]", "a", "b"]))
    assert (ids["b"], "a" in ids, "c" in ids, len(ids), list(ids)) == (2, True, False, 3, ["[PAD]", "a", "b"])
    assert ids == {"[PAD]": 0, "a": 1, "b": 2}
    assert ids.get("c") is None
    with pytest.raises(KeyError):
        ids["c"]


# Errors ---------------------------------------------------------------------------------------------------------------

GOOD = [f"u{k % 4}\ti{k % 7}\t{k}" for k in range(30)]
HEADER = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1\ti1", r"toy\.inter: .*Row #32: Expected 3 columns, got 2: u1"),
        ("u1\ti1\t3\t4", r"toy\.inter: .*Row #32: Expected 3 columns, got 4"),
        ("u1\ti1\tsoon", r"toy\.inter: row 31 below the header, column 'timestamp': found 'soon', expected a number"),
        ("u1\ti1\t0x1F", r"toy\.inter: row 31 below the header, column 'timestamp': found '0x1F'"),
        ('u1\t"i1\t3', r"toy\.inter: "),
    ],
)
def test_bad_lines_are_named(line: str, message: str) -> None:
    write("inter", HEADER, *GOOD, line)
    with pytest.raises(AtomicFileError, match=message):
        prepared("SASRec", "columnar")


def test_bad_text_and_headers_are_named() -> None:
    path = write("inter", HEADER, *GOOD)
    path.write_bytes(path.read_bytes() + b"u\xff\ti1\t3\n")
    with pytest.raises(AtomicFileError, match=r"toy\.inter: .*Row #32: .*invalid UTF8"):
        prepared("SASRec", "columnar")
    write("inter", HEADER, *GOOD)
    write("item", "item_id:token\tintent", "i1\tx")
    with pytest.raises(AtomicFileError, match=r"toy\.item: line 1, column 2: found 'intent'"):
        prepared("CaFe", "columnar")


def test_a_missing_time_is_named_with_its_tokens() -> None:
    write("inter", HEADER, *GOOD, "u1\ti5\t")
    with pytest.raises(DataError, match=r"1 interactions have no timestamp, .* of user_id 'u1' with item_id 'i5'"):
        prepared("SASRec", "columnar")


def test_no_rows() -> None:
    write("inter", HEADER)
    with pytest.raises(ValueError, match="Some feat is empty"):
        prepared("SASRec", "columnar")


# Which reader ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"alias_of_item_id": ["item_id_list"]}, "alias_of_item_id is set"),
        ({"field_separator": ","}, "field_separator is ','"),
        ({"encoding": "latin-1"}, "encoding is latin-1"),
        ({"additional_feat_suffix": ["ent"]}, "additional_feat_suffix is set"),
        ({"val_interval": {"tag": ["a"]}}, "val_interval has tag, which is no float column"),
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp", "tags"]}}, "column tags holds a list in each row"),
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp", "tag"], "item": "*"}}, "column tag is in two"),
    ],
    ids=str,
)
def test_what_only_recboles_reader_can_do(settings: dict[str, Any], reason: str) -> None:
    path = write("inter", f"{HEADER}\ttag:token\ttags:token_seq", *(f"{line}\ta\ta b" for line in GOOD))
    write("item", "item_id:token\tintent:token\ttag:token", "i1\tx\ty")
    config = Config("SASRec", "toy", config_dict={"data_path": "dataset", "reader": "columnar"} | settings)
    probe = object.__new__(type("Probe", (reader.ColumnarMixin, _Columns), {}))
    probe.config, probe.uid_field, probe.iid_field = config, "user_id", "item_id"
    assert reason in probe._reason_against_columns(path)


class _Columns:
    """What `_reason_against_columns` asks of RecBole's Dataset."""

    from recbole.data.dataset import Dataset

    logger = logging.getLogger()
    _get_load_and_unload_col = Dataset._get_load_and_unload_col


def test_the_fallback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    write("inter", f"{HEADER}\ttags:token_seq", *(f"{line}\ta b" for line in GOOD))
    caplog.set_level(logging.INFO)
    columns = {"load_col": {"inter": "*"}}
    _, dataset, _ = prepared("SASRec", "columnar", **columns)
    assert isinstance(dataset.field2token_id["item_id"], dict)
    said = "toy.inter is read by RecBole's reader, not by columns: column tags holds a list in each row"
    assert caplog.text.count(said) == 1


def test_auto_goes_by_the_size_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    size = write("inter", HEADER, *GOOD).stat().st_size
    for limit, kind in ((size, dict), (size - 1, TokenIds)):
        monkeypatch.setattr(reader, "AUTO_BYTES", limit)
        assert isinstance(prepared("SASRec", "auto")[1].field2token_id["item_id"], kind)


# Rows and samplers ----------------------------------------------------------------------------------------------------


def test_rows_are_an_interaction() -> None:
    """What RecBole does with inter_feat, done with rows that are gathered and with the same rows in full."""
    write("inter", HEADER, *GOOD)
    rows = prepared("SASRec", "columnar", train_layout="last")[1].inter_feat
    assert isinstance(rows, TargetRows)
    full = Interaction({name: rows[name] for name in rows})
    assert len(rows) == len(full)
    assert rows.columns == full.columns
    for index in (3, [1, 0], slice(2, 5), range(4), np.array([5, 5]), torch.arange(len(full)) % 2 == 0):
        assert_equal_feats(rows[index], full[list(index) if isinstance(index, range) else index])
    for feat in (rows, full):
        feat["label"] = torch.arange(len(feat)) % 3
        feat.sort(by=["item_id", "label"], ascending=[False, True])
        feat.drop("timestamp")
        feat.update(Interaction({"item_length": feat["item_length"] + 1}))
        torch.manual_seed(1)
        feat.shuffle()
    assert_equal_feats(rows, full)
    assert_equal_feats(rows.repeat(2), full.repeat(2))
    with pytest.raises(KeyError):
        rows["timestamp"]


@pytest.mark.parametrize("train", ["uniform", "popularity", None])
def test_samplers_draw_what_recboles_draw(train: str | None) -> None:
    write("inter", HEADER, *GOOD)
    negatives = train and {"distribution": train, "sample_num": 1}
    settings = {"eval_args": {"mode": "pop10"}, "train_neg_sample_args": negatives, "reader": "columnar"}
    settings |= {"data_path": "dataset", "gpu_id": "", "MAX_ITEM_LIST_LENGTH": 5, "loss_type": "BPR" if train else "CE"}
    config = Config("SASRec", "toy", config_dict=settings)
    dataset = create_dataset(config)
    built = dataset.build()
    both = create_samplers(config, dataset, built), recboles_samplers(config, dataset, built)
    assert [s and s.phase for s in both[0]] == [s and s.phase for s in both[1]]
    assert "prob" not in vars(both[0][-1])
    for pair in zip(*both, strict=True):
        draws = []
        for sampler in pair:
            np.random.seed(3)
            draws.append(sampler and sampler.sample_by_user_ids(np.arange(1, 5), np.arange(1, 5), 6).tolist())
        assert draws[0] == draws[1]
