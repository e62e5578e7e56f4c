"""Calls that travel to a process of somebody else's engine together: one after the other, as one call of the engine's.

    CallGroup ── pickled by the engine ──► run_group ── a CallResult for each, or None: it did not begin ──► back
                                             └── a watching thread: "this one runs long, the rest does not begin"

Guarantees:
    What is behind a call that runs long does not begin here, and the results before it do not wait for it: the watching
    thread stops the group and says so, under the lock that each call's beginning takes.
    Each result is pickled apart, so that one which cannot be pickled fails alone.
    Each result is in the group's journal before the next call begins (`group_journal.py`): what has ended is not lost with
    the worker.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from typing import Any, Callable

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends import _pickling
from parallel_exec.backends._outcomes import Encoder
from parallel_exec.backends.engine.group_journal import MOST_BYTES, JournalAddress, JournalWriter
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, EngineCall, worker_name
from parallel_exec.backends.engine.start_signal import StartNotifier

LONG = 0.005  # seconds that a call runs until we are told that it has begun; a guess: a thread may wait as long for the GIL

GroupedCall = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], AttemptInfo]

_ENCODER = Encoder(lambda value: _pickling.dumps(value, inside=True), carries=False)


def run_group(calls: list[GroupedCall], address: JournalAddress | None = None) -> list[CallResult | None]:
    """Run calls one after the other in a worker of the engine; None stands for each that did not begin."""
    return _GroupRun(calls, address).run()


class _GroupRun:
    """One run of a group: the worker's thread and the watching one share it."""

    def __init__(self, calls: list[GroupedCall], address: JournalAddress | None) -> None:
        self._calls = calls
        self._address = address
        self._worker = worker_name()
        self._journal: JournalWriter | None = None  # the worker's thread's own
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._results: list[CallResult] = []
        self._started_at = 0.0  # of the call after these; 0.0 while none runs
        self._bytes = 0
        self._stopped = False
        self._notifier: StartNotifier | None = None  # written by the watching thread

    def run(self) -> list[CallResult | None]:
        watching = threading.Thread(target=self._watch, name="parallel_exec-group-watcher", daemon=True)
        try:
            watching.start()
        except (RuntimeError, MemoryError):  # no more threads to be had: each goes alone then
            return [None] * len(self._calls)
        try:
            if self._address is not None:
                with contextlib.suppress(OSError):  # another machine: without
                    self._journal = JournalWriter(self._address, self._worker)
            for fn, args, kwargs, info in self._calls:
                if (self._journal is not None and not self._journal.may_begin()) or not self._may_begin():
                    break
                self._run_one(fn, args, kwargs, info)
        finally:
            self._over.set()
            watching.join()
            if self._journal is not None:
                self._journal.close()
            if self._notifier is not None:
                self._notifier.close()
        return [*self._results, *[None] * (len(self._calls) - len(self._results))]

    def _may_begin(self) -> bool:
        with self._lock:
            if self._stopped or self._bytes > MOST_BYTES:
                return False
            self._started_at = time.monotonic()
            return True

    def _run_one(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: AttemptInfo
    ) -> None:
        start = self._started_at
        outer = current.saved()
        current.serve(current.borrowed(info.place, self._worker))
        current.begin(EngineCall(info, start, self._is_unwanted), info.number)
        try:
            kind, pickled = _ENCODER.run(info.softened(fn), args, kwargs)
        finally:
            current.restore(outer)
        result = CallResult(kind, pickled.data, time.monotonic() - start, self._worker)
        if self._journal is not None:
            self._journal.record(result)
        with self._lock:
            self._results.append(result)
            self._bytes += len(pickled.data)
            self._started_at = 0.0

    def _is_unwanted(self) -> bool:
        return self._notifier is not None and self._notifier.is_unwanted()

    def _watch(self) -> None:
        while not self._over.wait(LONG):
            with self._lock:
                start, results = self._started_at, list(self._results)
                ran = time.monotonic() - start
                if not start or ran < LONG or self._bytes > MOST_BYTES:
                    continue
                self._stopped = True
            info = self._calls[len(results)][3]
            report = pickle.dumps((ran, results))
            self._notifier = StartNotifier(info.port, info.key, self._worker, report)
            return
