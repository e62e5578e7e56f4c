"""The fork server, as the parent has it: started with the first call, asked for workers, replaced when it is outdated.

    start ──► posix_spawn: child/server.py, which imports what workers need, while this process goes on with its own imports
    fork  ──► request: descriptors, the name of a semaphore ──► the worker's number ──► its configuration, by a pipe

It is started before this process has imported `multiprocessing`, as nothing takes longer than what the server has to
import; so no more than this module needs is imported for that.

Guarantees:
    Workers are never made by a server of another user, or whose children cannot have what this process has by now: it
    is left to itself, ends when all that it has made has ended, and the next start makes a new one.
    The server imports the very files that run here, wherever a Python that is started now would find others.
    At exit it is left before the interpreter takes itself apart, and ends with this process: whoever reads what the program
    prints, which the server could print to as well, waits no longer than for the program.
    A server with modules of a pool's, or variables that only a start can set, is that pool's, or of those like it, and ends
    with the last of them: the plain one is shared by all others.
    A server that imports modules of the user's is asked for nothing until it has said that it is ready: nobody waits for such
    an import with the lock held. One that is left before that is killed, and it dies with this process.
    In a forked child there is no server: its parent's is not a child of its own.
    A semaphore's name is in the system for a moment only: from the server's making it until it is opened here.
    The lock that starts hold guards all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import sys
from collections import Counter
from socket import SCM_RIGHTS, SOL_SOCKET

from parallel_exec._sync.clock import time
from parallel_exec.backends._descriptors import pipe, socket_pair
from parallel_exec.backends.process import resource_tracker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, NamedTuple, Sequence

    from parallel_exec.backends.process.child.start import WorkerConfig
    from parallel_exec.backends.process.inherited import Inherited
else:
    from parallel_exec._typing import NamedTuple

READY = b"r"  # what a server says once it has imported the user's modules
NUMBER = struct.Struct("=q")  # an answer: the number of the process, or of the error with a minus; then its exit code
NAME_SIZE = 31  # bytes of a semaphore's name, all of a request that is not descriptors; the most that all systems take
MOST_DESCRIPTORS = 253  # that can go with a request: the kernel's limit
_LEAVE_LIMIT = 1.0  # seconds that a server has to end once it is left; a guess
SEMAPHORE = 1  # the kind, as `multiprocessing.synchronize` has it
# What a Python that is started here runs: it would find modules of Python's in the current folder first. (The package finds
# its own parts; what it imports of others is there before that.)
CODE = "import sys; sys.path = [*filter(None, sys.path)]; import __future__; "
_CODE = (
    CODE + "sys.path.insert(0, {folder!r}); import parallel_exec; del sys.path[0]; "
    "from parallel_exec.backends.process.child.server import serve; serve({requests}, {tracked}, {modules!r}, {path!r})"
)
# Flags of this interpreter that are none by default, and have a place in the command line of another.
_FLAGS = (
    "debug",
    "inspect",
    "optimize",
    "dont_write_bytecode",
    "no_user_site",
    "no_site",
    "ignore_environment",
    "verbose",
    "bytes_warning",
    "quiet",
    "isolated",
    "dev_mode",
    "safe_path",
)


class Kind(NamedTuple):
    """What a server has beside what all have. Pools that want nothing of this share the plain one.

    Attributes:
        modules: what it imports, by the user's wish.
        environment: variables that it is started with, beside this process's.
    """

    modules: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def apply(self, inherited: Inherited) -> Inherited:
        """Return what the server has of what this process has."""
        return inherited._replace(environment={**inherited.environment, **dict(self.environment)})


PLAIN = Kind()


class Server(NamedTuple):
    """A server.

    Attributes:
        pid: the process.
        requests: the socket by which it is asked.
        fixed: what its children have of what cannot be set later.
        importing: the user's modules, until it has said that it has imported them.
    """

    pid: int
    requests: socket.socket
    fixed: object
    importing: tuple[str, ...] = ()


class Servers:
    """The servers of this process, and what belongs to them.

    Attributes:
        current: the plain server; None: there is none.
        special: those of other kinds; each is left when the last pool ends that has used it.
        users: how many pools use each of these kinds.
        left: the processes of those that were left to themselves, and have not ended yet.
    """

    def __init__(self) -> None:
        self.current: Server | None = None
        self.special: dict[Kind, Server] = {}
        self.users: Counter[Kind] = Counter()
        self.left: list[int] = []

    def get(self, kind: Kind) -> Server | None:
        """Return the server of a kind, if there is one."""
        return self.current if kind == PLAIN else self.special.get(kind)

    def put(self, kind: Kind, server: Server) -> None:
        """Have a server of that kind."""
        if kind == PLAIN:
            self.current = server
        else:
            self.special[kind] = server

    def take(self, kind: Kind) -> Server | None:
        """Forget the server of a kind; returns it."""
        if kind != PLAIN:
            return self.special.pop(kind, None)
        server, self.current = self.current, None
        return server

    def join(self, kind: Kind) -> None:
        """Have another pool use a kind."""
        self.users[kind] += 1

    def part(self, kind: Kind) -> bool:
        """Have a pool use a kind no more; returns whether none does."""
        self.users[kind] -= 1
        if self.users[kind]:
            return False
        del self.users[kind]
        return True


servers = Servers()  # there is one for the process


class ServedProcess:
    """A worker that the server has forked, with what we need of a `multiprocessing.Process`.

    Attributes:
        pid: its number.
        sentinel: a descriptor that is readable when it has ended.
    """

    def __init__(self, pid: int, sentinel: int) -> None:
        self.pid = pid
        self.sentinel = sentinel
        self._exitcode: int | None = None

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        if self._exitcode is None:
            poll = select.poll()
            poll.register(self.sentinel, select.POLLIN)
            poll.poll(timeout * 1000.0)

    @property
    def exitcode(self) -> int | None:
        """How it ended; None if it has not."""
        if self._exitcode is None:
            poll = select.poll()
            poll.register(self.sentinel, select.POLLIN)
            if poll.poll(0):
                told = _read_number(self.sentinel)
                self._exitcode = (
                    255 if told is None else told
                )  # as `multiprocessing` says when the server has been killed
        return self._exitcode

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.sentinel = self.sentinel, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # in a forked child, whose workers are not its own


def renew(inherited: Inherited, kind: Kind) -> None:
    """Leave a server whose children could not have `inherited`, and forget one that has ended.

    Raises:
        ConnectionError: it has ended as it imported the user's modules.
    """
    reap()
    server = servers.get(kind)
    if server is None:
        return
    inherited = kind.apply(inherited)
    if _is_over(server.pid):
        _ended(server, kind)
    elif server.fixed != inherited.fixed():
        if inherited.is_beyond(server.pid):
            servers.left.append(server.pid)
            leave(kind)
        else:
            servers.put(kind, server._replace(fixed=inherited.fixed()))


def reap() -> None:
    """Forget the servers that were left and have ended by now, which are zombies until then."""
    servers.left = [each for each in servers.left if not _is_over(each)]


def _is_over(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def is_ready(kind: Kind) -> bool:
    """Return whether the server of a kind, which was started, takes requests at once; does not wait.

    Raises:
        ConnectionError: it has ended before it did.
    """
    server = servers.get(kind)
    if server is None or not server.importing:
        return True
    if not _is_readable(server.requests.fileno()):
        return False
    try:
        said = server.requests.recv(len(READY))
    except ConnectionError:
        said = b""
    if said:
        servers.put(kind, server._replace(importing=()))
    else:
        _ended(server, kind)
    return True


def _ended(server: Server, kind: Kind) -> None:
    """Forget a server that has ended."""
    leave(kind)
    if server.importing:
        modules = ", ".join(server.importing)
        raise ConnectionError(f"the fork server died as it imported what is to be preloaded: {modules}")


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def leave(kind: Kind = PLAIN) -> int:
    """Forget a server: whoever wants one starts another. It serves what it has made until that has ended, too.

    One that is not ready has made nothing. It is killed, as it may never be.

    Returns:
        Its process; 0 if there is none.
    """
    server = servers.take(kind)
    if server is None:
        return 0
    server.requests.close()
    if server.importing and not _is_over(server.pid):  # in a forked child it is: it has no such child
        os.kill(server.pid, signal.SIGKILL)
        _await_end(server.pid)
    return server.pid


def leave_all() -> None:
    """Forget the servers of all kinds."""
    for kind in (PLAIN, *servers.special):
        leave(kind)


def leave_and_wait(kind: Kind) -> None:
    """Forget a server all of whose workers have ended, and wait a moment for its end: else it would stay as a zombie."""
    pid = leave(kind)
    if pid:
        _await_end(pid)


def _await_end(pid: int) -> None:
    until = time.monotonic() + _LEAVE_LIMIT
    while not _is_over(pid):
        if time.monotonic() > until:
            servers.left.append(pid)
            return
        time.sleep(0.001)


def _after_fork() -> None:
    leave_all()
    servers.left = []
    servers.users.clear()


os.register_at_fork(after_in_child=_after_fork)


def start(inherited: Inherited, kind: Kind) -> None:
    """Start the server of a kind, unless it runs.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made.
    """
    if servers.get(kind) is not None:
        return
    inherited = kind.apply(inherited)
    mine, theirs = socket_pair()
    tracked = -1
    try:
        tracked = resource_tracker.make_read(only_kept=kind != PLAIN)
        requests = theirs.fileno()
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, fd, fd) for fd in (requests, tracked) if fd >= 0
        ]  # so they are inherited
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        path = executable()
        modules = (*_preloaded(), *kind.modules)
        command = [path, *_flags(), "-c", _code(requests, tracked, modules)]
        environment = {**os.environ, **dict(kind.environment)} if kind.environment else os.environ
        pid = os.posix_spawn(path, command, environment, file_actions=actions, setsigmask=[signal.SIGINT])
    except BaseException:
        mine.close()
        raise
    finally:
        theirs.close()
        if tracked >= 0:
            os.close(tracked)
    servers.put(kind, Server(pid, mine, inherited.fixed(), modules))


def executable() -> Any:
    """Return which interpreter is started: `sys.executable`, or what the user has told `multiprocessing`."""
    # (`get_executable` fails while another thread is just importing it.)
    return getattr(sys.modules.get("multiprocessing.spawn"), "_python_exe", sys.executable)


def _flags() -> list[str]:
    if not (sys.warnoptions or sys._xoptions or any(getattr(sys.flags, name, 0) for name in _FLAGS)):
        return []
    import subprocess  # costs as much as all that is needed here otherwise

    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def _code(requests: int, tracked: int, modules: Sequence[str]) -> str:
    package = os.path.dirname(str(sys.modules["parallel_exec"].__file__))
    folder = os.path.dirname(os.path.abspath(package))
    path = list(sys.path) if modules else None
    return _CODE.format(folder=folder, requests=requests, tracked=tracked, modules=modules, path=path)


def _preloaded() -> list[str]:
    """Return what the user has `multiprocessing`'s fork server import."""
    forkserver = sys.modules.get("multiprocessing.forkserver")
    listed = getattr(getattr(forkserver, "_forkserver", None), "_preload_modules", None)
    return [name for name in listed if name != "__main__"] if isinstance(listed, list) else []


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def fork(config: WorkerConfig, inherited: Inherited, kind: Kind) -> tuple[ServedProcess, Any]:
    """Have a worker forked; returns it, and the semaphore of its permits. Blocks until the server has done so.

    Raises:
        OSError: there are not enough descriptors left, or no process or semaphore can be made.
    """
    for _ in range(2):
        start(inherited, kind)
        server = servers.get(kind)
        if server is None or server.importing:  # the next try is for who has waited until it is ready
            raise ConnectionError("the fork server was killed")
        forked = _ask(server, config)
        if forked is not None:
            return forked
        leave(kind)  # it has been killed
    raise ConnectionError("the fork server was killed, and so was the next as soon as it had started")


