"""`prepare sequences`: the text form of S3-Rec's data sets into atomic files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_cafe.cli.main import main

pytest.importorskip("duckdb")

TEXT = "1 10 20 10\n2 30 20\n3 20\n"
ATTRIBUTES = {"10": [7, 1, 2], "20": [8, 1], "30": []}


def prepared(folder: Path, *more: str, text: str = TEXT) -> int:
    (folder / "seq.txt").write_text(text)
    (folder / "att.json").write_text(json.dumps(ATTRIBUTES, indent=1))
    return main(["prepare", "sequences", "--name=seq", f"--sequences={folder / 'seq.txt'}",
                 f"--out={folder / 'out'}", *more])  # fmt: skip


def table(folder: Path, ending: str) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "out" / "seq" / f"seq.{ending}").read_text().splitlines()]


def stamps(folder: Path) -> list[tuple[str, str, float]]:
    header, *rows = table(folder, "inter")
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    return [(user, item, float(time)) for user, item, time in rows]


def test_positions_stand_for_times(tmp_path: Path) -> None:
    assert prepared(tmp_path, f"--attributes={tmp_path / 'att.json'}") == 0
    assert stamps(tmp_path) == [
        ("1", "10", 1), ("1", "20", 2), ("1", "10", 3), ("2", "30", 1), ("2", "20", 2), ("3", "20", 1),
    ]  # fmt: skip
    assert sorted(table(tmp_path, "item")[1:]) == [["10", "2"], ["20", "1"], ["30", ""]]


@pytest.mark.parametrize(("intent", "of_10"), [("first", "7"), ("last", "2")])
def test_the_intent_is_chosen(tmp_path: Path, intent: str, of_10: str) -> None:
    assert prepared(tmp_path, f"--attributes={tmp_path / 'att.json'}", f"--intent={intent}") == 0
    assert ["10", of_10] in table(tmp_path, "item")


@pytest.mark.parametrize("gaps", ["1 0 0 2\n2 5 0\n3 0\n", "1 0 2\n2 0\n3\n"])
def test_gaps_add_up_and_ties_keep_the_order_of_the_line(tmp_path: Path, gaps: str) -> None:
    (tmp_path / "gaps.txt").write_text(gaps)
    assert prepared(tmp_path, f"--gaps={tmp_path / 'gaps.txt'}", "--unit=day", "--duplicates=exact") == 0
    start = 5 * 86_400 if " 5 " in gaps else 0
    assert stamps(tmp_path) == [
        ("1", "10", 0), ("1", "20", 0), ("1", "10", 172_800), ("2", "30", start), ("2", "20", start), ("3", "20", 0),
    ]  # fmt: skip


def test_times_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_text("1 100 100 160\n2 7 9\n3 1\n")
    assert prepared(tmp_path, f"--times={tmp_path / 'times.txt'}") == 0
    assert [time for *_, time in stamps(tmp_path)] == [100, 100, 160, 7, 9, 1]


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        ("1 1 2 3\n9 1 2\n3 1\n", r"times.txt: line 2: found user '9', expected '2'"),
        ("1 1 2 3\n2 1 2\n", r"times.txt: ends before line 3"),
        ("1 1 2 3\n2 1 2\n3 1\n4 1\n", r"times.txt: line 4: found '4 1', expected the end"),
    ],
)
def test_times_of_other_lines_are_refused(
    tmp_path: Path, times: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "times.txt").write_text(times)
    assert prepared(tmp_path, f"--times={tmp_path / 'times.txt'}") == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "times", "fault"),
    [
        ("1 10 20\n2\n", None, "line 2: found '2': no user and then 1 to 16383 items"),
        ("1 10 NA\n", None, "line 1: found 'NA': item that RecBole cannot read back"),
        ("1 10 20\n", "1 5\n", "line 1: found '1 5': not a time for each item in"),
        ("1 10 20\n", "1 5 x\n", "line 1: found '1 5 x': not a time for each item in"),
    ],
)
def test_faults_name_the_line(
    tmp_path: Path, text: str, times: str | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "times.txt").write_text(times or "")
    more = [] if times is None else [f"--times={tmp_path / 'times.txt'}"]
    assert prepared(tmp_path, "--strict", *more, text=text) == 1
    assert fault in capsys.readouterr().err


def test_attributes_that_are_no_object_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.json").write_text("[1]")
    assert prepared(tmp_path, f"--attributes={tmp_path / 'list.json'}") == 1
    assert "holds a list, expected an object, item -> attributes" in capsys.readouterr().err
