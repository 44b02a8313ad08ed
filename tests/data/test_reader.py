"""recbole_cafe.data.reader: RecBole's data set of every file that RecBole reads rightly, and what becomes of others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers as recboles_samplers

from recbole_cafe import Config
from recbole_cafe.data.intents import item_intents
from recbole_cafe.data.reader import ColumnarMixin, TokenIds
from recbole_cafe.data.rows import ROW, TargetRows
from recbole_cafe.data.samplers import create_samplers
from recbole_cafe.data.sequences import NetDataset, SequenceDataset
from recbole_cafe.data.time_order import TimeOrderedDataset
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.files import atomic
from recbole_cafe.files.atomic import MISSING, AtomicFileError

INTER = "user_id:token\titem_id:token\ttimestamp:float\trating:float\ttag:token"
ITEM = "item_id:token\tprice:float\tintent:token"
USER = "age:float\tuser_id:token\tcity:token"
# Cells as they stand in a file: missing ones, numbers that are tokens, a quotation mark inside, other alphabets
TOKENS = ["007", "7", "7.0", "NA", "None", "null", "N/A", "nan", "", "NaN", "none", " x", "x ", "x", "a b", 'a"b',
          "é", "日本", "True", "1e5", "[PAD]"]  # fmt: skip
NUMBERS = ["1", "-2.5", "0.1", "1e3", "007", "", "NA", "1600000000.1234567", "1234567890123456789", "5.", ".5",
           "0.30000000000000004", "9007199254740993", "2.2250738585072014e-308", "+3", "None"]  # fmt: skip
PRESENT = [token for token in TOKENS if token and token not in MISSING]
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
    tokens = [*TOKENS, *(f"t{i}" for i in range(20))]
    numbers = [NUMBERS, ["12", "1.25", "-3", ""], ["1600000000123456789", "17"]][seed % 3]
    stamps = [["1600000000{:03}", "{}.5"], ["16000000000000{:05}"], ["{}", "1e{}"]][seed // 2 % 3]

    def some(values: list[str]) -> str:
        return str(rng.choice(values))

    def stamp() -> str:
        return some(stamps).format(int(rng.integers(0, 99)))

    present = [*PRESENT, *(f"t{i}" for i in range(20))]
    inter = [
        f"{some(PRESENT[:9])}\t{some(present)}\t{stamp()}\t{some(numbers)}\t{some(tokens)}"
        for _ in range(int(rng.integers(60, 160)))
    ]
    items = [f"{token}\t{some(numbers)}\t{some(tokens)}" for token in [*rng.permutation(present), "new1", "new2"]]
    items.insert(9, items[4])  # a row that says the same again
    users = [f"{some(numbers)}\t{token}\t{some(tokens)}" for token in rng.permutation(PRESENT)]
    if seed % 4 == 3:
        inter.insert(5, "")  # a blank line
    write("inter", INTER, *inter, ending=ending, last="" if seed % 5 == 0 else ending)
    write("item", ITEM, *items, ending=ending)
    if seed % 2:
        write("user", USER, *users, ending=ending)


def of_recbole(kind: type) -> type:
    """One of our data set classes with RecBole's own reading, filters and ids."""
    own = {name: vars(Dataset)[name] for name in vars(ColumnarMixin) if name in vars(Dataset)}
    assert {"_load_feat", "_remap", "_filter_by_field_value"} <= set(own)
    return type(kind.__name__, (kind,), own)


KINDS = {"CaFe": NetDataset, "SASRec": SequenceDataset, "BPR": TimeOrderedDataset}


def config_of(model: str = "SASRec", **settings: Any) -> Config:
    plain = {"data_path": "dataset", "MAX_ITEM_LIST_LENGTH": 5, "gpu_id": "", "show_progress": False, "worker": 0}
    return Config(model, "toy", config_dict=plain | settings)


