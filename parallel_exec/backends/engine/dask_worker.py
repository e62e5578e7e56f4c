"""Attempts on a dask worker: what runs in the worker, and in the child processes that it keeps for them.

    dask's scheduler ──► run_on_worker, in a thread of the worker ──► a child: an idle one, or a new one
                            │ "it runs long" ──► event ──► client       │ job ──► call ──► result, one after the other
                            ▼                                           ▼
                        CallResults ◄─── timeout: killed ◄───────── or dies on the way
    client ──► greet, withdraw_on_worker, kill_on_worker, dismiss

A dask worker under a nanny is a daemonic process, to which `multiprocessing` forbids children: so they are started with
`subprocess`, which also leaves nothing of the worker in them, no threads, no locks.

Guarantees:
    An attempt has a process to itself while it runs, which is killed with its process group at its timeout, by `abort()`,
    and by the kernel once the worker is gone. No other attempt notices.
    Of a group one runs at a time. One begins only when the one before has ended, as quick calls do; after one that ran
    long, was killed, died or returned much, the rest does not begin here, and the client is told so.
    What was withdrawn never begins, on no worker, though dask should lose one and run the group again on another: the
    client withdraws on all workers that there are, and a worker takes no group that was sent before it was greeted.
    What the call returns is pickled there and unpickled by the client: the worker never sees it.
    A child that died before an attempt began in it has cost nothing: another one takes the job.
    A child that has been idle for `IDLE_LIMIT` seconds ends by itself, should nobody dismiss it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends import _reducers
from parallel_exec.backends._descriptors import fill_standard, pipe
from parallel_exec.backends._outcomes import KINDS, Encoder, encode_unreadable
from parallel_exec.backends._pickling import Pickled
from parallel_exec.backends._platform import die_with_parent, kill_group
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, EngineCall, failed, worker_name
from parallel_exec.errors import TaskTimeoutError, WorkerStartError

if TYPE_CHECKING:
    from parallel_exec.backends.engine.dask_shared import SharedBlob

IDLE_LIMIT = 30.0  # seconds; a guess: a backoff is over by then, and a process costs some 15 MB
STARTS = 3  # children that may die before they take a job; a guess
LONG = 0.005  # seconds that a call runs until the client is told that it has begun; about what telling it takes
MOST_BYTES = 1 << 20  # of results, from which on they wait for no others
CRASHED = len(KINDS)  # a `CallResult`'s kind, beside those of outcomes; its payload is pid and exit code

_BOOT = "import sys; sys.path[:] = sys.argv[4:]; from parallel_exec.backends.engine.dask_worker import serve; serve()"


class RemoteJob(NamedTuple):
    """An attempt on its way to a worker.

    Attributes:
        serial: names the attempt.
        info: what the call is told.
        payload: the pickled call.
        shared: the numbers of the contents that it refers to.
        addresses: where they are on the worker's machine, by number; filled in there.
    """

    serial: int
    info: AttemptInfo
    payload: bytes
    shared: tuple[int, ...] = ()
    addresses: tuple[tuple[int, str], ...] = ()


# ── in the worker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run_on_worker(topic: str, pickled_jobs: bytes, *blobs: SharedBlob) -> list[CallResult | None] | str:
    """Run a group of attempts in a child process, one after the other; the task that dask sees. Blocks until it is over.

    Args:
        topic: names the executor; its workers' events go there.
        pickled_jobs: a list of `RemoteJob`s, in the order of their serial numbers.
        *blobs: the contents that they refer to.

    Returns:
        How each ended, None for one that did not begin; or this worker's address, as none began: it must be greeted.
    """
    pool = _pools.setdefault(topic, _ChildPool(topic))
    jobs: list[RemoteJob] = pickle.loads(pickled_jobs)
    if len(jobs) > 1 and not pool.may_take(jobs[0].serial):
        return _address()
    if blobs:
        here = tuple((blob.number, blob.memory.address()) for blob in blobs)
        jobs = [job._replace(addresses=here) if job.shared else job for job in jobs]
    return pool.run(jobs)


def greet(topic: str, serial: int) -> None:
    """Let this worker take groups that begin with attempt `serial` or a later one."""
    _pools.setdefault(topic, _ChildPool(topic)).greet(serial)


def withdraw_on_worker(topic: str, serials: list[int], floor: int) -> dict[int, CallResult | None]:
    """Have none of these attempts begin here any more.

    Args:
        topic: names the executor.
        serials: name the attempts.
        floor: an attempt of which dask still knows; of those before it nothing needs to be remembered.

    Returns:
        Those of a group that runs here: with how they ended, or None if they did not begin.
    """
    pool = _pools.get(topic)
    return pool.withdraw(serials, floor) if pool is not None else {}


def kill_on_worker(topic: str, serials: list[int], floor: int) -> None:
    """Kill the processes that run these attempts, if they are here, and have none of them begin here any more.

    The arguments are those of `withdraw_on_worker`.
    """
    pool = _pools.get(topic)
    if pool is not None:
        pool.withdraw(serials, floor)
        for serial in serials:
            pool.kill(serial)


def dismiss(topic: str) -> None:
    """Let go of all children of an executor that has ended, and take no attempt of its any more."""
    _dismissed.append(topic)  # first: an attempt that has not seen this has put its pool where it is found now
    pool = _pools.pop(topic, None)
    if pool is not None:
        pool.dismiss()


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


class _NeverBeganError(Exception):
    """The child died before the attempt began in it."""


class _ChildPool:
    """The children of one executor in this worker. Thread-safe: its containers are changed by single atomic calls."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._running: dict[int, _ChildProcess] = {}  # those with an attempt, by its serial number
        self._idle: list[_ChildProcess] = []
        self._dismissed = False
        self._first: int | None = None  # takes no group that begins with an earlier attempt; written by `greet`
        self._lock = threading.Lock()  # guards the three below
        self._waiting: set[int] = set()  # attempts that are here and have not begun
        self._ended: dict[int, CallResult] = {}  # attempts whose group still runs here
        self._withdrawn: set[int] = set()  # attempts that must not begin here

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def greet(self, serial: int) -> None:
        """Take groups that begin with this attempt or a later one; those of an earlier greeting count."""
        if self._first is None:
            self._first = serial

    def may_take(self, serial: int) -> bool:
        """Return whether a group that begins with this attempt may run here."""
        return self._first is not None and serial >= self._first

    def withdraw(self, serials: list[int], floor: int) -> dict[int, CallResult | None]:
        """Do as `withdraw_on_worker`."""
        with self._lock:
            self._withdrawn = {serial for serial in self._withdrawn if serial >= floor}
            self._withdrawn.update(serials)
            here = self._waiting.union(self._ended)
            return {serial: self._ended.get(serial) for serial in serials if serial in here}

    def run(self, jobs: list[RemoteJob]) -> list[CallResult | None]:
        """Run attempts one after the other, and return how each ended; None for one that did not begin."""
        serials = [job.serial for job in jobs]
        with self._lock:
            self._waiting.update(serials)
        try:
            self._run_in_order(jobs)
            return [self._ended.get(serial) for serial in serials]
        finally:
            with self._lock:
                self._waiting.difference_update(serials)
                for serial in serials:
                    self._ended.pop(serial, None)

    def _run_in_order(self, jobs: list[RemoteJob]) -> None:
        size = 0
        for job in jobs:
            if not self._may_begin(job.serial) and len(jobs) > 1:  # what comes alone was withdrawn from a group before
                continue
            result = self._run_one(job, jobs[0].serial)
            with self._lock:
                self._ended[job.serial] = result
            if result.kind == CRASHED or result.duration >= _quick(job.info):
                return
            size += len(result.payload)
            if size >= MOST_BYTES:
                return

    def _may_begin(self, serial: int) -> bool:
        """Decide that an attempt begins; False if it was withdrawn."""
        with self._lock:
            self._waiting.discard(serial)
            return serial not in self._withdrawn

    def _run_one(self, job: RemoteJob, group: int) -> CallResult:
        """Run an attempt in a child that takes it."""
        for _ in range(STARTS):
            if self._topic in _dismissed:  # dask began what nobody waits for, and nobody would end it
                self.dismiss()
                _pools.pop(self._topic, None)
                return failed(CancelledError("its executor has ended"), 0.0)
            with contextlib.suppress(_NeverBeganError):
                return self._run_in_child(job, group)
        error = WorkerStartError(
            f"{STARTS} processes died on a dask worker before they took an attempt; its log says why"
        )
        return failed(error, 0.0)

    # ── children ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run_in_child(self, job: RemoteJob, group: int) -> CallResult:
        """Run an attempt in one of them.

        Raises:
            _NeverBeganError: the child died first; another one may do better.
        """
        child = self._take()
        self._running[job.serial] = child
        if self._dismissed:  # maybe before it was listed
            child.kill()
        try:
            return child.run(job, lambda pid: _tell_began(self._topic, group, job.serial, pid))
        except BaseException:
            child.kill()
            raise
        finally:
            self._running.pop(job.serial, None)
            self._give_back(child)

    def _take(self) -> _ChildProcess:
        """Return an idle child, or a new one."""
        while True:
            try:
                child = self._idle.pop()
            except IndexError:
                return _ChildProcess()
            if not child.has_ended():
                return child
            child.close()

    def _give_back(self, child: _ChildProcess) -> None:
        """Keep a child for the next attempt, unless it cannot take one."""
        if child.is_lost:
            child.close()
            return
        self._idle.append(child)
        if self._dismissed:  # maybe before it was listed
            self.dismiss()

    def kill(self, serial: int) -> None:
        """Kill the child that runs an attempt, if there is one."""
        child = self._running.get(serial)
        if child is not None:
            child.kill()

    def dismiss(self) -> None:
        """Kill what runs, and let go of the rest."""
        self._dismissed = True
        for child in list(self._running.values()):
            child.kill()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()


