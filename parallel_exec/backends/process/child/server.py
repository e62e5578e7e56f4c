"""The fork server: a process of ours that forks the workers. It is started before anything else, and imports what they need.

    parent: request ──► server: semaphore ──► fork ──► worker: configuration ──► `main`
                 the worker's number ◄──┤                │
                   its exit code ◄──────┴─────── end ◄───┘

It is not `multiprocessing`'s, which has to import all of that first, in the program, in the server and in each worker, and
has another process to remove the names of semaphores. A worker that does import it is what it would be there:
`lazy_multiprocessing.py`.

The garbage collector rests during the imports, as nothing of them is garbage, and never looks at them again: not in the
server, not in the workers, which so share more of the server's memory.

Guarantees:
    A semaphore's name is removed by the server if the parent dies before it has done so.
    The server ends when the parent has left it, and all that it has forked has ended.
    What is sent to `multiprocessing`'s resource tracker by anybody has one read it, started with the first byte.
"""

from __future__ import annotations

import gc

_was_enabled = gc.isenabled()
gc.disable()

import _multiprocessing  # type: ignore[import-not-found]  # noqa: E402
import atexit  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402

from parallel_exec import _forks  # noqa: E402
from parallel_exec.backends._descriptors import fill_standard, lift, pipe  # noqa: E402
from parallel_exec.backends._platform import dying_with  # noqa: E402
from parallel_exec.backends.process.child import lazy_multiprocessing  # noqa: E402
from parallel_exec.backends.process.child.main import main  # noqa: E402
from parallel_exec.backends.process.child.start import Start, loads  # noqa: E402
from parallel_exec.backends.process.fork_server import MOST_DESCRIPTORS, NAME_SIZE, NUMBER, READY, SEMAPHORE  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Sequence

_LATER = ("traceback", "parallel_exec.backends.process.log_relay")  # what is imported after the first worker was forked
_QUIET = 250  # milliseconds without any request after which that is done; a guess


class Server:
    """The server's state; its only thread's.

    Args:
        requests: a socket for requests.
        tracked: the pipe that the resource tracker is to read; -1: another process sees to that.
        environment: the variables that the user's modules have set.
    """

    def __init__(self, requests: int, tracked: int, environment: dict[str, str]) -> None:
        self._environment = environment
        self._requests = socket.socket(fileno=requests)
        self._tracked = tracked
        self._is_left = False
        self._name = ""  # of the last semaphore; the parent asks for the next when it has removed that
        self._answers: dict[int, int] = {}  # descriptors, by the process whose end is told there
        self._woken, self._wakeup = pipe()
        self._poll = select.poll()
        self._has_rest: bool | None = (
            None  # whether what is rarely needed is imported; None: not before the first request
        )

    def serve(self) -> None:
        """Serve until there is nobody left to serve."""
        for fd in (self._woken, self._wakeup):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        does = {self._requests.fileno(): self._serve_request, self._woken: self._reap}
        if self._tracked >= 0:
            does[self._tracked] = self._track
        for fd in does:
            self._poll.register(fd, select.POLLIN)
        while not self._is_left or self._answers or self._tracked >= 0:
            ready = self._poll.poll(_QUIET if self._has_rest is False else None)
            for fd, _ in ready:
                does[fd]()
            if not ready:
                self._import_rest()

    def _serve_request(self) -> None:
        try:
            name, ancillary, _, _ = self._requests.recvmsg(NAME_SIZE, socket.CMSG_SPACE(4 * MOST_DESCRIPTORS))
        except ConnectionError:
            name, ancillary = b"", []
        if not name:
            self._be_left()
            return
        if self._has_rest is None:
            self._has_rest = False
        fds = [number for _, _, data in ancillary for (number,) in struct.iter_unpack("=i", data)]
        answer, others = fds[0], fds[1:]
        self._name = name.rstrip(b"\0").decode()
        try:
            permits = _multiprocessing.SemLock(SEMAPHORE, 0, _multiprocessing.SemLock.SEM_VALUE_MAX, self._name, False)
            pid = os.fork()
        except OSError as error:
            self._remove_name()
            with contextlib.suppress(BrokenPipeError):
                os.write(answer, NUMBER.pack(-(error.errno or 1)))
            os.close(answer)
        else:
            if pid == 0:
                os.close(answer)
                self._become_worker(others, permits)
            self._answers[pid] = answer
            with contextlib.suppress(BrokenPipeError):  # the parent is gone
                os.write(answer, NUMBER.pack(pid))
        for fd in others:
            os.close(fd)

    def _import_rest(self) -> None:
        """Import what workers need once something fails, or is logged, now that nobody waits."""
        self._has_rest = True
        with _no_garbage():
            for name in _LATER:
                __import__(name)

    def _be_left(self) -> None:
        """Note that there will be no more requests, and remove the name that the parent may have had no time for."""
        self._is_left = True
        self._poll.unregister(self._requests.fileno())
        self._remove_name()

    def _remove_name(self) -> None:
        with contextlib.suppress(OSError):  # there is none, or no more
            _multiprocessing.sem_unlink(self._name)

    def _reap(self) -> None:
        """Tell of the ends of processes."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 1 << 16)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                answer = self._answers.pop(pid, None)
                if answer is not None:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(answer, NUMBER.pack(os.waitstatus_to_exitcode(status)))
                    os.close(answer)

    def _track(self) -> None:
        """Have a process read what the resource tracker is told, unless all who could tell it something have ended."""
        poll = select.poll()
        poll.register(self._tracked, select.POLLIN)
        tracked, self._tracked = self._tracked, -1
        self._poll.unregister(tracked)
        if any(event & select.POLLIN for _, event in poll.poll(0)) and os.fork() == 0:
            self._become_tracker(tracked)
        os.close(tracked)

    def _become_child(self) -> None:
        """Let go of what is the server's, in a process that it has forked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        for fd in (self._woken, self._wakeup, *self._answers.values()):
            os.close(fd)
        if self._tracked >= 0:
            os.close(self._tracked)

    def _become_tracker(self, tracked: int) -> None:
        """Be the resource tracker; does not return."""
        try:
            self._become_child()
            from multiprocessing.resource_tracker import main as track

            track(tracked)
        finally:
            os._exit(0)

    def _become_worker(self, fds: list[int], permits: Any) -> None:
        """Be a worker; does not return."""
        error: BaseException | None = None
        try:
            try:
                self._become_child()
                if _ATEXIT_RUNS:
                    atexit._clear()
                main(_read_start(fds, permits, self._environment))
            finally:
                if _ATEXIT_RUNS:
                    threading._shutdown()  # type: ignore[attr-defined]
                    atexit._run_exitfuncs()
        except BaseException as failed:
            error = failed
        _forks.end(error)


