"""`recbole-cafe export`, `recommend` and `update`: from a checkpoint to a bundle, from a bundle to lists."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_cafe.cli.arguments import Verbs, add_verb, at_least, listed
from recbole_cafe.errors import UsageError

VERBS = ("export", "recommend", "update")


def add_to(verbs: Verbs, chosen: str) -> None:  # noqa: ARG001
    """Add the verbs of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "export", export_command, summary="Write a trained model as a bundle that can be asked anywhere.",
        examples="recbole-cafe export saved/CaFePlus-ml-100k-....pth --out=shop\n"
                 "recbole-cafe export model.pth --out=shop --title=movie_title --replace",
    )  # fmt: skip
    parser.add_argument("checkpoint", help="of a model of ours; its data set has to be where it was", type=Path)
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write")
    parser.add_argument("--title", metavar="COLUMN", help="of the .item file: what to show of an item")
    text = "leave out what was trained on, with the users' names: the counts cannot be continued"
    parser.add_argument("--no_interactions", action="store_true", help=text)
    parser.add_argument("--replace", action="store_true", help="a bundle that is there")
    text = "of the run that made the checkpoint: its tests go into the card, README.md; `run --export` does it itself"
    parser.add_argument("--result", type=Path, metavar="RESULT.json", help=text)
    text = "also write the network for other engines: ids of a history to its query vector (extra `onnx`)"
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=text)
    parser = add_verb(
        verbs, "recommend", recommend_command, summary="Write lists for a file of histories.",
        examples="recbole-cafe recommend shop --histories=histories.csv --out=lists.csv --k=20\n"
                 "recbole-cafe recommend shop --histories=h.parquet --out=lists.jsonl --reasons --per_intent=2",
    )  # fmt: skip
    parser.add_argument("bundle", type=Path, help="folder that `export` wrote")
    text = ("CSV, JSON lines or Parquet (text also packed, .gz): columns user, item and perhaps time, the rows of a "
            "user together; or user and items, a list or items with spaces between")  # fmt: skip
    parser.add_argument("--histories", required=True, metavar="FILE", type=Path, help=text)
    text = ".csv, .tsv, .jsonl or .parquet; a command that was killed goes on where it was when it is given again"
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help=text)
    parser.add_argument("--k", type=at_least(1), default=10, help="items of a list (default: %(default)s)")
    parser.add_argument("--keep_seen", action="store_true", help="items of the history may be in its list")
    parser.add_argument("--per_intent", type=at_least(1), help="at most so many items of an intent in a list")
    parser.add_argument("--intents", type=listed, metavar="A,B", help="items of these intents alone")
    text = "a .txt of an item a line, or a table with a column item: these items alone"
    parser.add_argument("--allow", type=Path, metavar="FILE", help=text)
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="the same: none of these items")
    parser.add_argument("--reasons", action="store_true", help="say why")
    text = "spark: --histories may be a folder or a pattern, --out is a folder of files (default: %(default)s)"
    parser.add_argument("--engine", choices=("local", "spark"), default="local", help=text)
    parser = add_verb(
        verbs, "update", update_command, summary="Let a bundle take in new items and interactions, without training.",
        examples="recbole-cafe update shop --items=new_items.csv --interactions=yesterday.csv\n"
                 "recbole-cafe update shop --interactions=yesterday.parquet --out=shop-today",
    )  # fmt: skip
    parser.add_argument("bundle", type=Path, help="folder that `export` wrote, of CaFePlus or IntentBackoff")
    parser.add_argument("--items", type=Path, metavar="FILE", help="a table of item, and perhaps intent and title")
    parser.add_argument("--interactions", type=Path, metavar="FILE", help="a table of user, item and perhaps time")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there (default: in the bundle's own place)")


def export_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Write a bundle."""
    from recbole_cafe.export import export
    from recbole_cafe.files.places import check_folder
    from recbole_cafe.files.result import Result
    from recbole_cafe.recommend.bundle import check_place

    check_place(given.out, replace=given.replace)
    if given.onnx is not None:
        from recbole_cafe.recommend.onnx import check_packages, write_encoder

        check_packages()
        check_folder("onnx", given.onnx.resolve().parent)
    bundle = export(given.checkpoint, given.out, title=given.title, interactions=not given.no_interactions,
                    replace=given.replace, result=Result.load(given.result) if given.result else None)  # fmt: skip
    print(f"{given.out}: {bundle.model}, {bundle.items.n - 1} items")
    if given.onnx is not None:
        print(f"{given.onnx}: history to {', '.join(write_encoder(bundle, given.onnx))}, as onnxruntime gives them too")
    return 0


def recommend_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Write lists."""
    from recbole_cafe.recommend.batch import recommend_file
    from recbole_cafe.recommend.tables import read_tokens

    options: dict[str, Any] = {"k": given.k, "exclude_seen": not given.keep_seen, "reasons": given.reasons}
    for name in ("per_intent", "intents"):
        if (value := vars(given)[name]) is not None:
            options[name] = value
    for name in ("allow", "exclude"):
        if (path := vars(given)[name]) is not None:
            options[name] = read_tokens(path)
    if given.engine == "spark":
        from recbole_cafe.recommend.spark import recommend_on_spark

        done = recommend_on_spark(given.bundle, str(given.histories), given.out, options)
    else:
        done = recommend_file(given.bundle, given.histories, given.out, options)
    before = f", {done.resumed} of them from a command that was killed" if done.resumed else ""
    print(f"{given.out}: {done.rows} rows for {done.histories} histories{before}")
    if done.unknown:
        print(f"{done.unknown} items of the histories are not in the bundle; they were left out")
    if done.empty:
        print(f"{done.empty} histories have no item of the bundle; they got what is popular")
    return 0


def update_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Let a bundle take in what is new.

    Raises:
        UsageError: nothing to take in.
    """
    if given.items is None and given.interactions is None:
        raise UsageError("update: nothing to take in; give --items, --interactions or both")
    from recbole_cafe.recommend.bundle import read, write
    from recbole_cafe.recommend.card import read_card
    from recbole_cafe.recommend.tables import read_table
    from recbole_cafe.recommend.update import with_interactions, with_items

    bundle, kept_card = read(given.bundle), read_card(given.bundle)
    if given.items is not None:
        bundle = with_items(bundle, read_table(given.items))
    if given.interactions is not None:
        bundle = with_interactions(bundle, read_table(given.interactions))
    out = given.out or given.bundle
    write(bundle, out, replace=given.out is None, kept_card=kept_card)
    print(f"{out}: {bundle.items.n - 1} items, {int(bundle.items.seen.sum())} interactions")
    return 0
