"""The command line: `parallel-exec map MODULE:CALLABLE [ITEM ...]`.

    arguments, a file or standard input ──► Call ──► executor    the main thread: the one that Ctrl-C interrupts
                                                        │ future, as it ends
                                                        ▼
    standard error ◄── Summary ◄───────────────────  Writer      a thread of its own: a slow reader of the lines
    standard output, a file ◄── one JSON line each ◄────┘        holds up neither the executor nor Ctrl-C

Guarantees:
    Nothing runs before all options are known to be good. Each item that is taken in gets one line, written as soon as
    its result is there, in the order in which they end or, if that is asked for, in which they came. After Ctrl-C all
    that had finished is written, and no more.
    Only lines go to standard output: before anything of the user's is imported, descriptor 1 is led to standard error,
    for whatever the callable prints, in this process, in C code, in workers, in subprocesses; see `_stdio`.

Items are taken in as room is made for them, so endless input runs in flat memory; except with `--priority`,
`--deadline` or `--fail-fast`: these speak of all items, so all are read first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._checks import check_seconds
from parallel_exec._hints import did_you_mean
from parallel_exec._stdio import STDERR, STDOUT, open_missing, print_by_lines, take_output
from parallel_exec.cli.cpus import usable_cpus
from parallel_exec.cli.output import Output, UsageError, open_output, write_all
from parallel_exec.cli.reader import check_is_no_input, open_source, read_items, resolve
from parallel_exec.cli.writer import Refused, Writer
from parallel_exec.config import BACKENDS, ParallelConfig
from parallel_exec.executor import ParallelExecutor
from parallel_exec.progress import progress_bar
from parallel_exec.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from parallel_exec.backends.base import Backend
    from parallel_exec.cli.reader import Item
    from parallel_exec.progress import Bar

OK, SOME_FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143  # exit statuses
TAKEN_IN = 64  # items taken in and not yet written, for each call at once: enough that tiny ones travel in batches
MORE_THREADS, MOST_THREADS = 4, 32  # for `-j auto`: threads wait most of the time, as the standard library says

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. To be called in the main thread, as a program of its own.

    The process's standard output is taken over for good: what is still running when this returns may print.

    Args:
        argv: the arguments after the program's name; default: those of this process.

    Raises:
        SystemExit: `--help` or `--version` (status 0).
    """
    missing = open_missing()
    try:
        return _map(_parse(sys.argv[1:] if argv is None else argv), missing)
    except UsageError as error:
        with contextlib.suppress(OSError):  # there may be nobody to be told
            write_all(STDERR, f"parallel-exec: error: {error}\n")
        return USAGE
    except KeyboardInterrupt:  # before the first task, or once more while the first was being answered
        return INTERRUPTED


# ── the options ──────────────────────────────────────────────────────────────────────────────────────────────────────


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


def _parse(argv: Sequence[str]) -> argparse.Namespace:
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


def _config(options: argparse.Namespace) -> ParallelConfig:
    """Return the executor's settings, checked."""
    try:
        check_seconds("deadline", options.deadline)
        return ParallelConfig(
            backend=_backend(options.backend),
            max_concurrency=_auto(options.backend) if options.max_concurrency is None else options.max_concurrency,
            timeout=options.timeout,
            retry_count=options.retries,
            backoff=options.backoff,
            max_backoff=max(options.backoff, ParallelConfig().max_backoff),
        )
    except ValueError as error:  # whose message starts with the setting's name
        setting, _, wrong = str(error).partition(" ")
        option = "retries" if setting == "retry_count" else setting.replace("_", "-")
        wrong = wrong.replace("None means", '"none" means')
        raise UsageError(f"--{option} {wrong}") from error


def _backend(name: str) -> Backend | str:
    """Return the back end of this name, whose workers' prints are seen as soon as their line is complete."""
    if name != "process":
        return name
    from parallel_exec.backends.process.backend import ProcessBackend

    return ProcessBackend(initializer=print_by_lines)