_ATEXIT_RUNS = sys.version_info >= (3, 13)  # in processes of `multiprocessing`: since this version


def _read_start(fds: list[int], permits: Any, environment: dict[str, str]) -> Start:
    """Return what this worker is told, and has by the modules that were imported before; waits until all of it has come."""
    source, tracked, *others = map(lift, fds)
    with open(source, "rb") as file:
        data = file.read()
    try:
        config = loads(data, others)
    except EOFError:  # the parent has died meanwhile
        os._exit(1)
    if config.started is not None:
        lazy_multiprocessing.prepare(config.started, tracked, config.lifeline.fd)
    if environment:
        settings = config.settings
        config = config._replace(settings=settings._replace(environment={**settings.environment, **environment}))
    return Start(config._replace(permits=permits), is_copy=False)


def serve(requests: int, tracked: int, modules: Sequence[str] = (), path: Sequence[str] | None = None) -> None:
    """Be the fork server. Does not return.

    Args:
        requests: the descriptor of a socket.
        tracked: the descriptor of a pipe, or -1.
        modules: what else to import, by the user's wish; what fails is left out.
        path: the `sys.path` for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    fill_standard()
    _close_others({requests, tracked})
    with _no_garbage():
        if path is not None:
            sys.path[:] = path
        before = dict(os.environ)
        if modules:
            with dying_with(requests):
                _import_all(modules)
            if sys.version_info >= (3, 12):
                _allow_threads()
        environment = {name: value for name, value in os.environ.items() if before.get(name) != value}
    if modules:
        os.write(requests, READY)
    server = Server(
        requests, tracked, environment
    )  # which nothing closes before the end: some Pythons would warn of that
    try:
        server.serve()
    finally:
        os._exit(0)


def _import_all(modules: Sequence[str]) -> None:
    """Import what the user wants; what fails is left out, and whoever needs it finds out: a worker tries again."""
    for name in modules:
        with contextlib.suppress(BaseException):  # `sys.exit` among them
            __import__(name)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # else each worker would say once more what a module has printed
            stream.flush()


def _allow_threads() -> None:
    """Have CPython not warn of forks while there are threads: the user's modules may have started some, and know of forks."""
    import warnings

    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Have the garbage collector rest meanwhile, and never look at what there is by then."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if _was_enabled:
            gc.enable()


def _close_others(kept: set[int]) -> None:
    """Close what came along because C code, or the user, had it inherited."""
    for fd in [int(name) for name in os.listdir("/dev/fd")]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
