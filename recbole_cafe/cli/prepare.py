"""`recbole-cafe prepare amazon | tmall | atomic | table`: make a data set from raw files of any size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_cafe.cli.arguments import Verbs, add_verb

VERBS = ("prepare",)


def add_to(verbs: Verbs, chosen: str) -> None:
    """Add the verb of this file. chosen: see :func:`recbole_cafe.cli.main.make_parser`."""
    parser = add_verb(
        verbs, "prepare", prepare_command,
        summary="Make atomic files from Amazon's or Tmall's raw files, from other atomic files, or from any tables.",
        examples="recbole-cafe prepare table --name=shop --interactions=sales.parquet --items=products.csv "
                 "--user=customer --item=sku --time=sold_at --intent=category\n"
                 "recbole-cafe prepare amazon --version=2018 --categories Books --preset=paper\n"
                 "recbole-cafe prepare table --help",
    )  # fmt: skip
    if chosen == "prepare":
        from recbole_cafe.prepare.command import add_arguments

        add_arguments(parser)


def prepare_command(given: argparse.Namespace, _rest: Sequence[str]) -> int:
    """Prepare a data set."""
    from recbole_cafe.prepare.command import main

    return main(given, given.command[2:])
