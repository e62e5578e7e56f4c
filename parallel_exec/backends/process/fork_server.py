"""The fork server: started where its socket can lie, asked beforehand for what workers import, replaced when it is outdated.

It is `multiprocessing`'s, one for the process, and most of what is needed of it is private: all of that is here.

Guarantees:
    Workers are never made by a server of another user, or whose children cannot have what this process has by now: it
    is left to itself, ends when all that it has made has ended, and the next start makes a new one.
    A folder for temporary files whose path is too long for a socket, or where nothing can be written, does not keep one
    from being started.
    At exit it is left before the interpreter takes itself apart, and ends meanwhile: whoever reads what the program prints,
    which the server could print to as well, waits no longer than for the program.
    In a forked child there is no server: its parent's is not a child of its own, as `multiprocessing` supposes.
    The lock that starts hold guards all of it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from multiprocessing import process, util
from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    from parallel_exec.backends.process.inherited import Inherited

_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # tried one after the other
_NAME = len("/pymp-12345678/listener-12345678")
_PATH = 104  # bytes that the path of a socket may have, its end included, on the system that takes the fewest

_accepted: list[tuple[int, object]] = []  # the server that was found to be good enough, or made anew, and for what
_left: list[int] = []  # servers that were left to themselves, and have not ended yet


def _server() -> Any:
    return getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)


def _pid() -> int | None:
    """Return the server's process id; None if none was started."""
    pid: int | None = getattr(_server(), "_forkserver_pid", None)
    return pid


def renew(inherited: Inherited) -> None:
    """Leave a server whose children could not have `inherited`."""
    _left[:] = [each for each in _left if not _is_over(each)]
    pid, wanted = _pid(), inherited.fixed()
    if pid is None or (pid, wanted) in _accepted:
        return
    if _accepted[:1] != [(0, wanted)] and inherited.is_beyond(pid):
        with _server()._lock:
            _leave()
        _left.append(pid)
        _accepted[:] = [
            (0, wanted)
        ]  # the next is kept whatever `is_beyond` says of it: this process cannot make another
    else:
        _accepted[:] = [(pid, wanted)]


def _is_over(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _leave() -> None:
    """Forget the server: whoever wants one starts another."""
    server = _server()
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)  # or it would outlive all that it serves
        server._forkserver_alive_fd = server._forkserver_pid = server._forkserver_address = None


def _after_fork() -> None:
    _left.clear()
    _accepted.clear()
    _leave()


os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    """Leave the server; the pools have ended by now. It serves what it has made until that has ended, too."""
    server = _server()
    if server is not None and server._lock.acquire(False):  # else a thread that cannot be joined is starting something
        try:
            _leave()
        finally:
            server._lock.release()


atexit.register(_at_exit)


def preloaded() -> Sequence[str] | None:
    """Return what the server imports when it is started; None if that cannot be told."""
    from multiprocessing import forkserver

    listed = getattr(getattr(forkserver, "_forkserver", None), "_preload_modules", None)
    return listed if isinstance(listed, list) else None


def preload(modules: Sequence[str]) -> None:
    """Have it import these as well; by public means the list could be replaced only."""
    _server()._preload_modules = [*(preloaded() or ()), *modules]


def start() -> None:
    """Start the server, unless it runs."""
    from multiprocessing import forkserver

    forkserver.ensure_running()


def has_place() -> bool:
    """See to a folder in which a server's socket can be made, unless one is running; returns whether there is one."""
    if _pid() is not None:
        return True
    this: Any = process.current_process()
    config = this._config
    with contextlib.suppress(OSError):  # nothing can be written where `tempfile` looks
        config.setdefault("tempdir", None)
        if (config["tempdir"] is not None or _is_short(_base())) and _serves(util.get_temp_dir()):
            return True
    import shutil
    import tempfile

    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            made = tempfile.mkdtemp(prefix="pymp-", dir=folder)
            util.Finalize(None, shutil.rmtree, args=(made, True), exitpriority=-100)
            config["tempdir"] = made
            return True
    return False


def _base() -> str:
    import tempfile

    return tempfile.gettempdir()


def _is_short(base: str) -> bool:
    return len(os.fsencode(base)) + _NAME < _PATH


def _serves(folder: str) -> bool:
    return _is_short(os.path.dirname(folder)) and os.access(folder, os.W_OK | os.X_OK)
