"""A call in a process that belongs to somebody else's engine: what travels there and back, and a line beside it.

    Ticket ── pickled by the engine ──► run_call ── Reply, pickled by the engine ──► back
                                         │    ▲
                             "it began"  ▼    │ "nobody waits for it any more"
                                        Line         datagrams on the loopback

Why a line: engines tell when a call has ended, not when it began. The stdlib's process pool calls a future running once
it is in the pipe to the workers, dask's executor never does. But a timeout counts from the beginning, what has begun
must not be cancelled as if it had not, and a task can look whether it is still wanted.

Guarantees:
    A call never raises in the engine: its exception comes back in the Reply, so that one which cannot be pickled or
    rebuilt does not break the engine, and whatever an engine raises is the engine's own error.
    Nothing hangs without the line: where there is none (another machine, no loopback), a call has begun for us when the
    engine says so or when it ends, and runs on unwanted. Strangers' datagrams are dropped: ours have a random key.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._lazy import LAZY, lazy_result
from parallel_exec._outcome import Failure, Outcome, Success
from parallel_exec._sync.clock import time
from parallel_exec.backends import _exceptions
from parallel_exec.errors import TaskSerializationError

if TYPE_CHECKING:
    import socket

    from parallel_exec.task import CurrentTask

_HOST = "127.0.0.1"
_KEY = 16  # bytes; nobody guesses so many
_CATCH_UP = b"\0" * 8  # what the Line tells itself, in the place of a serial number: there is none 0
_PATIENCE = 1.0  # seconds; a guess: datagrams on the loopback may be dropped

RETURNED, PICKLED, RAISED, UNSENDABLE, UNREADABLE = "returned", "pickled", "raised", "unsendable", "unreadable"


class AttemptInfo(NamedTuple):
    """What the worker is told of an attempt: the task's id, the attempt's number and timeout, and the line back.

    Attributes:
        port: where the Line listens; 0 if there is none.
        key: what its datagrams begin with.
    """

    id: str
    number: int
    timeout: float | None
    port: int = 0
    key: bytes = b""


class CallResult(NamedTuple):
    """How a call ended.

    Attributes:
        kind: RETURNED, PICKLED, RAISED, UNSENDABLE or UNREADABLE.
        value: what it returned, as it is or pickled; or what was made of an exception.
        duration: seconds it took, measured where it ran.
        worker: which process that was.
    """

    kind: str
    value: Any
    duration: float
    worker: str

    def outcome(self, task_id: str) -> Outcome:
        """Return what it says of the task."""
        if self.kind == RETURNED:
            return Success(self.value)
        if self.kind == PICKLED:
            return _unpickle(self.value, task_id)
        if self.kind == UNSENDABLE:
            what, why = self.value
            return Failure(TaskSerializationError(f"{what} of task {task_id!r}", "from the worker", why))
        return Failure(_rebuild(self.value, None if self.kind == RAISED else task_id))


def _unpickle(value: bytes, task_id: str) -> Outcome:
    try:
        return Success(pickle.loads(value))
    except BaseException as error:
        why = f"it cannot be rebuilt here: {error!r}"
        failed = TaskSerializationError(f"the result of task {task_id!r}", "from the worker", why)
        failed.__cause__ = error
        return Failure(failed)


def _rebuild(data: bytes, unreadable: str | None) -> BaseException:
    """Return an exception that `_exceptions.describe` described; `unreadable`: the task whose call could not be unpickled."""
    described = _exceptions.read(data)
    return _exceptions.rebuild(described) if unreadable is None else _exceptions.unreadable(described, unreadable)


class RunningCall:
    """What `current_task()` asks in the process that runs the attempt.

    Args:
        note: the attempt.
        start: `time.monotonic()` here when it began.
        is_unwanted: says whether nobody waits for it any more.
    """

    def __init__(self, note: AttemptInfo, start: float, is_unwanted: Callable[[], bool] = lambda: False) -> None:
        self._note = note
        self._start = start
        self._is_unwanted = is_unwanted

    def view(self, number: int) -> CurrentTask:
        """Return the view of the attempt."""
        from parallel_exec.task import CurrentTask

        timeout = self._note.timeout
        deadline = None if timeout is None else self._start + timeout
        return CurrentTask(self._note.id, self._note.number, deadline, timeout, self._is_unwanted)


def worker_name() -> str:
    """Name this process, and the interpreter in it if it is not the main one."""
    name = f"process {os.getpid()}"
    interpreters: Any = sys.modules.get("concurrent.interpreters")  # which is loaded where they run calls
    if interpreters is not None and interpreters.get_current() != interpreters.get_main():
        name += f", interpreter {interpreters.get_current().id}"
    return name


def run_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], note: AttemptInfo) -> CallResult:
    """Run a call as an attempt of a task: in a worker of the engine, which gets no keyword of the user's to see."""
    phone = StartNotifier(note)
    start = time.monotonic()
    before = current.running, current.number
    current.running, current.number = RunningCall(note, start, phone.is_unwanted), note.number
    born = _forks.generation
    try:
        value = fn(*args, **kwargs)
        _forks.end_child(born)
        if type(value) in LAZY:  # which the engine could not send
            return CallResult(RAISED, _exceptions.describe(lazy_result(value)), time.monotonic() - start, worker_name())
        return CallResult(RETURNED, value, time.monotonic() - start, worker_name())
    except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
        _forks.end_child(born, error)
        duration = time.monotonic() - start
        return CallResult(RAISED, _exceptions.describe(error), duration, worker_name())
    finally:
        current.running, current.number = before
        phone.hang_up()


