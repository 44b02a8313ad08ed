"""What a user of the package is told when something of theirs cannot be right."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be right. The message names the key, the value and what was expected."""


class DataError(ValueError):
    """The data do not fit what was asked for. The message names the file or field and what is there."""


class UsageError(ConfigError):
    """A command that is not typed as it has to be; exit status 2."""
