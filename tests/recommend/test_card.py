"""recbole_cafe.recommend.card: what a bundle says to people, and that their edits stay."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from made import bundle_of

from recbole_cafe.cli.main import main
from recbole_cafe.errors import DataError
from recbole_cafe.export import export
from recbole_cafe.files.result import Result
from recbole_cafe.recommend.bundle import MANIFEST, read, write
from recbole_cafe.recommend.card import CARD, CLOSING, OPENING, card, code

INTENT = {"a": "x", "b": "x", "c": "y", "d": ""}
WALKS = {"u1": "abc", "u2": "bcd", "u3": "ab"}
EVIL = "`` <script>x</script>\n# head | [x](javascript:y) \u202e$title"


def small(**about: Any) -> Any:
    return replace(bundle_of("CaFePlus", WALKS, INTENT), about=about)


def rows(text: str) -> dict[str, list[str]]:
    """First cell of the tables' rows -> the others."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


@pytest.fixture(scope="module")
def exported(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of `run --export`, its result and its checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    keys = {"data_path": toy_path, "checkpoint_dir": folder, "epochs": 2, "hidden_size": 16, "inner_size": 16,
            "MAX_ITEM_LIST_LENGTH": 8, "gpu_id": "", "eval_mode": "['full','pop100']"}  # fmt: skip
    command = ["run", "--model=CaFePlus", f"--dataset={toy.NAME}", f"--result_file={folder / 'result.json'}",
               f"--export={folder / 'shop'}", *(f"--{key}={value}" for key, value in keys.items())]  # fmt: skip
    assert main(command) == 0
    return folder


def test_the_card_of_a_run_says_what_it_measured(exported: Path) -> None:
    text = (exported / "shop" / CARD).read_text(encoding="utf-8")
    result = Result.load(exported / "result.json")
    assert text.startswith(f"# CaFePlus on `{toy.NAME}`\n")
    found = rows(text)
    head = found["test"]
    for name, title in (("full", "`full`: among all items"), ("pop100", "`pop100`: among 100 popular others")):
        assert found[title][0] == str(result.n_targets[name])
        shown = dict(zip(head[1:], found[title][1:], strict=True))
        assert shown["`ndcg@5`"] == f"{result.test_result[name]['ndcg@5']:.4f}"
    assert f"Best validation: `{result.config['valid_metric']}` {result.best_valid_score:.4f}." in text
    assert "flatters every model" in text and result.later_unknown in text
    assert found["users"] == [f"{result.data['users']:,}"]
    trained = int(read(exported / "shop").items.seen.sum())
    assert found["interactions that it was trained on"] == [f"{trained:,}"]
    assert found["`learning_rate`"] == ["`0.001`"] and found["`hidden_size`"] == ["`16`"]
    assert found["`items`"] == [f"`{result.digests['items']}`"]
    assert f"seed {result.seed}" in text and "`recbole-cafe`" in found
    assert "simulated" not in text


def test_the_card_of_a_checkpoint_alone_says_what_is_known(exported: Path, tmp_path: Path) -> None:
    result = Result.load(exported / "result.json")
    export(result.checkpoint, tmp_path / "alone")
    text = (tmp_path / "alone" / CARD).read_text(encoding="utf-8")
    assert "Best validation" in text and "`pop100`" not in text and "`full`" not in text
    again = ["export", result.checkpoint, f"--out={tmp_path / 'both'}", f"--result={exported / 'result.json'}"]
    assert main(again) == 0
    assert (tmp_path / "both" / CARD).read_text() == (exported / "shop" / CARD).read_text()
    with pytest.raises(DataError, match=r"the result is of another run than .*: seed 7, expected 2020"):
        export(result.checkpoint, tmp_path / "other", result=replace(result, seed=7))
    assert not (tmp_path / "other").exists()


def test_a_final_run_measures_nothing() -> None:
    text = card(small(run={"final": True, "epochs": 3}))
    assert "Nothing: it was trained on all interactions" in text and "none was held out" in text
    assert "after epoch 3" in text and "last two interactions" not in text


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"dataset": "x", "seed": 1, "digests": {"items": "ab"}},  # of an older version
        {"dataset": 3, "seed": "x", "digests": [1], "run": {"test": {"full": 3}, "n_targets": 1},
         "data": {"users": "x"}, "updates": "often", "simulated": "yes", "training": None, "versions": [],
         "trained_items": {}},
    ],
    ids=["nothing", "older", "of wrong kinds"],
)  # fmt: skip
def test_what_is_not_known_is_not_said(about: dict[str, Any], tmp_path: Path) -> None:
    write(small(**about), tmp_path / "b")
    text = (tmp_path / "b" / CARD).read_text(encoding="utf-8")
    assert "$" not in text.replace("$title", "") and "None" not in re.sub(r"`.*?`", "", text)
    assert "No test of this model is known" in text
    assert not re.search(r"\bTODO|\.\.\.|\[\]|\{\}", re.sub(r"`.*?`", "", text))
    assert read(tmp_path / "b").items.n == 5


