"""recbole_cafe.files.columns: cells become codes, numbers and lists, and every fault is named with its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_cafe.files import atomic
from recbole_cafe.files.atomic import ID_ROLE, MISSING, AtomicFileError
from recbole_cafe.files.columns import Lists, Vocabulary, read_columns


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def file(*lines: str, name: str = "x.item") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return file


def test_tokens_stay_text_and_numbers_become_float64(write: Callable[..., Path]) -> None:
    rows = ['007\tsay "hi"\t1', "7\ta,b\t1e3", '007\t"日 本\t-2']
    path = write("user_id:token\titem_id:token\ttimestamp:float", *rows, name="x.inter")
    table = read_columns(path, ["timestamp", "user_id", "item_id"]).table()
    assert table.column_names == ["timestamp", "user_id", "item_id"]
    assert table["user_id"].to_pylist() == ["007", "7", "007"]
    assert table["user_id"].chunk(0).dictionary.to_pylist() == ["007", "7"]  # in order of appearance
    assert table["item_id"].to_pylist() == ['say "hi"', "a,b", '"日 本']
    assert table["timestamp"].to_pylist() == [1.0, 1000.0, -2.0]


def test_missing_values_are_null_and_counted(write: Callable[..., Path]) -> None:
    lines = ["i1\t\t2.5\t\t", "i2\ttea\t\ta NA\t1", "", "i3\tnan\tNone\tNULL\tn/a"]
    read = read_columns(
        write("item_id:token\tintent:token\tprice:float\ttags:token_seq\tsizes:float_seq", *lines), None
    )
    assert read.missing == {"item_id": 0, "intent": 2, "price": 2, "tags": 2, "sizes": 2}
    table = read.table()
    assert table["intent"].to_pylist() == [None, "tea", None]
    assert table["price"].to_pylist() == [2.5, None, None]
    assert table["tags"].to_pylist() == [[], ["a", "NA"], []]
    assert table["sizes"].to_pylist() == [[], [1.0], []]
    assert read.notes() == [
        "x.item: 1 empty lines skipped, the first is line 4",
        "x.item: no value in some of 3 rows: intent in 2, price in 2, tags in 2, sizes in 2",
    ]


def test_what_is_missing_is_what_pandas_says(write: Callable[..., Path]) -> None:
    texts = sorted(MISSING)
    path = write("x:token\tn:token", *(f"{text}\t{text}x" for text in [*texts, "none", "Na", "-"]))
    by_pandas = pd.read_csv(path, sep="\t", engine="python", dtype=str)["x:token"]
    assert (read_columns(path, ["x"]).data["x"] < 0).tolist() == by_pandas.isna().tolist()
    assert by_pandas.isna().sum() == len(texts)


@pytest.mark.parametrize(
    "numbers",
    [
        ["1600000000123456789", "3"],
        ["9007199254740993", "1.5"],
        ["", "12345678901234567"],
        ["0.30000000000000004", "+3", ".5", "5."],
        ["18446744073709551616", "1"],
    ],
)
def test_numbers_are_those_of_pandas(write: Callable[..., Path], numbers: list[str]) -> None:
    """Of many digits it rounds them differently in a column of integers and in others."""
    path = write("user_id:token\tn:float", *(f"u\t{number}" for number in numbers), name="x.inter")
    by_pandas = pd.read_csv(path, sep="\t", engine="python", dtype={"user_id:token": str, "n:float": np.float64})
    got = read_columns(path, ["n"]).data["n"]
    assert got.tobytes() == by_pandas["n:float"].to_numpy().tobytes()


@pytest.mark.parametrize(
    "cell", ["soon", "1_000", " 4", "4 ", "inf", "-Infinity", "1e999", "0x1F", "1,5", "—", "１", ".", "1-2", "1.2.3"]
)
def test_what_is_no_number(write: Callable[..., Path], cell: str) -> None:
    path = write("item_id:token\tprice:float", "a\t1", "b\t", "c\t2", "", f"d\t{cell}", "e\t3")
    with pytest.raises(
        AtomicFileError, match=r"x\.item: line 6, column 'price': found .*, expected a finite number"
    ) as e:
        read_columns(path, None)
    assert repr(cell) in str(e.value)


@pytest.mark.parametrize("cell", ["1 two", "nan", "1 nan", "1 1e999", "1_0", "1,2"])
def test_what_is_no_list_of_numbers(write: Callable[..., Path], cell: str) -> None:
    path = write("item_id:token\tsizes:float_seq", "a\t1 2", "b\t", f"c\t{cell}", "d\t3")
    if cell == "nan":  # a cell that is missing
        assert read_columns(path, None).data["sizes"].lengths.tolist() == [2, 0, 0, 1]
        return
    message = r"line 4, column 'sizes': found '1.*', expected finite numbers with ' ' between them"
    with pytest.raises(AtomicFileError, match=message):
        read_columns(path, None)


def test_lists(write: Callable[..., Path]) -> None:
    path = write("item_id:token\ttags:token_seq\tsizes:float_seq", "a\t x  y\t1e3  .5", "b\ty\t", "a\tz x y\t-1")
    words = Vocabulary()
    data = read_columns(path, None, {"item_id": Vocabulary(), "tags": words}).data
    assert [row.tolist() for row in data["tags"].rows()] == [[0, 1], [1], [2, 0, 1]]
    assert words.texts(np.array([2, -1, 0])) == ["z", None, "x"]
    assert [row.tolist() for row in data["sizes"].rows()] == [[1000.0, 0.5], [], [-1.0]]


def test_lists_by_rows() -> None:
    lists = Lists(np.array([5, 6, 7]), np.array([2, 0, 1]))
    assert [row.tolist() for row in lists.rows()] == [[5, 6], [], [7]]
    assert [row.tolist() for row in lists.take(np.array([False, True, True])).rows()] == [[], [7]]


# Bytes put into a good file
MUTANTS = [b"", b"\t", b"\n", b"\r\n", b"\r", b"\0", b'"', b" ", b"_", b".", b"-", b"e5", b"NA", b"\xff", b"\xc3\xa9",
           b"\x0b", b"\x1c", b"\xe2\x80\xa8", b"\xc2\x85", b"\t\t", b"\n\n", b"inf", b"\xef\xbb\xbf"]  # fmt: skip
COLUMNS = ["a", "item_id", "n", "s"]
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number(text: str) -> float:
    if not NUMBER.fullmatch(text) or not np.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def naive(raw: bytes) -> list[list[object]] | None:
    """The rows of a file of two tokens, a float and a float_seq, read line by line; None if anything is wrong."""
    rows: list[list[object]] = []
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    try:
        for at, line in enumerate(lines):
            text = line.decode()
            text = text[:-1] if text.endswith("\r") and at + 1 < len(lines) else text
            if "\r" in text or "\0" in text or (at == 0 and text != "a:token\titem_id:token\tn:float\ts:float_seq"):
                return None
            if at and text:
                a, item, n, s = (None if cell == "" or cell in MISSING else cell for cell in text.split("\t"))
                if item is None:
                    return None
                parts = [number(part) for part in (s or "").split(" ") if part]
                rows.append([a, item, None if n is None else number(n), parts])
    except ValueError:
        return None
    return rows or None


@pytest.mark.parametrize("block", [1 << 24, 16])
def test_damaged_files_are_read_as_a_naive_loop_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The same rows, or an error that names a line that is wrong; no other error, no other rows."""
    monkeypatch.setattr(atomic, "BLOCK_BYTES", block)
    rng = np.random.default_rng(block)
    rows = "".join(f"u{k % 3}\ti{k}\t{k}.5\t{k} 1e{k}\n" for k in range(6))
    whole = f"a:token\titem_id:token\tn:float\ts:float_seq\n{rows}".encode()
    path, faults = tmp_path / "x.item", 0
    for _ in range(600):
        raw = whole
        for _ in range(rng.integers(1, 3)):
            at, cut = int(rng.integers(30, len(raw))), int(rng.integers(0, 3))
            raw = raw[:at] + MUTANTS[rng.integers(len(MUTANTS))] + raw[at + cut :]
        path.write_bytes(raw)
        expected = naive(raw)
        if expected is not None:
            table = read_columns(path, COLUMNS, roles={"item_id": ID_ROLE}).table()
            assert [list(row.values()) for row in table.to_pylist()] == expected, raw
            continue
        faults += 1
        with pytest.raises(AtomicFileError) as error:
            read_columns(path, COLUMNS, roles={"item_id": ID_ROLE})
        named = re.match(rf"{re.escape(str(path))}: (line (\d+)|no column|a header and no rows)", str(error.value))
        assert named, (raw, error.value)
        if named[2] and (line := int(named[2])) > 1:  # of several faults, any may be the one that is named
            lines = raw.split(b"\n")
            alone = [whole.split(b"\n")[0], lines[line - 1], *([b""] if line < len(lines) else [])]
            assert naive(b"\n".join(alone)) is None, (raw, error.value)
    assert 100 < faults < 550