def prepared(model: str, *, stock: bool = False, **settings: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Config, data set before the split, loaders. stock: as RecBole reads."""
    config = config_of(model, **settings)
    dataset = of_recbole(KINDS[model])(config) if stock else create_dataset(config)
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


def assert_same_fields(ours: Any, stock: Any) -> None:
    assert list(ours.field2id_token) == list(stock.field2id_token)
    for field, tokens in stock.field2id_token.items():
        assert ours.field2id_token[field].dtype == tokens.dtype
        assert ours.field2id_token[field].tolist() == tokens.tolist()
        assert ours.field2token_id[field] == stock.field2token_id[field]
    for name in ("field2type", "field2source", "field2seqlen", "field2bucketnum"):
        assert getattr(ours, name) == getattr(stock, name), name


def assert_same(model: str, **settings: Any) -> Any:
    """Our reading and RecBole's give one data set; returns ours."""
    config, ours, loaders = prepared(model, **settings)
    _, stock, stock_loaders = prepared(model, stock=True, **settings)
    assert isinstance(ours.field2token_id["item_id"], TokenIds)
    assert isinstance(stock.field2token_id["item_id"], dict)
    assert_same_fields(ours, stock)
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
    {"val_interval": {"tag": [*PRESENT, "t3", "not there"], "intent": [*PRESENT, "t1"]}},
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


def test_lists_in_the_item_file() -> None:
    write_odd(0)
    cells = ["7\tx y", "007\ty", "NB\tz", "x\t", "t1\tz x", "7\tx y", *(f"t{i}\tw" for i in range(2, 20))]
    write("item", "item_id:token\tintent:token_seq", *cells)
    assert_same("CaFe", intent_from="rarest", **FILES)


LISTS = [f"u{k % 4}\ti{k % 7}\t{k}\t{['', 't0', 't0 t1'][k % 3]}\t{'1.5  2e3' if k % 2 else ''}\ti{k % 9} i3"
         for k in range(40)]  # fmt: skip
OF_LISTS = "user_id:token\titem_id:token\ttimestamp:float\ttags:token_seq\tsizes:float_seq\tshown:token_seq"


def same_feat(ours: pd.DataFrame, stock: pd.DataFrame) -> None:
    """Before the split, lists as arrays in cells."""
    assert list(ours) == list(stock)
    assert len(ours) == len(stock)
    for name in stock:
        for one, other in zip(ours[name], stock[name], strict=True):
            assert np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize(
    "settings",
    [{}, {"alias_of_item_id": ["shown"]}, {"seq_len": {"tags": 1, "shown": 7}}, {"seq_separator": "i"}],
    ids=str,
)
def test_lists_in_the_interactions(settings: dict[str, Any]) -> None:
    lines = [line.replace("1.5  2e3", "1.5i2e3") if "seq_separator" in settings else line for line in LISTS]
    write("inter", OF_LISTS, *lines)
    settings = {"load_col": {"inter": "*"}} | settings
    ours, stock = (kind(config_of("BPR", **settings)) for kind in (TimeOrderedDataset, of_recbole(TimeOrderedDataset)))
    same_feat(ours.inter_feat, stock.inter_feat)
    assert_same_fields(ours, stock)
    if "alias_of_item_id" in settings:
        assert ours.field2id_token["shown"] is ours.field2id_token["item_id"]
    ours._change_feat_format()
    stock._change_feat_format()
    assert_equal_feats(ours.inter_feat, stock.inter_feat)


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_parts_of_pre_split_sequences(model: str) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    for part, rows in (("train", range(1, 5)), ("valid", [5]), ("test", [6])):
        lines = [f"u{u}\t{' '.join(f'i{u + j}' for j in range(k))}\ti{u + k}\t{k}" for u in range(3) for k in rows]
        write(f"{part}.inter", header, *lines)
    settings = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"],
                "load_col": {"inter": "*"}, "train_layout": "last"}  # fmt: skip
    ours, stock = (kind(config_of(model, **settings)) for kind in (KINDS[model], of_recbole(KINDS[model])))
    same_feat(ours.inter_feat, stock.inter_feat)
    assert_same_fields(ours, stock)
    assert ours.file_size_list == stock.file_size_list == [12, 3, 3]
    assert ours.field2seqlen["item_id_list"] == 6
    write("valid.inter", header.replace("\titem_id:token", "\tother:token"), "u0\ti1\ti2\t5")
    with pytest.raises(
        AtomicFileError, match=r"toy\.valid\.inter: no column 'item_id' \(key ITEM_ID_FIELD\) is loaded"
    ):
        create_dataset(config_of(model, **settings))
    write("valid.inter", f"{header}\tx:float", "u0\ti1\ti2\t5\t1")
    with pytest.raises(
        AtomicFileError, match=r"toy\.valid\.inter: found the columns .*x:float, expected user_id:token, "
    ):
        create_dataset(config_of(model, **settings))
    settings["benchmark_filename"] = ["train", "dev", "test"]
    with pytest.raises(DataError, match=r"toy\.dev\.inter does not exist \(bench.*; in the folder: toy\.test\.inter"):
        create_dataset(config_of(model, **settings))


