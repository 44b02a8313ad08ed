"""Atomic files are read as they stand, and every fault is named with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_cafe.errors import ConfigError
from recbole_cafe.files import atomic
from recbole_cafe.files.atomic import ID_ROLE, TIME_ROLE, AtomicFileError, TextFormat
from recbole_cafe.files.columns import read_columns

ROLES = {"user_id": ID_ROLE, "item_id": ID_ROLE, "timestamp": TIME_ROLE}


@pytest.fixture
def shop(write_atomic: Callable[..., Path]) -> Path:
    clicks = [("ann", "i1", 10), ("ann", "i2", 20), ("bob", "i1", 30)]
    return write_atomic("shop", clicks, {"i1": "tea", "i2": "jam"}) / "shop"


class TestHeader:
    def test_names_and_types_come_in_file_order(self, shop: Path) -> None:
        header = atomic.read_header(shop / "shop.inter")
        assert list(header.items()) == [("user_id", "token"), ("item_id", "token"), ("timestamp", "float")]

    def test_names_may_be_chinese_and_a_byte_order_mark_is_taken_off(self, tmp_path: Path) -> None:
        path, text = tmp_path / "x.item", "item_id:token\t类别:token_seq\r\n"
        for encoding in ("utf-8", "utf-8-sig", "gbk", "utf-16", "utf-16-le"):
            path.write_bytes(text.encode(encoding))
            assert atomic.read_header(path, TextFormat(encoding)) == {"item_id": "token", "类别": "token_seq"}
        path.write_bytes(text.encode("utf-8-sig"))
        assert list(atomic.read_header(path)) == ["item_id", "类别"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"x\.inter: line 1 is empty, expected a header"),
            (b"user_id\titem_id:token\n", r"x\.inter: line 1, column 1: found 'user_id', expected name:type"),
            (b"user_id:token\t:token\n", r"column 2: found ':token', expected name:type"),
            (b"user_id:token\titem_id:int\n", r"column 2: found 'item_id:int', expected a type.*not 'int'"),
            (b"a:token\tb:token\ta:float\n", r"column 3: found 'a:float'.*'a' occurs twice"),
            (b"user_id:token,item_id:token\n", r"column 1: found .* columns are separated by tabs"),
            (b"user_id:token item_id:token\n", r"columns are separated by tabs"),
            (b"user_id:token;item_id:token\n", r"columns are separated by tabs"),
            (b"user_id:token\t\xe9:token\n", r"line 1: found the byte 0xe9, expected text in UTF-8"),
            (
                b"item_id:token\ta:b:float_seq\n",
                r"column 2: found 'a:b:float_seq', expected one name:type with one colon",
            ),
            (
                b"item_id:token\tprice:float \n",
                r"column 2: found 'price:float ', expected no white space.*'price:float'",
            ),
            (b"item_id:token\t price:float\n", r"column 2: found ' price:float', expected no white space"),
            (b"item_id:token\tprice: float\n", r"column 2: found 'price: float', expected no white space"),
            (b"\xef\xbb\xbfuser_id:token\tx\n", r"line 1, column 2: found 'x', expected name:type"),
        ],
    )
    def test_a_bad_header_is_named_with_its_place(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(content)
        with pytest.raises(AtomicFileError, match=message):
            atomic.read_header(path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"none\.inter: no such file"):
            atomic.read_header(tmp_path / "none.inter")


class TestLines:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (b"", "a header and no rows, expected at least one row"),
            (b"\n\r\n\n", "a header and no rows"),
            (b"a\ti\t1\nb\ti\n", r"x\.inter: line 3: found 2 column\(s\), expected 3, separated by tabs"),
            (b"a\ti\t1\t9\n", r"line 2: found 4 column\(s\), expected 3"),
            (b"a\ti\t1\n\n \nb\ti\t2\n", r"line 4: found 1 column\(s\), expected 3"),
            (b"a\ti\t1\nb\t\t2\n", r"line 3, column 'item_id': found '', which is a missing value; expected one"),
            (b"a\ti\t1\n\n\nb\tNULL\t2\n", r"line 5, column 'item_id': found 'NULL', which is a missing value"),
            (b"a\ti\t1\nnull\ti\t2\n", r"line 3, column 'user_id': found 'null', which is a missing value"),
            (
                b"a\ti\t1\nb\ti\t\n",
                r"line 3, column 'timestamp': found '', which is a missing value; expected one",
            ),
            (b"a\ti\t1\nb\ti\tsoon\n", r"line 3, column 'timestamp': found 'soon', expected a finite number; a time"),
            (b"a\ti\t1\nb\t\xff\t2\n", r"line 3: found the byte 0xff, expected text in UTF-8 \(key encoding\)"),
            (b"a\ti\t1\nb\ti\r\t2\n", r"line 3: found a carriage return inside the line"),
            (b"a\ti\t1\nb\ti\t2\r", r"line 3: found a carriage return inside the line"),
            (b"a\ti\t1\r\nb\ti\t2\r\r\n", r"line 3: found a carriage return inside the line"),
            (b"a\ti\t1\nb\0\ti\t2\n", r"line 3: found a NUL inside the line"),
        ],
    )
    def test_a_bad_row_is_named_with_its_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bytes, message: str
    ) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\ttimestamp:float\n" + rows)
        for block in (1 << 24, 7):  # line numbers must not depend on how the file is cut
            monkeypatch.setattr(atomic, "BLOCK_BYTES", block)
            with pytest.raises(AtomicFileError, match=message):
                read_columns(path, None, roles=ROLES)

    def test_utf_16_without_its_mark_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes("user_id:token\titem_id:token\na\ti\n".encode("utf-16-le"))
        with pytest.raises(AtomicFileError, match=r"x\.inter: line 1: .*expected text in utf-16 \(key encoding\)"):
            atomic.read_header(path, TextFormat("utf-16"))

    @pytest.mark.parametrize("block", [1 << 24, 5, 1])
    def test_a_byte_of_another_encoding_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
    ) -> None:
        monkeypatch.setattr(atomic, "BLOCK_BYTES", block)
        path = tmp_path / "x.item"
        path.write_bytes("item_id:token\t类别:token\n甲\t乙\n".encode("gbk") + b"\xff\tx\nb\tc\n")
        with pytest.raises(AtomicFileError, match=r"x\.item: line 3: found the byte 0xff, expected text in gbk"):
            read_columns(path, None, text=TextFormat("gbk"))
        path.write_bytes("item_id:token\n甲\n".encode("utf-16") + b"\x00\xdc\x0a\x00")
        with pytest.raises(AtomicFileError, match=r"line 3: found the byte 0x00, expected text in utf-16"):
            read_columns(path, None, text=TextFormat("utf-16"))
        path.write_bytes(b"item_id:token\n+2AA-\n")
        with pytest.raises(AtomicFileError, match=r"line 2: found .*, expected text in utf-7"):
            read_columns(path, None, text=TextFormat("utf-7"))

    def test_windows_line_ends_and_a_missing_last_one_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\r\na\ti\r\nb\tj")
        assert read_columns(path, None).table()["item_id"].to_pylist() == ["i", "j"]

    def test_only_the_first_byte_order_mark_is_none_of_the_text(self, tmp_path: Path) -> None:
        path = tmp_path / "x.item"
        path.write_bytes(b"\xef\xbb\xbfitem_id:token\tb:token\n\xef\xbb\xbfi\tj\n\nk\tl\n")
        read = read_columns(path, None)
        assert read.table()["item_id"].to_pylist() == ["\ufeffi", "k"]
        assert (read.lines.blank, read.lines.of(1)) == ([3], 4)

    def test_no_line_is_endless(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic, "LINE_BYTES", 100)
        monkeypatch.setattr(atomic, "BLOCK_BYTES", 64)
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\na\ti\n" + b"b" * 500 + b"\tj\n")
        with pytest.raises(AtomicFileError, match=r"x\.inter: line 3: longer than"):
            read_columns(path, None)

    def test_separators_are_taken_literally(self, tmp_path: Path) -> None:
        """One of several bytes is replaced by a control character, which the cells may hold too."""
        path = tmp_path / "x.inter"
        for separator in (",", "|", " ", "\\s+", "::", "，", "\x1f\x01"):
            cells = [["user_id:token", "item_id:token"], ['a"b', "\x01\x02"], ['"', "\x03"]]
            cells = [[cell.replace("\x01", "") if "\x01" in separator else cell for cell in row] for row in cells]
            path.write_text("".join(separator.join(row) + "\n" for row in cells), encoding="utf-8")
            table = read_columns(path, None, text=TextFormat(separator=separator)).table()
            assert [table.column(k).to_pylist() for k in (0, 1)] == [list(c) for c in zip(*cells[1:], strict=True)]

    def test_lines_of_rows(self) -> None:
        """Lines 2, 5 and 6 are empty: rows stand in lines 3, 4, 7, 8, ..."""
        lines = atomic.Lines([2, 5, 6])
        assert [lines.of(row) for row in range(4)] == [3, 4, 7, 8]
        assert atomic.Lines().of(0) == 2

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"encoding": "base64"}, "encoding='base64' should be a text encoding"),
            ({"encoding": 8}, "encoding=8 should be a text encoding"),
            ({"separator": "\n"}, "field_separator='\\\\n' should be one or more characters"),
            ({"separator": None}, "field_separator=None should be"),
            ({"seq_separator": ""}, "seq_separator='' should be"),
        ],
    )
    def test_formats_that_cannot_be(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TextFormat(**given)


@pytest.mark.parametrize("text", ["1", "-1.5", "+3", ".5", "5.", "1e3", "1E-7", "007"])
def test_numbers_that_may_be_written(text: str) -> None:
    assert atomic.fault_of(text, "float") is None


@pytest.mark.parametrize("text", ["", " 1", "1 ", "1_000", "nan", "inf", "1e999", "0x1F", ".", "-", "1e", "１", "1,5"])
def test_numbers_that_may_not(text: str) -> None:
    assert atomic.fault_of(text, "float") == "expected a finite number"


def test_checksum_is_the_sha256_of_the_bytes(shop: Path) -> None:
    expected = hashlib.sha256((shop / "shop.item").read_bytes()).hexdigest()
    assert atomic.checksum(shop / "shop.item") == expected
