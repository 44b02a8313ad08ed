"""What a run of `prepare` says about its result: README.md, and its row beside the paper's."""

from __future__ import annotations

import re
from typing import Any

from recbole_cafe.files.atomic_writer import Written
from recbole_cafe.prepare.pipeline import Options, Report

# Table 1 of arXiv:2204.01839: sequences, items, intents, interactions
PAPER = {"amazon": (131_248, 1_910_226, 1_392, 5_370_171), "tmall": (131_086, 1_788_758, 9_999, 14_460_516)}
SOURCES = {
    "amazon": "Amazon's product reviews and metadata, collected by J. McAuley's group: "
    "[2014](https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html), "
    "[2018](https://nijianmo.github.io/amazon/), [2023](https://amazon-reviews-2023.github.io/)",
    "tmall": "Alibaba's logs of [IJCAI-15](https://tianchi.aliyun.com/dataset/42) or "
    "[IJCAI-16](https://tianchi.aliyun.com/dataset/53)",
    "atomic": "RecBole's atomic files",
    "table": "tables of your own",
    "sequences": "sequences of items, a line a user",
}
_DEFAULTS = Options()


def paper_row(source: str, written: Written, report: Report) -> str | None:
    """Format the row of the result and that of the paper, for a source that the paper has.

    Args:
        source: a key of `SOURCES`.
        written: what was written.
        report: what happened.
    """
    if source not in PAPER:
        return None
    sizes = (written.users, written.items, report.numbers["intents"], written.interactions)
    lines = [f"{'':16}{'sequences':>12}{'items':>12}{'intents':>10}{'interactions':>14}{'per item':>10}"]
    for title, row in (("this data set", sizes), ("paper, Table 1", PAPER[source])):
        lines.append(f"{title:16}{row[0]:>12,}{row[1]:>12,}{row[2]:>10,}{row[3]:>14,}{row[3] / row[1]:>10.2f}")
    return "\n".join(lines)


def readme(source: str, command: str, options: Options, report: Report, written: Written) -> str:
    """Write the text of README.md: source, command, filters, counts, faults and checksums.

    Args:
        source: a key of `SOURCES`.
        command: the command line.
        options: what was kept.
        report: what happened.
        written: what was written.
    """
    numbers = report.numbers
    changed = {
        key: value
        for key, value in vars(options).items()
        if value != getattr(_DEFAULTS, key) and key not in ("strict", "without_intents")
    }
    filters = ", ".join(f"{key.replace('_', '-')} = {_plain(value)}" for key, value in changed.items())
    table = [
        ("users", f"{written.users:,}"),
        ("items", f"{written.items:,}"),
        ("intents", f"{numbers['intents']:,}"),
        ("interactions", f"{written.interactions:,}"),
        ("interactions per item", f"{written.interactions / written.items:.2f}"),
        ("interactions per user", f"{written.interactions / written.users:.2f}"),
        ("items with an intent", f"{numbers['items_with_intent']:,} ({numbers['coverage_items']:.2%})"),
        ("interactions with an intent", f"{numbers['coverage_interactions']:.2%}"),
        ("entropy of intents", f"{numbers['entropy']:.3f} bits over interactions"),
        ("items that the raw files give several intents", f"{numbers['items_with_several_intents']:,}"),
        ("time stamps", f"{_plain(numbers['first'])} to {_plain(numbers['last'])}"),
    ]
    faults = [
        f"| `{_code(file['path'])}` | {_code(kind)} | {fault['count']:,} | `{_code(fault['first'])}` |"
        for file in report.files
        for kind, fault in file["faults"].items()
    ]
    parts = [
        f"# {written.name}",
        f"**Source.** {SOURCES[source]}.",
        "**Command.**",
        f"```\n{_without_password(command)}\n```",
        f"**Filters** that are not the default: {filters or 'none'}.",
        _table(["", ""], table),
        "**Interactions after each step.**",
        _table(["step", "interactions"], [(what, f"{n:,}") for what, n in report.steps]),
        "**Raw files.**",
        _table(
            ["file", "bytes", "sha256", "rows", "kept"],
            [
                (
                    f"`{_code(file['path'])}`",
                    _plain(file["bytes"]),
                    f"`{file['sha256'] or ''}`",
                    f"{file['read']:,}",
                    f"{file['kept']:,}",
                )
                for file in report.files
            ],
        ),
        "**Rows left out.** " + ("None." if not faults else "The first place of each kind:"),
        "\n".join(["| file | fault | rows | first |", "|---|---|---|---|", *faults]) if faults else "",
        f"**Columns.** `{written.name}.inter`: `user_id`, `item_id`, `timestamp`, sorted by user, then time, ties as "
        f"in the raw files. `{written.name}.item`: `item_id`, `intent` (empty where there is none), sorted by item.",
        "**Checksums** (sha256).",
        _table(["file", "sha256"], [(f"`{file}`", f"`{digest}`") for file, digest in written.sha256.items()]),
        "The licence of the raw files holds for these too.",
    ]
    if (row := paper_row(source, written, report)) is not None:
        parts.insert(6, f"```\n{row}\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(header: list[str], rows: Any) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return "unknown" if value is None else str(value)


def _code(text: str) -> str:
    """Text from a file that stays text inside a table."""
    return _without_password(text).replace("`", "'").replace("|", "/").replace("\n", " ")


def _without_password(text: str) -> str:
    """Text without the user:password@ of URLs."""
    return re.sub(r"://[^/@\s]+@", "://", text)
