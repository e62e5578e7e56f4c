"""An attempt on a dask worker: what runs in the worker, and in the child process that it keeps for attempts.

    dask's scheduler ──► run_on_worker, in a thread of the worker ──► a child: an idle one, or a new one
                            │ "it began" ──► event ──► client           │ jobs ──► call ──► results
                            ▼                                           ▼
                        CallResult ◄─── timeout: killed ◄───────── or dies on the way
    client ──► kill_on_worker, dismiss

A dask worker under a nanny is a daemonic process, to which `multiprocessing` forbids children: so they are started with
`subprocess`, which also leaves nothing of the worker in them, no threads, no locks.

Guarantees:
    An attempt has a process to itself, which is killed with its process group at its timeout, by `abort()`, and by the
    kernel once the worker is gone. No other attempt notices.
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
from typing import Any, NamedTuple

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends import _reducers
from parallel_exec.backends._descriptors import fill_standard, pipe
from parallel_exec.backends._outcomes import KINDS, Encoder, encode_unreadable
from parallel_exec.backends._pickling import Pickled
from parallel_exec.backends._platform import die_with_parent, kill_group
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, EngineCall, failed, worker_name
from parallel_exec.errors import TaskTimeoutError, WorkerStartError

IDLE_LIMIT = 30.0  # seconds; a guess: a backoff is over by then, and a process costs some 15 MB
STARTS = 3  # children that may die before they take a job; a guess
CRASHED = len(KINDS)  # a `CallResult`'s kind, beside those of outcomes; its payload is pid and exit code

_BOOT = "import sys; sys.path[:] = sys.argv[4:]; from parallel_exec.backends.engine.dask_worker import serve; serve()"


class RemoteJob(NamedTuple):
    """An attempt on its way to a worker.

    Attributes:
        topic: names the executor; its workers' events go there.
        serial: names the attempt.
        info: what the call is told.
        payload: the pickled call.
    """

    topic: str
    serial: int
    info: AttemptInfo
    payload: bytes


# ── in the worker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run_on_worker(job: RemoteJob) -> CallResult:
    """Run an attempt in a child process; the task that dask sees. Blocks until it has ended."""
    pool = _pools.setdefault(job.topic, _ChildPool())
    for _ in range(STARTS):
        if job.topic in _dismissed:  # dask began what nobody waits for, and nobody would end it
            pool.dismiss()
            _pools.pop(job.topic, None)
            return failed(CancelledError("its executor has ended"), 0.0)
        with contextlib.suppress(_NeverBeganError):
            return pool.run(job)
    error = WorkerStartError(f"{STARTS} processes died on a dask worker before they took an attempt; its log says why")
    return failed(error, 0.0)


def kill_on_worker(topic: str, serial: int) -> None:
    """Kill the process that runs an attempt, if it is here."""
    pool = _pools.get(topic)
    if pool is not None:
        pool.kill(serial)


def dismiss(topic: str) -> None:
    """Let go of all children of an executor that has ended, and take no attempt of its any more."""
    _dismissed.append(topic)  # first: an attempt that has not seen this has put its pool where it is found now
    pool = _pools.pop(topic, None)
    if pool is not None:
        pool.dismiss()


class _NeverBeganError(Exception):
    """The child died before the attempt began in it."""


class _ChildPool:
    """The children of one executor in this worker. Thread-safe: its containers are changed by single atomic calls."""

    def __init__(self) -> None:
        self._running: dict[int, _ChildProcess] = {}  # those with an attempt, by its serial number
        self._idle: list[_ChildProcess] = []
        self._dismissed = False

    def run(self, job: RemoteJob) -> CallResult:
        """Run an attempt in one of them.

        Raises:
            _NeverBeganError: the child died first; another one may do better.
        """
        child = self._take()
        self._running[job.serial] = child
        if self._dismissed:  # maybe before it was listed
            child.kill()
        try:
            return child.run(job)
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

    def run(self, job: RemoteJob) -> CallResult:
        """Run an attempt and return how it ended.

        Raises:
            _NeverBeganError: it did not begin.
        """
        info = job.info
        try:
            self._jobs.send_bytes(pickle.dumps((info, job.payload)))
            self._results.recv_bytes()
        except (EOFError, OSError):
            self.is_lost = True
            raise _NeverBeganError from None
        start = time.monotonic()
        _tell_began(job, self._process.pid)
        try:
            if info.timeout is None or self._results.poll(info.timeout):
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


def _tell_began(job: RemoteJob, pid: int) -> None:
    from distributed import get_worker

    with contextlib.suppress(Exception):  # the connection is going: then dask, too, will know
        worker = get_worker()
        name = f"process {pid} on {worker.address}"
        worker.log_event(job.topic, {"serial": job.serial, "name": name, "address": worker.address})


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
            info, payload = pickle.loads(jobs.recv_bytes())
            results.send_bytes(b"began")
            results.send_bytes(pickle.dumps(tuple(_run(info, payload))))


def _run(info: AttemptInfo, payload: bytes) -> CallResult:
    start = time.monotonic()
    current.begin(EngineCall(info, start), info.number)
    try:
        fn, args, kwargs = pickle.loads(payload)
    except BaseException as error:
        kind, pickled = encode_unreadable(error)
    else:
        kind, pickled = _ENCODER.run(fn, args, kwargs)
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
