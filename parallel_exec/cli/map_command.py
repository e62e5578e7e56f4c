"""`parallel-exec map MODULE:CALLABLE [ITEM ...]`: the run, and its settings.

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

import _thread
import contextlib
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._checks import check_seconds
from parallel_exec._outcome import TWIN
from parallel_exec._stdio import STDERR, STDOUT, print_by_lines, take_output, write_all
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import main
from parallel_exec.backends.registry import make_backend
from parallel_exec.cli.options import INTERRUPTED, OK, SOME_FAILED, TERMINATED, UsageError
from parallel_exec.cli.output import CANNOT_WRITE, Output, open_output
from parallel_exec.cli.reader import check_is_no_input, open_source, read_items, resolve, search_here, with_unique_ids
from parallel_exec.cli.recording import MapExecutor, Recording, noting_incomplete, recording
from parallel_exec.cli.writer import Refused, Writer
from parallel_exec.config import ParallelConfig
from parallel_exec.errors import JournalError
from parallel_exec.progress import progress_bar
from parallel_exec.task import Task

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from parallel_exec.backends.base import Backend
    from parallel_exec.cli.limits import ItemNeeds
    from parallel_exec.cli.reader import Item
    from parallel_exec.future import TaskFuture
    from parallel_exec.journal import Journal
    from parallel_exec.limits import LimitSpec
    from parallel_exec.progress import Bar

TAKEN_IN = 64  # items taken in and not yet written, for each call at once: enough that tiny ones travel in batches
TAKEN_IN_LIMITED = 16_384  # items, where each says what it needs: many of one key must not hold back those of another
SWALLOWED = 0.02  # seconds until Ctrl-C that was swallowed is raised again: by then the finalizer is over; a guess


def run_map(options: argparse.Namespace, missing: frozenset[int]) -> int:
    """Run the `map` command and return the exit status."""
    config, journal = _config(options), _journal(options)
    if options.append and options.output is None:
        raise UsageError("--append needs --output FILE, as it says that the file keeps what it has")
    with contextlib.ExitStack() as open_files:
        source = open_source(options, missing, open_files)
        output = Output(take_output())  # closed by the end of the process: what is abandoned goes on until then
        if options.output is None and STDOUT in missing:
            raise UsageError("standard output is closed: name a file for the lines with --output FILE")
        function, rank, needs = _resolve_all(options, config)
        items: Iterable[tuple[int, Item]] = read_items(source, function, rank, options.json, needs)
        items = items if journal is None else with_unique_ids(items)
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
            room=_room(config, needs),
            keep_order=options.keep_order,
            tracebacks=options.traceback,
        )
        with (
            noting_incomplete() as incomplete,
            _summing_up(writer, incomplete, open_files),
            _noting_signals(writer),
            writer,
        ):
            if staged:
                with MapExecutor(config) as executor:
                    _run_staged(executor, items, writer, options, journal)
            else:
                with recording(journal) as run, MapExecutor(config) as executor:
                    _run_streamed(executor, items, writer, run)
    return _status(writer, incomplete)


def _resolve_all(
    options: argparse.Namespace, config: ParallelConfig
) -> tuple[Callable[[Any], Any], Callable[[Any], int] | None, ItemNeeds | None]:
    """Return what the options name: the callable, and what computes priorities and needs. From here on the user's code runs."""
    search_here()
    function = resolve(options.callable)
    rank = resolve(options.priority) if options.priority else None
    if not options.needs and not options.limit:
        return function, rank, None
    from parallel_exec.cli.limits import read_needs  # few runs have limits

    return function, rank, read_needs(options.needs, config.limits or {}, resolve)


def _room(config: ParallelConfig, needs: ItemNeeds | None) -> int:
    """Return how many items may be taken in and not yet be written."""
    limit = config.max_concurrency
    room = TAKEN_IN * (make_backend(config.backend).auto_concurrency() if limit == "auto" else limit)
    return room if needs is None or needs.same_for_all else max(room, TAKEN_IN_LIMITED)


@contextlib.contextmanager
def _summing_up(writer: Writer, incomplete: list[str], open_files: contextlib.ExitStack) -> Iterator[None]:
    """Say at the end how the run went, whatever has ended it; Ctrl-C ends here.

    Raises:
        UsageError: the journal cannot be used. Nothing has begun then, and there is nothing else to say.
    """
    has_begun = True
    try:
        yield
    except KeyboardInterrupt:
        if not writer.interrupted:
            writer.interrupt(signal.SIGINT)
    except JournalError as error:
        has_begun = False
        raise UsageError(str(error)) from error
    finally:
        open_files.close()  # and with them the bar, before the summary
        if has_begun:
            with contextlib.suppress(OSError):  # nobody reads it
                write_all(STDERR, _closing_words(writer, incomplete))


def _closing_words(writer: Writer, incomplete: list[str]) -> str:
    """Return the summary, and why the run ended early if it did."""
    why = ""
    if writer.interrupted:
        why = "interrupted; this had ended before:\n"
    elif writer.output_error is not None:
        why = CANNOT_WRITE.format(writer.output_error.strerror)
    return why + writer.summary.text() + "".join(f"{each}\n" for each in incomplete)


def _status(writer: Writer, incomplete: list[str]) -> int:
    """Return the exit status of a run."""
    if writer.interrupted:
        return INTERRUPTED if writer.interrupted == signal.SIGINT else TERMINATED
    has_failed = writer.output_error or writer.summary.failed or writer.summary.cancelled or incomplete
    return SOME_FAILED if has_failed else OK


