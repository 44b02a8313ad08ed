"""What a data set says, read in plain Python without the package."""

from __future__ import annotations

import codecs
import collections
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.data_mutations import MISSING
from fuzzing.outcomes import short

NAME = "fz"  # of the data set
LOADED = {"inter": {"user_id", "item_id", "timestamp"}, "item": {"item_id", "intent"}, "user": set()}

OF_ID = {"user_id": "user", "item_id": "item"}  # the file, beside .inter, that may have the column


@dataclass
class Oracle:
    """What a data set says. A fault must be refused; what is in doubt may be refused or read as told here."""

    faults: list[tuple[str, int | None, str]] = field(default_factory=list)  # file or key, line, what
    doubts: list[str] = field(default_factory=list)
    counts: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)  # (file, what is dropped)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # file -> name -> type
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def read(self, folder: Path, keys: dict[str, Any], model: str) -> None:
        everything = "load_col" in keys
        for ending in ("inter", "item", "user"):
            path = folder / f"{NAME}.{ending}"
            if not path.is_file():
                continue
            part = self if everything or ending != "user" else Oracle()  # a file that is not loaded
            part._file(path, keys, model, None if everything else LOADED[ending])
            if part is not self:
                self.doubts += [what for _, _, what in part.faults]
        first_of: dict[str, str] = {}
        for ending, columns in self.columns.items():
            for column in columns:
                if {first_of.setdefault(column, ending), ending} not in ({ending}, {"inter", OF_ID.get(column)}):
                    self.faults.append((f"{NAME}.{ending}", None, f"{column} is in {first_of[column]} too"))
        if not self.faults:
            self._filter()

    def _file(self, path: Path, keys: dict[str, Any], model: str, loaded: set[str] | None) -> None:
        name, ending = path.name, path.suffix[1:]
        lines = self._lines(path, keys)
        if lines is None:
            return
        separator = keys.get("field_separator", "\t")
        if separator == "":
            self.faults.append(("field_separator", None, "empty"))
            return
        if not lines:
            self.faults.append((name, None, "nothing in the file"))
            return
        first, text = lines.pop(0)
        if first > 1:
            self.doubts.append("a blank line before the header")
        header = self._header(name, first, text.split(separator), ending, model)
        if header is None:
            return
        used = {column: kind for column, kind in header.items() if loaded is None or column in loaded}
        rows, seen = [], {}
        key = {"item": "item_id", "user": "user_id"}.get(ending)
        key = key if key in used else None
        for line, text in lines:
            cells = text.split(separator)
            if len(cells) != len(header):
                self.faults.append((name, line, f"{len(cells)} cells"))
                continue
            row = {column: cell for column, cell in zip(header, cells, strict=True) if column in used}
            required = {"inter": ("user_id", "item_id", "timestamp"), "item": ("item_id",), "user": ("user_id",)}[
                ending
            ]
            for column, cell in row.items():
                if cell in MISSING:
                    if column in required:
                        self.faults.append((name, line, f"{column} missing"))
                    row[column] = ""
                elif used[column] == "float":
                    self._number(name, line, cell)
                elif used[column] == "float_seq":
                    self.doubts.append("float_seq")
                    for part in cell.split(" "):
                        if not is_number(part):
                            self.doubts.append(f"float_seq {part!r}")
                elif cell == "[PAD]" or (column in required and cell != cell.strip()):
                    self.doubts.append(f"{column} {cell!r}")
            if key and row[key] in seen:
                before_line, before, raw = seen[row[key]]
                values = [
                    {c: float(v) if used[c] == "float" and is_number(v) else v for c, v in r.items()}
                    for r in (row, before)
                ]
                if values[0] != values[1]:
                    self.faults.append((name, line, f"another row of line {before_line}"))
                    self.faults.append((name, before_line, f"another row of line {line}"))
                elif cells != raw:
                    self.doubts.append("rows of one meaning and another text")
                self.counts[name, "rows"] += 1
                continue
            if key:
                seen[row[key]] = line, row, cells
            rows.append(row)
        self.columns[ending], self.rows[ending] = used, rows

    def _lines(self, path: Path, keys: dict[str, Any]) -> list[tuple[int, str]] | None:
        raw, encoding = path.read_bytes(), keys.get("encoding") or "utf-8"
        try:
            codec = codecs.lookup(encoding).name
        except (LookupError, TypeError):
            self.faults.append(("encoding", None, str(encoding)))
            return None
        if raw.startswith(codecs.BOM_UTF8):
            if codec not in ("utf-8", "utf-8-sig"):
                self.doubts.append("a byte order mark of UTF-8 in another encoding")
            raw = raw[3:]
        codec = "utf-8" if codec == "utf-8-sig" else codec
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError as error:
            line = raw[: error.start].decode(codec, "replace").count("\n") + 1
            self.faults.append((path.name, line, "a byte that is no text"))
            return None
        except UnicodeError as error:  # UTF-16 without its mark
            self.faults.append((path.name, None, str(error)))
            return None
        lines, blank = [], 0
        parts = text.split("\n")
        if parts[-1].endswith("\r"):
            self.doubts.append("a carriage return at the end of the file")
        for number, part in enumerate(parts, 1):
            line = part.removesuffix("\r")
            if line == "":
                blank += number < len(parts)
                continue
            if "\r" in line or "\0" in line:
                self.faults.append((path.name, number, "carriage return or NUL"))
            lines.append((number, line))
        if blank:
            self.counts[path.name, "blank lines"] = blank
        return lines

    def _header(self, name: str, line: int, cells: list[str], ending: str, model: str) -> dict[str, str] | None:
        header: dict[str, str] = {}
        for cell in cells:
            column, _, kind = cell.partition(":")
            if (
                cell != cell.strip()
                or not column
                or kind not in ("token", "token_seq", "float", "float_seq")
                or column in header
            ):
                self.faults.append((name, line, f"header {cell!r}"))
            if column.strip() != column or "\ufeff" in column:
                self.doubts.append(f"header {cell!r}")
            header[column] = kind
        if any(fault[0] == name and fault[2].startswith("header") for fault in self.faults):
            return None
        wanted = {"inter": {"user_id": "token", "item_id": "token", "timestamp": "float"},
                  "item": {"item_id": "token", "intent": "token"}, "user": {"user_id": "token"}}[ending]  # fmt: skip
        for column, kind in wanted.items():
            if header.get(column) != kind:
                if column == "intent" and model == "SASRec":
                    self.doubts.append("a model that reads no intents")
                else:
                    self.faults.append((name, line, f"{column} is {header.get(column)}"))
        return header

    def _number(self, name: str, line: int, cell: str) -> None:
        if not is_number(cell):
            self.faults.append((name, line, f"no number {short(cell, 40)!r}"))
        elif not cell.isascii():
            self.doubts.append("digits of another script")

    def _filter(self) -> None:
        rows = self.rows["inter"]
        for ending, column in (("item", "item_id"), ("user", "user_id")):
            if ending in self.rows:
                listed = {row[column] for row in self.rows[ending]}
                rows = [row for row in rows if row[column] in listed]
        if dropped := len(self.rows["inter"]) - len(rows):
            self.counts[NAME, "interactions"] = dropped
        self.rows["inter"] = rows
        per_user = collections.Counter(row["user_id"] for row in rows)
        if not per_user or max(per_user.values()) < 2:
            self.faults.append((NAME, None, "nothing is left to train on and test"))
        elif max(per_user.values()) < 3:
            self.doubts.append("no user has three interactions")
        if not any(row.get("intent") for row in self.rows.get("item", [])):
            self.doubts.append("no item has an intent")


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text and text == text.strip()
    except ValueError:
        return False
