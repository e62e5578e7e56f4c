"""What was shared: one copy for all processes of this machine that get it.

    Content ── stored, once ──► memory: number, pickle, buffers ──► sealed
       │ pickled as its number and its address
       ▼
    another process: `arrive` ──► Content ── value, when it is first asked for ──► opened, mapped read-only, unpickled once

The address is that of a descriptor of the process that has stored it, `/proc/PID/fd/N`: no descriptor need travel, so a call
takes no other way than one that shares nothing, may be sent again, and reaches the processes of somebody else's executor,
too. (Where there is no such `/proc`, it is that of a file, which is removed with the memory.)

    memory   Q   the number
             Q   how many pieces: the pickle, and its buffers
             Q…  their sizes; then the pieces, each at a multiple of 64 bytes

Guarantees:
    The memory is there as long as a `Content` is in the process that has stored it, so whoever has handed it on keeps that.
    Nobody can write to it, once it is stored: neither by a mapping nor, where the kernel seals memory, in any other way.
    An address under which there is something else by now is found out by the number, and refused.
    A process unpickles each content once, and lets go of it when it is told that it is gone (`forget`), or when it gets others
    and finds that it is. What of it the program still uses is left alone.
    A worker that was forked keeps nothing for having been forked (`leave_to_parent`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import pickle
import stat
import struct
import weakref

from parallel_exec.backends import _reducers
from parallel_exec.backends._descriptors import Owner, close_all, fill_standard, put
from parallel_exec.backends.process import payload, segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Iterable

_WORD = struct.Struct("<Q")
_PROC = "/proc"
_LOOKS = 16  # contents of others that are looked for as one arrives; a guess: they take some 10 µs each
_SEALS = ("F_SEAL_WRITE", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")
_NONE: Any = object()  # in the place of a value that is not here

# What this process knows by number: its own, and what has arrived, which `_kept` keeps until it is forgotten.
_known: weakref.WeakValueDictionary[int, Content] = weakref.WeakValueDictionary()
_kept: dict[int, Content] = {}
_local: dict[int, str] = {}  # addresses here of what has not arrived yet
_holding: weakref.WeakValueDictionary[int, Content] = (
    weakref.WeakValueDictionary()
)  # by the `id` of an object that it has


class Content:
    """Something that was shared, in one process. Thread-safe.

    Args:
        number: names it, wherever it is.
        value: the object; or it is in `memory`, or in the memory of another process, at an address.

    Attributes:
        type_name: what it is, for people.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_digest",
        "_main",
        "_memories",
        "_parts",
        "_users",
        "_value",
        "number",
        "type_name",
    )

    def __init__(self, number: int, value: Any = _NONE, address: str = "", main: str = "") -> None:
        self.number = number
        self.type_name = "object" if value is _NONE else type(value).__name__
        self._value = value
        self._address = address
        self._main = (
            main  # the main module's name, if it may name that: the bytes of a call that has it then do so, too
        )
        self._memories: list[Memory] = []  # the first counts: another thread may have been at it, too
        self._parts: list[Content] = []  # those that it refers to: handles in what is shared
        self._users: list[Callable[[int], object]] = []
        self._digest = b""
        _known[number] = self
        if value is not _NONE:
            _holding[id(value)] = self

    def value(self) -> Any:
        """Return the object, which is made now if it is not here."""
        value = self._value
        if value is _NONE:
            self._value = value = _read(self.number, self.address())
            self.type_name = type(value).__name__
            _holding[id(value)] = self
        return value

    def has(self, value: Any) -> bool:
        """Return whether it has this very object."""
        return self._value is value

    def digest(self, make: Callable[[Any], bytes]) -> bytes:
        """Return what `make` makes of the object, once."""
        if not self._digest:
            self._digest = make(self.value())
        return self._digest

    def size(self) -> int | None:
        """Return how many bytes it takes in memory; None if it is in none."""
        return self._memories[0].size if self._memories else None

    def store(self, *, has_main: bool | None, by_value: bool = False) -> None:
        """Put the object in memory that others can map; in this process it is read from there from now on.

        Args:
            has_main: whether it is for processes that have the main module; None: that is somebody else's affair.
            by_value: whether what is of the main module goes by value.

        Raises:
            TaskSerializationError: it cannot be pickled.
            OSError: there is no memory for it.
        """
        self._store(has_main, by_value)
        self._value = _NONE

    def _store(self, has_main: bool | None = None, by_value: bool = False) -> None:
        with _reducers.noting() as self._parts:
            pickled = payload.dumps_shared(self._value, has_main=has_main, by_value=by_value)
        made = Memory(_image(self.number, [memoryview(pickled.data), *pickled.buffers]))
        self._main = "__main__" if pickled.names_main else ""
        self._memories.append(made)

    def address(self) -> str:
        """Return where other processes find it, which is decided now, if that was not done."""
        if not self._address and not self._memories:
            self._store()
        return self._address or self._memories[0].address()

    def memory(self) -> Memory:
        """Return the memory, in the process that has stored it or can.

        Raises:
            LookupError: this is not that process.
        """
        if self._address:
            raise LookupError("what was shared by another process cannot be sent to another machine")
        self.address()
        return self._memories[0]

    def key(self) -> tuple[int, str, str]:
        """Return what it is pickled as: the arguments of `arrive`. What is pickled keeps it, if anybody asks what must stay."""
        address = self.address()
        _reducers.keep(self)
        return self.number, address, self._main

    def used_by(self, forget: Callable[[int], object]) -> None:
        """Have `forget` called with its number when it is gone; in any thread, as a finalizer."""
        if forget not in self._users:
            self._users.append(forget)
            for part in self._parts:
                part.used_by(forget)

    def __del__(self) -> None:
        for forget in getattr(self, "_users", ()):  # a signal handler may have raised before it had them
            forget(self.number)


