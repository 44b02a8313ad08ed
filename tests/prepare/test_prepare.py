"""Raw files written by hand become exactly the expected atomic files, on DuckDB and on Spark."""

from __future__ import annotations

import datetime
import gzip
import importlib.util
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_cafe.cli.main import main
from recbole_cafe.prepare import pipeline, raw, report
from recbole_cafe.prepare.raw import PrepareError
from recbole_cafe.prepare.sources import amazon, table, tmall
from recbole_cafe.prepare.tasks import run_task

INTER, ITEM = "user_id:token\titem_id:token\ttimestamp:float\n", "item_id:token\tintent:token\n"


def no_spark() -> str | None:
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed"
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        return "Spark needs Java"
    return None


@pytest.fixture(scope="session")
def spark() -> Iterator[None]:
    """One session for all tests; `prepare` uses the session that is there, and leaves it."""
    if reason := no_spark():
        pytest.skip(reason)
    import sys

    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for key, value in {
        "spark.sql.shuffle.partitions": "2", "spark.driver.host": "localhost",
        "spark.driver.bindAddress": "127.0.0.1", "spark.ui.showConsoleProgress": "false",
        "spark.sql.codegen.wholeStage": "false", "spark.sql.adaptive.enabled": "false",  # faster on a few rows
    }.items():  # fmt: skip
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield
    session.stop()


