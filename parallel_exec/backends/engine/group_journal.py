"""What calls in a group have come to, in memory that both processes see: it outlives the worker.

    parent: Journals ── lend ──► GroupJournal ── address, pickled with the group ──► worker: JournalWriter
              ▲                      │ close: no further call begins; read                │ "it has begun", each result,
              └──── take_back ◄──────┘                                                    ▼ "it is over"
                                                                         the file: token, closed or not, records

The file has no name. The worker opens it through `/proc`, as the parent's descriptor, and so there is nothing that could be
left behind when either is killed. Where that is not possible (another machine, no `/proc`) the group runs without.

Guarantees:
    What the parent reads after `close` is final for all but one call. The worker writes a call's result, then looks whether
    the journal is closed, then begins the next call; the parent closes the journal, then reads. So either the parent sees
    the result, or the worker sees the journal closed and begins no further call. The one call that may have been running is
    the first without a result.
    A journal that is used again costs the parent no system call, as each may hand the GIL to another thread: the worker
    empties it, and the first record names the group, so that the last group's are not taken for this one's.
    A record that the kill has torn is no record. A call of which the record was not written is the last of its group.
    No other file is written to: the number of a descriptor may mean one elsewhere, but not this inode with this token.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from typing import Any, NamedTuple

from parallel_exec.backends._descriptors import Owner, close_all, lift
from parallel_exec.backends.engine.remote_call import CallResult
from parallel_exec.backends.process import segments

MOST_BYTES = 1 << 15  # of results, after which no call begins: the journal is memory, a report goes into one datagram

_TOKEN = 16  # bytes; nobody guesses so many
_HEADER = _TOKEN + 1  # the token, and whether it is closed
_LENGTH = 4  # bytes before each record, which say how long it is
_OVER = None  # the last record, if no call runs any more and all have their record


class JournalAddress(NamedTuple):
    """Where a worker finds a journal, what tells it from another file, and which group it is for: it travels with that."""

    pid: int
    fd: int
    device: int
    inode: int
    token: bytes
    group: int


class Findings(NamedTuple):
    """What a journal says.

    Attributes:
        has_begun: whether a worker has opened it.
        results: of the first calls.
        is_over: whether no call was running after these.
        worker: which process that is; "" if none.
    """

    has_begun: bool
    results: list[CallResult]
    is_over: bool
    worker: str = ""


class GroupJournal:
    """The parent's end; of one group at a time.

    Attributes:
        is_closed: whether it was closed, for good.

    Raises:
        OSError: too many files are open.
    """

    def __init__(self) -> None:
        self._file = Owner(segments.create, 0)
        try:
            self._fd = self._file.fds[0]
            self.is_closed = False
            token, status = os.urandom(_TOKEN), os.fstat(self._fd)
            self.address = JournalAddress(os.getpid(), self._fd, status.st_dev, status.st_ino, token, 0)
            os.pwrite(self._fd, token + b"\0", 0)
        except BaseException:  # a signal handler's, too: whoever keeps it, and so this frame, would keep the file
            self.free()
            raise

    def renew(self) -> None:
        """Take it for another group; no worker may have the last one."""
        self.address = self.address._replace(group=self.address.group + 1)

    def was_opened(self) -> bool:
        """Return whether a worker has ever opened it."""
        return os.fstat(self._fd).st_size > _HEADER

    def close(self) -> Findings:
        """Let no further call of the group begin; return what is known of them."""
        self.is_closed = True
        os.pwrite(self._fd, b"\1", _TOKEN)
        return self.read()

    def read(self) -> Findings:
        """Return what is known of the group's calls by now."""
        records = _records(os.pread(self._fd, os.fstat(self._fd).st_size, _HEADER))
        if not records or records[0][0] != self.address.group:  # it is empty, or the last group's
            return Findings(False, [], False)
        worker, is_over = records[0][1], records[-1] is _OVER
        rows: list[tuple[int, bytes, float]] = [record for record in records[1:] if record is not _OVER]
        results = [CallResult(kind, payload, duration, worker) for kind, payload, duration in rows]
        return Findings(True, results, is_over, worker)

    def free(self) -> None:
        """Close the descriptor. Idempotent."""
        close_all(self._file.fds)


def _records(data: bytes) -> list[Any]:
    """Return the records in this, but a torn one."""
    records = []
    while len(data) >= _LENGTH:
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
        if len(data) < end:
            break
        records.append(pickle.loads(data[_LENGTH:end]))
        data = data[end:]
    return records


class Journals:
    """The journals of one executor. Changed by single atomic calls, from any thread.

    Attributes:
        are_written: whether a worker has ever opened one: what no worker has opened belongs to a group that has not begun.
    """

    def __init__(self) -> None:
        self.are_written = False
        self._spare: list[GroupJournal] = []
        self._closed = False

    def lend(self) -> GroupJournal | None:
        """Return an empty journal, or None if there is none to be had."""
        with contextlib.suppress(IndexError):
            return self._spare.pop()
        with contextlib.suppress(OSError):
            return GroupJournal()
        return None

    def take_back(self, journal: GroupJournal, *, reusable: bool) -> None:
        """Keep a journal for another group if no worker has it and it was not closed, else let it go."""
        if journal.is_closed or not reusable:
            journal.free()
            return
        self.are_written = self.are_written or journal.was_opened()
        journal.renew()
        self._spare.append(journal)
        if self._closed:
            self._free_spare()

    def close(self) -> None:
        """Let go of all, those that are lent as they are taken back."""
        self._closed = True
        self._free_spare()

    def _free_spare(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._spare.pop().free()


class JournalWriter:
    """The worker's end; used by the thread that runs the group.

    Raises:
        OSError: the journal is not to be found from here.
    """

    def __init__(self, address: JournalAddress, worker: str) -> None:
        path = f"/proc/{address.pid}/fd/{address.fd}"
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (address.device, address.inode):
            raise OSError("this is another file")
        self._fd = lift(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        try:
            if os.pread(self._fd, _TOKEN, 0) != address.token:
                raise OSError("this is another file")
            self._is_whole = True  # whether all that was to be written is
            os.ftruncate(self._fd, _HEADER)
            self._write((address.group, worker))
        except BaseException:
            os.close(self._fd)
            raise

    def may_begin(self) -> bool:
        """Return whether the next call may begin: all before it have their record, and the parent has not read them."""
        if not self._is_whole:
            return False
        try:
            return os.pread(self._fd, 1, _TOKEN) == b"\0"
        except OSError:  # a call has closed all descriptors that it found
            self._is_whole = False
            return False

    def record(self, result: CallResult) -> None:
        """Write a result; without its class, which costs microseconds."""
        if len(result.payload) > MOST_BYTES:
            self._is_whole = False
        else:
            self._write((result.kind, result.payload, result.duration))

    def close(self) -> None:
        """Write that no call runs any more, and close it."""
        if self._is_whole:
            self._write(_OVER)
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _write(self, record: Any) -> None:
        data = pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
        data = len(data).to_bytes(_LENGTH, "big") + data
        try:
            self._is_whole = os.write(self._fd, data) == len(data)
        except OSError:
            self._is_whole = False