class _ChildProcess:
    """A child process, seen from the worker. It has one job at a time, from one thread; any thread may kill it.

    Attributes:
        is_lost: whether it was killed or has died, so that it can take no other job.
    """

    def __init__(self) -> None:
        from multiprocessing.connection import Connection

        fill_standard()
        jobs, our_jobs = pipe()
        our_results, results = pipe()
        lifeline, self._lifeline = pipe()  # the system closes our end with this process, however that ends
        theirs = (jobs, results, lifeline)
        self._jobs = Connection(our_jobs, readable=False)
        self._results = Connection(our_results, writable=False)
        self._lock = threading.Lock()  # held to kill it: until it was reaped, its number is no other process's
        self.is_lost = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *map(str, theirs), *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def run(self, job: RemoteJob, tell_began: Callable[[int], object]) -> CallResult:
        """Run an attempt and return how it ended; `tell_began(pid)` is called if it runs long.

        Raises:
            _NeverBeganError: it did not begin.
        """
        info = job.info
        try:
            self._jobs.send_bytes(pickle.dumps((info, job.payload, job.addresses)))
            self._results.recv_bytes()
        except (EOFError, OSError):
            self.is_lost = True
            raise _NeverBeganError from None
        start = time.monotonic()
        try:
            ended = self._results.poll(_quick(info))
            if not ended:
                tell_began(self._process.pid)
                left = None if info.timeout is None else max(0.0, start + info.timeout - time.monotonic())
                ended = self._results.poll(left)
            if ended or info.timeout is None:
                return CallResult(*pickle.loads(self._results.recv_bytes()))
        except (EOFError, OSError):
            self.is_lost = True
            how = (self._process.pid, self._process.wait())
            return CallResult(CRASHED, how, time.monotonic() - start, worker_name())
        self.kill()
        error = TaskTimeoutError(info.id, info.timeout, info.number)
        return failed(error, time.monotonic() - start)

    def has_ended(self) -> bool:
        """Return whether it has ended by itself."""
        with self._lock:
            return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it and what it has started."""
        with self._lock:
            self.is_lost = True
            if self._process.returncode is None:
                kill_group(self._process.pid)

    def close(self) -> None:
        """Kill it, and wait until it is gone."""
        self.kill()
        with self._lock:
            self._process.wait()
        self._jobs.close()
        self._results.close()
        os.close(self._lifeline)


def _quick(info: AttemptInfo) -> float:
    """Return for how many seconds an attempt is quick."""
    return LONG if info.timeout is None else min(LONG, info.timeout)


def _tell_began(topic: str, group: int, serial: int, pid: int) -> None:
    from distributed import get_worker

    with contextlib.suppress(Exception):  # the connection is going: then dask, too, will know
        worker = get_worker()
        name = f"process {pid} on {worker.address}"
        worker.log_event(topic, {"serial": serial, "group": group, "name": name, "address": worker.address})


_pools: dict[str, _ChildPool] = {}  # by topic; module state, as dask calls functions of modules
_dismissed: deque[str] = deque(maxlen=1000)  # topics; dask has long forgotten what an older one had


# ── in the child ──────────────────────────────────────────────────────────────────────────────────────────────────────


def serve() -> None:
    """Be a child process: run one job after the other, until there are none for a while."""
    from multiprocessing.connection import Connection

    jobs_fd, results_fd, lifeline_fd = map(int, sys.argv[1:4])
    del sys.argv[1:]
    die_with_parent(lifeline_fd)
    jobs, results = Connection(jobs_fd, writable=False), Connection(results_fd, readable=False)
    with contextlib.suppress(EOFError, OSError):  # the worker has closed its ends
        while jobs.poll(IDLE_LIMIT):
            info, payload, addresses = pickle.loads(jobs.recv_bytes())
            if addresses:
                from parallel_exec.backends._contents import find_at  # few calls need it

                find_at(addresses)
            results.send_bytes(b"began")
            results.send_bytes(pickle.dumps(tuple(_run(info, payload))))


def _run(info: AttemptInfo, payload: bytes) -> CallResult:
    start = time.monotonic()
    current.serve(current.borrowed(info.place, worker_name()))
    current.begin(EngineCall(info, start), info.number, info.unpack_granted())
    try:
        fn, args, kwargs = pickle.loads(payload)
    except BaseException as error:
        kind, pickled = encode_unreadable(error)
    else:
        kind, pickled = _ENCODER.run(info.softened(fn), args, kwargs)
    current.end()
    return CallResult(kind, pickled.data, time.monotonic() - start, worker_name())


def dumps(value: Any) -> bytes:
    """Pickle, by value what only this process's main module has.

    Raises:
        Exception: it cannot be pickled.
    """
    with contextlib.suppress(Exception):
        data = _reducers.dumps(value)
        if b"__main__" not in data:
            return data
    import cloudpickle  # dask needs it, too

    return _reducers.dumps(value, kind=cloudpickle.Pickler)


_ENCODER = Encoder(lambda value: Pickled(dumps(value), None), carries=False)
