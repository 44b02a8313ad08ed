"""`recbole-cafe export` and `recommend`: from a checkpoint to a bundle, from a bundle to lists."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from recbole_cafe.cli.arguments import Once, Verbs, add_verb, at_least, listed, named, yes_or_no

VERBS = ("export", "recommend")
ENGINES = ("local", "spark")


def add_to(verbs: Verbs, _chosen: str) -> None:
    """Add the verbs of this file. _chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "export", export_command,
        summary="Write a trained model as a bundle, which can be asked without RecBole and the data.",
        examples="recbole-cafe export saved/CaFePlus-ml-100k.pth --out=shop\n"
                 "recbole-cafe export saved/CaFe-ml-100k.pth --out=shop --title=movie_title --replace",
    )  # fmt: skip
    parser.add_argument("checkpoint", help="what `recbole-cafe run` has saved; its data have to be where they were")
    parser.add_argument("--out", required=True, type=named, action=Once, metavar="DIR", help="folder of the bundle")
    parser.add_argument("--title", metavar="COLUMN", help="of the .item file, to show of an item")
    parser.add_argument("--interactions", type=yes_or_no, default=True, metavar="True|False", action=Once,
                        help="keep what was trained on, with the users' names, so that models that count can go on "
                             "counting (default: %(default)s)")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="replace a bundle that is there")

    parser = add_verb(
        verbs, "recommend", recommend_command,
        summary="Write the lists of all histories of a file: CSV, JSON lines or Parquet of any size. A run that was "
                "killed goes on where it was when its command is given again.",
        examples="recbole-cafe recommend shop --histories=histories.csv --out=lists.csv --k=10\n"
                 "recbole-cafe recommend shop --histories=log.parquet --out=lists.jsonl --per_intent=3 --reasons\n"
                 "recbole-cafe recommend shop --histories=users.jsonl.gz --out=lists.parquet --allow=in_stock.txt\n"
                 "recbole-cafe recommend shop --histories=log.parquet --out=lists.parquet --engine=spark",
    )  # fmt: skip
    parser.add_argument("bundle", metavar="DIR", help="what `recbole-cafe export` has written")
    text = ("columns user, item and, unless rows are in order, time: a row for each interaction, the rows of a user "
            "together; or columns user and items: a row for each user, the items separated by spaces or a list. "
            ".csv, .tsv, .jsonl, .parquet; text also packed, .gz")  # fmt: skip
    parser.add_argument("--histories", required=True, type=named, action=Once, metavar="FILE", help=text)
    text = ".csv, .tsv, .jsonl or .parquet; with --engine=spark a folder of such files"
    parser.add_argument("--out", required=True, type=named, action=Once, metavar="FILE", help=text)
    parser.add_argument("--k", type=at_least(1), default=10, action=Once, help="items of a list (default: %(default)s)")
    parser.add_argument("--exclude_seen", type=yes_or_no, default=True, metavar="True|False", action=Once,
                        help="leave out the items of the history (default: %(default)s)")  # fmt: skip
    parser.add_argument("--per_intent", type=at_least(1), action=Once, metavar="N",
                        help="at most so many items of one intent in a list")  # fmt: skip
    parser.add_argument("--intents", type=listed, action=Once, metavar="A,B", help="the only intents in a list")
    text = "a .txt of one item a line, or a column item of CSV, JSON lines or Parquet"
    parser.add_argument("--allow", type=named, action=Once, metavar="FILE", help=f"the only items in a list: {text}")
    parser.add_argument("--exclude", type=named, action=Once, metavar="FILE", help=f"items in no list: {text}")
    parser.add_argument("--reasons", action="store_true", help="say why: the column reason; in CSV its sentence")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="default: %(default)s")


def export_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Write a bundle."""
    from recbole_cafe.export import export

    bundle = export(
        given.checkpoint, given.out, title=given.title, interactions=given.interactions, replace=given.replace
    )
    print(f"{given.out}: a bundle of {bundle.model} with {bundle.items.n - 1:,} items")
    return 0


def recommend_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Write lists."""
    from recbole_cafe.recommend.batch import Asked, recommend_file
    from recbole_cafe.recommend.files import read_tokens

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = Asked(
        k=given.k, exclude_seen=given.exclude_seen, per_intent=given.per_intent, intents=given.intents,
        allow=read_tokens(given.allow) if given.allow else None,
        exclude=read_tokens(given.exclude) if given.exclude else None, reasons=given.reasons,
    )  # fmt: skip
    began = time.perf_counter()
    if given.engine == "spark":
        from recbole_cafe.recommend.spark import recommend_with_spark

        counts = recommend_with_spark(given.bundle, given.histories, given.out, asked)
    else:
        counts = recommend_file(given.bundle, given.histories, given.out, asked, show_progress=sys.stderr.isatty())
    counts.report()
    print(f"{given.out}: {counts.rows:,} rows, the lists of {counts.histories:,} histories, "
          f"in {time.perf_counter() - began:.1f} s")  # fmt: skip
    return 0
