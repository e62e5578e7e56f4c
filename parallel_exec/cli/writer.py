"""What the command line writes: a line for each result, and a summary at its end.

    future, as it ends ──► Writer's queue ──► its thread ──► a JSON line · Bar.update_to · Summary.add

Guarantees:
    A writer never holds up the thread in which a future ends. What it keeps is of bounded size, however many results
    there are.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import queue
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from parallel_exec._clock import time

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from parallel_exec.future import TaskFuture
    from parallel_exec.progress import Bar
    from parallel_exec.task import TaskResult

    AnyFuture = TaskFuture[Any]

SLOWEST_SHOWN = 5
FAILED_SHOWN = 10
WIDTH = 100  # characters of an id or a message in a summary
BATCH = 256  # lines that are written at once, when so many are there
TICK = 0.2  # seconds; a signal that comes just before a blocking call is only heard after it, so none may last longer


class Summary:
    """Counts results as they come, and says at the end how the run went. To be used by one thread at a time.

    Attributes:
        done: how many results there were.
        failed: how many of them failed, the cancelled not among them.
        cancelled: how many were cancelled.
    """

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = 0
        self._retried = 0
        self._work = 0.0
        self._began = time.monotonic()
        self._slowest: list[tuple[float, str]] = []  # a heap, the quickest first
        self._failures: list[str] = []

    def add(self, result: TaskResult[Any]) -> None:
        """Count a result."""
        self.done += 1
        self._retried += len(result.attempts) > 1
        self._work += sum(attempt.duration for attempt in result.attempts)
        heapq.heappush(self._slowest, (result.duration, result.task.id))
        if len(self._slowest) > SLOWEST_SHOWN:
            heapq.heappop(self._slowest)
        if isinstance(result.error, CancelledError):
            self.cancelled += 1
        elif result.error is not None:
            self.failed += 1
            if self.failed <= FAILED_SHOWN:
                self._failures.append(f"{shorten(result.task.id)}: {shorten(describe_error(result.error))}")

    def text(self) -> str:
        """Return lines that say how many tasks did what, which were the slowest, and which failed."""
        succeeded = self.done - self.failed - self.cancelled
        counts = {"failed": self.failed, "cancelled": self.cancelled, "retried": self._retried}
        told = [f"{succeeded} succeeded", *(f"{count} {what}" for what, count in counts.items() if count)]
        tasks = "1 task" if self.done == 1 else f"{self.done} tasks"
        took = time.monotonic() - self._began
        lines = [f"{tasks} in {took:.2f} s ({self._work:.2f} s of work): {', '.join(told)}"]
        if self.done > 1:
            lines.append("slowest:")
            lines += [f"  {took:8.3f} s  {shorten(task_id)}" for took, task_id in sorted(self._slowest, reverse=True)]
        if self._failures:
            lines.append("failed:")
            lines += [f"  {failure}" for failure in self._failures]
            if self.failed > FAILED_SHOWN:
                lines.append(f"  ... and {self.failed - FAILED_SHOWN} more")
        return "\n".join(lines) + "\n"


class Writer:
    """Writes a JSON line for each future it watches, as it ends, in a thread of its own.

    Thread-safe. The block it is used in waits at its end until all is written that had ended by then.

    Args:
        output: the descriptor written to. Not a file object: that would have a lock, and its holder may be blocked in
            it for ever, by a reader that has stopped, when the interpreter wants to exit.
        bar: told of each result, if there is one.
        total: how many results there will be, for the bar; 0 if unknown.
        room: how many futures `admit` lets in before their lines are written.

    Attributes:
        interrupted: set it on Ctrl-C; what is cancelled from then on gets no line.
        output_error: why nothing can be written any more; None while it can. Then all that is watched is aborted.
        summary: of what was written; for other threads after the block.
    """

    def __init__(self, output: int, bar: Bar | None, total: int, room: int) -> None:
        self.interrupted = False
        self.output_error: OSError | None = None
        self.summary = Summary()
        self._output = output
        self._bar = bar
        self._hide = bar.hidden if bar is not None and os.isatty(output) else contextlib.nullcontext
        self._total = total
        self._room = threading.Semaphore(room)
        self._all_room = room
        self._alive: set[AnyFuture] = set()  # its operations are atomic: added to by `watch`, the rest by the thread
        self._ended: queue.SimpleQueue[AnyFuture | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="parallel-exec-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.put(None)
        while self._thread.is_alive():
            self._thread.join(TICK)

    def admit(self) -> bool:
        """Wait for room for one more future; returns False if no more should be started."""
        self._enter()
        if self.output_error is None and not self.interrupted:
            return True
        self._room.release()
        return False

    def wait(self) -> None:
        """Wait until all that was admitted is written."""
        for _ in range(self._all_room):
            self._enter()

    def _enter(self) -> None:
        while not self._room.acquire(timeout=TICK):
            pass

    def watch(self, future: AnyFuture) -> None:
        """Write the future's line when it ends."""
        self._alive.add(future)
        future.add_done_callback(self._ended.put)  # type: ignore[arg-type]  # it gets a TaskFuture, being one's callback
        if self.output_error is not None:  # looked at after `add`; the thread sets it before it aborts what is there
            future.abort()

    def _loop(self) -> None:
        open_ended = True
        while open_ended:
            batch = [self._ended.get()]
            while len(batch) < BATCH and not self._ended.empty():
                batch.append(self._ended.get())
            open_ended = batch[-1] is not None
            futures = [future for future in batch if future is not None]
            self._alive.difference_update(futures)
            self._tell([future.task_result() for future in futures])
            if futures:
                self._room.release(len(futures))
            del batch, futures  # or the last results would stay until the next

    def _tell(self, results: list[TaskResult[Any]]) -> None:
        """Write the lines of results, and count them."""
        lines = []
        for result in results:
            if not (self.interrupted and isinstance(result.error, CancelledError)):
                self.summary.add(result)
                lines.append(to_json(result) + "\n")
        if self._bar is not None:
            self._bar.update_to(self.summary.done, self._total, self.summary.failed)
        if self.output_error is not None:
            return
        try:
            with self._hide():
                write_all(self._output, "".join(lines))
        except OSError as error:
            self.output_error = error
            for future in list(self._alive):
                future.abort()


