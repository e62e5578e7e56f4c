"""The standard descriptors of a program whose standard output is data, and which runs code of others.

    as the program was started                      from then on
    descriptor 0 ──► a copy of the program's own    descriptor 0 ──► the null device
    descriptor 1 ──► a copy of the program's own    descriptor 1 ──► where descriptor 2 leads

Code that knows nothing of this (`print`, C code, a subprocess, a worker process) uses descriptors 0 and 1 by their
numbers. So it can neither write between the program's lines nor read the program's input.

Guarantees:
    After `open_missing` nothing that is opened later lies on descriptors 0 to 2, where others read and write.
    The copies are not inherited: no subprocess keeps the reader of the program's output waiting for its end.

Standard library only: worker processes import this.
"""

from __future__ import annotations

import os
import sys

STDIN, STDOUT, STDERR = 0, 1, 2  # their descriptors


def open_missing() -> frozenset[int]:
    """Open the null device on those of descriptors 0 to 2 that are closed, and return these."""
    missing = set()
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            missing.add(descriptor)
            _lead_to_nothing(descriptor)
    return frozenset(missing)


def _lead_to_nothing(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(opened, descriptor)
        os.close(opened)


def take_input() -> int:
    """Return a copy of standard input, which is empty for everybody else from now on."""
    copy = os.dup(STDIN)
    _lead_to_nothing(STDIN)
    return copy


def take_output() -> int:
    """Return a copy of standard output; what anybody else writes there goes to standard error from now on."""
    if sys.stdout is not None:
        sys.stdout.flush()
    copy = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    print_by_lines()
    return copy


def print_by_lines() -> None:
    """Let what is printed be seen as soon as its line is complete, whatever its characters, as on standard error.

    By a stream of its own: the one there was has been told what lay on the descriptor, a file for example, and counts on
    it; and there is none, if the descriptor was closed.
    """
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    stream = open(STDOUT, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = stream  # type: ignore[misc]  # final for others


def write_all(descriptor: int, text: str) -> None:
    """Write text to a descriptor. Blocks until all is written."""
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]
