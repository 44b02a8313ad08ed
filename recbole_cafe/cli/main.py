"""The command `recbole-cafe`: one parser, whose verbs stand in the files beside this one."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from recbole_cafe import __version__
from recbole_cafe.cli import benchmark, data, prepare, recommend, run, serve
from recbole_cafe.cli.arguments import Parser
from recbole_cafe.cli.failures import tell
from recbole_cafe.errors import UsageError, did_you_mean

GROUPS = (run, recommend, serve, benchmark, data, prepare)
VERBS = tuple(name for group in GROUPS for name in group.VERBS)
PACK = "benchmark pack"  # the one verb of two words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: what follows the command's name; by default this process's.

    Returns:
        the exit status: 0; 1 for a failure; 2 for wrong usage; 130 after an interruption; 141 if nobody reads its
        output any more.
    """
    try:
        status = _command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("recbole-cafe: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141  # as a shell reports a command ended by SIGPIPE: `| head` has seen enough, nothing has failed
        return tell(error)


def make_parser(verb: str = "") -> Parser:
    """The parser of the whole command.

    Args:
        verb: the one that is going to be parsed; only its options are read where that takes time.
    """
    parser = Parser(
        prog="recbole-cafe",
        description="CaFe and its companions for RecBole: train, compare, prepare data.",
        epilog="`recbole-cafe COMMAND --help` has the options of a command, and examples.",
    )
    parser.add_argument("-V", "--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for group in GROUPS:
        group.add_to(verbs, verb)
    return parser


def _command(arguments: list[str]) -> int:
    if not arguments:
        arguments = ["--help"]
    if arguments[0] == "help":  # help run, help prepare table
        arguments = [*arguments[1:], "--help"]
    if " ".join(arguments[:2]) == PACK:
        arguments = [PACK, *arguments[2:]]
    verb = arguments[0]
    if verb.startswith("-") and verb not in ("-h", "--help", "-V", "--version"):
        raise UsageError(f"unknown option {verb}; see recbole-cafe --help")
    if not verb.startswith("-") and verb not in VERBS:
        raise UsageError(f"no command {verb!r}; there are {', '.join(VERBS)}{did_you_mean(verb, VERBS)}")
    try:
        given, rest = make_parser(verb).parse_known_args(arguments)
    except SystemExit as left:  # --help and --version have printed what they have to say
        return int(left.code or 0)
    if rest and not given.takes_keys:
        raise UsageError(f"{given.verb}: it takes no {' '.join(rest)}; see recbole-cafe {given.verb} --help")
    given.command = ["recbole-cafe", *arguments]
    return int(given.handler(given, rest))


def _reader_is_gone() -> bool:
    """Whether it is standard output that nobody reads any more; what is left of it then goes nowhere."""
    stdout = sys.stdout.fileno()
    if not hasattr(select, "poll"):  # Windows, where a closed pipe is another error
        return False
    gone = select.poll()
    gone.register(stdout, 0)  # errors are told unasked
    if not gone.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stdout)  # else the interpreter complains when it flushes at its end
    os.close(nowhere)
    return True


if __name__ == "__main__":
    sys.exit(main())