def _ask(server: Server, config: WorkerConfig) -> tuple[ServedProcess, Any] | None:
    """Have a worker forked; None: the server has been killed."""
    from parallel_exec.backends.process.child.start import dumps  # not before the server has been started

    fds: list[int] = []
    told = dumps(config, fds)
    tracked = resource_tracker.fd()
    name = f"/parallel_exec-{os.urandom(7).hex()}"
    answer, answering = pipe()
    source, telling = -1, -1
    try:
        source, telling = pipe()
        sent = struct.pack(f"={3 + len(fds)}i", answering, source, tracked, *fds)
        try:
            server.requests.sendmsg([name.encode().ljust(NAME_SIZE, b"\0")], [(SOL_SOCKET, SCM_RIGHTS, sent)])
        except ConnectionError:
            pid = None
        else:
            for fd in (answering, source):  # else their end would never come: of an answer, of somebody who reads
                os.close(fd)
            answering = source = -1
            pid = _read_number(answer)
        if pid is None:
            return None
        if pid < 0:
            raise _refusal(-pid)
        permits = _open(name)
        with contextlib.suppress(BrokenPipeError):  # it is dead; that is seen elsewhere
            _write_all(telling, told)
        process, answer = ServedProcess(pid, answer), -1
        return process, permits
    finally:
        for fd in (answer, answering, source, telling):
            if fd >= 0:
                os.close(fd)


def _read_number(answer: int) -> int | None:
    """Return what the server says of a worker; None: it has been killed."""
    data = os.read(answer, NUMBER.size)
    if not data:
        return None
    (number,) = NUMBER.unpack(data)
    return int(number)


def _refusal(number: int) -> OSError:
    where = " (for a semaphore: they lie in /dev/shm)" if number == errno.ENOSPC else ""
    return OSError(number, os.strerror(number) + where)


def _open(name: str) -> Any:
    """Open the semaphore that the server has made, and remove its name from the system."""
    import _multiprocessing  # type: ignore[import-not-found]

    try:
        kinds: Any = _multiprocessing.SemLock
        return kinds._rebuild(0, SEMAPHORE, kinds.SEM_VALUE_MAX, name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            _multiprocessing.sem_unlink(name)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