def test_further_files() -> None:
    """additional_feat_suffix: vectors of items, by ids of their own."""
    write("inter", HEADER, *GOOD)
    write("ent", "ent_id:token\tvector:float_seq", *(f"i{k}\t{k}.5 {k}" for k in range(5)))
    settings = {"additional_feat_suffix": ["ent"], "load_col": {"inter": "*", "ent": "*"},
                "alias_of_item_id": ["ent_id"], "preload_weight": {"ent_id": "vector"}}  # fmt: skip
    ours, stock = (kind(config_of("BPR", **settings)) for kind in (TimeOrderedDataset, of_recbole(TimeOrderedDataset)))
    same_feat(ours.ent_feat, stock.ent_feat)
    assert_same_fields(ours, stock)
    assert ours.get_preload_weight("ent_id").tolist() == stock.get_preload_weight("ent_id").tolist()


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8"), ("::", "gbk"), ("日", "utf-16"), ("|", "utf-8-sig")]
)
def test_separators_and_encodings(separator: str, encoding: str) -> None:
    """Names and tokens in Chinese; the same data as in a plain file."""
    inter = ["用户:token\titem_id:token\ttimestamp:float", *(f"甲{line}" for line in GOOD)]
    item = ["item_id:token\t类别:token", *(f"i{k}\t乙{k % 3}" for k in range(7))]
    settings = {"USER_ID_FIELD": "用户", "INTENT_FIELD": "类别", "load_col": {"inter": "*", "item": "*"}}
    plain, other = [], {"field_separator": separator, "encoding": encoding}
    for chosen in ({}, other):
        for name, lines in (("inter", inter), ("item", item)):
            text = "\n".join(lines).replace("\t", chosen.get("field_separator", "\t"))
            write(name, "x").write_bytes(text.encode(chosen.get("encoding", "utf-8")))
        plain.append(create_dataset(config_of("CaFe", **settings, **chosen)))
    assert_same_fields(*plain)
    for name in ("inter_feat", "item_feat"):
        same_feat(getattr(plain[0], name), getattr(plain[1], name))
    assert item_intents(config_of("CaFe", **settings, **other), plain[1]).n_intents == 4


