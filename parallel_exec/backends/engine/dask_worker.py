"""An attempt on a dask worker: what runs in the worker, and in the child process that it keeps for attempts.

    scheduler ──► run_on_worker, in a thread of the worker ──► a child: an idle one, or a new one
                     │ "it began" ──► event ──► client          │ jobs ──► call ──► results
                     ▼                                          ▼
                   Reply ◄───── timeout: killed ◄──────── or dies on the way
    client ──► kill_on_worker, dismiss

A dask worker under a nanny is a daemonic process, to which `multiprocessing` forbids children: so they are started with
`subprocess`, which also leaves nothing of the worker in them, no threads, no locks.

Guarantees:
    An attempt has a process to itself, which is killed with its process group at its timeout, by `abort()`, and by the
    kernel once the worker is gone. No other attempt notices.
    What the call returns is pickled there and unpickled by the client: the worker never sees it.
    A child that died before an attempt began in it has cost nothing: another one takes the job.
    A child that has been idle for `IDLE` seconds ends by itself, should nobody dismiss it.
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
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, RunningCall, failed, worker_name
from parallel_exec.errors import TaskTimeoutError, WorkerStartError

IDLE = 30.0  # seconds; a guess: a backoff is over by then, and a process costs some 15 MB
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
    crew = _crews.setdefault(job.topic, _ChildPool())
    for _ in range(STARTS):
        if job.topic in _dismissed:  # dask began what nobody waits for, and nobody would end it
            crew.dismiss()
            _crews.pop(job.topic, None)
            return failed(CancelledError("its executor has ended"), 0.0)
        child = crew.take(job.serial)
        try:
            reply = child.run(job)
        except _NeverBeganError:
            crew.drop(job.serial, child)
            continue
        except BaseException:
            crew.drop(job.serial, child)
            raise
        (crew.drop if child.is_lost else crew.keep)(job.serial, child)
        return reply
    error = WorkerStartError(f"{STARTS} processes died on a dask worker before they took an attempt; its log says why")
    return failed(error, 0.0)


def kill_on_worker(topic: str, serial: int) -> None:
    """Kill the process that runs an attempt, if it is here."""
    crew = _crews.get(topic)
    child = crew.running.get(serial) if crew is not None else None
    if child is not None:
        child.kill()


def dismiss(topic: str) -> None:
    """Let go of all children of an executor that has ended, and take no attempt of its any more."""
    _dismissed.append(topic)  # first: who does not find it is found
    crew = _crews.pop(topic, None)
    if crew is not None:
        crew.dismiss()


class _NeverBeganError(Exception):
    """The child died before the attempt began in it."""


class _ChildPool:
    """The children of one executor in this worker. Its containers are changed by single atomic calls.

    Attributes:
        running: those with an attempt, by its serial.
    """

    def __init__(self) -> None:
        self.running: dict[int, _ChildProcess] = {}
        self._idle: list[_ChildProcess] = []
        self._dismissed = False

    def take(self, serial: int) -> _ChildProcess:
        """Return a child for an attempt."""
        child = None
        while child is None:
            try:
                child = self._idle.pop()
            except IndexError:
                child = _ChildProcess()
            if child.has_ended():
                child.close()
                child = None
        self.running[serial] = child
        if self._dismissed:
            child.kill()
        return child

    def keep(self, serial: int, child: _ChildProcess) -> None:
        """Take a child back for the next attempt."""
        self.running.pop(serial, None)
        self._idle.append(child)
        if self._dismissed:
            self.dismiss()

    def drop(self, serial: int, child: _ChildProcess) -> None:
        """Let go of a child."""
        self.running.pop(serial, None)
        child.close()

    def dismiss(self) -> None:
        """Kill what runs, and let go of the rest."""
        self._dismissed = True
        for running in list(self.running.values()):
            running.kill()
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()


class _ChildProcess:
    """A child process, seen from the worker. It has one job at a time, from one thread; any thread may kill it.

    Attributes:
        is_lost: whether it was killed or has died, so that it can take no other job.
    """

    def __init__(self) -> None:
        from multiprocessing.connection import Connection

        fill_standard()
        jobs, self_jobs = pipe()
        self_results, results = pipe()
        lifeline, self._lifeline = pipe()  # closed by our end, whatever it is
        theirs = (jobs, results, lifeline)
        self._jobs = Connection(self_jobs, readable=False)
        self._results = Connection(self_results, writable=False)
        self._lock = threading.Lock()  # guards the process's end: its number is ours until then
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
            value = (self._process.pid, self._process.wait())
            return CallResult(CRASHED, value, time.monotonic() - start, worker_name())
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


_crews: dict[str, _ChildPool] = {}  # by topic; module state, as dask calls functions of modules
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
        while jobs.poll(IDLE):
            info, payload = pickle.loads(jobs.recv_bytes())
            results.send_bytes(b"began")
            results.send_bytes(pickle.dumps(tuple(_run(info, payload))))


def _run(info: AttemptInfo, payload: bytes) -> CallResult:
    start = time.monotonic()
    current.running, current.number = RunningCall(info, start), info.number
    try:
        fn, args, kwargs = pickle.loads(payload)
    except BaseException as error:
        kind, pickled = encode_unreadable(error)
    else:
        kind, pickled = _ENCODER.run(fn, args, kwargs)
    current.running = None
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


def _dumps_result(value: Any) -> Pickled:
    return Pickled(dumps(value), None)


_ENCODER = Encoder(_dumps_result, carries=False)
