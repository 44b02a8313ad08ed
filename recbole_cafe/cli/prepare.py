"""`recbole-cafe prepare amazon | tmall | atomic | table | sequences`: make a data set from raw files of any size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_cafe.cli.arguments import Verbs, add_documented, add_verb
from recbole_cafe.errors import ConfigError, UsageError

VERBS = ("prepare",)


def add_to(verbs: Verbs, chosen: str) -> None:
    """Add the verb of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "prepare", prepare_command,
        summary="Make atomic files from Amazon's or Tmall's raw files, from other atomic files, or from any tables.",
        examples="recbole-cafe prepare table --name=shop --interactions=sales.parquet --items=products.csv "
                 "--user=customer --item=sku --time=sold_at --intent=category\n"
                 "recbole-cafe prepare amazon --version=2018 --categories Books --preset=paper\n"
                 "recbole-cafe prepare tmall --log user_log_format1.csv --preset=paper\n"
                 "recbole-cafe prepare table --help",
    )  # fmt: skip
    if chosen == "prepare":
        from recbole_cafe.prepare.command import add_arguments

        sources = parser.add_subparsers(
            dest="source", required=True, metavar="amazon | tmall | atomic | table | sequences"
        )
        add_arguments(lambda name, summary, examples: add_documented(sources, name, summary=summary, examples=examples))


def prepare_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Prepare a data set.

    Raises:
        UsageError: options that cannot be, or do not go together.
    """
    from recbole_cafe.prepare.command import main

    try:
        return main(given, given.command[2:])
    except ConfigError as error:  # all of its settings were typed
        raise UsageError(f"prepare {given.source}: {error}") from error
