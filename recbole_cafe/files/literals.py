"""Text from a command line or a hyper-parameter file turned into a value, without running it as code."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import yaml

_SCALARS = (bool, int, float, str, type(None))
_WORDS = {"true": True, "false": False, "none": None, "null": None, "~": None}
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, yaml.YAMLError)


class ConfigLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader which reads ``1e-3`` as a number; a class of its own, so no other user of PyYAML sees that."""


# YAML 1.1 wants a dot in a float. RecBole's YAML files do not write it, and its own loader accepts that too.
ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+
        |[0-9][0-9_]*\.[0-9_]*
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """Return the plain value which ``text`` spells, or ``text`` itself if it spells none.

    Read are a Python literal (``0.1``, ``[1, 2]``, ``{'a': 1}``, ``'quoted'``); a word for a truth value or
    for nothing, in any case (``true``, ``None``, ``null``, ``~``); a YAML list or mapping (``[a, b]``,
    ``{k: 1e-3}``). Only None, bool, int, float, str and lists, tuples, dicts of them come out; ``1+2j``,
    ``b'x'``, ``{1, 2}``, ``...``, every expression (``2*3``, ``__import__('os')``) and RecBole's intervals
    (``[5,inf]``) stay text.

    Args:
        text: as it was written.
    """
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        return _WORDS[stripped.lower()]
    readers: list[Callable[[str], object]] = [ast.literal_eval]
    if stripped[:1] in ("[", "{"):
        readers.append(_read_yaml)
    for read in readers:
        try:
            value = read(stripped)
            return value if _is_plain(value) else text
        except _UNREADABLE:
            continue
    return text


def _read_yaml(text: str) -> object:
    if re.fullmatch(r"\[.*,\s*[-+]?inf\s*\]", text, re.I):
        raise ValueError("an interval, which RecBole wants as text")
    return yaml.load(text, Loader=ConfigLoader)  # noqa: S506 - a SafeLoader


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _SCALARS)
