"""Tasks that log."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from . import unpicklable

logger = logging.getLogger("chatter")


def say(name: str, level: int, message: str, *args: Any) -> int:
    """Log one record and return the process id."""
    logging.getLogger(name).log(level, message, *args)
    return os.getpid()


def say_number(number: int) -> int:
    """Log a number and return it."""
    logger.info("item %s", number)
    return number


def count(numbers: int) -> None:
    """Log so many records."""
    for number in range(numbers):
        logger.info("number %s", number)


def enabled(names: list[str]) -> dict[str, str]:
    """Log at all levels; return the lowest that each logger lets through."""
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]
    for name in names:
        for level in levels:
            logging.getLogger(name).log(level, "%s of %s", logging.getLevelName(level), name)
    lowest = {name: min(level for level in levels if logging.getLogger(name).isEnabledFor(level)) for name in names}
    return {name: logging.getLevelName(level) for name, level in lowest.items()}


def complain() -> None:
    """Log an exception."""
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("it went wrong")


def complain_of_locked() -> None:
    """Log an exception that cannot be pickled."""
    try:
        unpicklable.raise_locked()
    except unpicklable.LockedError:
        logger.exception("it went wrong")


def say_with_lock() -> int:
    """Log what cannot be pickled."""
    extra = {"thing": unpicklable.Locked(), "number": 5, "numbers": [1, 2], "silent": unpicklable.FailsRepr()}
    logger.warning("locked", extra=extra)
    logger.warning("after")
    return os.getpid()


def say_with_trap() -> int:
    """Log what can be rebuilt in this process only."""
    logger.warning("trap", extra={"thing": unpicklable.OnlyHere(os.getpid()), "exit": unpicklable.ExitsWhenRebuilt()})
    logger.warning("after")
    return os.getpid()


def say_and_change() -> None:
    """Log what changes afterwards."""
    thing = [1]
    logger.warning("it is %s", thing, extra={"thing": thing})
    thing.append(2)


class Talker:
    """Logs whatever is done to it."""

    def __repr__(self) -> str:
        logger.warning("shown")
        return "Talker"

    def __reduce__(self) -> Any:
        logger.warning("pickled")
        return Talker, ()


def say_within() -> None:
    """Log what logs."""
    logger.warning("outer", extra={"thing": Talker()})


def say_with_own_id() -> None:
    """Log with an id of its own."""
    logger.warning("mine", extra={"task_id": "mine"})


def say_from_threads(threads: int, numbers: int) -> None:
    """Log from several threads at once."""
    made = [threading.Thread(target=count, args=(numbers,)) for _ in range(threads)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()


def _count_into(stderr: str) -> None:
    """Log so that standard error can be read."""
    with Path(stderr).open("w") as sys.stderr:
        count(1000)


def say_after_fork(stderr: str) -> bool:
    """Log here and in a forked child; return whether the child came through."""
    child = os.fork()
    if not child:
        try:
            _count_into(stderr)
        finally:
            os._exit(7)
    logger.warning("from the worker")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def say_in_process(stderr: str) -> bool:
    """Do so in a process of `multiprocessing`."""
    process = multiprocessing.get_context("fork").Process(target=_count_into, args=(stderr,))
    process.start()
    logger.warning("from the worker")
    process.join()
    return process.exitcode == 0


def say_and_die() -> NoReturn:
    """Log and end this process on the spot."""
    logger.warning("good bye")
    os._exit(1)


def talk_for_ever() -> NoReturn:
    """Log without end."""
    while True:
        logger.info("blah")
        threading.Event().wait(0.0005)
