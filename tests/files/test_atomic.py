"""Atomic files: what is written reads back, nothing is half written, every fault is named with its place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_cafe.files import atomic
from recbole_cafe.files.atomic import AtomicFileError


def interactions(**columns: object) -> pd.DataFrame:
    table = {
        "user_id:token": ["ann", "ann", "bob"],
        "item_id:token": ["i1", "i2", "i1"],
        "timestamp:float": [10, 20, 30],
    }
    return pd.DataFrame(table | {f"{name}:{kind}": v for (name, kind), v in _typed(columns)})


def items(**columns: object) -> pd.DataFrame:
    table = {"item_id:token": ["i1", "i2"], "intent:token": ["tea", "jam"]}
    return pd.DataFrame(table | {f"{name}:{kind}": v for (name, kind), v in _typed(columns)})


def _typed(columns: dict[str, object]) -> list[tuple[tuple[str, str], object]]:
    kinds = {"timestamp": "float", "price": "float", "tags": "token_seq", "vector": "float_seq"}
    return [((name, kinds.get(name, "token")), values) for name, values in columns.items()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    atomic.write_dataset(tmp_path / "shop", "shop", interactions(), items(), readme="old")
    return tmp_path / "shop"


class TestWriting:
    def test_the_files_hold_the_tables_line_by_line(self, shop: Path) -> None:
        assert (shop / "shop.inter").read_bytes() == (
            b"user_id:token\titem_id:token\ttimestamp:float\nann\ti1\t10\nann\ti2\t20\nbob\ti1\t30\n"
        )
        assert (shop / "shop.item").read_bytes() == b"item_id:token\tintent:token\ni1\ttea\ni2\tjam\n"
        assert (shop / "README.md").read_text() == "old"

    def test_what_is_written_reads_back_whatever_the_tokens(self, tmp_path: Path) -> None:
        tokens = ["007", "7", "naïve", "日本 茶", "a,b", "x" * 300, 'say "hi"', " lead", "1e5", "-1"]
        table = pd.DataFrame({"user_id:token": tokens, "item_id:token": tokens[::-1]})
        table["timestamp:float"] = [0.1, 1e22, -1.5, 1 / 3, 2.0**-40, 1e15, 7.0, 1e-7, 123456789.125, 0.0]
        atomic.write_dataset(tmp_path / "odd", "odd", table)
        back = atomic.read_table(tmp_path / "odd" / "odd.inter")
        assert back["user_id"].tolist() == tokens
        assert back["item_id"].tolist() == tokens[::-1]
        np.testing.assert_array_equal(back["timestamp"], table["timestamp:float"])

    def test_rows_keep_their_order_over_many_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic, "_CHUNK_BYTES", 100)
        numbers = np.arange(1000)
        table = pd.DataFrame({"user_id:token": numbers % 7, "item_id:token": numbers, "timestamp:float": numbers})
        atomic.write_dataset(tmp_path / "long", "long", table)
        back = atomic.read_table(tmp_path / "long" / "long.inter", ["item_id", "timestamp"])
        assert back["item_id"].astype(int).tolist() == numbers.tolist() == back["timestamp"].tolist()

    def test_categories_write_the_same_bytes_as_their_text(self, tmp_path: Path, shop: Path) -> None:
        table = interactions().astype({"user_id:token": "category", "item_id:token": "category"})
        written = atomic.write_dataset(tmp_path / "cat", "shop", table, items())
        assert written.sha256["shop.inter"] == atomic.checksum(shop / "shop.inter")

    def test_checksum_is_the_sha256_of_the_bytes(self, shop: Path) -> None:
        expected = hashlib.sha256((shop / "shop.item").read_bytes()).hexdigest()
        assert atomic.checksum(shop / "shop.item") == expected

    def test_the_report_counts_items_on_one_side_only(self, tmp_path: Path) -> None:
        features = items().assign(**{"item_id:token": ["i2", "i9"]})
        written = atomic.write_dataset(tmp_path / "s", "s", interactions(), features)
        assert (written.users, written.items, written.interactions) == (2, 2, 3)
        assert (written.items_without_row, written.rows_without_interaction) == (1, 1)

    def test_extra_files_may_be_told_what_was_written(self, tmp_path: Path) -> None:
        extra = {"counts.txt": lambda written: f"{written.interactions} rows"}
        atomic.write_dataset(tmp_path / "s", "s", interactions(), extra_files=extra)
        assert (tmp_path / "s" / "counts.txt").read_text() == "3 rows"

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                {"user_id": ["a\tb", "a", "b"]},
                r"s\.inter: row 0, column 'user_id:token': found 'a\\tb'.*no tab",
            ),
            ({"user_id": ["a", "a\nb", "b"]}, r"row 1, column 'user_id:token': found 'a\\nb'.*line break"),
            ({"item_id": ["i", "", "i"]}, r"row 1, column 'item_id:token': found ''.*not empty"),
            ({"item_id": ["i", "i", None]}, r"row 2, column 'item_id:token': no value, expected token"),
            ({"item_id": ["i", "NA", "i"]}, r"found 'NA', which RecBole reads as a missing value"),
            (
                {"item_id": ['"i', "i", "i"]},
                r"found '\"i', which RecBole reads as the start of a quoted text",
            ),
            ({"item_id": [1.0, 2.0, np.nan]}, r"column 'item_id:token' holds float64, expected ids"),
            (
                {"timestamp": [1.0, np.nan, 2.0]},
                r"row 1, column 'timestamp:float': found nan, expected a finite",
            ),
            ({"timestamp": ["1", "2", "x"]}, r"column 'timestamp:float' holds .*, expected numbers"),
            (
                {"vector": ["1 2", "1 x", "3"]},
                r"row 1, column 'vector:float_seq': found '1 x', expected finite",
            ),
        ],
    )
    def test_a_value_recbole_cannot_read_is_refused(
        self, tmp_path: Path, columns: dict[str, object], message: str
    ) -> None:
        with pytest.raises(AtomicFileError, match=message):
            atomic.write_dataset(tmp_path / "s", "s", interactions(**columns))
        assert snapshot(tmp_path) == {}

    def test_an_item_may_have_one_row_only(self, tmp_path: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"s\.item: column 'item_id:token': found 'i1' 2 times"):
            atomic.write_dataset(tmp_path / "s", "s", interactions(), items(item_id=["i1", "i1"]))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (pd.DataFrame({"user_id:token": ["a"]}), "no column 'item_id:token', found user_id:token"),
            (interactions().head(0), "no rows"),
            (interactions().assign(rating=1), "column 'rating', expected name:type"),
        ],
    )
    def test_a_table_without_the_needed_columns_is_refused(
        self, tmp_path: Path, table: pd.DataFrame, message: str
    ) -> None:
        with pytest.raises(AtomicFileError, match=message):
            atomic.write_dataset(tmp_path / "s", "s", table)

    @pytest.mark.parametrize("name", ["", "a/b", "..", "a\tb"])
    def test_a_name_must_be_a_plain_file_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(AtomicFileError, match="is no data set name"):
            atomic.write_dataset(tmp_path / "s", name, interactions())


class TestReplacing:
    def test_a_data_set_is_replaced_only_when_asked(self, shop: Path) -> None:
        before = snapshot(shop.parent)
        with pytest.raises(AtomicFileError, match="shop: exists already; nothing was written, pass replace"):
            atomic.write_dataset(shop, "shop", interactions(), readme="new")
        assert snapshot(shop.parent) == before
        atomic.write_dataset(shop, "shop", interactions(), readme="new", replace=True)
        assert sorted(snapshot(shop.parent)) == ["shop/README.md", "shop/shop.inter"]
        assert (shop / "README.md").read_text() == "new"

    def test_a_folder_with_other_files_is_never_replaced(self, shop: Path) -> None:
        (shop / "thesis.tex").write_text("years of work")
        with pytest.raises(AtomicFileError, match=r"holds thesis\.tex, which is not part of the data set 'shop'"):
            atomic.write_dataset(shop, "shop", interactions(), replace=True)
        assert (shop / "thesis.tex").read_text() == "years of work"

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "s").mkdir()
        atomic.write_dataset(tmp_path / "s", "s", interactions())
        assert sorted(snapshot(tmp_path)) == ["s/s.inter"]

    def test_a_file_in_the_way_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("a file")
        with pytest.raises(AtomicFileError, match="is a file, expected a folder"):
            atomic.write_dataset(tmp_path / "s", "s", interactions(), replace=True)

    @pytest.mark.parametrize("failing_call", [1, 2])
    def test_a_failing_rename_leaves_the_old_data_set(
        self, shop: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
    ) -> None:
        before, rename, calls = snapshot(shop.parent), os.replace, []

        def fail(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == failing_call:
                raise OSError("disk gone")
            rename(source, target)

        monkeypatch.setattr(os, "replace", fail)
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on a system that has no such call
        with pytest.raises(OSError, match="disk gone"):
            atomic.write_dataset(shop, "shop", interactions(), readme="new", replace=True)
        assert snapshot(shop.parent) == before

    def test_a_failure_while_writing_leaves_the_old_data_set(self, shop: Path) -> None:
        before = snapshot(shop.parent)

        def interrupted(_: atomic.Written) -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            atomic.write_dataset(shop, "shop", interactions(), readme=interrupted, replace=True)
        assert snapshot(shop.parent) == before

    def test_killed_between_the_two_renames_the_old_data_set_comes_back(self, shop: Path) -> None:
        before = snapshot(shop)
        os.replace(shop, shop.with_name(".shop.old"))  # what is on disk then
        with pytest.raises(AtomicFileError, match="exists already"):
            atomic.write_dataset(shop, "shop", interactions())
        assert snapshot(shop) == before

    def test_killed_after_both_renames_the_leftover_does_no_harm(self, shop: Path) -> None:
        shop.with_name(".shop.old").mkdir()
        (shop.with_name(".shop.old") / "shop.inter").write_text("older")
        atomic.write_dataset(shop, "shop", interactions(), replace=True)
        assert sorted(snapshot(shop.parent)) == ["shop/shop.inter"]

    def test_another_process_that_was_faster_wins(self, tmp_path: Path) -> None:
        target = tmp_path / "s"

        def meanwhile(_: atomic.Written) -> str:
            atomic.write_dataset(target, "s", interactions(), readme="first")
            return "second"

        with pytest.raises(AtomicFileError, match="exists already"):
            atomic.write_dataset(target, "s", interactions(), readme=meanwhile)
        assert (target / "README.md").read_text() == "first"
        assert sorted(snapshot(tmp_path)) == ["s/README.md", "s/s.inter"]


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
        assert table["intent"].isna().tolist() == [True, False, True]
        assert table["price"].isna().tolist() == [False, True, False]

    def test_windows_line_ends_and_a_missing_last_one_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.inter"
        path.write_bytes(b"user_id:token\titem_id:token\r\na\ti\r\nb\tj")
        assert atomic.read_table(path)["item_id"].tolist() == ["i", "j"]

    def test_an_unknown_column_is_named(self, shop: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"no column 'brand', found item_id, intent"):
            atomic.read_table(shop / "shop.item", ["brand"])


def test_statistics_count_what_occurs(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "user_id:token": ["a", "a", "a", "b"],
            "item_id:token": ["i", "i", "j", "k"],
            "timestamp:float": range(4),
        }
    )
    features = pd.DataFrame({"item_id:token": ["i", "j", "z"], "intent:token": ["tea", "tea", "jam"]})
    atomic.write_dataset(tmp_path / "s", "s", table, features)
    counts = atomic.statistics(tmp_path / "s", "s")
    assert (counts["users"], counts["items"], counts["intents"], counts["interactions"]) == (2, 3, 1, 4)
    assert counts["interactions_per_user"] == {"min": 1, "median": 2.0, "mean": 2.0, "max": 3}
    assert counts["interactions_per_item"]["max"] == 2
    assert counts["items_per_intent"]["max"] == 2
    assert counts["repeats"] == 0.25  # one of four: a's second i
    assert counts["items_without_intent"] == 1  # k has no row


def test_statistics_do_without_an_item_file(tmp_path: Path) -> None:
    atomic.write_dataset(tmp_path / "s", "s", interactions())
    counts = atomic.statistics(tmp_path / "s", "s")
    assert counts["intents"] is None and counts["items_without_intent"] is None
