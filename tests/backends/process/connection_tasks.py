"""Tasks that are given connections and sockets, or return some."""

from __future__ import annotations

import os
import socket
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn


class Reading:
    """Something that holds a descriptor, and is only known to `ForkingPickler`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> NoReturn:
        raise TypeError("register me")


def reduce_reading(reading: Reading) -> Any:
    """Pickle a Reading as `multiprocessing` has it."""
    from multiprocessing import reduction

    return _rebuild_reading, (reduction.DupFd(reading.fd),)


def _rebuild_reading(travelled: Any) -> Reading:
    return Reading(travelled.detach())


def read(reading: Reading, count: int) -> bytes:
    """Read from a Reading, and close it."""
    try:
        return os.read(reading.fd, count)
    finally:
        os.close(reading.fd)


def say(connection: Connection, what: Any) -> Any:
    """Send something, and return it."""
    connection.send(what)
    return what


def say_item(connection: Connection) -> int:
    """Send something, and return what it was."""
    connection.send("item")
    return connection.fileno() and os.getpid()


def say_in(where: dict[str, list[Connection]], what: Any, *, also: Connection) -> None:
    """Send something over two."""
    where["here"][0].send(what)
    also.send(what)


def fail_at_first(connection: Connection, log: Any) -> int:
    """Fail at first, then send how often it was called."""
    log.write("called")
    calls = len(log.lines())
    if calls < 3:
        raise OSError("not yet")
    connection.send(calls)
    return calls


def die_at_first(connection: Connection, log: Any) -> int:
    """End the process at first, then send."""
    log.write("called")
    if len(log.lines()) < 2:
        os._exit(3)
    connection.send("alive")
    return len(log.lines())


def send_to(peer: socket.socket, data: bytes) -> int:
    """Send over a socket, and close it."""
    with peer:
        return peer.send(data)


def send_to_all(peers: list[socket.socket]) -> int:
    """Send over each socket, and close it."""
    for peer in peers:
        send_to(peer, b"x")
    return len(peers)


def make_pipe(what: Any) -> Connection:
    """Return the end of a pipe that something can be read from."""
    reading, writing = Pipe(False)
    with writing:
        writing.send(what)
    return reading


def make_sockets(count: int) -> list[socket.socket]:
    """Return sockets that something can be read from."""
    made = []
    for number in range(count):
        mine, theirs = socket.socketpair()
        with mine:
            mine.send(b"%d" % number)
        made.append(theirs)
    return made


class PipeError(Exception):
    """Has the end of a pipe."""

    def __init__(self, reading: Connection) -> None:
        super().__init__(reading)
        self.reading = reading


def raise_pipe(what: Any) -> NoReturn:
    """Raise an exception that something can be read from."""
    raise PipeError(make_pipe(what))


def total(connection: Connection, array: Any) -> float:
    """Send the sum of an array."""
    connection.send(float(array.sum()))
    return float(array.sum())


_kept: list[Connection] = []


def keep(connection: Connection) -> None:
    """Keep a connection in this worker: an initializer."""
    _kept.append(connection)


def say_over_kept(what: Any) -> int:
    """Send something over the connection that was kept."""
    _kept[0].send(what)
    return os.getpid()