# What an engine does is the same for every source: reading, levels, filters and faults are tried with both
BOTH = pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(params=["duckdb"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "spark":
        request.getfixturevalue("spark")
    return request.param


def zipped(path: Path, lines: list[str | bytes]) -> str:
    """A gzip file of lines."""
    with gzip.open(path, "wb") as file:
        file.write(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return str(path)


def plain(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def prepared(*arguments: str, name: str = "d") -> tuple[str, str, str]:
    """Run the command; the text of .inter and .item without their headers, and README.md."""
    assert main(["prepare", *arguments, f"--name={name}", "--out=out"]) == 0
    folder = Path("out") / name
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", f"{name}.inter", f"{name}.item"]
    inter, item = ((folder / f"{name}.{ending}").read_bytes().decode() for ending in ("inter", "item"))
    assert inter.startswith(INTER) and item.startswith(ITEM)
    return inter.removeprefix(INTER), item.removeprefix(ITEM), (folder / "README.md").read_text(encoding="utf-8")


def lines(*rows: str) -> str:
    """Rows with their columns parted by blanks; a trailing | is an empty last column."""
    return "".join(row.replace(" ", "\t").replace("|", "").replace("_", " ") + "\n" for row in rows)


def review(user: object, item: object, when: object, stars: float = 5.0) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": when, "reviewText": "ok"})


def shop(tmp_path: Path, rows: str = "ann,tea,1\nann,jam,2\nbob,tea,3\n") -> list[str]:
    """Arguments for a small table that has all in one file."""
    kinds = {"tea": "drinks", "jam": "food"}
    text = "".join(f"{row},{kinds.get(row.split(',')[1], '')}\n" for row in rows.splitlines())
    path = plain(tmp_path / "clicks.csv", "who,what,when,kind\n" + text)
    return ["table", f"--interactions={path}", "--user=who", "--item=what", "--time=when", "--intent=kind"]


# Amazon ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_amazon_2014_with_literals_for_metadata_and_every_fault(tmp_path: Path, engine: str) -> None:
    reviews = zipped(
        tmp_path / "reviews_Toys.json.gz",
        [
            review("A2", "B2", 200),
            review("A1", "B3", 300),  # as late as the next: stays before it
            review("A1", "B1", 300),
            review("A1", "B2", 100),
            review("A1", "B2", 100),  # the same again
            '{"reviewerID": "A1", "asin":',
            json.dumps({"asin": "B1", "overall": 1.0, "unixReviewTime": 5}),
            review("A1", "B1", "soon"),
            review("A\t1", "B1", 1),
            b'{"reviewerID": "A\xff1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}',
            b'{"reviewerID": "A3", "asin": "B9", "overall": 5.0, "unixReviewTime": 400, "reviewText": "th\xe9"}',
            "[1, 2]",
            review("NA", "B1", 7),
            review("A4", '"B1', 7),
            "",
            review("A3", "B5", 1e400),
        ],
    )
    metadata = zipped(
        tmp_path / "meta_Toys.json.gz",
        [
            "{'asin': 'B1', 'title': \"It's\", 'categories': [['Toys', 'Games', 'Chess'], ['Gifts', 'Wood']]}",
            "{'asin': 'B2', 'categories': [['Toys']]}",
            "{'asin': 'B3', 'categories': [['Toys', 'Games']]}",
            "{'asin': 'B3', 'categories': [['Toys', 'Puzzles']]}",  # as frequent, but later
            "{'asin': 'B4', 'categories': [['Toys', 'Never reviewed']]}",
            "__import__('pathlib').Path('pwned').touch()",
            "{'asin': 'B9', 'categories': [[]]}",
            "(" * 5_000,
        ],
    )
    inter, item, readme = prepared("amazon", f"--reviews={reviews}", f"--metadata={metadata}", f"--engine={engine}")
    assert inter == lines("A1 B2 100", "A1 B3 300", "A1 B1 300", "A2 B2 200", "A3 B9 400")
    assert item == lines("B1 Chess", "B2 Toys", "B3 Games", "B9 |")
    assert not Path("pwned").exists()
    for fault, count, line in (
        ("not a JSON record", 2, 6), ("no user", 1, 7), ("no time", 2, 8), ("user that RecBole cannot read back", 2, 9),
        ("not UTF-8", 1, 10), ("item that RecBole cannot read back", 1, 14), ("not a JSON record", 2, 6),
    ):  # fmt: skip
        assert f"| {fault} | {count} | `{reviews}: line {line}:" in readme
    assert "| items that the raw files give several intents | 1 |" in readme
    assert "| users | 3 |" in readme and "| items with an intent | 3 (75.00%) |" in readme


def test_amazon_2018_with_flat_categories_markup_and_a_truncated_file(tmp_path: Path, engine: str) -> None:
    one = zipped(
        tmp_path / "Books.json.gz", [review("A1", "B1", 20, 1.0), review("A1", "B2", 30, 4.0), review("A1", "B2", 10)]
    )
    whole = zipped(tmp_path / "whole.gz", [review(f"U{n:04}", "B3", n, 3.0) for n in range(3000)])
    cut = Path(whole).read_bytes()
    other = plain(tmp_path / "Toys.json.gz", cut[: len(cut) // 2])
    metadata = zipped(
        tmp_path / "meta.json.gz",
        [
            json.dumps(
                {"asin": "B1", "category": ["Books &amp; More", "<b>Crime</b>", "</span></span>"], "brand": "Penguin"}
            ),
            json.dumps(
                {"asin": "B2", "category": ["Books &amp;  More", "Crime", "True\tCrime"], "brand": "by\n    \n    Ace"}
            ),
            json.dumps({"asin": "B3", "category": [], "main_cat": "Toys"}),
        ],
    )
    arguments = ["amazon", f"--reviews={one}", "--reviews", one, other, f"--metadata={metadata}", f"--engine={engine}",
                 "--unknown=drop", "--duplicates=first"]  # fmt: skip
    inter, item, readme = prepared(*arguments, "--level=2")
    assert inter == lines("A1 B2 10", "A1 B1 20")
    assert item == lines("B1 Crime", "B2 Crime")
    assert f"the file is damaged or breaks off; what comes before is used | 1 | `{other}: line " in readme
    if engine == "duckdb":
        assert prepared(*arguments, "--level=path", name="path")[1] == lines(
            "B1 Books_&_More_>_Crime", "B2 Books_&_More_>_Crime_>_True_Crime"
        )
        assert prepared(*arguments, "--intent=brand", name="brand")[1] == lines("B1 Penguin", "B2 Ace")
        kept = prepared(*arguments, "--intent=main", name="main")[1]
        assert kept == lines("B1 Books_&_More", "B2 Books_&_More", "B3 Toys")
        assert prepared(*arguments, "--duplicates=last", name="last")[0] == lines("A1 B1 20", "A1 B2 30")


def test_amazon_2023_with_parents_milliseconds_and_ratings(
    tmp_path: Path, engine: str, capsys: pytest.CaptureFixture
) -> None:
    def row(user: str, parent: str | None, when: object, stars: float = 5.0, asin: str = "X") -> str:
        record = {
            "rating": stars,
            "title": "t",
            "asin": asin,
            "parent_asin": parent,
            "user_id": user,
            "timestamp": when,
        }
        return json.dumps({key: value for key, value in record.items() if value is not None})

    reviews = zipped(
        tmp_path / "Beauty.jsonl.gz",
        [row("AB", "P1", 1588687728923), row("AB", "P2", 1588687728000), row("AC", None, 1588687728924, asin="P1"),
         row("AC", "P3", 1588687728925, 2.0), row("AC", "P3", None)],
    )  # fmt: skip
    metadata = zipped(
        tmp_path / "meta_Beauty.jsonl.gz",
        [json.dumps({"parent_asin": "P1", "main_category": "All", "categories": ["Beauty", "Nails"], "store": "Sally"}),
         json.dumps({"parent_asin": "P2", "main_category": "All", "categories": [], "details": {"Brand": "Ésprit"}}),
         json.dumps({"parent_asin": "P3", "categories": ["Beauty", "Hair"]})],
    )  # fmt: skip
    arguments = ["amazon", f"--reviews={reviews}", f"--metadata={metadata}", f"--engine={engine}", "--min-rating=3"]
    inter, item, readme = prepared(*arguments)
    assert inter == lines("AB P2 1588687728", "AB P1 1588687728.923", "AC P1 1588687728.924")
    assert item == lines("P1 Nails", "P2 |")
    assert "| rating of at least 3 | 3 |" in readme and "| no time | 1 |" in readme
    if engine == "duckdb":
        assert prepared(*arguments, "--intent=brand", name="brand")[1] == lines("P1 Sally", "P2 Ésprit")
        late = prepared(*arguments, "--after=2020-05-05T14:08:48.500Z", name="late")[0]
        assert late == lines("AB P1 1588687728.923", "AC P1 1588687728.924")
        assert main(["prepare", *arguments, "--before=2020-05-05T14:08:48.500Z", "--name=early", "--out=out"]) == 1
        assert "no item has an intent" in capsys.readouterr().err and not Path("out/early").exists()


def test_metadata_are_read_and_never_run() -> None:
    assert amazon.literal("{'a': \"it's\", 'b': [1, None]}") == {"a": "it's", "b": [1, None]}
    for text in ("open('x')", "1 + (", "{'a': __import__('os')}", "lambda: 0", "f'{1}'", ""):
        with pytest.raises(ValueError, match="neither JSON nor a Python literal"):
            amazon.literal(text)


# Tmall ----------------------------------------------------------------------------------------------------------------

IJCAI15 = """\
user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type
7,11,1,s1,b1,829,0
7,12,1,s2,,1111,2
7,12,1,s3,,1111,0
7,12,1,s3,,511,3
8,11,1,s1,b1,229,0
8,11,1,s1,b1,1131,0
8,11,1,s1,b1,829,9
8,11,1,s1,b1,829
8,13,2,,b2,829,1
"""


def seconds(month: int, day: int, year: int = 2014) -> int:
    return int(datetime.datetime(year, month, day, tzinfo=datetime.timezone.utc).timestamp())


def test_tmall_of_ijcai_15_has_sellers_days_and_actions(tmp_path: Path, engine: str) -> None:
    log = plain(tmp_path / "user_log_format1.csv", IJCAI15.replace("\n", "\r\n"))
    inter, item, readme = prepared("tmall", f"--log={log}", f"--engine={engine}")
    aug, nov, may = seconds(8, 29), seconds(11, 11), seconds(5, 11)
    assert inter == lines(f"7 12 {may}", f"7 11 {aug}", f"7 12 {nov}", f"8 13 {aug}")
    assert item == lines("11 s1", "12 s3", "13 |")  # of 12's sellers the more frequent one
    for fault, line in (
        ("no day of the form mmdd | 2", 6), ("an action that is none of 0, 1, 2, 3 | 1", 8),
        ("another number of columns than the 7 of the header | 1", 9),
    ):  # fmt: skip
        assert f"| {fault} | `{log}: line {line}:" in readme
    assert "1,788,758     9,999    14,460,516" in readme  # the paper's row beside ours
    if engine == "duckdb":
        bought = prepared("tmall", f"--log={log}", "--actions=buy,cart", "--intent=category", name="bought")
        assert bought[:2] == (lines(f"7 12 {nov}", f"8 13 {aug}"), lines("12 1", "13 2"))


def test_tmall_of_ijcai_16_is_read_inside_its_archive(tmp_path: Path, engine: str) -> None:
    rows = "use_ID,sel_ID,ite_ID,cat_ID,act_ID,time\n1,5,9,4,0,20151013\n1,5,8,4,1,20150701\n1,5,8,4,2,20150701\n"
    with zipfile.ZipFile(tmp_path / "IJCAI16_data.zip", "w") as file:
        file.writestr("ijcai2016_taobao.csv", rows)
    log = f"zip://ijcai2016_taobao.csv::{tmp_path / 'IJCAI16_data.zip'}"
    inter, item, readme = prepared("tmall", f"--log={log}", f"--engine={engine}")
    assert inter == lines(f"1 8 {seconds(7, 1, 2015)}", f"1 9 {seconds(10, 13, 2015)}")
    assert item == lines("8 5", "9 5")
    assert "an action that is none of 0, 1 | 1 |" in readme


@pytest.mark.parametrize(
    ("stamp", "with_year", "expected"),
    [("829", False, seconds(8, 29)), ("1231", False, seconds(12, 31)), ("20151231", True, seconds(12, 31, 2015)),
     ("229", False, None), ("0", False, None), ("20151131", True, None),
     ("20150829", False, None), ("8x9", False, None)],
)  # fmt: skip
def test_days(stamp: str, with_year: bool, expected: float | None) -> None:
    assert tmall.day(stamp, 2014, with_year=with_year) == expected


# Tables and atomic files ----------------------------------------------------------------------------------------------


@BOTH
def test_a_table_of_csv_with_levels_k_core_and_rare_intents(tmp_path: Path, engine: str) -> None:
    clicks = plain(
        tmp_path / "clicks.csv",
        "\ufeffwho;what;when\n".replace(";", ",")
        + "ann,tea,2024-03-01\n"
        + 'ann,"jam, red",2024-03-01T00:00:01Z\n'
        + "ann,bun,2024-03-01T02:00:00+01:00\n"
        + "bob,tea,1709251200.5\nbob,bun,1709251201\n"
        + "cat,tea,yesterday\ncat,pie,5\n"  # pie falls out, then cat
        + "dan,tea,7\ndan,egg,8\neve,egg,7\neve,fig,8\n"  # fig, then eve, then egg, then dan
        + ",tea,6\n\n",
    )
    things = plain(
        tmp_path / "things.jsonl",
        '{"sku": "tea", "kind": "food > drinks > hot"}\n{"sku": "jam, red", "kind": "food > sweet"}\n'
        '{"sku": "bun", "kind": "food > bread > sweet bread"}\n{"sku": 5}\n{"kind": "food"}\n',
    )
    arguments = ["table", f"--interactions={clicks}", f"--items={things}", "--user=who", "--item=what",
                 "--items-item=sku", "--time=when", "--intent=kind", "--separator=>", f"--engine={engine}"]  # fmt: skip
    core = ["--min-user=2", "--min-item=2", "--core=k-core", "--min-intent=2"]
    inter, item, readme = prepared(*arguments, *core)
    assert inter == lines("ann tea 1709251200", "ann bun 1709254800", "bob tea 1709251200.5", "bob bun 1709251201")
    assert item == lines("bun food", "tea food")  # hot -> drinks -> food
    assert "| no time | 1 |" in readme and "user that RecBole cannot read back | 1 |" in readme
    assert "no item (text or a whole number) | 1 |" in readme
    assert "round 1 | 6 |" in readme and "round 2 | 4 |" in readme and "round 3 | 4 |" in readme
    if engine == "duckdb":
        other = prepared(*arguments, "--min-intent=2", "--rare=other", "--level=1", name="other")
        assert other[1] == lines("bun food", "egg |", "fig |", "jam,_red food", "pie |", "tea food")
        other = prepared(*arguments, "--min-intent=2", "--rare=other", "--min-item=2", name="leaf")
        assert other[1] == lines("bun (other)", "egg |", "tea (other)")


@BOTH
def test_a_table_of_parquet_on_a_file_system_of_fsspec(engine: str, tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 3, 1, 12, tzinfo=datetime.timezone.utc)
    clicks = pa.table({"u": [2, 2, None], "i": ["x", "y", "x"], "t": [moment, moment.replace(hour=11), moment],
                       "tags": [["a", "b"], ["a"], None]})  # fmt: skip
    pq.write_table(clicks, tmp_path / "clicks.parquet")
    source = f"file://{tmp_path / 'clicks.parquet'}"
    inter, item, readme = prepared(
        "table", f"--interactions={source}", "--user=u", "--item=i", "--time=t", "--intent=tags", f"--engine={engine}"
    )
    assert inter == lines("2 y 1709290800", "2 x 1709294400")
    assert item == lines("x b", "y a")
    assert f"| no user | 1 | `{source}: line 3`" in readme


def test_recboles_atomic_files_with_the_intent_on_either_side(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "tmall-buy"
    folder.mkdir()
    plain(folder / "tmall-buy.inter", "user_id:token\titem_id:token\tseller_id:token\ttimestamp:float\n"
                                      "u1\ti1\ts1\t2\nu1\ti2\ts\"2\t1\n")  # fmt: skip
    arguments = ["atomic", f"--folder={folder}", f"--engine={engine}"]
    assert prepared(*arguments, "--intent=seller_id")[:2] == (lines("u1 i2 1", "u1 i1 2"), lines("i1 s1", 'i2 s"2'))
    if engine == "duckdb":
        plain(folder / "tmall-buy.item", "item_id:token\tcategories:token_seq\ni1\t'Toys' 'Games'\ni2\tBooks\n")
        assert prepared(*arguments, "--intent=categories", name="list")[1] == lines("i1 Games", "i2 Books")


def test_the_tables_of_a_real_data_set_give_it_back(shared_data: Path, tmp_path: Path) -> None:
    name = "amazon-mix0"
    source = shared_data / name / name
    inter, item, _ = prepared(
        "table", f"--interactions={source}.inter", f"--items={source}.item", "--user=user_id", "--item=item_id",
        "--time=timestamp", "--intent=intent", name=name,
    )  # fmt: skip
    assert item == Path(f"{source}.item").read_text().partition("\n")[2]
    before = [line.split("\t") for line in Path(f"{source}.inter").read_text().splitlines()[1:]]
    before.sort(key=lambda row: (row[0], float(row[2])))  # stable
    assert inter.splitlines() == ["\t".join(row) for row in before]

    from recbole_cafe import run

    result = run("CaFe", name, config_dict={
        "data_path": "out", "epochs": 1, "hidden_size": 8, "n_heads": 2, "n_local_heads": 1, "inner_size": 8,
        "eval_mode": ["uni5"],
        "MAX_ITEM_LIST_LENGTH": 5, "show_progress": False, "use_gpu": False, "train_batch_size": 4096,
    })  # fmt: skip
    assert result.test_result


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [("auto", "12.5", 12.5), ("auto", 7, 7.0), ("auto", "1970-01-02", 86400.0),
     ("auto", "1970-01-01T01:00:00+01:00", 0.0),
     ("auto", True, None), ("auto", "nan", None), ("auto", "", None), ("auto", "1_000", None), ("ms", "1500", 1.5),
     ("us", 2_000_000, 2.0), ("s", "x", None), ("%d.%m.%Y", "02.01.1970", 86400.0), ("%d.%m.%Y", "1970-01-02", None),
     ("auto", datetime.date(1970, 1, 2), 86400.0)],
)  # fmt: skip
def test_times(form: str, value: object, expected: float | None) -> None:
    assert table.reader_of_times(form)(value) == expected


# Choices --------------------------------------------------------------------------------------------------------------


def test_users_are_drawn_by_hash_and_the_same_ones_whatever_the_order(tmp_path: Path) -> None:
    rows = [f"u{n},tea,{n}" for n in range(40)]
    some = prepared(*shop(tmp_path, "\n".join(rows)), "--users=5")[0]
    again = prepared(*shop(tmp_path, "\n".join(rows[::-1])), "--users=5", name="again")[0]
    import hashlib

    expected = sorted(sorted((f"u{n}" for n in range(40)), key=lambda user: hashlib.md5(user.encode()).hexdigest())[:5])
    assert [line.split("\t")[0] for line in some.splitlines()] == expected and again == some


def test_rare_intents_can_take_their_items_with_them(tmp_path: Path) -> None:
    rows = "ann,tea,1\nann,jam,2\nbob,tea,3\nbob,odd,4\n"
    source = plain(
        tmp_path / "c.csv",
        "u,i,t,k\n" + "".join(f"{row},{'x' if 'jam' not in row else 'y'}\n" for row in rows.splitlines()),
    )
    inter, item, _ = prepared("table", f"--interactions={source}", "--user=u", "--item=i", "--time=t", "--intent=k",
                              "--min-intent=2", "--rare=drop")  # fmt: skip
    assert inter == lines("ann tea 1", "bob tea 3", "bob odd 4") and item == lines("odd x", "tea x")


def test_passwords_of_urls_do_not_enter_the_readme() -> None:
    assert report._code("s3://me:secret@shop/a|b") == "s3://shop/a/b"


def test_numbers_of_intents() -> None:
    sizes = pa.table({"intent": ["a", "b"], "items": [1, 3], "interactions": [4, 4]})
    found = pipeline.intent_numbers(sizes, 8, 10)
    assert found == {
        "intents": 2,
        "entropy": 1.0,
        "items_with_intent": 4,
        "coverage_items": 0.5,
        "coverage_interactions": 0.8,
    }


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--level=deep"], 2, "--level=deep: expected leaf, path or a depth from 1"),
        (["--min-user=0"], 2, "--min-user=0: expected at least 1"),
        (["--after=2024-01-02", "--before=2024-01-01"], 2, "the time range is empty"),
        (["--after=tomorrow"], 2, "--after=tomorrow: expected a date"),
        (["--min-rating=3"], 2, "--min-rating needs --rating"),
        (["--time-format=hours"], 2, "--time-format=hours: expected auto, s, ms, us or a pattern"),
        (["--time=at"], 1, "clicks.csv: line 1: no column 'at' for time; found who, what, when, kind"),
        (["--interactions=nowhere.csv"], 1, "nowhere.csv: no such file"),
        (["--interactions=clicks.xls"], 2, "clicks.xls: the name does not tell the format; give --format"),
        (["--before=0"], 1, "no interaction is left after: time before 0 (rows read: 3; time before 0: 0)"),
        (["--min-user=9"], 1, "no interaction is left after: at least 1 an item and 9 a user, round 1"),
        (["--user=kind", "--time=who"], 1, "no interaction could be read from"),
        (["--strict", "--time=who"], 1, "clicks.csv: line 2: found 'ann': no time (--strict stops here"),
        (["--name=a/b"], 2, "'a/b' is no data set name"),
    ],
)  # fmt: skip
def test_a_choice_that_gives_no_data_set_is_named_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], status: int, message: str
) -> None:
    assert main(["prepare", *shop(tmp_path), "--name=d", "--out=out", *arguments]) == status
    said = capsys.readouterr().err.splitlines()[-1]  # above it, what has been done so far
    assert said.startswith("recbole-cafe: prepare table: " if status == 2 else "recbole-cafe: PrepareError: ")
    assert message in said
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_an_existing_data_set_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = prepared(*shop(tmp_path))
    arguments = ["prepare", *shop(tmp_path, "zoe,tea,1\n"), "--name=d", "--out=out"]
    assert main(arguments) == 1 and "exists already" in capsys.readouterr().err
    assert Path("out/d/d.inter").read_text() == INTER + before[0]
    assert prepared(*shop(tmp_path, "zoe,tea,1\n"), "--replace")[0] == lines("zoe tea 1")


def test_the_shipped_simulated_amazon_gives_way_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shape = ["--users=10", "--items=40", "--intents=5", "--interactions=60", "--out=out"]
    assert main(["simulate", "--name=amazon", *shape]) == 0 == main(["simulate", "--name=other", *shape])
    assert main(["prepare", *shop(tmp_path), "--name=other", "--out=out"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["prepare", *shop(tmp_path), "--name=amazon", "--out=out"]) == 0
    assert "holds the simulated sample, which the real data replace" in capsys.readouterr().err
    assert sorted(os.listdir("out/amazon")) == ["README.md", "amazon.inter", "amazon.item"]


def test_large_files_are_read_by_workers_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        plain(tmp_path / f"{n}.csv", "u,i,t,k\n" + "".join(f"u{j},i{n},5,k{n}\n" for j in range(50)) + "bad\n")
        for n in range(3)
    ]
    arguments = ["table", "--interactions", *parts, "--user=u", "--item=i", "--time=t", "--intent=k", "--threads=2"]
    here = prepared(*arguments)
    monkeypatch.setattr("recbole_cafe.prepare.engine.SMALL", 0)
    there = prepared(*arguments, name="e")
    assert there[:2] == here[:2]
    assert here[0].startswith(lines("u0 i0 5", "u0 i1 5", "u0 i2 5", "u1 i0 5"))  # ties: in the order of the files
    assert (
        here[2].replace("d.i", "e.i").count("another number of columns")
        == 3
        == there[2].count("another number of columns")
    )
    assert main(["prepare", *arguments, "--strict", "--name=f", "--out=out"]) == 1


def test_executors_without_the_package_are_told_to_install_it(
    tmp_path: Path, spark: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recbole_cafe.prepare.engine.run_task_or_tell", lambda _: __import__("recbole_cafe.nowhere"))
    assert main(["prepare", *shop(tmp_path), "--name=d", "--out=out", "--engine=spark"]) == 1
    assert "Spark's executors lack this package; install it in the Python that they run" in capsys.readouterr().err
    assert not os.path.exists("out/d")


def test_a_source_counts_bytes_and_checksum_of_what_it_read(tmp_path: Path) -> None:
    import hashlib

    path = zipped(tmp_path / "r.json.gz", [review("A", "B", 1)])
    task = {"source": "amazon", "role": "interactions", "path": path, "number": 3, "strict": False, "options": {},
            "out": str(tmp_path / "o.parquet")}  # fmt: skip
    result = run_task(task)
    content = Path(path).read_bytes()
    assert (result["bytes"], result["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert pq.read_table(task["out"]).to_pylist() == [
        {"user": "A", "item": "B", "time": 1.0, "rating": 5.0, "levels": None, "place": 3 * raw.FILE_ROWS + 1}
    ]


@pytest.mark.parametrize(
    "pack", [gzip.compress, lambda data: data, __import__("bz2").compress, __import__("lzma").compress]
)
def test_compression_is_told_by_the_content(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = plain(tmp_path / "file", pack(b"a\nb\r\n\nlast"))
    source = raw.Source({"path": path, "options": {}, "number": 0, "role": "items", "strict": False})
    assert list(source.texts()) == ["a", "b\r", "", "last"]


def test_a_zip_archive_says_how_to_name_what_is_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("log.csv", "x")
    source = raw.Source({"path": str(tmp_path / "a.zip"), "options": {}, "number": 0, "role": "items", "strict": False})
    with pytest.raises(PrepareError, match=r"is a zip archive; name a file inside, for example zip://log\.csv::"):
        list(source.texts())


@pytest.mark.parametrize(
    ("value", "expected"),
    [("  a \t b\n", "a b"), ('"quoted" name', 'quoted" name'), ("NA", None), ("", None), (None, None), (7, "7"),
     (1.5, None),
     ("a\x1fb", "a b"), (True, None)],
)  # fmt: skip
def test_names_of_intents(value: object, expected: str | None) -> None:
    assert raw.intent_text(value) == expected
