"""Pieces of memory without a name: for journals, and for large buffers that need not be copied through a pipe.

    sender: buffers ──► segment (one copy) ──► its descriptor over a Unix socket ──► receiver: mapped, not copied

Guarantees:
    A segment lives as long as a descriptor or a mapping of it does, and has no name: nothing is left behind, whoever
    is killed when. The receiver maps it privately: what it changes, nobody else sees, so a retry gets the original.
"""

from __future__ import annotations

import array
import contextlib
import errno
import mmap
import os
import socket
import struct
import weakref

from parallel_exec.backends._descriptors import fill_standard, lift, put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Sequence, Union

    Data = Union[bytes, bytearray, memoryview]

THRESHOLD = 1 << 20  # bytes; below it a pipe is as fast
# At a time, and as many mappings; each holds a descriptor, of which a socket takes some 270 on their way.
_MOST_SEGMENTS = 64
_SHARE = 8  # of the descriptors that this process may have, one in so many at most is for them
_COUNT = struct.Struct("<I")
_MESSAGE = 250  # descriptors in one message; Linux takes 253


def _limit() -> int:
    """Return how many segments, and how many mappings of them, this process may have at a time."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_SEGMENTS if soft == resource.RLIM_INFINITY else min(_MOST_SEGMENTS, soft // _SHARE)


def is_full() -> bool:
    """Return whether this process has as many segments as it may."""
    return len(Segment.alive) >= _limit()


def create(size: int, fds: list[int]) -> int:
    """Put the descriptor of new shared memory of `size` bytes, all 0, into a list, whose owner closes it; and return it.

    Raises:
        OSError: there is none to be had; the list may have it nevertheless.
    """
    _put_file(fds)
    os.ftruncate(fds[-1], size)
    return fds[-1]


def _put_file(fds: list[int]) -> None:
    """Put an empty file without a name into a list: of memory, where the system has that and does not refuse it."""
    if hasattr(os, "memfd_create"):
        try:
            put(fds, os.memfd_create, "parallel_exec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
    path = new_path()  # it may be a sandbox that does not let it be called
    try:
        put_named(path, fds)
        os.unlink(path)
    except BaseException:  # a signal handler's, too
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def new_path() -> str:
    """Return where there can be a file of ours, under a name that nobody can guess."""
    import tempfile  # as much as all the rest of this takes

    return os.path.join(tempfile.gettempdir(), f"parallel_exec-{os.urandom(16).hex()}")


def put_named(path: str, fds: list[int]) -> None:
    """Make a file, and put its descriptor into a list."""
    put(fds, os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


class Segment:
    """A descriptor that is closed when nobody holds the object any more: of a segment, or one that travels by itself."""

    __slots__ = ("_fds",)

    alive: ClassVar[set[int]] = set()  # the descriptors of all there are in this process

    def __init__(self, put: Callable[[int, list[int]], object], source: int) -> None:
        fds: list[int] = []
        self._fds = fds
        del self  # as `_descriptors.Owner` does, for the same reason
        put(source, fds)
        Segment.alive.update(fds)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fds[0]

    def __del__(self, _close: Any = os.close) -> None:
        fds = getattr(self, "_fds", ())  # a signal handler may have raised before it had them
        self.alive.difference_update(fds)
        list(map(_close, fds))


def store(buffers: Sequence[memoryview]) -> tuple[Segment, bytes]:
    """Copy buffers into a new segment; returns it, and what `load` needs to know of it.

    Raises:
        OSError: no shared memory, or not so much, is to be had.
    """
    sizes = [buffer.nbytes for buffer in buffers]
    segment, position = None, 0
    try:
        segment = Segment(create, sum(map(aligned, sizes)))
        for buffer in buffers:
            write(segment._fds[0], buffer.cast("B"), position)
            position += aligned(buffer.nbytes)
        return segment, _COUNT.pack(len(sizes)) + array.array("Q", sizes).tobytes()
    except BaseException:  # a signal handler's, too: whoever keeps it, and so this frame, would keep the memory
        segment = None
        raise


def write(fd: int, data: memoryview, position: int) -> None:
    """Write all of `data`; the kernel takes half the time that it takes to touch each page of a mapping first."""
    while data:
        written = os.pwrite(fd, data, position)
        data = data[written:]
        position += written


def load(fd: int, data: Data) -> tuple[list[memoryview], Data]:
    """Map the buffers of a segment; returns them, writable, and the rest of `data` behind what `store` said."""
    area = memoryview(_map(fd))
    placed = pieces(data)
    return [area[position : position + size] for position, size in placed], data[_COUNT.size + 8 * len(placed) :]


def pieces(data: Data) -> list[tuple[int, int]]:
    """Return where in a segment its buffers are, and how large; `data` begins with what `store` said."""
    (count,) = _COUNT.unpack_from(data)
    placed, position = [], 0
    for size in array.array("Q", bytes(data[_COUNT.size : _COUNT.size + 8 * count])):
        placed.append((position, size))
        position += aligned(size)
    return placed


def _map(fd: int) -> Any:
    """Return the content of a segment, writable: mapped or, if many are, copied, as each mapping holds a descriptor."""
    fill_standard()  # a mapping has a descriptor of its own
    if len(_mapped) < _limit():
        try:
            area = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # a limit on memory counts private mappings as well
                raise MemoryError(str(error)) from error
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        else:
            _mapped.add(area)
            return area
    content = bytearray(os.fstat(fd).st_size)
    position = 0
    while position < len(content):
        position += os.preadv(fd, [memoryview(content)[position:]], position)
    return content


_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # those that are alive


def aligned(size: int) -> int:
    """Return how much room so many bytes take, so that what comes after them may be of any type."""
    return (size + 63) & ~63


class Received:
    """The descriptors that came with bytes.

    Attributes:
        segment: that of the segment, if there is one.
        others: those that `_reducers.py` knows of.
    """

    def __init__(self, fds: list[int], has_segment: bool) -> None:
        self.segment = fds[0] if has_segment else None
        self.others = fds[1:] if has_segment else fds
        self._fds = fds

    def close(self) -> None:
        """Close them all."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


