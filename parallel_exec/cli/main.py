"""The command line: `parallel-exec map MODULE:CALLABLE [ITEM ...]`.

    arguments, a file or standard input ──► Task ──► executor    the main thread: the one that Ctrl-C interrupts
                                                        │ future, as it ends
                                                        ▼
    standard error ◄── Summary ◄───────────────────  Writer      a thread of its own: a slow reader of the lines
    standard output, a file ◄── one JSON line each ◄────┘        holds up neither the executor nor Ctrl-C

Guarantees:
    Nothing runs before all options are known to be good. Each item that is taken in gets one line, written as soon as
    its result is there, in the order in which they end. After Ctrl-C all that had finished is written, and no more.

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
from typing import TYPE_CHECKING, Any

from parallel_exec._checks import check_seconds
from parallel_exec.cli.reader import UsageError, check_is_no_input, make_tasks, open_file, read_lines, resolve
from parallel_exec.cli.writer import Writer, write_all
from parallel_exec.config import ParallelConfig
from parallel_exec.executor import ParallelExecutor
from parallel_exec.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from parallel_exec.progress import Bar
    from parallel_exec.task import Task

    AnyTask = Task[Any]

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit statuses
STDOUT, STDERR = 1, 2  # descriptors
TAKEN_IN = 64  # items taken in and not yet written, for each call at once: enough that tiny ones travel in batches

EPILOG = """\
Each line written is a JSON object: id (the item), success, result, error, attempts (how many) and duration (seconds).
A result that JSON cannot carry is written as its repr, and its line then has "repr": true.

exit status: 0 all succeeded, 1 some failed, 2 wrong usage or unreadable input, 130 Ctrl-C

examples:
  parallel-exec map --json math:factorial 10 20 30
  find . -name '*.py' | parallel-exec map py_compile:compile --backend process --priority os.path:getsize
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. To be called in the main thread.

    Args:
        argv: the arguments after the program's name; default: those of this process.

    Raises:
        SystemExit: arguments that argparse refuses (status 2), or `--help` (status 0).
    """
    options = _parser().parse_intermixed_args(argv)
    try:
        return _map(options)
    except UsageError as error:
        with contextlib.suppress(OSError):  # there may be nobody to be told
            write_all(STDERR, f"parallel-exec: error: {error}\n")
        return USAGE
    except KeyboardInterrupt:  # before the first task, or once more while the first was being answered
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    `map` is no subparser of argparse's: these refuse an option that stands between MODULE:CALLABLE and its items.
    """
    parser = argparse.ArgumentParser(
        prog="parallel-exec",
        description="Call a Python callable once for each item, many at once, and write one JSON line for each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", choices=("map",), metavar="map", help="the command; for now, there is this one")
    add("callable", metavar="MODULE:CALLABLE", help="what to call; modules in the current directory are found")
    add(
        "items",
        nargs="*",
        default=[],
        metavar="ITEM",
        help="without any, or with -, each line of standard input is one",
    )
    add("--file", metavar="FILE", help="read the items from FILE, one a line; - is standard input")
    add("--json", action="store_true", help="each item is a JSON value instead of a string")
    add("--priority", metavar="MODULE:CALLABLE", help="computes an int from an item; the highest runs first")
    add("--output", metavar="FILE", help="write the lines there instead of to standard output")
    _add_limits(parser, ParallelConfig())
    return parser


def _add_limits(parser: argparse.ArgumentParser, defaults: ParallelConfig) -> None:
    """Add the settings of the executor and of the run."""

    def add(*names: str, help: str, **how: Any) -> None:
        parser.add_argument(*names, help=f"{help} (default: %(default)s)", **how)

    add("--backend", choices=("thread", "process", "inline"), default=defaults.backend, help="what runs the calls")
    add("-j", "--max-concurrency", metavar="N", type=int, default=defaults.max_concurrency, help="calls at once")
    add("--timeout", metavar="SECONDS", type=_limit, default=defaults.timeout, help='for one attempt; "none": no limit')
    add("--retries", metavar="N", type=int, default=defaults.retry_count, help="attempts after a first that failed")
    add("--backoff", metavar="SECONDS", type=float, default=defaults.backoff, help="before a retry; doubles with each")
    add("--deadline", metavar="SECONDS", type=_limit, default="none", help="for the whole run")
    parser.add_argument("--fail-fast", action="store_true", help="cancel the rest when an item has failed for good")


