"""A worker process: what runs in the child.

    task pipe ──► batch ──► for each task: permit ──► journal: started ──► call ──► journal: frame ──► next
                             │ no permit: the parent took the rest back
                             ▼
                          DROPPED ──► result pipe

`reader.py` is what it reads, `writer.py` what it writes, `map_runner.py` runs the items of a `map`. It
imports the standard library and the few modules beside it, so that it starts fast.

Guarantees:
    A task begins only after its permit was acquired, and its frame is in the journal or in the pipe before the next
    begins. The worker leads a process group of its own, and when the parent is gone the kernel kills the group, also
    while a C call holds the interpreter.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import traceback
from typing import Any, Callable, Iterator, NamedTuple

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends import _pickling
from parallel_exec.backends._descriptors import fill_standard
from parallel_exec.backends._outcomes import encode_unreadable
from parallel_exec.backends._platform import be_main_thread, die_with_parent, hear, lead_group, limit_memory, say_limit
from parallel_exec.backends.process import segments, wire
from parallel_exec.backends.process.child.map_runner import ItemRunner, Unreadable
from parallel_exec.backends.process.child.reader import WorkerTask, read_batch
from parallel_exec.backends.process.child.writer import ENCODER, Outbox
from parallel_exec.backends.process.inherited import Inherited  # noqa: TC001  # here, so that the fork server has it
from parallel_exec.backends.process.log_relay import send_records

_NAMES_MAIN = re.compile(rb"main__").search


class WorkerConfig(NamedTuple):
    """What a worker is started with.

    Attributes:
        tasks, results, lifeline, journal: `Descriptor`s.
        channel: the `Descriptor` of a Unix socket for descriptors.
        permits: a `multiprocessing` semaphore.
        initializer: pickled `(initializer, initargs)`, or the first alone if the second is here; b"" for none.
        initargs: what could not be pickled beforehand, or None.
        main: what `multiprocessing` needs to import the parent's main module, when a task asks for it.
        memory_limit: bytes, or None.
        log_levels: the parent's loggers' levels, by name.
        others: the `Descriptor`s that go with the initializer.
        is_copy: whether it was forked, with the parent's objects.
        inherited: what the parent has at the moment of the start, as the next.
        output: `Descriptor`s of its standard output and error, if they may be others here.
    """

    tasks: Any
    results: Any
    lifeline: Any
    journal: Any
    channel: Any
    permits: Any
    initializer: bytes
    initargs: tuple[Any, ...] | None
    main: dict[str, Any]
    memory_limit: int | None
    log_levels: dict[str, int]
    others: tuple[Any, ...] = ()
    is_copy: bool = True
    inherited: Inherited | None = None
    output: tuple[Any, ...] = ()

    def __reduce__(self) -> Any:
        permits = self.permits
        return _arrive, (type(permits), permits.__getstate__(), *self._replace(permits=None))


def _arrive(kind: Any, state: Any, *fields: Any) -> WorkerConfig:
    """Be in the new process. From here on Ctrl-C at a terminal passes by, and `multiprocessing` need not print it."""
    lead_group()
    permits: Any = kind.__new__(kind)
    try:
        permits.__setstate__(state)
    except FileNotFoundError:  # the parent is ending, and has let go of it
        os._exit(1)
    return WorkerConfig(*fields)._replace(permits=permits, is_copy=False)


class Worker:
    """The child's state; its main thread's."""

    def __init__(self, setup: WorkerConfig) -> None:
        self._tasks = setup.tasks.fd
        self._acquire: Callable[[bool], bool] = setup.permits.acquire
        self._main = setup.main
        self._channel = socket.socket(fileno=setup.channel.fd)
        self._journal = wire.Journal(setup.journal.fd)
        self._journal.sent()
        self.outbox = Outbox(setup.results.fd, self._channel, self._journal)
        self._items = ItemRunner(self.outbox, self._acquire)
        self._dead_epoch = -1
        os.close(setup.journal.fd)

    def serve(self) -> None:
        """Run batches until the parent says that there will be no more, or is gone."""
        try:
            while (batch := read_batch(self._tasks)) is not None:
                self._run_batch(*batch)
                self.outbox.flush()
        except EOFError:
            return

    def _run_batch(self, tasks: Iterator[WorkerTask], epoch: int) -> None:
        for task in tasks:
            received = segments.receive(self._channel, task.segments) if task.segments else None
            try:
                if epoch == self._dead_epoch:
                    continue
                if not self._acquire(False):
                    self._drop(epoch)
                elif not task.high:
                    self._run(task, received)
                elif not self._run_part(task, received):
                    self._drop(epoch)
            finally:
                if received is not None:
                    received.close()

    def _drop(self, epoch: int) -> None:
        """Say that the rest of what was sent so far will not be run: the parent took it back."""
        self._dead_epoch = epoch
        self.outbox.flush()
        self.outbox.send(wire.encode(wire.DROPPED))

    def _run_part(self, task: WorkerTask, received: segments.Received | None) -> bool:
        """Run the items of a part, for the first of which there is a permit; False if there was none for another."""
        self._journal.started(task.serial, -time.monotonic())  # negative: it is being loaded
        try:
            fn, ((columns,), _) = self.load(task.payload, received)
        except BaseException as error:
            fn, columns = Unreadable(error), []
        return self._items.run(task, fn, columns)

    def _run(self, task: WorkerTask, received: segments.Received | None) -> None:
        start = time.monotonic()
        self._journal.started(task.serial, -start)
        try:
            fn, (args, kwargs) = self.load(task.payload, received)
        except BaseException as error:
            kind, pickled = encode_unreadable(error)
        else:
            start = time.monotonic()
            self._journal.started(task.serial, start)
            current.running, current.number = task._replace(start=start, fn=fn), task.attempt
            kind, pickled = ENCODER.run(fn, args, kwargs)
            del fn, args, kwargs
        current.running = None
        self.outbox.hand_in(kind, task.serial, start, time.monotonic(), pickled)

    def initialize(self, setup: WorkerConfig) -> None:
        """Call the initializer."""
        received = segments.Received([descriptor.fd for descriptor in setup.others], False)
        loaded = self.load(setup.initializer, received)
        if not setup.is_copy:  # else what owns them came along
            received.close()
        initializer, initargs = loaded if setup.initargs is None else (loaded, setup.initargs)
        initializer(*initargs)

    def load(self, payload: segments.Data | None, received: segments.Received | None) -> Any:
        """Unpickle a call."""
        if payload is None:
            raise MemoryError(say_limit("the call takes"))
        pickled, buffers = _pickling.unwrap(payload, received)
        if self._main and _NAMES_MAIN(pickled):
            self._import_main()
        return _pickling.unpickle(pickled, buffers, received)

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


def _take_over(setup: WorkerConfig) -> None:
    """Have what a child of the parent's would have, whoever has forked this one."""
    for number, descriptor in enumerate(setup.output, 1):
        os.dup2(descriptor.fd, number)
        descriptor.close()
    if setup.inherited is not None:
        setup.inherited.apply()


def main(setup: WorkerConfig) -> None:
    """Be a worker process: the target of each."""
    try:
        lead_group()
        hear()
    except KeyboardInterrupt:  # Ctrl-C at a terminal, for the group that this process was forked in
        os._exit(1)
    be_main_thread()
    _take_over(setup)
    fill_standard()  # the fork server may be somebody else's, with one of these closed
    die_with_parent(setup.lifeline.fd)
    for number in (
        signal.SIGTTIN,
        signal.SIGTTOU,
    ):  # this is a background group now: a task that uses the terminal gets
        signal.signal(number, signal.SIG_IGN)  # an error where there must be one, and is not stopped for good
    worker = Worker(setup)
    send_records(worker.outbox.send, setup.log_levels)
    born = _forks.generation
    try:
        if setup.memory_limit is not None:
            limit_memory(setup.memory_limit)
        if setup.initializer:
            worker.initialize(setup)
    except BaseException as error:
        _forks.end_child(born, error)
        worker.outbox.send(wire.encode(wire.START_FAILED, payload=traceback.format_exc().encode()))
        sys.exit(1)
    _forks.end_child(born)
    worker.outbox.send(wire.encode(wire.READY))
    worker.serve()
