"""Arguments of the form --key=value."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_cafe.errors import ConfigError


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """``--key=value`` arguments as a dict of text. A value may hold further equal signs.

    Raises:
        ConfigError: an argument of another form, or one key with two values.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise ConfigError(f"argument {argument!r} is not of the form --key=value")
        if given.get(key, value) != value:
            raise ConfigError(f"--{key} is given twice, with the values {given[key]!r} and {value!r}")
        given[key] = value
    return given