def test_an_unknown_column_is_named(write: Callable[..., Path]) -> None:
    with pytest.raises(AtomicFileError, match=r"no column 'brand', found item_id, intent"):
        read_columns(write("item_id:token\tintent:token", "a\tb"), ["brand"])


def test_what_comes_out_does_not_depend_on_how_the_file_is_cut(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        "user_id:token\titem_id:token\tn:float\ttags:token_seq",
        *(f"u{n % 7}\ti{n % 3}\t{n if n < 200 else n / 7}\t{'a b' if n % 2 else ''}" for n in range(500)),
        name="x.inter",
    )
    whole = read_columns(path, None).table()
    monkeypatch.setattr(atomic, "BLOCK_BYTES", 64)
    assert read_columns(path, None).table().to_pydict() == whole.to_pydict()
    assert whole["user_id"].to_pylist() == [f"u{n % 7}" for n in range(500)]


class TestRepeats:
    HEADER = "item_id:token\tintent:token\tprice:float\ttags:token_seq"

    def test_rows_that_agree_are_dropped(self, write: Callable[..., Path]) -> None:
        read = read_columns(
            write(self.HEADER, "a\tx\t1\tu v", "b\t\t\t", "a\tx\t1.0\tu  v", "b\tNA\t\t", "c\tx\t2\t"), None
        )
        assert read.drop_repeats("item_id") == 2
        assert read.table().to_pydict() == {
            "item_id": ["a", "b", "c"], "intent": ["x", None, "x"], "price": [1.0, None, 2.0],
            "tags": [["u", "v"], [], []],
        }  # fmt: skip
        assert read.drop_repeats("item_id") == 0

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("a\ty\t1\tu v", "line 5, column 'intent': found 'y', but line 2 has 'x' for the same item_id 'a'"),
            ("a\t\t1\tu v", "line 5, column 'intent': found None, but line 2 has 'x'"),
            ("a\tx\t2\tu v", "line 5, column 'price': found 2.0, but line 2 has 1.0"),
            ("a\tx\t\tu v", "line 5, column 'price': found nan, but line 2 has 1.0"),
            ("a\tx\t1\tv u", r"line 5, column 'tags': found \['v', 'u'\], but line 2 has \['u', 'v'\]"),
        ],
    )
    def test_rows_that_differ_are_refused(self, write: Callable[..., Path], row: str, message: str) -> None:
        read = read_columns(write(self.HEADER, "a\tx\t1\tu v", "", "b\tx\t1\t", row), None)
        with pytest.raises(AtomicFileError, match=message):
            read.drop_repeats("item_id")


def test_types_are_those_asked_for(write: Callable[..., Path]) -> None:
    path = write("item_id:token_seq\tintent:token", "a\tb")
    with pytest.raises(
        AtomicFileError, match=r"x\.item: line 1: column 'item_id' is of type token_seq, expected token"
    ):
        read_columns(path, ["item_id"], roles={"item_id": ID_ROLE})
    assert len(read_columns(path, ["intent"], roles={"item_id": ID_ROLE})) == 1  # of columns that are not read, nothing


def test_a_vocabulary_grows_over_files(write: Callable[..., Path]) -> None:
    words = Vocabulary()
    first = read_columns(write("x:token\ty:token", "b\t1", "NA\t1", "a\t1", "b\t1"), ["x"], {"x": words})
    assert first.data["x"].tolist() == [0, -1, 1, 0]
    assert read_columns(write("z:token_seq", "c a"), None, {"z": words}).data["z"].flat.tolist() == [2, 1]
    assert words.id_token(np.array([2, 0])).tolist() == ["[PAD]", "c", "b"]
    assert words.places(["c", "d", "b"]).tolist() == [2, 0]
    assert len(words) == 3
    assert Vocabulary().id_token(np.array([], dtype=np.int64)).tolist() == ["[PAD]"]