def write_all(descriptor: int, text: str) -> None:
    """Write text to a descriptor. Blocks until all is written."""
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


def to_json(result: TaskResult[Any]) -> str:
    """Return a result as JSON on one line; what JSON cannot carry as its repr, with a field that says so."""
    line = {
        "id": result.task.id,
        "success": result.success,
        "result": result.result,
        "error": None if result.error is None else describe_error(result.error),
        "attempts": len(result.attempts),
        "duration": round(result.duration, 6),
    }
    try:
        return json.dumps(line, allow_nan=False)
    except Exception:  # a type, value or depth that JSON does not have, or code of the user's in a subclass of dict
        return json.dumps({**line, "result": _repr(result.result), "repr": True})


def _repr(value: object) -> str:
    """Return an object's repr, or what can be said instead."""
    try:
        return repr(value)
    except Exception as error:  # the object's own code
        return f"<{type(value).__qualname__} object, whose repr raised {describe_error(error)}>"


def describe_error(error: BaseException) -> str:
    """Return an exception's type and message, as the last line of a traceback has them."""
    try:
        message = str(error)
    except Exception:  # the exception's own code
        message = "(its __str__ raised)"
    name = type(error).__qualname__
    return f"{name}: {message}" if message else name


def shorten(text: str) -> str:
    """Return text on one line that is short enough for a summary; what is cut is cut from its middle."""
    line = " ".join(text.split())
    half = WIDTH // 2
    return line if len(line) <= WIDTH else f"{line[: half - 1]}...{line[2 - half :]}"
