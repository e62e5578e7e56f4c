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

COMMANDS = ("map", "journal")
WHAT_TO_WRITE = "write parallel-exec map MODULE:CALLABLE [ITEM ...]"
EXAMPLE = "parallel-exec map --json math:factorial 10 20 30"
EPILOG = """\
Each line written is a JSON object: index (the number of the item's line in its file, or of the argument, from 1),
id (the item), success, result, error, attempts (how many) and duration (seconds). A result that JSON cannot carry is
written as its repr, and its line then has "repr": true. What the callable prints goes to standard error.

--limit NAME=SPEC names something of which there is not enough, --needs NAME says that each call needs it; a call waits for
it without holding up others that can run. SPEC is one of:
  db=4                      4 calls at once that need db; or 4 of it in all: --needs db=2, --needs db=my_module:weight_of
  api=10/s  api=90/min      10 calls begin in a second (also ms, h, d; 10/30s), evenly spaced
  api=10/s,burst=10         the same, but up to 10 begin at once after a pause
  gpu=0,1                   one call a slot; current_task().granted["gpu"] is which, as in ("0",); one slot: gpu=0,
  llm=1..64                 at most 64 at once, as many as the service bears without getting slow
  host=2/key  host=5/s/key  one such limit for each key: --needs host=my_module:host_of is given an item, and returns its key

With --journal FILE each result is kept in FILE as soon as it is there, under the item's text (for one that comes again:
with " #2", " #3" added). In a run with the same journal, what succeeded under the same text, with the same callable's
name, is not run again; its line is written again, with "resumed": true. Results are kept as pickles: use no journal of
strangers. parallel-exec journal FILE shows what a journal has; parallel-exec journal --help tells more.

exit status: 0 all succeeded, 1 some failed or could not be written, 2 wrong usage or unreadable input,
             130 Ctrl-C, 143 SIGTERM

examples:
  parallel-exec map --json math:factorial 10 20 30
  find . -name '*.py' | parallel-exec map py_compile:compile --backend process -j auto --priority os.path:getsize
  parallel-exec map --json --file calls.jsonl --keep-order --output results.jsonl my_module:my_function
  parallel-exec map --file urls.txt --journal run.db --output results.jsonl my_module:fetch
  parallel-exec map --file urls.txt --limit api=10/s --needs api --limit host=2/key --needs host=my_module:host_of \
      my_module:fetch
"""
JOURNAL_EPILOG = """\
Without --json and --export it writes what the journal has: its runs, how many tasks have succeeded and failed, and the
failures. A run may be under way. Nothing is changed.

Each line written is a JSON object: id, success, result, error, attempts (how many) and duration (seconds), as
parallel-exec map writes it, in the order in which the tasks ended. To read results and errors runs code that the file
names, as they are pickles: use it on no journal of strangers. One that was made with encode and decode has no pickles.

exit status: 0 it was written, 1 it could not be, in whole or in part, 2 wrong usage or no such journal, 130 Ctrl-C

examples:
  parallel-exec journal run.db
  parallel-exec journal run.db --export > results.jsonl
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
        raise UsageError(f"{message}; {self.prog} --help tells more")

    def refuse(self, unknown: str) -> None:
        """Refuse an option that there is not, or one argument more than there can be."""
        if not unknown.startswith("-"):
            raise UsageError(f"one argument too many: {unknown!r}; {self.prog} --help tells more")
        name = unknown.partition("=")[0]
        meant = did_you_mean(name, self._names, "; ")
        raise UsageError(f"there is no option {name}{meant or f'; see {self.prog} --help'}")


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
    if argv[0] == "journal":
        return _parse(_journal_parser(), argv[1:])
    options = _parse(_parser(), argv)
    if options.command == "journal":
        raise UsageError("journal must come first: write parallel-exec journal FILE, and options after that")
    if options.command != "map":
        meant = did_you_mean(options.command, COMMANDS, "; ")
        raise UsageError(
            f"there is no command {options.command!r}{meant or f': {WHAT_TO_WRITE}, or parallel-exec journal FILE'}"
        )
    return options


def _parse(parser: _Parser, argv: Sequence[str]) -> argparse.Namespace:
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.refuse(unknown[0])
    return options


def _journal_parser() -> _Parser:
    """Return the parser of `journal`."""
    parser = _Parser(
        prog="parallel-exec journal",
        description="Show what the journal of a run has.",
        epilog=JOURNAL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    parser.set_defaults(command="journal")
    add("journal", metavar="FILE", help="the journal, as parallel-exec map --journal FILE has made it, or a program")
    add("--json", action="store_true", help="write a JSON line for each task that has succeeded or failed")
    add("--export", action="store_true", help="write one for each that has succeeded")
    add("--traceback", action="store_true", help="the line of a task that failed has its traceback, too")
    add(
        "--decode",
        metavar="MODULE:CALLABLE",
        help="makes a result of what encode returned, for a journal of a program that gave encode and decode: json:loads",
    )
    return parser


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
    add("command", metavar="map", help="the command; the other one is journal")
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
        "--limit",
        action="append",
        default=[],
        metavar="NAME=SPEC",
        help="a limit for what needs it: api=10/s, db=4, gpu=0,1 or host=2/key; may be given more than once",
    )
    add(
        "--needs",
        action="append",
        default=[],
        metavar="NAME[=EXPR]",
        help="each call needs NAME, a limit; EXPR is how much of it, or MODULE:CALLABLE, which computes that, or the key, "
        "from an item",
    )
    _add_output(parser)
    _add_limits(parser, ParallelConfig())
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of the results."""
    add = parser.add_argument
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
    add("--journal", metavar="FILE", help="keep the results there, and run nothing again that has succeeded before")
    add(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether what has failed before runs again, which it does, or fails again as it did",
    )


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


def _count(text: str) -> int | str:
    """Convert an option's value to a number of calls, or to "auto"."""
    return text if text == "auto" else int(text)


_limit.__name__ = "seconds"  # argparse says "invalid seconds value"
_count.__name__ = 'number or "auto"'