def ancillary(segment: Segment | None, others: Sequence[Segment]) -> int:
    """Return what the receiver must know of the descriptors that go with bytes; 0 if there are none.

    It is twice the number of the others, and 1 more if there is a segment.
    """
    return 2 * len(others) + (segment is not None)


def send(channel: socket.socket, segment: Segment | None, others: Sequence[Segment]) -> None:
    """Send descriptors; they arrive even if we are killed right after."""
    fds = [each.fd for each in ([segment] if segment is not None else []) + list(others)]
    for start in range(0, len(fds), _MESSAGE):
        some = array.array("i", fds[start : start + _MESSAGE])
        channel.sendmsg([b"s"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])


def receive(channel: socket.socket, ancillary: int, flags: int = 0) -> Received:
    """Return the next descriptors that were sent; `ancillary` is what the sender said of them.

    Raises:
        EOFError: there are none.
        OSError: this process has too many; or, with MSG_DONTWAIT, none has come yet.
    """
    count, fds = ancillary // 2 + ancillary % 2, array.array("i")
    for wanted in [_MESSAGE] * (count // _MESSAGE) + [count % _MESSAGE]:
        if wanted:
            size = socket.CMSG_LEN(wanted * fds.itemsize)
            message, found, _, _ = channel.recvmsg(1, size, flags)
            for level, kind, data in found:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            if not message:
                break
    for fd in fds:
        os.set_inheritable(fd, False)
    received = Received([lift(fd) for fd in fds], bool(ancillary % 2))
    if len(fds) < count:
        received.close()
        raise (OSError if fds else EOFError)(f"{len(fds)} descriptors came, and {count} were sent")
    return received