def _run_streamed(
    executor: MapExecutor, items: Iterable[tuple[int, Item]], writer: Writer, run: Recording | None
) -> None:
    """Run tasks as they come in, and as the writer makes room for them."""
    for number, item in items:
        if not writer.admit():
            break
        if isinstance(item, Refused):
            writer.refuse(number, item)
        else:
            writer.watch(number, executor.start(item, run))
    writer.wait()


def _run_staged(
    executor: MapExecutor,
    items: Iterable[tuple[int, Item]],
    writer: Writer,
    options: argparse.Namespace,
    journal: Journal | None,
) -> None:
    """Run tasks that are all known."""
    staged: list[tuple[int, Refused | TaskFuture[Any]]] = []
    futures: list[TaskFuture[Any]] = []
    for number, item in items:
        if isinstance(item, Refused):
            staged.append((number, item))
        else:
            futures.append(executor.add_task(Task(item.execute, id=item.id, priority=item.priority, needs=item.needs)))
            staged.append((number, futures[-1]))
    if len(futures) < len(staged) and options.fail_fast:  # the first failure came before all that could have run
        for future in futures:
            future.cancel()

    def tell() -> None:  # not before the journal is known to be good: the first line replaces what is at --output
        for number, one in staged:
            if isinstance(one, Refused):
                writer.refuse(number, one)
            else:
                writer.watch(number, one)

    executor.run_all(tell, deadline=options.deadline, fail_fast=options.fail_fast, journal=journal)


@contextlib.contextmanager
def _noting_signals(writer: Writer) -> Iterator[None]:
    """Let the writer know of Ctrl-C before anything is cancelled for it; SIGTERM is answered likewise, once."""
    program, terminated_at = os.getpid(), 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal terminated_at
        if number == signal.SIGTERM:
            now, is_ours = time.monotonic(), os.getpid() == program  # else the callable has forked, and terminates that
            if is_ours and now < terminated_at + TWIN:
                return
            if terminated_at or not is_ours:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            terminated_at = now
        writer.interrupt(number)
        signal.default_int_handler(number, frame)

    def hear(unraisable: sys.UnraisableHookArgs) -> None:
        """Raise it once more, a moment later, if a finalizer has swallowed what was raised."""
        is_ours = issubclass(unraisable.exc_type, KeyboardInterrupt) and _thread.get_ident() == main.ident
        if is_ours and writer.interrupted:
            _thread.start_new_thread(_interrupt_soon, ())
        else:
            report(unraisable)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: way for number, way in usual.items() if signal.getsignal(number) is way}  # else it is ignored
    for number in ours:  # as Ctrl-C in a background job, or the user's module has set it
        signal.signal(number, note)
    report, sys.unraisablehook = sys.unraisablehook, hear
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, way in ours.items():
            signal.signal(number, way)


def _interrupt_soon() -> None:
    time.sleep(SWALLOWED)
    _thread.interrupt_main()


def _bar(total: int) -> AbstractContextManager[Bar | None]:
    """Return a progress bar if a person would see one."""
    if sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        return progress_bar(total)
    return contextlib.nullcontext()


# ── the settings ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _config(options: argparse.Namespace) -> ParallelConfig:
    """Return the executor's settings, checked."""
    try:
        check_seconds("deadline", options.deadline)
        return ParallelConfig(
            backend=_backend(options.backend),
            max_concurrency=options.max_concurrency,
            timeout=options.timeout,
            retry_count=options.retries,
            backoff=options.backoff,
            max_backoff=max(options.backoff, ParallelConfig().max_backoff),
            limits=_limits(options.limit),
        )
    except ValueError as error:  # whose message starts with the setting's name
        setting, _, wrong = str(error).partition(" ")
        option = "retries" if setting == "retry_count" else setting.replace("_", "-")
        wrong = wrong.replace("None means", '"none" means')
        raise UsageError(f"--{option} {wrong}") from error


def _limits(given: list[str]) -> Mapping[str, LimitSpec] | None:
    """Return the limits, checked, if there are some."""
    if not given:
        return None
    from parallel_exec.cli.limits import read_limits  # few runs have limits

    return read_limits(given)


def _journal(options: argparse.Namespace) -> Journal | None:
    """Return the journal, its settings checked, if there is to be one."""
    if options.journal is None:
        if options.retry_failed is not None:
            option = "--retry-failed" if options.retry_failed else "--no-retry-failed"
            raise UsageError(f"{option} needs --journal FILE, as it speaks of what has failed in an earlier run")
        return None
    if options.output is not None and _is_same_file(options.output, options.journal):
        raise UsageError(f"--output {options.output!r} is the journal: name another file")
    from parallel_exec.journal import Journal  # few runs have one

    try:
        return Journal(options.journal, retry_failed=options.retry_failed is not False)
    except ValueError as error:
        raise UsageError(f"--journal: {error}") from error


def _is_same_file(one: str, other: str) -> bool:
    """Return whether two paths are those of one file, or of one that will be there."""
    with contextlib.suppress(OSError, ValueError):  # one of them is not there, or cannot be
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _backend(name: str) -> Backend | str:
    """Return the back end of this name, whose workers' prints are seen as soon as their line is complete."""
    if name != "process":
        return name
    from parallel_exec.backends.process.backend import ProcessBackend

    return ProcessBackend(initializer=print_by_lines)
