"""Descriptors of our own: how all of them are made. Imports the standard library only, as workers use it.

A program may run with its standard streams closed (`<&- >&- 2>&-`). What it opens next would be descriptor 0, 1 or 2, and
whatever C code or a subprocess prints would be written into it: into the journal of a worker, for one.

Guarantees:
    No file of ours is ever one of the numbers 0 to 2: in the program, in the fork server, in a worker.
    Where such a number is free when worker processes are started, it becomes `/dev/null`, and is inherited as that: as it
    is for all programs in Go and in Rust. So `multiprocessing`'s own pipes do not come to lie there either, nor those of
    tasks. What is open there is left alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from itertools import chain, starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, TypeVar

    T = TypeVar("T")

with contextlib.suppress(ImportError):  # no POSIX
    import fcntl

STANDARD = range(3)


def fill_standard() -> None:
    """Open `/dev/null` wherever one of the standard descriptors is closed; costs a microsecond where none is."""
    for number in STANDARD:
        if not is_open(number):
            with contextlib.suppress(OSError):  # too many are open: ours are moved out of the way
                _open_null(number)


def _open_null(number: int) -> None:
    fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one, unless another thread was faster
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.close(fd)


def is_open(fd: int) -> bool:
    """Return whether a descriptor is open."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def duplicate(fd: int) -> int:
    """Return a copy of a descriptor, which is none of the standard ones.

    Raises:
        OSError: it is closed, or too many are open.
    """
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD.stop)


def lift(fd: int) -> int:
    """Return a descriptor that was just made, or in its place a copy with a higher number if it is 0, 1 or 2.

    Raises:
        OSError: too many are open; it is closed then.
    """
    if fd not in STANDARD:
        return fd
    try:
        return duplicate(fd)
    finally:
        os.close(fd)


def pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a new pipe.

    Raises:
        OSError: too many are open.
    """
    return _lift_both(*os.pipe())


def put_pipe(ends: list[int]) -> None:
    """Put the reading and the writing end of a new pipe into a list: whatever a signal handler raises, both are there, or none.

    Raises:
        OSError: too many are open.
    """
    ends.extend(chain.from_iterable(starmap(os.pipe, [()])))  # in C, out of reach of signal handlers
    _lift_all(ends)


def put(fds: list[int], make: Callable[..., int], *args: object) -> None:
    """Put a new descriptor, made by a function of C's, into a list: whatever a signal handler raises, it is there, or none is.

    Raises:
        OSError: `make` does, or too many are open.
    """
    fds.extend(starmap(make, [args]))  # in C, out of reach of signal handlers
    _lift_all(fds)


def put_duplicate(fd: int, fds: list[int]) -> None:
    """Put a copy of a descriptor into a list, as `put` does."""
    fds.extend(_copying(fd))


def _copying(fd: int) -> Iterator[int]:
    """Return what makes the copy when it is asked for, in C."""
    return starmap(fcntl.fcntl, [(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD.stop)])


def _lift_all(fds: list[int]) -> None:
    for place, fd in enumerate(fds):
        if fd in STANDARD:
            fds[place : place + 1] = _copying(fd)
            os.close(fd)


def close_all(fds: list[int]) -> None:
    """Close the descriptors in a list, and empty it: whatever a signal handler raises, each is closed once, or is there."""
    list(map(os.close, map(fds.pop, [-1] * len(fds))))


class Owner:
    """A descriptor that is closed when nobody holds the object any more.

    Args:
        put: puts a new one into a list, made of what it is told.
        source: that.

    Attributes:
        fds: it alone, or nothing once it is another's.

    Guarantees:
        Wherever a signal handler raises, the descriptor has this owner, or there is none; also if what it raised is kept.
    """

    __slots__ = ("fds",)

    def __init__(self, put: Callable[[T, list[int]], object], source: T) -> None:
        fds: list[int] = []
        self.fds = fds
        del self  # else whoever keeps what is raised here, and so this frame, would keep the descriptor
        put(source, fds)

    def __del__(self, _close: Any = os.close) -> None:
        list(map(_close, getattr(self, "fds", ())))  # a signal handler may have raised before it had them


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected Unix sockets.

    Raises:
        OSError: too many are open.
    """
    first, second = _lift_both(*[each.detach() for each in socket.socketpair()])
    return socket.socket(fileno=first), socket.socket(fileno=second)


def leave_open(used: socket.socket) -> None:
    """Leave it to the system to close a socket, as this process is about to end."""
    used.detach()


def datagram_socket(family: int) -> socket.socket:
    """Return a new socket for datagrams.

    Raises:
        OSError: too many are open.
    """
    made = socket.socket(family, socket.SOCK_DGRAM)
    return made if made.fileno() not in STANDARD else socket.socket(fileno=lift(made.detach()))


def _lift_both(first: int, second: int) -> tuple[int, int]:
    try:
        first = lift(first)
    except OSError:
        os.close(second)
        raise
    try:
        return first, lift(second)
    except OSError:
        os.close(first)
        raise


class Descriptor:
    """A file descriptor that travels to a process that is being started.

    Here, and not where workers are started, as that needs modules that a worker would have to import for nothing.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> Any:
        from multiprocessing import reduction

        return _arrive, (reduction.DupFd(self.fd),)

    def close(self) -> None:
        """Close it here."""
        os.close(self.fd)


def _arrive(travelled: Any) -> Descriptor:
    return Descriptor(lift(travelled.detach()))