def _limit(text: str) -> float | None:
    """Convert an option's value to seconds; "none" means no limit."""
    return None if text == "none" else float(text)


_limit.__name__ = "seconds"  # argparse says "invalid seconds value"


def _config(options: argparse.Namespace) -> ParallelConfig:
    """Return the executor's settings, checked."""
    try:
        check_seconds("deadline", options.deadline)
        return ParallelConfig(
            backend=options.backend,
            max_concurrency=options.max_concurrency,
            timeout=options.timeout,
            retry_count=options.retries,
            backoff=options.backoff,
        )
    except ValueError as error:  # whose message starts with the setting's name
        setting, _, wrong = str(error).partition(" ")
        option = "retries" if setting == "retry_count" else setting.replace("_", "-")
        wrong = wrong.replace("None means", '"none" means')
        raise UsageError(f"--{option} {wrong}") from error


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _map(options: argparse.Namespace) -> int:
    """Run the `map` command and return the exit status."""
    if not getattr(sys.flags, "safe_path", False):  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    config = _config(options)
    function = resolve(options.callable)
    rank = resolve(options.priority) if options.priority else None
    with contextlib.ExitStack() as open_files:
        tasks: Iterable[AnyTask] = make_tasks(read_lines(options, open_files), function, rank, options.json)
        total = len(options.items)
        staged = rank is not None or options.deadline is not None or options.fail_fast
        if staged:
            tasks = list(tasks)
            total = len(tasks)
        output = STDOUT
        if options.output is not None:
            if not options.items or options.items == ["-"]:
                check_is_no_input(options.output, options.file)
            output = open_files.enter_context(open_file(options.output, "wb")).fileno()
        room = TAKEN_IN * config.max_concurrency
        writer = Writer(output, open_files.enter_context(_bar(total)), total, room)
        try:
            with writer, ParallelExecutor(config) as executor, _noting_ctrl_c(writer):
                if staged:
                    _run_staged(executor, tasks, writer, options)
                else:
                    _run_streamed(executor, tasks, writer)
        except KeyboardInterrupt:
            writer.interrupted = True
        finally:
            open_files.close()  # and with them the bar, before the summary
            with contextlib.suppress(OSError):  # nobody reads it
                write_all(STDERR, _closing_words(writer))
    if writer.interrupted:
        return INTERRUPTED
    return SOME_FAILED if writer.output_error or writer.summary.failed or writer.summary.cancelled else OK


def _closing_words(writer: Writer) -> str:
    """Return the summary, and why the run ended early if it did."""
    why = ""
    if writer.interrupted:
        why = "interrupted; this had ended before:\n"
    elif writer.output_error is not None:
        why = f"stopped, because results cannot be written: {writer.output_error.strerror}\n"
    return why + writer.summary.text()


def _run_streamed(executor: ParallelExecutor, tasks: Iterable[AnyTask], writer: Writer) -> None:
    """Run tasks as they come in, and as the writer makes room for them.

    Not by `executor.stream`: a source of items that is slow would hold up the results that are there.
    """
    for task in tasks:
        if not writer.admit():
            break
        writer.watch(executor.options(id=task.id).submit(task.execute))
    writer.wait()


def _run_staged(
    executor: ParallelExecutor, tasks: Iterable[AnyTask], writer: Writer, options: argparse.Namespace
) -> None:
    """Run tasks that are all known."""
    for task in tasks:
        writer.watch(executor.add_task(task))
    executor.execute_all(deadline=options.deadline, fail_fast=options.fail_fast)


@contextlib.contextmanager
def _noting_ctrl_c(writer: Writer) -> Iterator[None]:
    """Let the writer know of Ctrl-C before anything is cancelled for it."""

    def note(number: int, frame: Any) -> None:
        writer.interrupted = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a background job
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _bar(total: int) -> AbstractContextManager[Bar | None]:
    """Return a progress bar if a person would see one."""
    if sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        return progress_bar(total)
    return contextlib.nullcontext()
