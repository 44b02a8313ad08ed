"""What all verbs share: the parser, and arguments of the form --key=value that are keys of a config."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from recbole_cafe.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Handler = Callable[[argparse.Namespace, Sequence[str]], int]


class Verbs(Protocol):
    """What argparse's add_subparsers gives."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """A parser for a verb."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are exceptions of ours and one line long."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. argparse's own says nothing when nobody reads its output."""
        print(self.format_help(), end="", file=file)
        sys.stdout.flush()

    def error(self, message: str) -> NoReturn:
        """See the class.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.prog.removeprefix('recbole-cafe ')}: {message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Say which values there are, and the nearest, in the same words under every Python.

        Raises:
            argparse.ArgumentError: a value that is none of the choices.
        """
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            hint = did_you_mean(value, names)
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(names)}{hint}")


class Once(argparse.Action):
    """Stores a value; the same option with another value is an error."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:  # fmt: skip
        """Store the value.

        Raises:
            UsageError: the option has another value already.
        """
        given = vars(namespace).setdefault("given_once", {})
        if given.get(self.dest, values) != values:
            parser.error(f"{option_string} is given twice, with the values {given[self.dest]!r} and {values!r}")
        given[self.dest] = values
        setattr(namespace, self.dest, values)


def add_verb(verbs: Verbs, name: str, handler: Handler, *, summary: str, examples: str,
             keys: bool = False) -> argparse.ArgumentParser:  # fmt: skip
    """A verb with its help.

    Args:
        verbs: the parser's verbs.
        name: of the verb.
        handler: does it, given the parsed arguments and the keys of the config.
        summary: one sentence.
        examples: lines to type.
        keys: whether further arguments --key=value are keys of the config.

    Returns:
        its parser.
    """
    more = "\n--key=value sets any key of the config; `recbole-cafe show-config` prints them all." if keys else ""
    parser = add_documented(verbs, name, summary=summary, examples=examples, more=more)
    parser.set_defaults(handler=handler, takes_keys=keys)
    return parser


def add_documented(verbs: Verbs, name: str, *, summary: str, examples: str, more: str = "") -> argparse.ArgumentParser:
    """A parser whose help has a sentence and examples.

    Args:
        verbs: where it is added.
        name: of the verb, or of the source of a verb.
        summary: one sentence.
        examples: lines to type.
        more: text below the sentence.
    """
    lines = "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines())
    return verbs.add_parser(
        name, help=summary.replace("%", "%%"), description=summary + more, epilog=f"examples:\n{lines}"
    )


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers that are not smaller."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
        return number

    return read


def share(text: str) -> float:
    """A number that is not negative: a part of something, or several."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number


def named(text: str) -> str:
    """A reader of names, which are not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def listed(text: str) -> list[str]:
    """`a,b` as a list."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """`1,2` as a list of whole numbers."""
    return [at_least(-(2**63))(part) for part in text.split(",")]


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """``--key=value`` arguments as a dict of text. A value may hold further equal signs.

    Raises:
        UsageError: an argument of another form, or one key with two values.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise UsageError(f"argument {argument!r} is not of the form --key=value")
        if given.get(key, value) != value:
            raise UsageError(f"--{key} is given twice, with the values {given[key]!r} and {value!r}")
        given[key] = value
    return given