def test_all_items_come_first_and_random_intents_are_warned_of() -> None:
    text = card(small(run={"test": {"authors100": {"mrr": 0.5}, "full": {"mrr": 0.25}}}))
    assert text.index("`full`: among") < text.index("`authors100`: among")
    assert "the intent alone points at the target" in text


def test_a_simulated_data_set_is_named_first() -> None:
    assert "**The data are simulated.**" in card(small(simulated=True)).partition("## ")[0]


def test_names_mean_nothing_in_markdown() -> None:
    markdown = pytest.importorskip("markdown")
    walks = {"u": ["a'`$(x)\n```\n# b", EVIL]}
    bundle = replace(bundle_of("CaFePlus", walks, dict.fromkeys(walks["u"], EVIL)),
                     about={"dataset": EVIL, "digests": {EVIL: EVIL}, "versions": {EVIL: EVIL},
                            "training": {EVIL: EVIL, "valid_metric": EVIL},
                            "run": {"test": {"full": {EVIL: 0.5}, EVIL: {EVIL: 0.1}},
                                    "later_unknown": EVIL}})  # fmt: skip
    text = card(bundle)
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 4)
    page = markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])
    assert "<script" not in page and "<a " not in page and page.count("<h1>") == 1
    assert [line for line in text.splitlines() if line.startswith("# ")] == [text.splitlines()[0]]
    # the examples are whole: Python's and the shell's words give the names again
    given = re.search(r"recommend\(\[(.*)\], k=10\)", text)
    assert given and ast.literal_eval(given[1]) == walks["u"]
    (request,) = (line for line in text.splitlines() if line.startswith("curl"))
    assert json.loads(shlex.split(request)[-1])["history"] == walks["u"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a b", "`a b`"), ("a`b", "`` a`b ``"), ("```", "```` ``` ````"), ("a|b", "`a¦b`"), ("a\n\x00b", "`a b`"),
     ("", "` `"), ("x" * 101, f"`{'x' * 100}...`")],
)  # fmt: skip
def test_code(name: str, shown: str) -> None:
    assert code(name) == shown


def test_words_of_people_survive_updates(tmp_path: Path) -> None:
    shop, new, later = tmp_path / "shop", tmp_path / "new.csv", tmp_path / "later.csv"
    write(small(dataset="x", trained_items=4, trained_interactions=8), shop)
    new.write_text("item,intent\ne,x\n")
    later.write_text("user,item\nu1,e\nu3,a\n")
    path = shop / CARD
    path.write_text("# Ours\n\nLicence: ours.\n", encoding="utf-8")
    assert read(shop).items.n == 5  # its digest is nobody's business
    assert CARD not in json.loads((shop / MANIFEST).read_text())["sha256"]
    assert main(["update", str(shop), f"--items={new}"]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Ours\n\nLicence: ours.\n\n{OPENING}\n## Updates\n")
    assert "once" in text and "5 items (trained with 4) and 8 interactions (trained with 8)" in text
    path.write_text(text + "\nMore of ours.\n", encoding="utf-8")
    assert main(["update", str(shop), f"--interactions={later}", f"--out={tmp_path / 'other'}"]) == 0
    assert path.read_text(encoding="utf-8") == text + "\nMore of ours.\n"  # the old bundle is as it was
    text = (tmp_path / "other" / CARD).read_text(encoding="utf-8")
    assert text.startswith("# Ours\n\nLicence: ours.\n") and text.endswith(f"{CLOSING}\n\nMore of ours.\n")
    assert "2 times" in text and "10 interactions (trained with 8)" in text and text.count(OPENING) == 1


def test_a_card_that_is_gone_is_made_again(tmp_path: Path) -> None:
    write(small(), tmp_path / "shop")
    (tmp_path / "shop" / CARD).unlink()
    (tmp_path / "new.csv").write_text("item\ne\n")
    assert main(["update", str(tmp_path / "shop"), f"--items={tmp_path / 'new.csv'}"]) == 0
    text = (tmp_path / "shop" / CARD).read_text(encoding="utf-8")
    assert text.startswith("# CaFePlus\n") and "It now has 5 items and 8 interactions." in text


def test_a_card_that_cannot_be_kept_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(small(), tmp_path / "shop")
    (tmp_path / "new.csv").write_text("item\ne\n")
    path = tmp_path / "shop" / CARD
    path.write_bytes(b"\xff\xfe")
    assert main(["update", str(tmp_path / "shop"), f"--items={tmp_path / 'new.csv'}"]) != 0
    assert f"{path} cannot be kept, it is no text in UTF-8" in capsys.readouterr().err
    path.unlink()
    path.symlink_to(tmp_path / "new.csv")
    assert main(["update", str(tmp_path / "shop"), f"--items={tmp_path / 'new.csv'}"]) != 0
    assert "no plain file" in capsys.readouterr().err