def new_number() -> int:
    """Return a number that nothing else has."""
    return int.from_bytes(os.urandom(_WORD.size), "little")


def arrive(number: int, address: str, main: str) -> Content:
    """Return what came from another process, or from this one."""
    content = _known.get(number)
    if content is None:
        _forget_some()
        content = _kept[number] = Content(number, address=_local.pop(number, address), main=main)
    return content


def _forget_some() -> None:
    """Let go of what is gone, among the next few in turn: each arrival costs as much, however many there are."""
    for number in list(itertools.islice(_kept, _LOOKS)):
        content = _kept.pop(number, None)  # another thread may be about it
        if content is not None and _is_there(number, content):
            _kept[number] = content


def holding(value: Any) -> Content | None:
    """Return the content that has this very object; None if none has."""
    content = _holding.get(id(value))
    return content if content is not None and content.has(value) else None


def known(number: int) -> Content | None:
    """Return the content of this number; None if it is gone."""
    return _known.get(number)


def find_at(addresses: Iterable[tuple[int, str]]) -> None:
    """Open contents, by number, at addresses of this machine, whatever those are with which they come."""
    _local.update({number: address for number, address in addresses if number not in _known})


def load(number: int, address: str, main: str) -> Any:
    """Return the object itself of what came from another process."""
    return arrive(number, address, main).value()


def forget(number: int) -> None:
    """Let go of what came from another process."""
    _kept.pop(number, None)


def _is_there(number: int, content: Content) -> bool:
    """Return whether the process from which it came still has it."""
    try:
        _open(number, content.address())
    except (OSError, LookupError):
        return False
    return True


def _start_afresh() -> None:
    """Know nothing, in a forked child: what is the parent's may not be there."""
    _known.clear()
    _kept.clear()


os.register_at_fork(after_in_child=_start_afresh)


def leave_to_parent() -> None:
    """Be a worker that was forked: what is the parent's is found there, as long as that has it."""
    for memory in list(Memory.alive):
        memory.leave_to_parent()


