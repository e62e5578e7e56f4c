"""What the command line is given: the callable, and the items it is to be called with.

    MODULE:CALLABLE ──► resolve ──► the callable
    arguments, --file, standard input ──► read_lines ──► make_tasks ──► Task

Guarantees:
    Input is read no sooner than it is asked for, line by line; Ctrl-C interrupts the reading. What cannot be used is a
    `UsageError` that says where it stands.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import select
import stat
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Callable

from parallel_exec._checks import check_priority
from parallel_exec._hints import did_you_mean
from parallel_exec.cli.writer import TICK, describe_error, shorten
from parallel_exec.task import Task

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    AnyTask = Task[Any]
    Line = tuple[str, str]  # where it stands, for messages; its text

STDIN = 0  # its descriptor


class UsageError(Exception):
    """Something the user gave cannot be used; the message says what, and what to give instead."""


def resolve(name: str) -> Callable[[Any], Any]:
    """Return what MODULE:CALLABLE names."""
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UsageError(f"{name!r} names no callable: write MODULE:CALLABLE, for example os.path:getsize")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UsageError(f"{name!r}: importing {module_name!r} raised {describe_error(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{name!r}: there is no {part!r} in {module_name!r}{did_you_mean(part, dir(found), '; ')}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name!r} is not callable: it is of type {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # whatever the user named


def read_lines(options: argparse.Namespace, open_files: contextlib.ExitStack) -> Iterator[Line]:
    """Return the items' texts from wherever the options say."""
    if options.items and options.file:
        raise UsageError("items come either as ITEM arguments or from --file, not from both")
    if options.items and options.items != ["-"]:
        return ((f"argument {number}", text) for number, text in enumerate(options.items, 1))
    if not options.items and not options.file and os.isatty(STDIN):
        raise UsageError("no items: give them as arguments, with --file FILE, or on standard input")
    if options.file in {None, "-"}:
        return _numbered(STDIN, "standard input")
    file = open_files.enter_context(open_file(options.file, "rb"))
    return _numbered(file.fileno(), options.file)


def open_file(path: str, mode: str) -> IO[bytes]:
    """Open a file for its descriptor."""
    try:
        return open(path, mode, buffering=0)
    except OSError as error:
        raise UsageError(f"cannot open {path!r}: {error.strerror}") from error


def _numbered(descriptor: int, name: str) -> Iterator[Line]:
    """Read the lines that are not empty, each as soon as it is there."""
    rest: list[bytes] = []
    number = 0
    for chunk in itertools.chain(_chunks(descriptor, name), [b"\n"]):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            number += 1
            text = os.fsdecode(b"".join(rest)).rstrip("\r")  # file names of any bytes come through
            if text:
                yield f"{name}, line {number}", text
            rest = [other]


def _chunks(descriptor: int, name: str) -> Iterator[bytes]:
    """Read what there is as it comes; Ctrl-C interrupts it."""
    try:
        while True:
            while os.name == "posix" and not select.select([descriptor], [], [], TICK)[0]:
                pass
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return
            yield chunk
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error


def make_tasks(
    lines: Iterable[Line], function: Callable[[Any], Any], rank: Callable[[Any], int] | None, as_json: bool
) -> Iterator[AnyTask]:
    """Make a task of each line."""
    for place, text in lines:
        item: Any = text
        if as_json:
            try:
                item = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}: {shorten(text)!r} is not JSON: {error}") from error
        priority = 0
        if rank is not None:
            try:
                priority = check_priority(rank(item))
            except Exception as error:  # whatever the user's callable raises
                raise UsageError(f"{place}: no priority for {shorten(text)!r}: {describe_error(error)}") from error
        yield Task(partial(function, item), id=text, priority=priority)


def check_is_no_input(output: str, source: str | None) -> None:
    """Refuse to write over the file that the items are read from."""
    with contextlib.suppress(OSError):  # one of the two is not there
        given = os.fstat(STDIN) if source in {None, "-"} else os.stat(source or "")
        if os.path.samestat(os.stat(output), given) and stat.S_ISREG(given.st_mode):
            raise UsageError(f"--output {output!r} is the file that the items are read from: name another")
