"""Small data sets, and what can become of their cells, bytes and keys."""

from __future__ import annotations

import codecs
import collections
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# The fewest words that pandas reads as missing, written out here: the oracle asks nothing of the package.
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
           "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}  # fmt: skip
WORDS = [*sorted(MISSING), "Na", "nil", "NONE", "-", "?"]
NUMBERS = ["1e400", "-1e400", "inf", "-inf", "Infinity", "nan", "NAN", "1_000", "0x1F", "0b1", "1e3", "+5", "1E5", ".5",
           "5.", "--1", "-", "1,5", "1.5.2", "1d3", "1e", " 7", "7 ", "7\u00a0", "\u0663", "007", "-0", "1e-320",
           "9007199254740993", "12345678901234567890123", "2020-01-01", "2020-01-01T10:00:00Z",
           "1.7976931348623157e308", "0.1000000000000000055511151231257827", "1" * 400, "True", "1j"]  # fmt: skip
TOKENS = [" a", "a ", " ", "a b", "x" * 70_000, "\u2028", "\x0b", "\x0c", "\x85", "\x1c", "#x", "é", "e\u0301",
          "商品", "😀", "\ufeff", "0", "007", "1.0", "1e3", "True", "\\", "a\\", "\\N", "a,b", "a:b", "a|b", "'", "''",
          "%s", "{}", "[PAD]", "-1", "[1]"]  # fmt: skip
QUOTED = ['"', '""', '"a', 'a"', 'a"b', '"a"', '"a""b"', "'a"]


@dataclass
class Tables:
    """The cells of the files of a data set, then their bytes, and the keys that it is read with."""

    cells: dict[str, list[list[str]]]
    keys: dict[str, Any] = field(default_factory=dict)
    separator: str = "\t"
    encoding: str = "utf-8"
    newline: str = "\n"
    blobs: dict[str, bytes] = field(default_factory=dict)

    def render(self) -> None:
        for ending, rows in self.cells.items():
            text = "".join(self.separator.join(row) + self.newline for row in rows)
            self.blobs[ending] = text.encode(self.encoding, "replace")


def data_set(rng: random.Random) -> Tables:
    scale = rng.choice([1, 1, 0.25, 1e9, 1e-3])
    start = rng.choice([0, 1_600_000_000, 1_600_000_000_000])
    number = (lambda x: str(int(x))) if scale == 1 else repr
    clicks = [
        [
            f"u{user}",
            f"i{rng.randrange(40)}",
            number(start + (step if rng.random() < 0.7 else rng.randrange(8)) * scale),
        ]
        for user in range(30)
        for step in range(8)
    ]
    if rng.random() < 0.5:
        rng.shuffle(clicks)
    prices = [repr(round(rng.uniform(0, 100), 2)) for _ in range(40)]
    cells = {
        "inter": [["user_id:token", "item_id:token", "timestamp:float"], *clicks],
        "item": [
            ["item_id:token", "intent:token", "price:float"],
            *([f"i{item}", f"c{item % 6}", prices[item]] for item in range(40)),
        ],
    }
    if rng.random() < 0.3:
        cells["user"] = [["user_id:token", "age:float"], *([f"u{user}", str(20 + user)] for user in range(30))]
    tables = Tables(cells)
    if rng.random() < 0.5:
        tables.keys["load_col"] = None
    return tables


def some_file(rng: random.Random, of: dict[str, Any]) -> str:
    return rng.choice([name for name in of if name != "user"] * 3 + list(of))


def set_cell(rng: random.Random, t: Tables, value: str | Callable[[str], str], numbers: bool = False) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    columns = [at for at, name in enumerate(rows[0]) if name.endswith(":float") or not numbers or name == "time"] or [0]
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        row = rng.choice(rows[1:] or rows)
        at = rng.choice(columns) % len(row)
        row[at] = value if isinstance(value, str) else value(row[at])


def rename_type(rng: random.Random, t: Tables, kinds: list[str]) -> None:
    header = t.cells[some_file(rng, t.cells)][0]
    at = rng.randrange(len(header))
    header[at] = header[at].partition(":")[0] + ":" + rng.choice(kinds)


def missing_word(rng: random.Random, t: Tables) -> None:
    set_cell(rng, t, rng.choice(WORDS))


def number_word(rng: random.Random, t: Tables) -> None:
    set_cell(rng, t, rng.choice(NUMBERS), numbers=True)


def odd_token(rng: random.Random, t: Tables) -> None:
    set_cell(rng, t, rng.choice(TOKENS))


