"""Text from a command line or a hyper-parameter file turned into a value, without running it as code."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import yaml

MAX_VALUES, MAX_DEPTH = 100_000, 50  # of a YAML text
_SCALARS = (bool, int, float, str, type(None))
_WORDS = {"true": True, "false": False, "none": None, "null": None, "~": None}
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, yaml.YAMLError)


# libyaml's reader, where PyYAML is built with it, is ten times as fast and gives the same values.
class ConfigLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader which reads ``1e-3`` as a number; a class of its own, so no other user of PyYAML sees that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader's, which lets the last of two equal keys win without a word.

        Raises:
            yaml.MarkedYAMLError: a key that occurs twice.
        """
        begin, end = node.start_mark.index, node.end_mark.index
        seen: set[str] = set()
        for key, _ in node.value:  # what was merged in (<<) stands elsewhere, and may be overridden
            if isinstance(key, yaml.ScalarNode) and begin <= key.start_mark.index < end and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


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


def load_yaml(text: str) -> Any:
    """Return what a YAML text of plain values holds; one that would take much more room than its length is refused.

    Args:
        text: of a configuration file, or of one value of it.

    Raises:
        yaml.YAMLError: not YAML, nested deeper than 50 levels, or of more than 100,000 values when every alias (``*a``)
            is written out: nine lines of aliases of aliases can stand for more values than fit into memory.
    """
    return copy.deepcopy(_loaded(text))  # the caller may change what he gets


@lru_cache(maxsize=512)  # the same few files lie below every configuration
def _loaded(text: str) -> object:
    _refuse_bombs(text)
    try:
        return yaml.load(text, Loader=ConfigLoader)  # noqa: S506 - a SafeLoader
    except (ValueError, KeyError, AttributeError) as error:
        # PyYAML's own conversions let these through: the 31st of February, `!!bool x`, `!!timestamp x`
        raise yaml.YAMLError(f"a value is not of the kind it is written as ({error!r})") from error


def _refuse_bombs(text: str) -> None:
    """Raise if the values of a YAML text are nested too deeply or too many, each alias counted as what it stands for.

    It looks at the events of the parser, before anything is built and without recursion.
    """
    weights: dict[str, int] = {}  # of what an anchor names
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, values so far)
    for event in yaml.parse(text, Loader=ConfigLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels",
                                           problem_mark=event.start_mark)  # fmt: skip
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, weight = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, weight = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (name for name, _ in open_nodes):
                raise yaml.MarkedYAMLError(problem=f"*{event.anchor} stands inside what it names",
                                           problem_mark=event.start_mark)  # fmt: skip
            anchor, weight = None, weights.get(event.anchor, 1)  # an unknown one is for the loader to refuse
        else:
            continue
        if anchor is not None:
            weights[anchor] = weight
        outer, before = open_nodes[-1]
        open_nodes[-1] = (outer, before + weight)
        if before + weight > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values when every alias is written out",
                                       problem_mark=event.start_mark)  # fmt: skip


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
    return load_yaml(text)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _SCALARS)
