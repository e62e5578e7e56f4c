"""What the command line is given: the callable, and the items it is to be called with.

    MODULE:CALLABLE ──► resolve ──► the callable
    arguments, --file, standard input ──► open_source ──► read_lines ──► read_items ──► Call or Refused

Guarantees:
    Input is read no sooner than it is asked for, line by line; Ctrl-C interrupts the reading. What cannot be used at
    all is a `UsageError`; an item that cannot be used is refused by itself, and says where it stands.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import select
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

from parallel_exec._checks import check_priority
from parallel_exec._hints import did_you_mean
from parallel_exec._lazy import refuse_lazy
from parallel_exec._stdio import STDIN, take_input
from parallel_exec.cli.options import UsageError
from parallel_exec.cli.output import open_file
from parallel_exec.cli.writer import POLL, USERS_ERRORS, Refused, describe_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from parallel_exec.cli.limits import ItemNeeds


class Call(NamedTuple):
    """What is to be called for an item.

    Attributes:
        id: the item, as it was given.
        execute: without arguments.
        priority: the higher, the sooner.
        needs: what it needs of the limits; None: nothing.
    """

    id: str
    execute: Callable[[], Any]
    priority: int
    needs: Mapping[str, Any] | None = None


Item = Union[Call, Refused]


class ItemError(Exception):
    """An item cannot be used; the message says where it stands and what is wrong."""


# ── the callable ─────────────────────────────────────────────────────────────────────────────────────────────────────


def search_here() -> None:
    """Let modules in the current directory be found, as `python -m` does."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())


def resolve(name: str) -> Callable[[Any], Any]:
    """Return what MODULE:CALLABLE names, if a task can call it."""
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UsageError(f"{name!r} names no callable: write MODULE:CALLABLE, for example os.path:getsize")
    found: Any = _import(name, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{name!r}: there is no {part!r} in {module_name!r}{did_you_mean(part, dir(found), '; ')}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name!r} is not callable: it is of type {type(found).__name__}")
    try:
        refuse_lazy("parallel-exec map", found)
    except TypeError as error:
        raise UsageError(f"{name!r}: {error}") from error
    return found  # type: ignore[no-any-return]  # whatever the user named


def _import(name: str, module_name: str) -> Any:
    """Import a module of the user's."""
    try:
        return importlib.import_module(module_name)
    except USERS_ERRORS as error:  # whatever the module's own code raises
        why = describe_error(error)
        if isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or module_name):
            why += _meant(module_name)
        raise UsageError(f"{name!r}: importing {module_name!r} raised {why}") from error


def _meant(module_name: str) -> str:
    """Return what may have been meant by the name of a module that there is not; "" if there is nothing to say."""
    plain = module_name.removesuffix(".py")
    dotted = plain.replace(os.sep, ".").strip(".")
    if dotted != module_name:
        return f"; did you mean {dotted!r}? A module is named as in an import"
    with contextlib.suppress(OSError):
        here = [entry.removesuffix(".py") for entry in os.listdir()]
        return did_you_mean(module_name, [*here, *getattr(sys, "stdlib_module_names", ())], "; ")
    return ""


# ── the items ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Line(NamedTuple):
    """What an item is made of.

    Attributes:
        number: of the line in its file, or of the argument, from 1; lines that are empty count.
        text: of it, as bytes.
    """

    number: int
    text: bytes


class Source(NamedTuple):
    """Where items come from: arguments, or the lines of a file.

    Attributes:
        name: of the file, for messages.
        descriptor: of the file.
        arguments: the items, if they are arguments.
    """

    name: str
    descriptor: int
    arguments: tuple[str, ...] = ()

    def place(self, number: int) -> str:
        """Return where an item stands, for messages."""
        return f"argument {number}" if self.arguments else f"line {number} of {self.name}"


def open_source(options: argparse.Namespace, missing: frozenset[int], open_files: contextlib.ExitStack) -> Source:
    """Open wherever the items are to come from; where that is standard input, nobody else reads it from now on."""
    if options.items and options.file:
        raise UsageError("items come either as ITEM arguments or from --file, not from both")
    if options.items and options.items != ["-"]:
        return Source("the arguments", -1, tuple(options.items))
    if options.file not in {None, "-"}:
        return Source(options.file, open_files.enter_context(open_file(options.file, "rb")).fileno())
    if STDIN in missing:
        raise UsageError("standard input is closed: give the items as arguments or with --file FILE")
    if not options.items and not options.file and os.isatty(STDIN):
        raise UsageError("no items: give them as arguments, with --file FILE, or on standard input")
    descriptor = take_input()
    open_files.callback(os.close, descriptor)
    return Source("standard input", descriptor)