def quotation_mark(rng: random.Random, t: Tables) -> None:
    quoted = rng.choice([lambda cell: '"' + cell, lambda cell: cell + '"', lambda cell: f'"{cell}"', None])
    set_cell(rng, t, quoted or rng.choice(QUOTED))


def trailing_space(rng: random.Random, t: Tables) -> None:
    set_cell(rng, t, lambda cell: cell + " ")


def header_type(rng: random.Random, t: Tables) -> None:
    rename_type(rng, t, ["token", "token_seq", "float", "float_seq", "int", "Token", "token ", "", "token:token"])


def float_ids(rng: random.Random, t: Tables) -> None:
    for rows in t.cells.values():
        at = rng.choice([0, min(1, len(rows[0]) - 1)])
        name = rows[0][at].partition(":")[0]
        for other in t.cells.values():
            other[0] = [f"{name}:float" if cell.startswith(f"{name}:") else cell for cell in other[0]]
            for row in other[1:]:
                row[: len(other[0])] = [
                    re.sub(r"^[uic]", "", cell) if head == f"{name}:float" else cell
                    for cell, head in zip(row, other[0], strict=False)
                ] + row[len(other[0]) :]
        return


def header_name(rng: random.Random, t: Tables) -> None:
    header = t.cells[some_file(rng, t.cells)][0]
    at = rng.randrange(len(header))
    kind = header[at].partition(":")[2]
    header[at] = (
        rng.choice(["", "x", "商品", "item_id", "intent", "a b", "user_id", '"x"', header[at][:-1], "X"]) + ":" + kind
    )


def header_cell(rng: random.Random, t: Tables) -> None:
    header = t.cells[some_file(rng, t.cells)][0]
    at = rng.randrange(len(header))
    header[at] = rng.choice([header[at] + " ", " " + header[at], header[at].replace(":", " "), header[at].upper(), "",
                             header[at - 1], f'"{header[at]}"', "shop:" + header[at],
                             header[at] + "\u00a0"])  # fmt: skip