def test_blocks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and numbers of many blocks, of which some are of integers only."""
    monkeypatch.setattr(atomic, "BLOCK_BYTES", 256)
    rng = np.random.default_rng(0)
    stamps = [str(k) if k < 200 or k % 2 else f"{k}.25" for k in range(400)]
    stamps[7], stamps[390] = "1234567890123456789", "0.30000000000000004"
    lines = [f"u{rng.integers(9)}\ti{rng.integers(50)}\t{stamp}" for stamp in stamps]
    write("inter", "user_id:token\titem_id:token\ttimestamp:float", *lines)
    assert_same("SASRec")


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
        ("u1\ti1", r"toy\.inter: line 32: found 2 column\(s\), expected 3"),
        ("u1\ti1\t3\t4", r"toy\.inter: line 32: found 4 column\(s\), expected 3"),
        (
            "u1\ti1\tsoon",
            r"line 32, column 'timestamp': found 'soon', expected a finite number; a time is a number, .*table",
        ),
        ("u1\ti1\t0x1F", r"line 32, column 'timestamp': found '0x1F'"),
        ("u1\ti1\t1_000", r"line 32, column 'timestamp': found '1_000'"),
        ("u1\ti1\tinf", r"line 32, column 'timestamp': found 'inf'"),
        ("u1\ti1\t1e999", r"line 32, column 'timestamp': found '1e999'"),
        ("u1\ti1\t 4", r"line 32, column 'timestamp': found ' 4'"),
        (
            "u1\ti1\t",
            r"line 32, column 'timestamp': found '', which is a missing value; expected one in each row",
        ),
        ("NA\ti1\t4", r"line 32, column 'user_id': found 'NA', which is a missing value"),
        ("u1\t\t4", r"line 32, column 'item_id': found '', which is a missing value"),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_bad_lines_are_named(model: str, line: str, message: str) -> None:
    write("inter", HEADER, *GOOD, line, *GOOD)
    with pytest.raises(AtomicFileError, match=message):
        create_dataset(config_of(model))


def test_a_quotation_mark_is_a_character() -> None:
    write("inter", HEADER, *GOOD, 'u1\t"i1\t30', 'u1\t"i1"\t31')
    dataset = create_dataset(config_of())
    assert {'"i1', '"i1"'} <= set(dataset.field2id_token["item_id"])
    assert len(dataset.inter_feat) == 32


def test_bad_text_and_headers_are_named() -> None:
    path = write("inter", HEADER, *GOOD)
    path.write_bytes(path.read_bytes() + b"u\xff\ti1\t3\n")
    with pytest.raises(AtomicFileError, match=r"toy\.inter: line 32: found the byte 0xff, expected text in UTF-8"):
        create_dataset(config_of())
    write("inter", HEADER, *GOOD)
    write("item", "item_id:token\tintent", "i1\tx")
    with pytest.raises(AtomicFileError, match=r"toy\.item: line 1, column 2: found 'intent'"):
        create_dataset(config_of("CaFe"))


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        ("user_id:float\titem_id:token\ttimestamp:float", {}, "column 'user_id' is of type float, expected token"),
        ("user_id:token\titem_id:token_seq\ttimestamp:float", {}, "'item_id' is of type token_seq, expected token"),
        ("user_id:token\titem_id:token\ttimestamp:token", {}, "is of type token, expected float; a time .*prepare"),
        ("user_id:token\titem_id:token\titem_id_list:token", {}, "'item_id_list' is of type token, expected token_seq"),
        (HEADER, {"USER_ID_FIELD": "id"}, r"no column 'id' \(key USER_ID_FIELD\)"),
    ],
)  # fmt: skip
def test_types_of_ids_and_times(header: str, settings: dict[str, Any], message: str) -> None:
    write("inter", header, *GOOD)
    with pytest.raises(AtomicFileError, match=message):
        create_dataset(config_of(load_col=None, **settings))


@pytest.mark.parametrize(
    ("column", "cell"),
    [("tag:token", "x"), ("user_id:float", "1"), ("user_id:token", "u1"), ("timestamp:float", "1"), ("tag:float", "1")],
)
@pytest.mark.parametrize("model", ["CaFe", "SASRec", "BPR"])
def test_a_column_in_two_files_is_refused(model: str, column: str, cell: str) -> None:
    write("inter", f"{HEADER}\ttag:token", *(f"{line}\ta" for line in GOOD))
    write("item", f"item_id:token\t{column}", f"i1\t{cell}")
    name = column.partition(":")[0]
    with pytest.raises(AtomicFileError, match=rf"toy\.item: column '{name}' is in toy\.inter too, .*load_col"):
        create_dataset(config_of(model, load_col=None))


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"encoding": "rot13"}, ConfigError, "encoding='rot13' should be a text encoding that Python knows"),
        ({"encoding": "klingon"}, ConfigError, "encoding='klingon' should be a text encoding"),
        ({"field_separator": ""}, ConfigError, "field_separator='' should be one or more characters"),
        (
            {"alias_of_item_id": ["shown"]},
            ConfigError,
            "alias_of_item_id names 'shown', and toy has no such column loaded; loaded are user_id",
        ),
        (
            {"val_interval": {"tag": ["x"]}},
            ConfigError,
            "val_interval names 'tag', and toy has no such column loaded; loaded are user_id",
        ),
        ({"val_interval": {"user_id": "[1,2]"}}, ConfigError, r"user_id='\[1,2\]' should be a list of the tokens"),
    ],
    ids=str,
)
def test_keys_that_cannot_be_right(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    write("inter", HEADER, *GOOD)
    with pytest.raises(kind, match=message):
        create_dataset(config_of(**settings))


def test_second_rows_of_an_item() -> None:
    write("inter", HEADER, *GOOD)
    rows = ["i1\tx\t1", "i2\ty\t", "", "i1\tx\t1.0"]
    write("item", "item_id:token\tintent:token\tprice:float", *rows, "i2\tz\t")
    with pytest.raises(
        AtomicFileError, match=r"line 6, column 'intent': found 'z', but line 3 has 'y' for the same item_id 'i2'"
    ):
        create_dataset(config_of("CaFe"))
    with pytest.raises(AtomicFileError, match=r"line 6, column 'intent'"):
        create_dataset(config_of("CaFe", load_col=None))
    write("item", "item_id:token\tintent:token\tprice:float", *rows, "i2\ty\t7")
    assert len(create_dataset(config_of("CaFe")).item_feat) == 3  # the price is not loaded; one row is padding
    with pytest.raises(
        AtomicFileError, match=r"line 6, column 'price': found 7.0, but line 3 has nan for the same item_id"
    ):
        create_dataset(config_of("CaFe", load_col=None))


def test_what_was_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write("inter", HEADER, *GOOD[:9], "", *GOOD[9:], "", "")
    write("item", "item_id:token\tintent:token", *(f"i{k}\t{'' if k < 2 else 'x'}" for k in range(7)), "i3\tx")
    create_dataset(config_of("CaFe"))
    assert "toy.inter: 3 empty lines skipped, the first is line 11" in caplog.text
    assert "toy.item: no value in some of 8 rows: intent in 2" in caplog.text
    assert "toy.item: 1 rows dropped that repeat the row of their item_id" in caplog.text


@pytest.mark.parametrize("name", ["inter", "item"])
def test_no_rows(name: str) -> None:
    write("inter", HEADER, *GOOD)
    write("item", "item_id:token\tintent:token", "i1\tx")
    write(name, HEADER if name == "inter" else "item_id:token\tintent:token")
    with pytest.raises(AtomicFileError, match=rf"toy\.{name}: a header and no rows"):
        create_dataset(config_of("CaFe"))


# The cases of the project's users -------------------------------------------------------------------------------------

CASES = [
    ("quote4", {}, None),
    ("sepcomma", {"field_separator": ","}, None),
    ("bomsig", {}, None),
    ("bomsig", {"encoding": "utf-8-sig"}, None),
    ("gbk2", {"encoding": "gbk", "INTENT_FIELD": "类别"}, None),
    ("colon", {}, r"colon\.inter: line 1, column 2: found 'shop:item:token', expected one name:type"),
    ("floatid", {}, r"floatid\.inter: line 1: column 'user_id' is of type float, expected token"),
    ("spacehead2", {}, r"spacehead2\.item: line 1, column 2: found 'intent:token ', expected no white space"),
    ("tokdate", {}, r"tokdate\.inter: .*'timestamp' is of type token, expected float; .*`recbole-cafe prepare table`"),
    ("isodate", {}, r"isodate\.inter: line 2, column 'timestamp': found '2024-01-24', .*`recbole-cafe prepare table`"),
    ("badprice", {"load_col": None}, r"badprice\.item: line 5, column 'price': found '—', expected a finite number"),
]


@pytest.mark.parametrize(("name", "settings", "message"), CASES, ids=str)
def test_cases(shared_cases: Path, name: str, settings: dict[str, Any], message: str | None) -> None:
    config = Config("CaFe", name, config_dict={"data_path": str(shared_cases), "gpu_id": ""} | settings)
    if message:
        with pytest.raises(AtomicFileError, match=message):
            create_dataset(config)
        return
    dataset = create_dataset(config)
    assert (dataset.user_num - 1, dataset.item_num - 1, len(dataset.inter_feat)) == (30, 40, 240)
    assert item_intents(config, dataset).n_without == 0


# Rows and samplers ----------------------------------------------------------------------------------------------------


def test_rows_are_an_interaction() -> None:
    """What RecBole does with inter_feat, done with rows that are gathered and with the same rows in full."""
    write("inter", HEADER, *GOOD)
    rows = prepared("SASRec", train_layout="last")[1].inter_feat
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
    settings = {"eval_args": {"mode": "pop10"}, "train_neg_sample_args": negatives}
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
