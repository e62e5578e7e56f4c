"""A worker process: what runs in the child.

    task pipe ──► batch ──► for each task: permit ──► journal: started ──► call ──► journal: frame ──► next
                             │ no permit: the parent took the rest back
                             ▼
                          DROPPED ──► result pipe

`reader.py` is what it reads, `writer.py` what it writes, `map_runner.py` runs the items of a `map`, `housekeeping.py` is what
it does beside that if it is told to. All of it imports
the standard library alone, and the few modules of ours that do the same, so that a worker starts fast.

Guarantees:
    A task begins only after its permit was acquired, and its frame is in the journal or in the pipe before the next
    begins. The worker leads a process group of its own, and when the parent is gone the kernel kills the group, also
    while a C call holds the interpreter.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from functools import partial

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._names import id_of
from parallel_exec._sync.clock import time
from parallel_exec.backends import _pickling
from parallel_exec.backends._descriptors import fill_standard, leave_open
from parallel_exec.backends._outcomes import encode_unreadable
from parallel_exec.backends._platform import (
    admit_sigint,
    become_main_thread,
    die_with_parent,
    lead_group,
    limit_memory,
    say_limit,
)
from parallel_exec.backends.process import segments, wire
from parallel_exec.backends.process.child import last_words
from parallel_exec.backends.process.child.map_runner import MapRunner
from parallel_exec.backends.process.child.reader import BatchReader, WorkerTask
from parallel_exec.backends.process.child.usage import LONG, UsageMeter
from parallel_exec.backends.process.child.when_imported import when_imported
from parallel_exec.backends.process.child.writer import ENCODER, Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

    from parallel_exec.backends.process.child.capture import Capture
    from parallel_exec.backends.process.child.housekeeping import MemoryWatch
    from parallel_exec.backends.process.child.start import Start, WorkerConfig, WorkerSettings


class _RunningTask:
    """The task that runs, or the chunk of which an item does: a `RunningCall`.

    Args:
        start: when it began, by `time.monotonic()`; None for a chunk: the journal knows it of each item.
        root_seed: the executor's seed.
    """

    __slots__ = ("_journal", "_start", "_task", "root_seed")

    def __init__(self, task: WorkerTask, journal: wire.Journal, start: float | None, root_seed: int) -> None:
        self._task = task
        self._journal = journal
        self._start = start
        self.root_seed = root_seed

    @property
    def id(self) -> str:
        """The id of the task, or of the item."""
        task = self._task
        if task.high:
            return id_of(task.name, task.first + task.low + self._journal.running().serial - task.serial)
        return id_of(task.name, task.first) if task.first else task.name

    @property
    def started_at(self) -> float:
        """When it began, by `time.monotonic()`."""
        return self._journal.running().since if self._start is None else self._start

    @property
    def timeout(self) -> float | None:
        """Seconds for it; None for no limit."""
        return self._task.timeout or None

    def unwanted(self, number: int) -> Callable[[], bool]:
        """Return what says False: an attempt that was aborted is killed."""
        return lambda: False


class Worker:
    """The child's state; its main thread's."""

    def __init__(self, config: WorkerConfig, *, is_copy: bool) -> None:
        if is_copy:
            _leave_shared()
        self._is_copy = is_copy
        self._tasks = BatchReader(config.tasks.fd)
        self._acquire: Callable[[bool], bool] = config.permits.acquire
        self._main = config.main
        self._channel = socket.socket(fileno=config.channel.fd)
        self._journal = wire.Journal(config.journal.fd)
        self._journal.sent()
        self.outbox = Outbox(config.results.fd, self._channel, self._journal)
        self._map_runner = MapRunner(self.outbox, self._acquire)
        self._settings = config.settings
        self._meter = UsageMeter()
        self._capture = None if config.captured is None else _capture(config)
        self._finalizer: Callable[[], object] | None = None
        self._memory = None if config.settings.max_memory is None else _watch_memory(config.settings.max_memory)
        self._dead_epoch = -1

    def serve(self) -> bool:
        """Run batches until the parent says that there will be no more, or is gone; returns whether it has said so."""
        try:
            while (batch := self._tasks.read()) is not None:
                self._meter.begin()
                self._run_batch(*batch)
                self.outbox.flush()
                self._meter.rest()
        except EOFError:
            return False
        return True

    def _run_batch(self, tasks: Iterator[WorkerTask], epoch: int) -> None:
        for task in tasks:
            received = segments.receive(self._channel, task.ancillary) if task.ancillary else None
            try:
                if epoch == self._dead_epoch:
                    continue
                run = self._run_chunk if task.high else self._run
                if not (self._acquire(False) and run(task, received)):
                    self._drop_rest(epoch)
                elif self._memory is not None and (resident := self._memory.exceeded(time.monotonic())):
                    self._leave_rest(epoch, resident)
            finally:
                if received is not None:
                    received.close()

    def _drop_rest(self, epoch: int) -> None:
        """Say that the rest of what was sent so far will not be run: the parent took it back."""
        self._dead_epoch = epoch
        self.outbox.flush()
        self.outbox.send(wire.encode(wire.DROPPED))

    def _leave_rest(self, epoch: int, resident: int) -> None:
        """Say that this process has too much memory, and begin nothing more: the parent takes the rest back, and lets it end."""
        self._dead_epoch = epoch
        self.outbox.flush()
        self.outbox.send(wire.encode(wire.OUTGROWN, payload=b"%d" % resident))

    def _run_chunk(self, task: WorkerTask, received: segments.Received | None) -> bool:
        """Run the items of a chunk, for the first of which there is a permit; False if there was none for another."""
        self._journal.loading(task.serial, time.monotonic())
        try:
            fn, ((columns,), _) = self.load(task.payload, received, task.names_main)
            if type(columns) is _pickling.PickledItems:
                columns = columns.columns(task.low, task.high)
        except BaseException as error:
            return self._map_runner.refuse(task, *encode_unreadable(error))
        if task.soft_timeout:
            fn = self._softened(fn, task.soft_timeout)
        current.begin(_RunningTask(task, self._journal, None, self._settings.seed), task.attempt)
        self.mark(wire.UNHEARD)
        is_done = self._map_runner.run(task, fn, columns)
        current.end()
        self.mark(wire.HEARD)
        return is_done

    def _run(self, task: WorkerTask, received: segments.Received | None) -> bool:
        """Run a plain task, for which there is a permit; returns True."""
        used = b""
        start = loading = time.monotonic()
        self._journal.loading(task.serial, start)
        try:
            fn, (args, kwargs) = self.load(task.payload, received, task.names_main)
        except BaseException as error:
            kind, pickled = encode_unreadable(error)
        else:
            if task.soft_timeout:
                fn = self._softened(fn, task.soft_timeout)
            start = time.monotonic()
            self._journal.started(task.serial, start)
            if start - loading >= LONG:
                self._meter.restart(start)
            granted = partial(pickle.loads, task.granted) if task.granted else None
            current.begin(_RunningTask(task, self._journal, start, self._settings.seed), task.attempt, granted)
            kind, pickled = ENCODER.run(fn, args, kwargs)
            current.end()
            del fn, args, kwargs
        end = time.monotonic()
        if end - start >= LONG:
            used = wire.encode(wire.USED, task.serial, *self._meter.read(start, end))
        if self._capture is not None:
            self._capture.mark(task.serial)
        self.outbox.report(kind, task.serial, start, end, pickled, used)
        return True

    def _softened(self, fn: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        from parallel_exec.backends.process.child.soft_timeout import softened  # few need it

        return softened(fn, seconds, is_copy=self._is_copy)

    def mark(self, serial: int) -> None:
        """Have what was printed so far be that of a call which has ended, before that is reported: `output.py`."""
        if self._capture is not None:
            self._capture.mark(serial)

    def initialize(self, config: WorkerConfig, *, is_copy: bool) -> None:
        """Call the initializer, if there is one, and keep the finalizer."""
        received = segments.Received([descriptor.fd for descriptor in config.others], False)
        loaded = self.load(config.initializer, received, b"main__" in config.initializer)
        if not is_copy:  # else what owns them came along
            received.close()
        inherited = pickle.loads(config.initargs) if type(config.initargs) is bytes else config.initargs
        initializer, initargs, self._finalizer = loaded
        if initializer is not None:
            initializer(*(initargs if inherited is None else inherited))

    def finalize(self) -> None:
        """Call the finalizer, if there is one. The parent waits for its end only for a moment."""
        if self._finalizer is not None:
            _forks.finalize(self._finalizer, f"worker {self._settings.name}")

    def leave(self) -> None:
        """Be about to end: from now on only log records are sent, which do not need the channel."""
        leave_open(self._channel)

    def load(self, payload: segments.Data | None, received: segments.Received | None, names_main: bool) -> Any:
        """Unpickle a call; one that may name something of the main module finds that imported."""
        if payload is None:
            raise MemoryError(say_limit("the call takes"))
        pickled, buffers = (payload, []) if received is None else _pickling.unwrap(payload, received)
        if names_main and self._main:
            self._import_main()
        return pickle.loads(pickled) if received is None else _pickling.unpickle(pickled, buffers, received)

    def _import_main(self) -> None:
        """Import the parent's main module, as `multiprocessing` would have done at the start.

        Only a task that names it pays for that; and a script without a guard, which would start the whole program again
        in here, serves for all other tasks.
        """
        from multiprocessing import process, spawn

        main, self._main = self._main, {}
        this: Any = process.current_process()
        this._inheriting = True  # as multiprocessing says: no processes may be started from here on
        try:
            spawn.prepare(main)
        except BaseException:
            self._main = main
            raise
        finally:
            del this._inheriting


def _take_over(config: WorkerConfig) -> None:
    """Take over what a process that the parent forks would inherit: a fork server may have forked this one."""
    for number, descriptor in enumerate(config.output, 1):
        os.dup2(descriptor.fd, number)
        descriptor.close()
    zone = os.environ.get("TZ")
    if config.inherited is not None:
        config.inherited.apply()
    os.environ.update(config.settings.environment)
    if os.environ.get("TZ") != zone:
        time.tzset()  # which reads it once otherwise


def _leave_shared() -> None:
    contents: Any = sys.modules.get("parallel_exec.backends._contents")
    if contents is not None:
        contents.leave_to_parent()


def _capture(config: WorkerConfig) -> Capture:
    from parallel_exec.backends.process.child.capture import Capture  # which needs `ctypes`

    return Capture(config.captured.fd, config.marker)


def _watch_memory(most: int) -> MemoryWatch:
    from parallel_exec.backends.process.child.housekeeping import MemoryWatch  # few workers do so

    return MemoryWatch(most)


def _prepare(settings: WorkerSettings) -> None:
    """Import what the user wants, and set right what is loaded by now."""
    if settings.preload or "numpy" in sys.modules:
        from parallel_exec.backends.process.child import housekeeping  # few workers need it

        housekeeping.preload(settings.preload)
        housekeeping.settle_loaded(settings.threads)


def _send_records(send: Callable[[bytes], None], levels: dict[str, int]) -> None:
    from parallel_exec.backends.process.log_relay import send_records  # which needs `logging`

    send_records(send, levels)


def main(start: Start) -> None:
    """Be a worker process: the target of each."""
    config = start.config
    try:
        lead_group()
        admit_sigint()
    except KeyboardInterrupt:  # Ctrl-C at a terminal, for the group that this process was forked in
        os._exit(1)
    become_main_thread()
    _take_over(config)
    fill_standard()  # the fork server may be somebody else's, with one of these closed
    die_with_parent(config.lifeline.fd)
    # This is a background group now. A task that uses the terminal gets an error where there must be one, and is not
    # stopped for good.
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(config, is_copy=start.is_copy)
    last_words.write_to(config.journal.fd, wire.JOURNAL_SIZE)
    current.serve((config.settings.number, config.settings.name, {}))
    when_imported("logging", lambda _: _send_records(worker.outbox.send, config.log_levels))
    born = _forks.generation
    try:
        if config.memory_limit is not None:
            limit_memory(config.memory_limit)
        _prepare(config.settings)
        if config.initializer:
            worker.initialize(config, is_copy=start.is_copy)
    except BaseException as error:
        _forks.end_child(born, error)
        import traceback

        worker.mark(wire.HEARD)
        worker.outbox.send(wire.encode(wire.START_FAILED, payload=traceback.format_exc().encode()))
        worker.leave()
        sys.exit(1)
    _forks.end_child(born)
    worker.mark(wire.HEARD)
    worker.outbox.send(wire.encode(wire.READY))
    if worker.serve():
        worker.mark(wire.UNHEARD)
        worker.finalize()
    worker.leave()