def column_order(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    rows[:] = [[row[at] if at < len(row) else "" for at in order] for row in rows]


def column_added(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    header, values = rng.choice([("颜色:token", ["红", "蓝", ""]), ("w:float", ["1", "2.5", ""]),
                                 ("s:token_seq", ["a b", "c"]),
                                 ("f:float_seq", ["1 2", "3"]), ("label:float", ["0", "1"]),
                                 ("intent:token", ["c1", "c2"])])  # fmt: skip
    rows[0].append(header)
    for row in rows[1:]:
        row.append(rng.choice(values))


def column_removed(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    at = rng.randrange(len(rows[0]))
    for row in rows:
        del row[at : at + 1]


def row_width(rng: random.Random, t: Tables) -> None:
    row = rng.choice(t.cells[some_file(rng, t.cells)][1:] or [[]])
    if rng.random() < 0.5 and row:
        del row[rng.randrange(len(row))]
    else:
        row.append(rng.choice(["", "x", "NA"]))


def rows_moved(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    for _ in range(rng.choice([1, 3, 20]) if len(rows) > 1 else 0):
        a, b = rng.randrange(1, len(rows)), rng.randrange(1, len(rows))
        rows[a], rows[b] = rows[b], rows[a]


def rows_deleted(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    for _ in range(rng.choice([1, 3, len(rows) - 1])):
        if len(rows) > 1:
            del rows[rng.randrange(1, len(rows))]


def rows_doubled(rng: random.Random, t: Tables) -> None:
    rows = t.cells[some_file(rng, t.cells)]
    for _ in range(rng.choice([1, 1, 4])):
        rows.insert(rng.randrange(1, len(rows) + 1), list(rng.choice(rows[1:] or [["x"]])))


def row_contradicted(rng: random.Random, t: Tables) -> None:
    rows = t.cells[rng.choice([name for name in t.cells if name != "inter"])]
    row = list(rng.choice(rows[1:] or [["x", "y"]]))
    row[rng.randrange(1, len(row)) if len(row) > 1 else 0] = rng.choice(["c5", "c4", "7", "", "NA"])
    rows.insert(rng.randrange(1, len(rows) + 1), row)


def few_interactions(rng: random.Random, t: Tables) -> None:
    kept = collections.Counter()
    most = {f"u{user}": rng.choice([1, 2]) for user in range(rng.choice([1, 5, 30]))}
    rows = t.cells["inter"]
    for row in list(rows[1:]):
        kept[row[0]] += 1
        if kept[row[0]] > most.get(row[0], 8):
            rows.remove(row)


def tied_times(rng: random.Random, t: Tables) -> None:
    for row in t.cells["inter"][1:]:
        if len(row) > 2 and rng.random() < 0.5:
            row[2] = rng.choice(["5", "5.0", "16777216", "16777217", "1600000000.5", "1600000000.25"])


def another_separator(rng: random.Random, t: Tables) -> None:
    t.keys["field_separator"] = t.separator = rng.choice([",", "||", "|", ";", " ", "\x01", ".", "::", "\\t", "a"])
    if rng.random() < 0.2:
        t.separator = "\t"


def another_encoding(rng: random.Random, t: Tables) -> None:
    t.keys["encoding"] = t.encoding = rng.choice(
        ["gbk", "latin-1", "utf-16", "utf-8-sig", "cp1252", "utf-16-le", "ascii"]
    )
    if rng.random() < 0.3:
        t.encoding = "utf-8"
    if rng.random() < 0.1:
        t.keys["encoding"] = rng.choice(["utf8x", "", 8])
    if rng.random() < 0.7:
        for row in t.cells["item"][1:]:
            row[1:2] = [{"c1": "饮料", "c2": "é"}.get(cell, cell) for cell in row[1:2]]


def windows_lines(_rng: random.Random, t: Tables) -> None:
    t.newline = "\r\n"


CELL_MUTATIONS = [
    missing_word, number_word, odd_token, quotation_mark, trailing_space, header_type, float_ids, header_name,
    header_cell, column_order, column_added, column_removed, row_width, rows_moved, rows_deleted, rows_doubled,
    row_contradicted, few_interactions, tied_times, another_separator, another_encoding, windows_lines,
]  # fmt: skip

Bytes = Callable[[random.Random, bytes], bytes]


def splice(rng: random.Random, blob: bytes, piece: bytes, removed: int = 0) -> bytes:
    at = rng.randrange(len(blob) + 1)
    return blob[:at] + piece + blob[at + removed :]


def at_line_end(rng: random.Random, blob: bytes, piece: bytes) -> bytes:
    lines = blob.split(b"\n")
    lines[rng.randrange(len(lines))] += piece
    return b"\n".join(lines)


def bit_flipped(rng: random.Random, blob: bytes) -> bytes:
    at = rng.randrange(len(blob)) if blob else 0
    return blob[:at] + bytes([blob[at] ^ 1 << rng.randrange(8)]) + blob[at + 1 :] if blob else blob


def byte_inserted(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, bytes([rng.randrange(256)]))


def byte_deleted(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b"", 1)


def span_deleted(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b"", rng.choice([2, 10, 100]))


def span_doubled(rng: random.Random, blob: bytes) -> bytes:
    at, size = rng.randrange(len(blob) + 1), rng.choice([2, 10, 100])
    return blob[: at + size] + blob[at:]


def truncated(rng: random.Random, blob: bytes) -> bytes:
    return blob[: rng.choice([0, 1, rng.randrange(len(blob) + 1), max(0, len(blob) - 1)])]


def byte_order_mark(rng: random.Random, blob: bytes) -> bytes:
    return codecs.BOM_UTF8 * rng.choice([1, 1, 1, 2]) + blob


def nul(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b"\0")


def lone_return(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b"\r")


def returns_before_newline(rng: random.Random, blob: bytes) -> bytes:
    return at_line_end(rng, blob, rng.choice([b"\r", b"\r\r", b" \r"]))


def tab_inserted(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b"\t")


def tab_at_line_end(rng: random.Random, blob: bytes) -> bytes:
    return at_line_end(rng, blob, b"\t")


def tab_to_space(rng: random.Random, blob: bytes) -> bytes:
    parts = blob.split(b"\t")
    at = rng.randrange(len(parts))
    return b"\t".join(parts[:at]) + b" " * bool(at) + b"\t".join(parts[at:])


def blank_line(rng: random.Random, blob: bytes) -> bytes:
    return at_line_end(rng, blob, rng.choice([b"\n", b"\n", b"\n\n\n", b"\r\n\r", b"\n \n", b"\n\t\t\n"]))


def quote_inserted(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, b'"')


def no_last_newline(_rng: random.Random, blob: bytes) -> bytes:
    return blob.rstrip(b"\r\n")


def invalid_utf8(rng: random.Random, blob: bytes) -> bytes:
    return splice(rng, blob, rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f", b"\x80", b"\xe9"]))


BYTE_MUTATIONS: list[Bytes] = [
    bit_flipped, byte_inserted, byte_deleted, span_deleted, span_doubled, truncated, byte_order_mark, nul, lone_return,
    returns_before_newline, tab_inserted, tab_at_line_end, tab_to_space, blank_line, quote_inserted, no_last_newline,
    invalid_utf8,
]  # fmt: skip
