"""Odd raw tables: what is left out is counted once, and an error names the file or the option."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_cafe.cli.main import main

ROWS = "user,item,time,category\na,x,1,c\na,y,2,d\n"


def prepare(path: str | Path, *more: str) -> int:
    columns = ["--user=user", "--item=item", "--time=time", "--intent=category"]
    return main(["prepare", "table", f"--interactions={path}", *columns, "--name=d", "--out=out", *more])


def inter() -> list[str]:
    return Path("out/d/d.inter").read_text(encoding="utf-8").splitlines()[1:]


def nothing_is_left() -> bool:
    return not [path for path in Path("out").rglob("*") if path.is_file()] if Path("out").exists() else True


def test_a_damaged_page_of_parquet_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({name: [str(row) for row in range(1000)] for name in ("user", "item", "time", "category")})
    pq.write_table(table, "t.parquet", compression="none")
    blob = bytearray(Path("t.parquet").read_bytes())
    blob[4:24] = b"\xff" * 20  # the header of the first page
    Path("t.parquet").write_bytes(blob)
    assert prepare("t.parquet") == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "Parquet" in line]
    assert "t.parquet: cannot be read as Parquet behind row 0: " in told
    assert nothing_is_left()


def test_a_time_of_parquet_that_python_has_not_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = pa.array([1, 1 << 50], pa.int64()).cast(pa.timestamp("s"))  # the second is after the year 9999
    pq.write_table(
        pa.table({"user": ["a", "b"], "item": ["x", "y"], "time": seconds, "category": ["c", "d"]}), "t.parquet"
    )
    assert prepare("t.parquet") == 1
    assert "t.parquet: cannot be read as Parquet" in capsys.readouterr().err


def test_a_header_that_is_no_csv_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_bytes(b"user,it\rem,time,category\na,x,1,c\n")
    assert prepare("t.csv") == 1
    assert "t.csv: line 1: not a header of CSV" in capsys.readouterr().err


def test_times_beyond_int64_are_written_as_they_are() -> None:
    Path("t.csv").write_text(ROWS + "b,x,12345678901234567890123,c\nb,y,1e308,d\n")
    assert prepare("t.csv") == 0
    assert [float(line.split("\t")[2]) for line in inter()] == [1.0, 2.0, 1.2345678901234568e22, 1e308]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_order_mark_is_taken_off(ending: str) -> None:
    cells = [line.split(",") for line in ROWS.splitlines()]
    as_json = "".join(json.dumps(dict(zip(cells[0], row, strict=True))) + "\n" for row in cells[1:])
    Path(f"t.{ending}").write_text(ROWS if ending == "csv" else as_json, encoding="utf-8-sig")
    assert prepare(f"t.{ending}") == 0
    assert inter() == ["a\tx\t1", "a\ty\t2"]


def test_a_row_with_several_faults_is_left_out_and_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_bytes(ROWS.encode() + b"NA,NA,3,c\nb,\xff,4,\xff\nb,x,5,\xff\n")
    assert prepare("t.csv") == 0
    told = capsys.readouterr()
    assert "3 rows of the raw files left out" in told.out
    assert "1 x user that RecBole cannot read back; first at t.csv: line 4" in told.err
    assert "2 x not UTF-8; first at t.csv: line 5" in told.err
    assert inter() == ["a\tx\t1", "a\ty\t2"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("user,item,time,category\n", "no interaction could be read from t.csv"),
        ("user,item,time,category\na,x,1,\n", "no item has an intent in t.csv"),
    ],
)
def test_a_table_without_anything_is_named(rows: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text(rows)
    assert prepare("t.csv") == 1
    assert told in capsys.readouterr().err
    assert nothing_is_left()


@pytest.mark.parametrize(("option", "status"), [("--memory=much", 2), ("--memory=1KB", 1), ("--threads=0", 2)])
def test_what_the_engine_cannot_work_with_names_the_option(
    option: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.csv").write_text(ROWS)
    assert prepare("t.csv", option) == status
    assert option in capsys.readouterr().err
    assert nothing_is_left()


def many_rows() -> None:
    rng = random.Random(1)
    rows = (f"user{rng.randrange(2000)},item{rng.randrange(3000)},{at},c{at % 9}\n" for at in range(6000))
    Path("t.csv").write_text("user,item,time,category\n" + "".join(rows))


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (5_000, "OutputError: --work: DuckDB cannot write"),  # when it starts
        (20_000, "00000.parquet cannot be written: the file would be larger"),  # the rows that were read
        (200_000, "OutputError: --work: DuckDB cannot write"),  # when it commits a table
    ],
)
def test_a_disk_without_room_is_said(size: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    many_rows()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert prepare("t.csv", "--threads=1") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert nothing_is_left()


def test_too_little_memory_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    many_rows()
    assert prepare("t.csv", "--memory=2MB", "--threads=1") == 1
    assert "MachineError: --memory=2MB is too little" in capsys.readouterr().err.splitlines()[-1]
    assert nothing_is_left()