def _auto(backend: str) -> int:
    """Return how many calls `-j auto` runs at once."""
    cpus = usable_cpus()
    return min(cpus + MORE_THREADS, MOST_THREADS) if backend == "thread" else cpus


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _map(options: argparse.Namespace, missing: frozenset[int]) -> int:
    """Run the `map` command and return the exit status."""
    config = _config(options)
    if options.append and options.output is None:
        raise UsageError("--append needs --output FILE, as it says that the file keeps what it has")
    with contextlib.ExitStack() as open_files:
        source = open_source(options, missing, open_files)
        output = Output(take_output())  # closed by the end of the process: what is abandoned goes on until then
        if options.output is None and STDOUT in missing:
            raise UsageError("standard output is closed: name a file for the lines with --output FILE")
        function, rank = _resolve_all(options)
        items: Iterable[tuple[int, Item]] = read_items(source, function, rank, options.json)
        total = len(source.arguments)
        staged = rank is not None or options.deadline is not None or options.fail_fast
        if staged:
            items = list(items)
            total = len(items)
        if options.output is not None:
            check_is_no_input(options.output, source)
            output = open_output(options.output, options.append, open_files)
        writer = Writer(
            output,
            open_files.enter_context(_bar(total)),
            total,
            room=TAKEN_IN * config.max_concurrency,
            keep_order=options.keep_order,
            tracebacks=options.traceback,
        )
        try:
            with writer, ParallelExecutor(config) as executor, _noting_signals(writer):
                run = _run_staged if staged else _run_streamed
                run(executor, items, writer, options)
        except KeyboardInterrupt:
            if not writer.interrupted:
                writer.interrupt(signal.SIGINT)
        finally:
            open_files.close()  # and with them the bar, before the summary
            with contextlib.suppress(OSError):  # nobody reads it
                write_all(STDERR, _closing_words(writer))
    return _status(writer)


def _resolve_all(options: argparse.Namespace) -> tuple[Callable[[Any], Any], Callable[[Any], int] | None]:
    """Return what the options name: the callable, and the one for priorities. From here on code of the user's runs."""
    if not getattr(sys.flags, "safe_path", False):  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    return resolve(options.callable), resolve(options.priority) if options.priority else None


def _closing_words(writer: Writer) -> str:
    """Return the summary, and why the run ended early if it did."""
    why = ""
    if writer.interrupted:
        why = "interrupted; this had ended before:\n"
    elif writer.output_error is not None:
        why = f"stopped, because results cannot be written: {writer.output_error.strerror}\n"
    return why + writer.summary.text()


def _status(writer: Writer) -> int:
    """Return the exit status of a run."""
    if writer.interrupted:
        return INTERRUPTED if writer.interrupted == signal.SIGINT else TERMINATED
    return SOME_FAILED if writer.output_error or writer.summary.failed or writer.summary.cancelled else OK


def _run_streamed(
    executor: ParallelExecutor, items: Iterable[tuple[int, Item]], writer: Writer, options: argparse.Namespace
) -> None:
    """Run tasks as they come in, and as the writer makes room for them.

    Not by `executor.stream`: a source of items that is slow would hold up the results that are there.
    """
    for number, item in items:
        if not writer.admit():
            break
        if isinstance(item, Refused):
            writer.refuse(number, item)
        else:
            writer.watch(number, executor.options(id=item.id).submit(item.execute))
    writer.wait()


def _run_staged(
    executor: ParallelExecutor, items: Iterable[tuple[int, Item]], writer: Writer, options: argparse.Namespace
) -> None:
    """Run tasks that are all known."""
    futures = []
    refused = False
    for number, item in items:
        if isinstance(item, Refused):
            writer.refuse(number, item)
            refused = True
        else:
            futures.append(executor.add_task(Task(item.execute, id=item.id, priority=item.priority)))
            writer.watch(number, futures[-1])
    if refused and options.fail_fast:  # the first failure came before all that could have run
        for future in futures:
            future.cancel()
    executor.execute_all(deadline=options.deadline, fail_fast=options.fail_fast)


@contextlib.contextmanager
def _noting_signals(writer: Writer) -> Iterator[None]:
    """Let the writer know of Ctrl-C before anything is cancelled for it; SIGTERM is answered likewise, once."""
    program = os.getpid()

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            if os.getpid() != program:  # a process that the callable forked, and now terminates
                os.kill(os.getpid(), number)
        writer.interrupt(number)
        signal.default_int_handler(number, frame)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: way for number, way in usual.items() if signal.getsignal(number) is way}  # else it is ignored
    for number in ours:  # as Ctrl-C in a background job, or the user's module has set it
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, way in ours.items():
            signal.signal(number, way)


def _bar(total: int) -> AbstractContextManager[Bar | None]:
    """Return a progress bar if a person would see one."""
    if sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        return progress_bar(total)
    return contextlib.nullcontext()
