"""A disk whose power is cut: what a program wrote, by strace, and what may be left of that at any moment.

    record: strace python ... ──► the calls that change files ──► cuts: after each call, what a cut of the power may leave

What was written and not synced since may be there, or not, or in part. That a file was made holds once it or its folder
was synced, that it was removed once the folder was.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, NamedTuple

if TYPE_CHECKING:
    import random

SECTOR = 512  # bytes that a disk writes whole
CALLS = "openat,pwrite64,ftruncate,fsync,fdatasync,unlink"  # all that SQLite does to files


class Call(NamedTuple):
    """One call that changed a file, or had its changes brought to the disk.

    Attributes:
        name: "create", "write", "truncate", "sync" or "remove".
        file: the file's name in the folder, "" for the folder.
        data: what was written.
        at: the offset of a write, the new size of a truncation.
    """

    name: str
    file: str
    data: bytes = b""
    at: int = 0


def strace(file: Path) -> list[str]:
    """Return what a command line begins with, to have its calls written to `file`."""
    return ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", "-o", str(file)]


def has_strace() -> bool:
    """Return whether strace is there, and may trace."""
    return shutil.which("strace") is not None and os.system("strace -e trace=none true 2> /dev/null") == 0


_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>.*= (?P<result>-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")


def _plain(text: str) -> bytes:
    """Return what strace has written as hexadecimal digits."""
    return bytes.fromhex(text.replace("\\x", ""))


def read(file: Path, database: Path) -> list[Call]:
    """Return the calls of a file of strace's that were about the files of a database, in order.

    A sync counts from when it has come back; all else from when it was called.
    """
    calls: list[Call] = []
    waiting: dict[str, Call] = {}  # syncs that have not come back, by thread
    for line in file.read_text().splitlines():
        resumed = _RESUMED.match(line)
        if resumed and (sync := waiting.pop(resumed["pid"], None)) and resumed["result"] == "0":
            calls.append(sync)
        found = _CALL.match(line)
        call = _call(found["name"], found["rest"], database.parent, database.name) if found else None
        if found and call:
            if call.name == "sync" and line.endswith("<unfinished ...>"):
                waiting[found["pid"]] = call
            else:
                calls.append(call)
    return calls


def _call(name: str, rest: str, folder: Path, prefix: str) -> Call | None:
    """Return one call, None if it is about something else, or has failed."""
    strings = [_plain(text) for text in _STRING.findall(rest)]
    opened = _FILE.match(rest)
    path = Path(os.fsdecode(_plain(opened[1]) if opened else strings[-1] if strings else b""))
    if path != folder and (path.parent != folder or not path.name.startswith(prefix)):
        return None
    if re.search(r"= -1 \w+", rest) or path.name.endswith("-shm"):  # memory, which no cut of the power leaves
        return None
    numbers = [int(number) for number in re.findall(r", (\d+)", rest)]
    if name == "openat":
        return Call("create", path.name) if "O_CREAT" in rest else None
    if name == "pwrite64":
        return Call("write", path.name, strings[0], numbers[-1])
    if name == "ftruncate":
        return Call("truncate", path.name, at=numbers[0])
    return Call("remove" if name == "unlink" else "sync", path.name if path != folder else "")


class Disk:
    """Files, of which each has what is on the disk for certain, and what may be."""

    def __init__(self) -> None:
        self._certain: dict[str, bytes] = {}
        self._pending: list[Call] = []

    def apply(self, call: Call) -> None:
        """Do what a call did."""
        if call.name != "sync":
            self._pending.append(call)
            return
        pending, self._pending = self._pending, []
        removed = {each.file: number for number, each in enumerate(pending) if each.name == "remove"}
        for number, each in enumerate(pending):
            if each.file == call.file or (
                not call.file and (each.name == "create" or number <= removed.get(each.file, -1))
            ):
                _change(self._certain, each)
            else:
                self._pending.append(each)

    def cuts(self, moments: random.Random) -> Iterator[dict[str, bytes]]:
        """Yield what a cut of the power may leave: all that was written, nothing that was not synced, and some of it."""
        for kept in (lambda: True, lambda: False, lambda: moments.random() < 0.5):
            files = dict(self._certain)
            for call in self._pending:
                if kept():
                    _change(files, call)
            yield files
        files = dict(self._certain)
        for call in self._pending:
            for sector in _sectors(call):
                if moments.random() < 0.5:
                    _change(files, sector)
        yield files


def _sectors(call: Call) -> Iterator[Call]:
    """Yield the pieces of a call that reach the disk whole."""
    if call.name != "write":
        yield call
        return
    start = 0
    while start < len(call.data):
        size = SECTOR - (call.at + start) % SECTOR
        yield call._replace(data=call.data[start : start + size], at=call.at + start)
        start += size


def _change(files: dict[str, bytes], call: Call) -> None:
    """Do to some files what a call did."""
    if call.name == "remove":
        files.pop(call.file, None)
        return
    old = files.get(call.file, b"")
    if call.name == "create":
        files[call.file] = old
    elif call.name == "truncate":
        files[call.file] = old[: call.at].ljust(call.at, b"\0")
    else:
        files[call.file] = old[: call.at].ljust(call.at, b"\0") + call.data + old[call.at + len(call.data) :]


def lay_out(files: dict[str, bytes], folder: Path) -> None:
    """Write the files that are left."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
