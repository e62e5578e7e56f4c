"""What may be written on the command line, and what is said of what may not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parallel_exec._hints import did_you_mean
from parallel_exec._stdio import STDOUT, write_all
from parallel_exec.config import BACKENDS, ParallelConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, SOME_FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143  # exit statuses

WHAT_TO_WRITE = "write parallel-exec map MODULE:CALLABLE [ITEM ...]"
EXAMPLE = "parallel-exec map --json math:factorial 10 20 30"
EPILOG = """\
Each line written is a JSON object: index (the number of the item's line in its file, or of the argument, from 1),
id (the item), success, result, error, attempts (how many) and duration (seconds). A result that JSON cannot carry is
written as its repr, and its line then has "repr": true. What the callable prints goes to standard error.

exit status: 0 all succeeded, 1 some failed or could not be written, 2 wrong usage or unreadable input,
             130 Ctrl-C, 143 SIGTERM

examples:
  parallel-exec map --json math:factorial 10 20 30
  find . -name '*.py' | parallel-exec map py_compile:compile --backend process -j auto --priority os.path:getsize
  parallel-exec map --json --file calls.jsonl --keep-order --output results.jsonl my_module:my_function
"""


class UsageError(Exception):
    """Something the user gave cannot be used; the message says what, and what to give instead."""


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are `UsageError`s, and which knows what a misspelt option may have been."""

    def __init__(self, **how: Any) -> None:
        self._names: list[str] = []
        super().__init__(**how)

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        """Add an option."""
        action = super().add_argument(*names, **how)
        self._names += action.option_strings
        return action

    def error(self, message: str) -> Any:
        """Refuse the arguments."""
        raise UsageError(f"{message}; parallel-exec --help tells more")

    def refuse(self, unknown: str) -> None:
        """Refuse an option that there is not."""
        name = unknown.partition("=")[0]
        raise UsageError(
            f"there is no option {name}{did_you_mean(name, self._names, '; ') or '; see parallel-exec --help'}"
        )


class _Version(argparse.Action):
    """Prints the version; looked up only if asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import parallel_exec

        write_all(STDOUT, f"{parser.prog} {parallel_exec.__version__}\n")
        parser.exit(OK)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options that the arguments say."""
    if not argv:
        raise UsageError(f"nothing to do: {WHAT_TO_WRITE}, for example\n    {EXAMPLE}\nparallel-exec --help tells more")
    parser = _parser()
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.refuse(unknown[0])
    if options.command != "map":
        meant = did_you_mean(options.command, ["map"], "; ")
        raise UsageError(f"there is no command {options.command!r}{meant or f': {WHAT_TO_WRITE}'}")
    return options


def _parser() -> _Parser:
    """Return the parser of the command line.

    `map` is no subparser of argparse's: these refuse an option that stands between MODULE:CALLABLE and its items.
    """
    parser = _Parser(
        prog="parallel-exec",
        description="Call a Python callable once for each item, many at once, and write one JSON line for each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", metavar="map", help="the command; for now, there is this one")
    add("callable", metavar="MODULE:CALLABLE", help="what to call; modules in the current directory are found")
    add(
        "items",
        nargs="*",
        default=[],
        metavar="ITEM",
        help="without any, or with -, each line of standard input is one",
    )
    add("--version", action=_Version, nargs=0, help="show the program's version and exit")
    add("--file", metavar="FILE", help="read the items from FILE, one a line; - is standard input")
    add("--json", action="store_true", help="each item is a JSON value instead of a string")
    add("--priority", metavar="MODULE:CALLABLE", help="computes an int from an item; the highest runs first")
    add(
        "--output",
        metavar="FILE",
        help="write the lines there instead of to standard output; what is there is replaced with the first of them",
    )
    add("--append", action="store_true", help="add the lines to what the file has, instead of replacing it")
    add(
        "--keep-order",
        action="store_true",
        help="write the lines in the order of the items; one that takes long "
        "holds back those after it, and when many wait for it no more are started",
    )
    add("--traceback", action="store_true", help="the line of an item that failed has its traceback, too")
    _add_limits(parser, ParallelConfig())
    return parser


def _add_limits(parser: argparse.ArgumentParser, defaults: ParallelConfig) -> None:
    """Add the settings of the executor and of the run."""

    def add(*names: str, help: str, **how: Any) -> None:
        parser.add_argument(*names, help=f"{help} (default: %(default)s)", **how)

    names = f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
    add("--backend", metavar="NAME", default=defaults.backend, help=f"what runs the calls: {names}")
    add(
        "-j",
        "--max-concurrency",
        metavar="N",
        type=_count,
        default=defaults.max_concurrency,
        help='calls at once; "auto": the CPUs that may be used, and four more for threads, at most 32',
    )
    add("--timeout", metavar="SECONDS", type=_limit, default=defaults.timeout, help='for one attempt; "none": no limit')
    add("--retries", metavar="N", type=int, default=defaults.retry_count, help="attempts after a first that failed")
    add("--backoff", metavar="SECONDS", type=float, default=defaults.backoff, help="before a retry; doubles with each")
    add("--deadline", metavar="SECONDS", type=_limit, default="none", help="for the whole run")
    parser.add_argument("--fail-fast", action="store_true", help="cancel the rest when an item has failed for good")


def _limit(text: str) -> float | None:
    """Convert an option's value to seconds; "none" means no limit."""
    return None if text == "none" else float(text)


def _count(text: str) -> int | None:
    """Convert an option's value to a number of calls; None for "auto"."""
    return None if text == "auto" else int(text)


_limit.__name__ = "seconds"  # argparse says "invalid seconds value"
_count.__name__ = 'number or "auto"'
