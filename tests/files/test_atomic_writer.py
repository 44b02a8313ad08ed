"""Atomic files: what is written reads back, nothing is half written, every fault is named with its place."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recbole_cafe.errors import ConfigError, OutputError
from recbole_cafe.files import atomic_writer, whole
from recbole_cafe.files.atomic import ITEM, TIME, USER, AtomicFileError, checksum
from recbole_cafe.files.atomic_writer import Stream, Written, write_dataset
from recbole_cafe.files.columns import read_columns


def table(**columns: object) -> pa.Table:
    """Columns by name, each with the type that its name has in these tests."""
    kinds = {"timestamp": "float", "price": "float", "tags": "token_seq", "vector": "float_seq"}
    return pa.table({f"{name}:{kinds.get(name, 'token')}": values for name, values in columns.items()})


def interactions(**columns: object) -> pa.Table:
    rows = {"user_id": ["ann", "ann", "bob"], "item_id": ["i1", "i2", "i1"], "timestamp": [10, 20, 30]}
    return table(**rows | columns)


def items(**columns: object) -> pa.Table:
    return table(**{"item_id": ["i1", "i2"], "intent": ["tea", "jam"]} | columns)


def write(
    folder: Path, name: str, inter: pa.Table | None = None, item: pa.Table | None = None, **options: Any
) -> Written:
    """Write tables of memory, by default those of the shop."""
    inter, item = interactions() if inter is None else inter, items() if item is None else item
    n_items = len(pc.unique(inter[ITEM])) if ITEM in inter.column_names else 0
    return write_dataset(folder, name, Stream.of(inter), Stream.of(item), n_items=n_items, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write(tmp_path / "shop", "shop", texts={"README.md": "old"})
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
        times = [0.1, 1e22, -1.5, 1 / 3, 2.0**-40, 1e15, 7.0, 1e-7, 123456789.125, 0.0]
        inter = table(user_id=sorted(tokens, key=str.encode), item_id=tokens[::-1], timestamp=times)
        write(tmp_path / "odd", "odd", inter, table(item_id=sorted(tokens, key=str.encode)))
        back = read_columns(tmp_path / "odd" / "odd.inter", None).table()
        assert back["user_id"].to_pylist() == sorted(tokens, key=str.encode)
        assert back["item_id"].to_pylist() == tokens[::-1]
        assert back["timestamp"].to_pylist() == times

    def test_rows_keep_their_order_over_many_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic_writer, "ROWS", 100)
        numbers = np.arange(1000)
        inter = table(user_id=numbers // 143, item_id=numbers, timestamp=numbers)  # seven users
        item = table(item_id=sorted(map(str, numbers)))
        written = write(tmp_path / "long", "long", inter, item)
        assert (written.users, written.items, written.item_rows) == (7, 1000, 1000)
        back = read_columns(tmp_path / "long" / "long.inter", ["item_id", "timestamp"]).table()
        assert list(map(int, back["item_id"].to_pylist())) == numbers.tolist() == back["timestamp"].to_pylist()

    def test_dictionaries_write_the_same_bytes_as_their_text(self, tmp_path: Path, shop: Path) -> None:
        ids = {name: interactions()[name].combine_chunks().dictionary_encode() for name in (USER, ITEM)}
        written = write(tmp_path / "coded", "shop", pa.table(ids | {TIME: interactions()[TIME]}))
        assert written.sha256["shop.inter"] == checksum(shop / "shop.inter")

    def test_a_dictionary_says_the_order(self, tmp_path: Path) -> None:
        numbers = [f"u{n}" for n in (1, 2, 10)]  # as bytes u10 comes before u2
        message = r"s\.inter: row 2: 'u10' comes after 'u2', expected rows sorted by user"
        with pytest.raises(AtomicFileError, match=message):
            write(tmp_path / "s", "s", interactions(user_id=numbers))
        coded = pa.DictionaryArray.from_arrays([0, 1, 2], numbers)
        assert write(tmp_path / "s", "s", interactions(user_id=coded)).users == 3
        for codes, names, message in (
            ([0, 2, 1], numbers, "row 2: 'u2' comes after 'u10'"),
            ([0, 1, 2], ["a", "b", "a"], "names a value twice"),
        ):
            with pytest.raises(AtomicFileError, match=message):
                write(tmp_path / "t", "t", interactions(user_id=pa.DictionaryArray.from_arrays(codes, names)))

    def test_order_is_checked_from_batch_to_batch(self, tmp_path: Path) -> None:
        batches = [*interactions().to_batches(), *interactions().to_batches()]
        with pytest.raises(AtomicFileError, match=r"row 3: 'ann' comes after 'bob', expected rows sorted by user"):
            write_dataset(tmp_path / "s", "s", Stream(batches, 6), Stream.of(items()), n_items=2)

    def test_as_many_rows_must_come_as_announced(self, tmp_path: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"s\.inter: 3 rows came, 4 were announced"):
            write_dataset(tmp_path / "s", "s", Stream(interactions().to_batches(), 4), Stream.of(items()), n_items=2)

    def test_items_without_a_row_are_counted(self, tmp_path: Path) -> None:
        written = write(tmp_path / "s", "s", item=table(item_id=["i2"], intent=["jam"]))
        assert (written.users, written.items, written.interactions) == (2, 2, 3)
        assert (written.item_rows, written.items_without_row) == (1, 1)

    def test_a_feature_of_an_item_may_be_missing(self, tmp_path: Path) -> None:
        write(tmp_path / "s", "s", item=items(intent=["tea", None], price=[None, 2.5]))
        assert (tmp_path / "s" / "s.item").read_text().splitlines()[1:] == ["i1\ttea\t", "i2\t\t2.5"]

    def test_extra_files_may_be_told_what_was_written(self, tmp_path: Path) -> None:
        write(tmp_path / "s", "s", texts={"counts.txt": lambda written: f"{written.interactions} rows"})
        assert (tmp_path / "s" / "counts.txt").read_text() == "3 rows"

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                {"user_id": ["a\tb", "b", "c"]},
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
            ({"item_id": [1.0, 2.0, np.nan]}, r"column 'item_id:token' holds double, expected ids"),
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
            write(tmp_path / "s", "s", interactions(**columns))
        assert snapshot(tmp_path) == {}

    def test_an_item_may_have_one_row_only(self, tmp_path: Path) -> None:
        with pytest.raises(AtomicFileError, match=r"s\.item: row 1: 'i1' comes after 'i1', expected each item once"):
            write(tmp_path / "s", "s", item=items(item_id=["i1", "i1"]))

    @pytest.mark.parametrize(
        ("inter", "message"),
        [
            (table(user_id=["a"]), "no column 'item_id:token', found user_id:token"),
            (interactions().slice(0, 0), "no rows"),
            (interactions().append_column("rating", [[1, 1, 1]]), "column 'rating', expected name:type"),
        ],
    )
    def test_a_table_without_the_needed_columns_is_refused(self, tmp_path: Path, inter: pa.Table, message: str) -> None:
        with pytest.raises(AtomicFileError, match=message):
            write(tmp_path / "s", "s", inter)

    @pytest.mark.parametrize("name", ["", "a/b", "..", "a\tb"])
    def test_a_name_must_be_a_plain_file_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="is no data set name"):
            write(tmp_path / "s", name)


class TestReplacing:
    def test_a_data_set_is_replaced_only_when_asked(self, shop: Path) -> None:
        before = snapshot(shop.parent)
        with pytest.raises(AtomicFileError, match="shop: exists already; nothing was written, pass replace"):
            write(shop, "shop", texts={"README.md": "new"})
        assert snapshot(shop.parent) == before
        write(shop, "shop", texts={"README.md": "new"}, replace=True)
        assert sorted(snapshot(shop.parent)) == ["shop/README.md", "shop/shop.inter", "shop/shop.item"]
        assert (shop / "README.md").read_text() == "new"

    def test_a_folder_with_other_files_is_never_replaced(self, shop: Path) -> None:
        (shop / "thesis.tex").write_text("years of work")
        with pytest.raises(AtomicFileError, match=r"holds thesis\.tex, which is not part of the data set 'shop'"):
            write(shop, "shop", replace=True)
        assert (shop / "thesis.tex").read_text() == "years of work"

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "s").mkdir()
        write(tmp_path / "s", "s")
        assert sorted(snapshot(tmp_path)) == ["s/s.inter", "s/s.item"]

    def test_a_file_in_the_way_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("a file")
        with pytest.raises(AtomicFileError, match="is a file, expected a folder"):
            write(tmp_path / "s", "s", replace=True)

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
        monkeypatch.setattr(whole, "_exchange", lambda *_: False)  # as on a system that has no such call
        with pytest.raises(OSError, match="disk gone"):
            write(shop, "shop", texts={"README.md": "new"}, replace=True)
        assert snapshot(shop.parent) == before

    def test_a_failure_while_writing_leaves_the_old_data_set(self, shop: Path) -> None:
        before = snapshot(shop.parent)

        def interrupted(_: Written) -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(shop, "shop", texts={"README.md": interrupted}, replace=True)
        assert snapshot(shop.parent) == before

    def test_a_full_disk_is_said_by_the_name_of_the_folder(self, shop: Path) -> None:
        before = snapshot(shop.parent)

        def full(_: Written) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OutputError, match=r"shop cannot be written: the disk is full"):
            write(shop, "shop", texts={"README.md": full}, replace=True)
        assert snapshot(shop.parent) == before

    def test_what_a_killed_process_was_writing_goes_when_the_next_one_writes(self, tmp_path: Path) -> None:
        code = """if True:
            import os, pathlib, signal
            from recbole_cafe.files.whole import written_whole
            with written_whole(pathlib.Path("a.json")) as file:
                file.write(b"half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)"""
        environment = os.environ | {"PYTHONPATH": str(Path(whole.__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
        whole.write_json(tmp_path / "b.json", {})
        assert [path.name for path in tmp_path.iterdir()] == ["b.json"]

    def test_killed_between_the_two_renames_the_old_data_set_comes_back(self, shop: Path) -> None:
        before = snapshot(shop)
        os.replace(shop, shop.with_name(".shop.old"))  # what is on disk then
        with pytest.raises(AtomicFileError, match="exists already"):
            write(shop, "shop")
        assert snapshot(shop) == before

    def test_killed_after_both_renames_the_leftover_does_no_harm(self, shop: Path) -> None:
        shop.with_name(".shop.old").mkdir()
        (shop.with_name(".shop.old") / "shop.inter").write_text("older")
        write(shop, "shop", replace=True)
        assert sorted(snapshot(shop.parent)) == ["shop/shop.inter", "shop/shop.item"]

    def test_another_process_that_was_faster_wins(self, tmp_path: Path) -> None:
        target = tmp_path / "s"

        def meanwhile(_: Written) -> str:
            write(target, "s", texts={"README.md": "first"})
            return "second"

        with pytest.raises(AtomicFileError, match="exists already"):
            write(target, "s", texts={"README.md": meanwhile})
        assert (target / "README.md").read_text() == "first"
        assert sorted(snapshot(tmp_path)) == ["s/README.md", "s/s.inter", "s/s.item"]