def check_is_no_input(output: str, source: Source) -> None:
    """Refuse to write over the file that the items are read from."""
    if source.arguments:
        return
    with contextlib.suppress(OSError):  # there is no such file yet
        given = os.fstat(source.descriptor)
        if os.path.samestat(os.stat(output), given) and stat.S_ISREG(given.st_mode):
            raise UsageError(f"--output {output!r} is the file that the items are read from: name another")


def read_lines(source: Source) -> Iterator[Line]:
    """Read the lines that are not empty, each as soon as it is there."""
    if source.arguments:
        yield from (Line(number, os.fsencode(text)) for number, text in enumerate(source.arguments, 1))
        return
    rest: list[bytes] = []
    number = 0
    for chunk in itertools.chain(_chunks(source), [b"\n"]):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            number += 1
            text = b"".join(rest).rstrip(b"\r")
            if text:
                yield Line(number, text)
            rest = [other]


def _chunks(source: Source) -> Iterator[bytes]:
    """Read what there is as it comes; Ctrl-C interrupts it."""
    wait = _readable(source.descriptor) if os.name == "posix" else itertools.repeat(None)
    try:
        for _ in wait:
            chunk = os.read(source.descriptor, 65536)
            if not chunk:
                return
            yield chunk
    except OSError as error:
        raise UsageError(f"cannot read {source.name}: {error.strerror}") from error


def _readable(descriptor: int) -> Iterator[None]:
    """Yield each time that there is something to read, or nothing any more."""
    poll = select.poll()  # unlike `select`, it takes any descriptor
    poll.register(descriptor, select.POLLIN)
    while True:
        while not poll.poll(POLL * 1000):
            pass
        yield


def read_items(
    source: Source,
    function: Callable[[Any], Any],
    rank: Callable[[Any], int] | None,
    as_json: bool,
    needs: ItemNeeds | None = None,
) -> Iterator[tuple[int, Item]]:
    """Make a call of each line and argument, and return its number with it."""
    for number, raw in read_lines(source):
        text = raw.decode("utf-8", "surrogateescape") if as_json else os.fsdecode(raw)  # any bytes come through
        try:
            item = _parse(text) if as_json else text
            priority = 0 if rank is None else _rank(rank, item)
            needed = None if needs is None else _needed(needs, item)
        except ItemError as error:
            error.args = (f"{source.place(number)} {error}",)
            yield number, Refused(text, error.with_traceback(None))  # the way through this module tells nobody anything
        else:
            yield number, Call(text, partial(function, item), priority, needed)


def with_unique_ids(items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """Give an item that has come before an id of its own: "a", then "a #2", then "a #3".

    Keeps some 60 bytes for each item, whatever its length.
    """
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for number, item in items:
        if isinstance(item, Refused):
            yield number, item
            continue
        unique = item.id
        while hash(unique) in seen:  # which may also be an item that looks like it
            counts[item.id] = count = counts.get(item.id, 1) + 1
            unique = f"{item.id} #{count}"
        seen.add(hash(unique))
        yield number, item._replace(id=unique)


def _parse(text: str) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:  # its own message counts lines, which would not be those of the input
        raise ItemError(f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number that is too long, or lists in lists in lists
        raise ItemError(f"is not JSON: {error}") from None


def _rank(rank: Callable[[Any], int], item: Any) -> int:
    """Return an item's priority."""
    try:
        return check_priority(rank(item))
    except USERS_ERRORS as error:  # whatever the user's callable raises
        raise ItemError(f"has no priority: {describe_error(error)}") from error


def _needed(needs: ItemNeeds, item: Any) -> Mapping[str, Any]:
    """Return what an item needs."""
    try:
        return needs.of(item)
    except USERS_ERRORS as error:  # whatever the user's callable raises
        raise ItemError(f"cannot say what it needs: {describe_error(error)}") from error
