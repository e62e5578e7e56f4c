"""What the command line writes: a line for each item, and a summary at its end.

    future, as it ends ──► Writer's queue ──► its thread ──► Summary.add · a JSON line · Bar.update_to
    Refused, at once   ──┘                       │  ▲
                                                 ▼  │ with `keep_order`: until its turn has come
                                               lines held

Guarantees:
    A writer never holds up the thread in which a future ends. What it keeps is of bounded size, however many items
    there are: it lets in only so many that are not written yet.
    Lines are UTF-8 and JSON whatever the text: what is no Unicode (a byte of a file name) is written as JSON's escape of
    the character that `os.fsdecode` made of it.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import json
import math
import queue
import re
import threading
import traceback
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, NamedTuple

from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import Parker
from parallel_exec._sync.threads import arrive, launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Union

    from typing_extensions import Self

    from parallel_exec.cli.output import Output
    from parallel_exec.future import TaskFuture
    from parallel_exec.progress import Bar
    from parallel_exec.task import TaskResult

    AnyFuture = TaskFuture[Any]
    Ended = Union[AnyFuture, tuple[int, "Refused"], None]  # None: there will be no more

SLOWEST_SHOWN = 5
WORTH_TELLING = 0.1  # seconds; tasks that all take less are not compared
LEAST = 1e-6  # seconds that durations are told apart by
FAILED_SHOWN = 10
WIDTH = 100  # characters of an id or a message in a summary
LINES_AT_ONCE = 256  # lines that are written at once, when so many are there
USERS_ERRORS = (Exception, SystemExit)  # what code of the user's may raise
POLL = 0.2  # seconds; a signal that comes just before a blocking call is only heard after it, so none may last longer


class Refused(NamedTuple):
    """An item that the callable is not called with.

    Attributes:
        id: the item.
        error: why not.
    """

    id: str
    error: Exception


class Summary:
    """Counts results as they come, and says at the end how the run went. To be used by one thread at a time.

    Attributes:
        done: how many results there were.
        failed: how many of them failed, the cancelled not among them.
        cancelled: how many were cancelled.
    """

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = 0
        self._retried = self._resumed = 0
        self._work = 0.0
        self._began = time.monotonic()
        self._slowest: list[tuple[float, str]] = []  # a heap, the quickest first
        self._spread: collections.Counter[int] = collections.Counter()  # durations, by the power of two above them
        self._failures: list[str] = []

    def add(self, result: TaskResult[Any]) -> None:
        """Count a result."""
        self.done += 1
        if result.resumed:
            self._resumed += 1
        else:
            self._add_work(result)
        if isinstance(result.error, CancelledError):
            self.cancelled += 1
        elif result.error is not None:
            self._fail(result.task.id, result.error)

    def _add_work(self, result: TaskResult[Any]) -> None:
        """Note how long a task took in this run."""
        self._retried += len(result.attempts) > 1
        self._work += sum(attempt.duration for attempt in result.attempts)
        self._spread[math.frexp(max(result.duration, LEAST))[1]] += 1
        heapq.heappush(self._slowest, (result.duration, result.task.id))
        if len(self._slowest) > SLOWEST_SHOWN:
            heapq.heappop(self._slowest)

    def add_refused(self, item: Refused) -> None:
        """Count an item that was refused."""
        self.done += 1
        self._fail(item.id, item.error)

    def _fail(self, name: str, error: BaseException) -> None:
        self.failed += 1
        if self.failed <= FAILED_SHOWN:
            self._failures.append(describe_failure(name, error))

    def text(self) -> str:
        """Return lines that say how many tasks did what, which were the slowest, and which failed."""
        succeeded = self.done - self.failed - self.cancelled
        counts = {
            "failed": self.failed,
            "cancelled": self.cancelled,
            "retried": self._retried,
            "taken from the journal": self._resumed,
        }
        told = [f"{succeeded} succeeded", *(f"{count} {what}" for what, count in counts.items() if count)]
        tasks = "1 task" if self.done == 1 else f"{self.done} tasks"
        took = time.monotonic() - self._began
        lines = [f"{tasks} in {took:.2f} s ({self._work:.2f} s of work): {', '.join(told)}"]
        if self._has_slow_ones():
            lines.append("slowest:")
            lines += [f"  {took:8.3f} s  {shorten(task_id)}" for took, task_id in sorted(self._slowest, reverse=True)]
        if self._failures:
            lines += list_failures(self._failures, self.failed)
        return "\n".join(lines) + "\n"

    def _has_slow_ones(self) -> bool:
        """Return whether there are more tasks than the list would have, and the slowest stands out among them.

        It does if it took more than the median's power of two (up to twice the median), and a time that a person notices.
        """
        slowest = max(self._slowest, default=(0.0, ""))[0]
        count = sum(self._spread.values())
        if count <= SLOWEST_SHOWN or slowest < WORTH_TELLING:
            return False
        counted = 0
        for exponent in sorted(self._spread):
            counted += self._spread[exponent]
            if 2 * counted >= count:
                return slowest > math.ldexp(1.0, exponent)
        return False


class Writer:
    """Writes a JSON line for each item, as it ends, in a thread of its own.

    Thread-safe, but for `watch` and `refuse`: these are for the one thread that reads the input. The block it is used in
    waits at its end until all is written that had ended by then.

    Args:
        output: what is written to.
        bar: told of each result, if there is one.
        total: how many results there will be, for the bar; 0 if unknown.
        room: how many items `admit` lets in before their lines are written.
        keep_order: write lines in the order of `watch` and `refuse`, instead of that in which items end.
        tracebacks: whether the line of a failed item has its traceback.

    Attributes:
        interrupted: the signal that ends the run; 0 while there was none. What is cancelled from then on gets no line.
        output_error: why nothing can be written any more; None while it can. Then all that is watched is aborted.
        summary: of what was written; for other threads after the block.
    """

    def __init__(
        self,
        output: Output,
        bar: Bar | None,
        total: int,
        room: int,
        *,
        keep_order: bool = False,
        tracebacks: bool = False,
    ) -> None:
        self.interrupted = 0
        self.output_error: OSError | None = None
        self.summary = Summary()
        self._output = output
        self._bar = bar
        self._hide = bar.hidden if bar is not None and output.is_terminal() else contextlib.nullcontext
        self._total = total
        self._tracebacks = tracebacks
        # What both threads use has operations that are atomic, and no lock: Ctrl-C in the reading one might leave that taken,
        # as it can a semaphore's, an event's or a condition's, and the writing one would wait for ever.
        self._room = room
        self._admitted = 0  # items; the reading thread's
        self._written = 0  # items; the writing thread's
        self._news = Parker()  # unparked after `_written` or `_is_over` is written; the reading thread waits
        self._is_over = False  # whether the writing thread has come to its end
        # With their numbers: the reading one adds, the writing one takes away.
        self._alive: dict[AnyFuture, int] = {}
        # The numbers whose lines are to come, in order.
        self._turns: collections.deque[int] | None = collections.deque() if keep_order else None
        self._held: dict[int, str] = {}  # lines whose turn has not come; the writing thread's
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="parallel-exec-writer", daemon=True)

    def interrupt(self, number: int) -> None:
        """Note the signal that ends the run; the first counts. For signal handlers, too."""
        self.interrupted = self.interrupted or number

    def __enter__(self) -> Self:
        launch(self._thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.put(None)
        self._await(lambda: self._is_over)
        if kind is None and not self.interrupted and self.output_error is None:
            with self._giving_up():
                self._output.complete()

    def admit(self) -> bool:
        """Wait for room for one more item; returns False if no more should be started."""
        self._await(lambda: self._admitted - self._written < self._room)
        if self.output_error is not None or self.interrupted:
            return False
        self._admitted += 1
        return True

    def wait(self) -> None:
        """Wait until all that was admitted is written."""
        self._await(lambda: self._admitted == self._written)

    def _await(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._news.wait(POLL)

    def watch(self, number: int, future: AnyFuture) -> None:
        """Write the future's line when it ends.

        Args:
            number: the item's, in the input; it becomes the line's index.
            future: of the item's task.
        """
        if self._turns is not None:
            self._turns.append(number)
        self._alive[future] = number
        future.add_done_callback(self._ended.put)  # type: ignore[arg-type]  # it gets a TaskFuture, being one's callback
        if self.output_error is not None:  # looked at after `add`; the thread sets it before it aborts what is there
            future.abort()

    def refuse(self, number: int, item: Refused) -> None:
        """Write the line of an item that nothing is called with."""
        if self._turns is not None:
            self._turns.append(number)
        self._ended.put((number, item))

    def _loop(self) -> None:
        arrive()
        try:
            self._write_all()
        finally:
            self._is_over = True
            self._news.unpark()

    def _write_all(self) -> None:
        open_ended = True
        while open_ended:
            batch = [self._ended.get()]
            while len(batch) < LINES_AT_ONCE and not self._ended.empty():
                batch.append(self._ended.get())
            open_ended = batch[-1] is not None
            self._write([line for ended in batch if ended is not None for line in self._lines_after(ended)])
            del batch  # or the last results would stay until the next
        self._write([self._held.pop(number) for number in sorted(self._held)])  # the turn of one before never came

    def _lines_after(self, ended: AnyFuture | tuple[int, Refused]) -> list[str]:
        """Count an item that ended, and return the lines that can be written then."""
        if isinstance(ended, tuple):
            number, item = ended
            self.summary.add_refused(item)
            line = to_json(number, item, self._tracebacks)
        else:
            number = self._alive.pop(ended)
            result = ended.task_result()
            line = ""
            if not (self.interrupted and isinstance(result.error, CancelledError)):
                self.summary.add(result)
                line = to_json(number, result, self._tracebacks)
        if self._turns is None:
            return [line]
        self._held[number] = line
        lines = []
        while self._turns and self._turns[0] in self._held:
            lines.append(self._held.pop(self._turns.popleft()))
        return lines

    def _write(self, lines: list[str]) -> None:
        """Write lines, tell the bar, and make room for as many items."""
        if self._bar is not None:
            self._bar.update_to(self.summary.done, self._total, self.summary.failed)
        text = "".join(lines)
        if text and self.output_error is None:
            with self._giving_up(), self._hide():
                self._output.write(text)
        self._written += len(lines)
        self._news.unpark()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Abort what is watched if the output fails."""
        try:
            yield
        except OSError as error:
            self.output_error = error
            for future in list(self._alive):
                future.abort()


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
# For `str.splitlines` and JavaScript; JSON itself leaves them as they are.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def to_json(number: int | None, ended: TaskResult[Any] | Refused, tracebacks: bool) -> str:
    """Return an item's line: JSON, and the end of the line. Without a number it has no index."""
    line = _fields_of_refused(ended) if isinstance(ended, Refused) else _fields_of_result(ended)
    if number is not None:
        line = {"index": number, **line}
    if tracebacks and ended.error is not None:
        line["traceback"] = _traceback(ended.error)
    try:
        text = _encode(line)
    except USERS_ERRORS:  # a type, value or depth that JSON does not have, or code of the user's in a subclass of dict
        text = _encode({**line, "result": _repr(line["result"]), "repr": True})
    return (text if text.isascii() else _LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", text)) + "\n"


def _fields_of_result(result: TaskResult[Any]) -> dict[str, Any]:
    fields = {
        "id": result.task.id,
        "success": result.success,
        "result": result.result,
        "error": None if result.error is None else describe_error(result.error),
        "attempts": len(result.attempts),
        "duration": round(result.duration, 6),
    }
    return {**fields, "resumed": True} if result.resumed else fields


def _fields_of_refused(item: Refused) -> dict[str, Any]:
    error = describe_error(item.error)
    return {"id": item.id, "success": False, "result": None, "error": error, "attempts": 0, "duration": 0.0}


def _traceback(error: BaseException) -> str:
    """Return an error's traceback as text; what is remote has the worker's in its cause's."""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except USERS_ERRORS:  # the exception's own code
        return describe_error(error)


def _repr(value: object) -> str:
    """Return an object's repr, or what can be said instead."""
    try:
        return repr(value)
    except USERS_ERRORS as error:  # the object's own code
        return f"<{type(value).__qualname__} object, whose repr raised {describe_error(error)}>"


def describe_error(error: BaseException) -> str:
    """Return an exception's type and message, as the last line of a traceback has them."""
    try:
        message = str(error)
    except USERS_ERRORS:  # the exception's own code
        message = "(its __str__ raised)"
    name = type(error).__qualname__
    return f"{name}: {message}" if message else name


def describe_failure(name: str, error: BaseException) -> str:
    """Return a task's id and its error, for a summary."""
    return f"{shorten(name)}: {shorten(describe_error(error))}"


def list_failures(shown: Sequence[str], count: int) -> list[str]:
    """Return the lines of a summary that are about failures: those to be shown, and how many more there are."""
    more = [f"  ... and {count - len(shown)} more"] if count > len(shown) else []
    return ["failed:", *(f"  {failure}" for failure in shown), *more]


def shorten(text: str) -> str:
    """Return text on one line that is short enough for a summary; what is cut is cut from its middle."""
    line = " ".join(text.split())
    half = WIDTH // 2
    return line if len(line) <= WIDTH else f"{line[: half - 1]}...{line[2 - half :]}"