class Argument:
    """Stands for a content among the arguments of a call that is pickled: what arrives is the object itself."""

    __slots__ = ("content",)

    def __init__(self, content: Content) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return load, self.content.key()


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Memory:
    """Bytes that other processes can map; freed when nobody holds the object, nor a mapping, any more.

    Args:
        pieces: what is to be there, each at a multiple of 64 bytes.

    Attributes:
        size: bytes.

    Raises:
        OSError: there is no memory for it.
    """

    alive: ClassVar[weakref.WeakSet[Memory]] = weakref.WeakSet()
    _path = ""  # of a file; or, in a worker that was forked, the address in its parent

    def __init__(self, pieces: list[memoryview]) -> None:
        self._maker = os.getpid()
        self.size = sum(segments.aligned(piece.nbytes) for piece in pieces)
        self._fds: list[int] = []
        try:
            self._open()
            self.alive.add(self)
            self._fill(pieces)
        except BaseException:  # a signal handler's, too: whoever keeps it, and so this frame, would keep the memory
            close_all(self._fds)
            raise

    def _fill(self, pieces: list[memoryview]) -> None:
        fd, position = self._fds[0], 0
        for piece in pieces:
            segments.write(fd, piece.cast("B"), position)
            position += segments.aligned(piece.nbytes)
        with contextlib.suppress(AttributeError, OSError):  # no such kernel; or it is a file
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, sum(getattr(fcntl, seal) for seal in _SEALS))

    def _open(self) -> None:
        """Open a file of this size that others can open."""
        try:
            fd = segments.create(self.size, self._fds)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            what = "each object that is shared holds one: share many small ones as one list, or raise the limit (ulimit -n)"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {what}") from None
        if not os.access(f"{_PROC}/{self._maker}/fd/{fd}", os.R_OK):
            close_all(self._fds)
            self._path = segments.new_path()
            segments.put_named(self._path, self._fds)
            os.ftruncate(self._fds[0], self.size)

    def leave_to_parent(self) -> None:
        """Close the copy that came with a fork: it would keep the memory when the parent lets go of it."""
        if self._fds:
            self._path = self._path or f"{_PROC}/{os.getppid()}/fd/{self._fds[0]}"
            close_all(self._fds)

    def whole(self) -> mmap.mmap:
        """Return all of it, mapped read-only."""
        return _map(self._fds[0])

    def address(self) -> str:
        """Return where others find it."""
        return self._path or f"{_PROC}/{os.getpid()}/fd/{self._fds[0]}"

    def __del__(self, _close: Any = os.close, _unlink: Any = os.unlink, _getpid: Any = os.getpid) -> None:
        list(map(_close, getattr(self, "_fds", ())))  # a signal handler may have raised before it had them
        if self._path and _getpid() == self._maker:
            try:  # noqa: SIM105  # at exit `contextlib` may be gone
                _unlink(self._path)
            except FileNotFoundError:  # it was not made
                pass


def _image(number: int, pieces: list[memoryview]) -> list[memoryview]:
    """Return what is in memory: before the pieces, what they are."""
    sizes = [piece.nbytes for piece in pieces]
    return [memoryview(b"".join(map(_WORD.pack, (number, len(sizes), *sizes)))), *pieces]


def _map(fd: int) -> mmap.mmap:
    fill_standard()  # a mapping has a descriptor of its own
    return mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def _open(number: int, address: str) -> Owner:
    """Return what has a descriptor of the memory at an address.

    Raises:
        OSError: there is nothing, or it must not be opened.
        LookupError: there is something else.
    """
    # Not to be opened: a pipe that has the number now, say, where this would wait for the other end.
    if not stat.S_ISREG(os.stat(address).st_mode):
        raise LookupError("something else is there")
    opened = None
    try:
        opened = Owner(_put_opened, address)
        if os.pread(opened.fds[0], _WORD.size, 0) != _WORD.pack(number):
            raise LookupError("something else is there")
        return opened
    except BaseException:
        opened = None  # else whoever keeps what is raised, and so this frame, would keep it open
        raise


def _put_opened(address: str, fds: list[int]) -> None:
    put(fds, os.open, address, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _read(number: int, address: str) -> Any:
    """Map the memory at an address, and return the object."""
    try:
        opened = _open(number, address)
    except (OSError, LookupError) as error:
        raise LookupError(
            f"a shared object is not to be had in process {os.getpid()}: the process that has shared it must run on the same "
            f"machine, as the same user, and must not have closed it ({type(error).__name__}: {error})"
        ) from None
    area = memoryview(_map(opened.fds[0]))
    del opened  # closes it
    count = _WORD.unpack_from(area, _WORD.size)[0]
    sizes = [size for (size,) in _WORD.iter_unpack(area[2 * _WORD.size : (2 + count) * _WORD.size])]
    pieces, position = [], segments.aligned((2 + count) * _WORD.size)
    for size in sizes:
        pieces.append(area[position : position + size])
        position += segments.aligned(size)
    return pickle.loads(pieces[0], buffers=pieces[1:])
