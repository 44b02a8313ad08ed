"""Atomic files are read as they stand, and every fault is named with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from recbole_cafe.files import atomic
from recbole_cafe.files.atomic import AtomicFileError


@pytest.fixture
def shop(write_atomic: Callable[..., Path]) -> Path:
    clicks = [("ann", "i1", 10), ("ann", "i2", 20), ("bob", "i1", 30)]
    return write_atomic("shop", clicks, {"i1": "tea", "i2": "jam"}) / "shop"


class TestHeader:
    def test_names_and_types_come_in_file_order(self, shop: Path) -> None:
        header = atomic.read_header(shop / "shop.inter")
        assert list(header.items()) == [("user_id", "token"), ("item_id", "token"), ("timestamp", "float")]

    def test_the_last_colon_parts_name_and_type(self, tmp_path: Path) -> None:
        path = tmp_path / "x.item"
        path.write_text("item_id:token\ta:b:float_seq\r\n")
        assert atomic.read_header(path) == {"item_id": "token", "a:b": "float_seq"}

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
            (b"\xef\xbb\xbfuser_id:token\n", r"starts with a byte order mark"),
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


class TestReading:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (b"", "a header and no rows"),
            (b"a\ti\t1\nb\ti\n", r"x\.inter: line 3: found 2 column\(s\), expected 3"),
            (b"a\ti\t1\t9\n", r"line 2: found 4 column\(s\), expected 3"),
            (b"a\ti\t1\n\nb\ti\t2\n", r"line 3: found 1 column\(s\), expected 3"),
            (b"a\ti\t1\nb\t\t2\n", r"line 3, column 'item_id': found '', expected a value that is not empty"),
            (b"a\ti\t1\nb\ti\tsoon\n", r"line 3, column 'timestamp': found 'soon', expected a finite number"),
            (b"a\ti\t1\nb\ti\tnan\n", r"line 3, column 'timestamp': found 'nan', expected a finite number"),
            (b"a\ti\t1\nb\ti\t\n", r"line 3, column 'timestamp': found '', expected a finite number"),
            (
                b"a\ti\t1\nnull\ti\t2\n",
                r"line 3, column 'user_id': found 'null', which RecBole reads as a missing",
            ),
            (b"a\ti\t1\nb\t\xff\t2\n", r"line 3: found the byte 0xff, expected text in UTF-8"),
        ],
    )
    def test_a_bad_row_is_named_with_its_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bytes, message: str
    ) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\ttimestamp:float\n" + rows)
        for chunk in (1 << 24, 7):  # line numbers must not depend on how the file is cut
            monkeypatch.setattr(atomic, "_CHUNK_BYTES", chunk)
            with pytest.raises(AtomicFileError, match=message):
                atomic.read_table(path)

    def test_a_feature_of_an_item_may_be_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "x.item"
        path.write_text("item_id:token\tintent:token\tprice:float\ni1\t\t2.5\ni2\ttea\t\ni3\tnan\t1\n")
        table = atomic.read_table(path)
        assert table["intent"].to_pylist() == [None, "tea", None]
        assert table["price"].to_pylist() == [2.5, None, 1.0]

    def test_windows_line_ends_and_a_missing_last_one_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\r\na\ti\r\nb\tj")
        assert atomic.read_table(path)["item_id"].to_pylist() == ["i", "j"]

    def test_a_carriage_return_inside_a_line_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\na\ti\nb\rc\tj\n")
        with pytest.raises(AtomicFileError, match=r"x\.inter: "):
            atomic.read_table(path)

    def test_an_unknown_column_is_named(self, shop: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"no column 'brand', found item_id, intent"):
            atomic.read_table(shop / "shop.item", ["brand"])

    def test_tokens_stay_text_and_numbers_become_float64(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        path.write_text(header + '007\tsay "hi"\t1\n7\ta,b\t1e3\n007\t日 本\t-2\n', encoding="utf-8")
        table = atomic.read_table(path, ["timestamp", "user_id", "item_id"])
        assert table.column_names == ["timestamp", "user_id", "item_id"]
        assert table["user_id"].to_pylist() == ["007", "7", "007"]
        assert table["user_id"].chunk(0).dictionary.to_pylist() == ["007", "7"]  # in order of appearance
        assert table["item_id"].to_pylist() == ['say "hi"', "a,b", "日 本"]
        assert table["timestamp"].to_pylist() == [1.0, 1000.0, -2.0]

    def test_codes_agree_however_the_file_is_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic, "_CSV_BLOCK", 64)
        users = [f"u{n % 7}" for n in range(500)]
        path = tmp_path / "x.inter"
        path.write_text("user_id:token\titem_id:token\n" + "".join(f"{user}\ti\n" for user in users))
        column = atomic.read_table(path)["user_id"]
        assert column.num_chunks == 1 and column.to_pylist() == users
        assert sorted(column.chunk(0).dictionary.to_pylist()) == [f"u{n}" for n in range(7)]


def test_checksum_is_the_sha256_of_the_bytes(shop: Path) -> None:
    expected = hashlib.sha256((shop / "shop.item").read_bytes()).hexdigest()
    assert atomic.checksum(shop / "shop.item") == expected
