"""What `check` counts, by hand; what it calls a fault; and what it says about the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recbole_cafe.cli import data
from recbole_cafe.cli.main import main
from recbole_cafe.files.atomic import AtomicFileError
from recbole_cafe.host import compat
from recbole_cafe.prepare import check
from recbole_cafe.prepare.simulate import write_simulated

CLICKS = [
    ("ann", "tea", 1),
    ("ann", "jam", 2),
    ("ann", "tea", 3),
    ("bob", "tea", 1),
    ("bob", "bun", 1),
    ("cat", "egg", 9),
]
INTENTS = {"tea": "hot", "jam": "sweet", "bun": "", "pie": "sweet"}


@pytest.fixture
def shop(write_atomic: Callable[..., Path]) -> Path:
    return write_atomic("shop", CLICKS, INTENTS) / "shop"


def test_the_numbers_are_those_counted_by_hand(shop: Path) -> None:
    found = check.examine(shop, "shop")
    assert not found.faults
    assert found.numbers == pytest.approx(
        {
            "users": 3, "items": 4, "interactions": 6, "per_item": 1.5, "per_item_median": 1.0, "per_user": 2.0,
            "long_tail_items": 1.0, "long_tail_interactions": 1.0, "repeats": 1 / 6, "ties": 2 / 6,
            "short_users": 2 / 3,
            "tied_test": 1 / 2, "tied_valid": 0.0, "tied_pairs": 1, "tied_repeated": 0, "tied_reversed": 0,
            "tied_reversed_shuffled": 0, "tied_cyclic": 0, "tied_cyclic_shuffled": 0,
            "intents": 2, "items_without_row": 1, "items_without_intent": 2, "unseen_items": 1, "intents_per_user": 1.5,
            "one_intent_users": 0.0, "intent_items_median": 1.0, "same_intent": 0.0, "same_intent_chance": 1 / 3,
        }
    )  # fmt: skip
    for part in ("50.0% of the items have no intent", "leaves out interactions with the 1 items", "66.7% of the users",
                 "33.3% of the interactions have no order in time", "16.7% are repeats"):  # fmt: skip
        assert any(part in text for text in found.warnings), part
    assert "as sparse as in the paper's data" in found.expectation[0]


@pytest.mark.parametrize(("times", "expected"), [(1, "as sparse as"), (4, "denser than"), (20, "items are dense")])
def test_less_is_expected_the_denser_the_items_are(
    write_atomic: Callable[..., Path], times: int, expected: str
) -> None:
    clicks = [(f"u{n}", item, n) for n in range(3 * times) for item in ("a", "b")]
    folder = write_atomic("d", clicks, {"a": "x", "b": "y"}) / "d"
    assert expected in check.examine(folder, "d").expectation[0]


def test_an_intent_that_never_changes_in_a_user_is_seen(write_atomic: Callable[..., Path]) -> None:
    clicks = [(f"u{n}", f"{'ab'[n % 2]}{step}", step) for n in range(4) for step in range(3)]
    folder = write_atomic("d", clicks, {f"{letter}{n}": letter for letter in "ab" for n in range(3)}) / "d"
    found = check.examine(folder, "d")
    assert (found.numbers["same_intent"], found.numbers["same_intent_chance"]) == (1.0, 1.0)
    assert found.numbers["one_intent_users"] == 1.0 and any("hardly change their intent" in w for w in found.warnings)


def test_faults_come_with_file_and_line(shop: Path) -> None:
    inter, item = shop / "shop.inter", shop / "shop.item"
    whole = inter.read_bytes()
    inter.write_bytes(whole.replace(b"bun", b"b\xfcn"))
    found = check.examine(shop, "shop")
    assert (
        found.faults == [f"{inter}: line 6: found the byte 0xfc, expected text in UTF-8 (key encoding)"]
        and not found.numbers
    )
    inter.write_bytes(whole.replace(b"item_id:token", b"item_id"))
    assert "line 1, column 2: found 'item_id', expected name:type" in check.examine(shop, "shop").faults[0]
    inter.write_bytes(whole)
    item.write_text(item.read_text() + "tea\tcold\n")
    found = check.examine(shop, "shop")
    second = "line 6, column 'intent': found 'cold', but line 2 has 'hot' for the same item_id 'tea'; expected one row"
    assert len(found.faults) == 1 and f"{item}: {second}" in found.faults[0] and "intents" not in found.numbers
    item.write_text(item.read_text().replace("cold", "hot"))
    found = check.examine(shop, "shop")
    assert "shop.item: 1 rows repeat the row of their item_id" in found.warnings and found.numbers["intents"] == 2
    assert not found.faults
    assert (
        "no column 'brand' for the intent, found item_id, intent"
        in check.examine(shop, "shop", intent="brand").faults[0]
    )
    item.unlink()
    assert "CaFe needs the intent of each item" in check.examine(shop, "shop").faults[0]


def test_one_intent_is_a_fault_and_a_list_of_intents_a_warning(write_atomic: Callable[..., Path]) -> None:
    folder = write_atomic("d", CLICKS, dict.fromkeys(("tea", "jam", "bun", "egg"), "x")) / "d"
    assert check.examine(folder, "d").faults == ["1 intent(s): there is nothing for the intent to tell"]
    (folder / "d.item").write_text("item_id:token\tintent:token_seq\ntea\thot drink\njam\tsweet\n")
    found = check.examine(folder, "d")
    assert found.numbers["intents"] == 2 and any("several tokens an item" in text for text in found.warnings)


def test_a_data_set_is_found_by_name_folder_or_file(shop: Path) -> None:
    expected = (shop.resolve(), "shop")
    assert check.locate("shop", [Path("nowhere"), shop.parent]) == expected
    assert check.locate(str(shop), []) == check.locate(str(shop / "shop.inter"), []) == expected
    with pytest.raises(AtomicFileError, match=r"no data set 'other': looked for a \.inter file in other, .*other"):
        check.locate("other", [shop.parent])
    (shop / "more.inter").write_text("x")
    (shop / "shop.inter").rename(shop / "renamed.inter")
    with pytest.raises(AtomicFileError, match=r"holds more\.inter, renamed\.inter; name one of the files"):
        check.locate(str(shop), [])


def test_the_command_prints_numbers_environment_and_defects(shop: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", "shop", f"--data_path={shop.parent}"]) == 0
    said = capsys.readouterr().out
    for part in ("interactions per item, mean", "1.50", "Figure 4", "recbole-cafe", "device", "DuckDB engine"):
        assert part in said
    assert all(f" {entry.name}: " in said for entry in compat.DEFECTS)
    (shop / "shop.item").unlink()
    assert main(["check", str(shop)]) == 1 and "FAULT: " in capsys.readouterr().out
    assert main(["check"]) == 0 and "environment" in capsys.readouterr().out


def test_encoding_and_separators_are_those_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    inter = 'user_id:token::item_id:token::timestamp:float\n甲::tea::1\n甲::"jam::2\n\n乙::tea::3\n'
    (folder / "shop.inter").write_bytes(inter.encode("gbk"))
    (folder / "shop.item").write_bytes('item_id:token::类别:token_seq\ntea::热|饮\n"jam::甜\n'.encode("gbk"))
    options = ["--encoding=gbk", "--field_separator=::", "--seq_separator=|", "--intent=类别"]
    assert main(["check", str(folder), *options]) == 0
    said = capsys.readouterr().out
    assert "warning: shop.inter: 1 empty lines skipped, the first is line 4" in said
    assert "FAULT" not in said
    assert main(["check", str(folder), *options[1:]]) == 1
    assert f"FAULT: {folder / 'shop.inter'}: line 2: found the byte 0xbc, expected text in UTF-8" in (
        capsys.readouterr().out.replace(str(folder.resolve()), str(folder))
    )


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "user_id:float\titem_id:token\ttimestamp:float",
            "1\tx\t1",
            "column 'user_id' is of type float, expected token",
        ),
        ("user_id:token\titem_id:token\ttimestamp:token", "1\tx\t1", "'timestamp' is of type token, expected float; a"),
        (
            "user_id:token\titem_id:token\ttimestamp:float",
            "1\tx\t2024-12-01",
            "line 2, column 'timestamp': found '2024",
        ),
        (
            "user_id:token\titem_id:token\ttimestamp:float",
            "1\tNA\t1",
            "line 2, column 'item_id': found 'NA', which is a",
        ),
    ],
)
def test_what_a_run_refuses_is_a_fault(shop: Path, header: str, row: str, message: str) -> None:
    (shop / "shop.inter").write_text(f"{header}\n{row}\n")
    (fault,) = check.examine(shop, "shop").faults
    assert message in fault


def test_simulated_data_are_called_so(tmp_path: Path) -> None:
    write_simulated(tmp_path / "s", "s", n_users=5, n_items=9, n_intents=3, n_interactions=40)
    assert "simulated" in check.examine(tmp_path / "s", "s").warnings[0]


def test_what_comes_with_recbole_is_found_as_a_run_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ml-100k"]) == 0
    assert "1,682" in capsys.readouterr().out


@pytest.mark.slow
def test_a_data_set_whose_yaml_lets_intents_be_made_is_checked_with_made_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_intent_of", lambda _: "auto")
    assert main(["check", "ml-100k"]) == 0
    assert "INTENT_FIELD=auto: " in capsys.readouterr().out