def run_shared(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], note: AttemptInfo | None) -> Any:
    """Run a call in an interpreter of its own, and return the Reply as a plain tuple.

    Interpreters pass on a tuple item by item, each in its own way, where there is one beside pickling; but not a subclass.
    `note` is None for a call that was withdrawn before it could begin.
    """
    return None if note is None else tuple(run_call(fn, args, kwargs, note))


def run_nothing() -> None:
    """Stand in for a call that was withdrawn before the engine had sent it."""


class StartNotifier:
    """The worker's end of the line; used by the thread that runs the call."""

    def __init__(self, note: AttemptInfo) -> None:
        self._socket: socket.socket | None = None
        self._unwanted = False
        if not note.port:
            return
        import socket

        from parallel_exec.backends._descriptors import datagram_socket

        try:
            self._socket = datagram_socket(socket.AF_INET)
            self._socket.setblocking(False)
            self._socket.connect((_HOST, note.port))
            self._socket.send(note.key + worker_name().encode())
        except OSError:  # no loopback here, or nobody who listens
            self.hang_up()

    def is_unwanted(self) -> bool:
        """Return whether we were told so; costs a system call until then."""
        if not self._unwanted and self._socket is not None:
            with contextlib.suppress(OSError):  # not told so
                self._unwanted = bool(self._socket.recv(1))
        return self._unwanted

    def hang_up(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class StartListener:
    """The end of the line that all calls of a back end share; opened when the first call leaves the process.

    Attributes:
        heard: whether a call has ever told that it began; written by the listening thread.
    """

    def __init__(self, began: Callable[[int, str, Any], object]) -> None:
        """Make it; `began(serial, worker, address)` is called in a thread of its own, and must be quick."""
        self.heard = False
        self._began = began
        self._token = os.urandom(_KEY)
        self._caught_up = threading.Event()
        self._lock = threading.Lock()  # guards the two below
        self._socket: socket.socket | None = None
        self._closed = False

    def key(self, serial: int) -> bytes:
        """Return what the datagrams of call `serial` begin with."""
        return self._token + serial.to_bytes(8, "big")

    def port(self) -> int:
        """Return the port, opening the line if need be; 0 if that is not possible."""
        with self._lock:
            if self._socket is None and not self._closed:
                self._open()
            return self._socket.getsockname()[1] if self._socket is not None else 0

    def _open(self) -> None:
        import socket

        from parallel_exec.backends._descriptors import datagram_socket

        try:
            listening = datagram_socket(socket.AF_INET)
        except OSError:  # too many files are open
            self._closed = True
            return
        try:
            listening.bind((_HOST, 0))
            thread = threading.Thread(target=self._listen, args=(listening,), name="parallel_exec-line", daemon=True)
            thread.start()
        except (OSError, RuntimeError):  # no loopback, no thread: we do without
            listening.close()
            self._closed = True
            return
        self._socket = listening

    def _listen(self, listening: socket.socket) -> None:
        with listening:
            while True:
                try:
                    data, address = listening.recvfrom(1024)
                except ConnectionError:  # what some platforms say when a worker that was told something had gone
                    continue
                except OSError:  # closed behind our back: it would say so for ever; we do without
                    return
                if data[:_KEY] != self._token:
                    continue
                if len(data) == _KEY:
                    return
                if data[_KEY:] == _CATCH_UP:
                    self._caught_up.set()
                    continue
                self.heard = True
                self._began(int.from_bytes(data[_KEY : _KEY + 8], "big"), data[_KEY + 8 :].decode(), address)

    def catch_up(self) -> None:
        """Wait until all that calls have told so far was passed on; a moment, as datagrams arrive in the order sent here."""
        self._caught_up.clear()
        with self._lock:
            if self._socket is None:
                return
            try:
                self._socket.sendto(self._token + _CATCH_UP, self._socket.getsockname())
            except OSError:
                return
        self._caught_up.wait(_PATIENCE)

    def tell_unwanted(self, address: Any) -> None:
        """Tell the call that spoke from `address` that nobody waits for it."""
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendto(b"x", address)

    def close(self) -> None:
        """Let the listening thread end. Idempotent."""
        with self._lock:
            self._closed = True
            listening, self._socket = self._socket, None
            if listening is not None:
                with contextlib.suppress(OSError):
                    listening.sendto(self._token, listening.getsockname())
