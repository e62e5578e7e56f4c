"""`parallel-exec journal FILE`: what a journal has, as a text for people or as lines for programs.

    Journal ──► summary, failures ──────► text ───┐
            └─► results, one at a time ──► lines ─┴─► standard output

Guarantees:
    The journal is read as it is, also while a run goes on; lines in flat memory, however many there are.
    Only that goes to standard output, whatever the modules print that results and errors are made of.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from parallel_exec._stdio import STDERR, STDOUT, take_output, write_all
from parallel_exec.cli.options import OK, SOME_FAILED, UsageError
from parallel_exec.cli.output import CANNOT_WRITE, Output
from parallel_exec.cli.reader import resolve, search_here
from parallel_exec.cli.writer import FAILED_SHOWN, LINES_AT_ONCE, describe_failure, list_failures, to_json
from parallel_exec.errors import JournalError
from parallel_exec.journal import Journal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def run_journal(options: argparse.Namespace, missing: frozenset[int]) -> int:
    """Run the `journal` command and return the exit status."""
    if STDOUT in missing:
        raise UsageError("standard output is closed: there is nowhere to write to")
    output = Output(take_output())
    search_here()
    complaint = ""
    try:
        reader = _Reader(options)
        for text in reader.lines() if options.json or options.export else reader.text():
            output.write(text)
        complaint = reader.complaint
    except JournalError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        complaint = CANNOT_WRITE.format(error.strerror)
    with contextlib.suppress(OSError):  # there may be nobody to be told
        write_all(STDERR, complaint)
    return SOME_FAILED if complaint else OK


class _Reader:
    """Makes text of a journal.

    Attributes:
        complaint: what could not be written, for standard error; "" while there is nothing.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.complaint = ""
        self._successes_alone: bool = options.export
        self._tracebacks: bool = options.traceback
        decode = resolve(options.decode) if options.decode is not None else None
        try:
            if decode is None and _is_encoded(options.journal):
                decode = _as_recorded
            encode = None if decode is None else _as_recorded  # nothing is recorded
            self._journal = Journal(options.journal, encode=encode, decode=decode)
        except ValueError as error:
            raise UsageError(f"FILE: {error}") from error

    def text(self) -> Iterator[str]:
        """Yield what there is to say."""
        yield f"{self._journal.summary()}\n"
        failed = self._journal.failed()
        if failed:
            shown = [
                describe_failure(result.task.id, result.error)
                for result in failed[:FAILED_SHOWN]
                if result.error is not None
            ]
            yield "\n".join([*list_failures(shown, len(failed)), ""])

    def lines(self) -> Iterator[str]:
        """Yield lines, some hundred at once."""
        lines = self._each_line()
        while some := "".join(itertools.islice(lines, LINES_AT_ONCE)):
            yield some

    def _each_line(self) -> Iterator[str]:
        unreadable = 0
        for result in self._journal:
            if isinstance(result.error, JournalError):
                unreadable += 1
                results = "1 result" if unreadable == 1 else f"{unreadable} results, this the last of them,"
                self.complaint = f"{results} could not be read back: {result.error.reason}\n"
            if result.error is None or not self._successes_alone:
                yield to_json(None, result, self._tracebacks)


def _is_encoded(path: str) -> bool:
    """Return whether the values of a journal are what a user's `encode` made of them."""
    from parallel_exec._journal.database import Database

    database = Database.open(path, write=False)
    database.close()
    return bool(database.is_encoded)


def _as_recorded(value: Any) -> Any:
    """Return a value as `encode` has made it."""
    return value
