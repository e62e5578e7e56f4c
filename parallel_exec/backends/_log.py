"""Records of the workers' loggers, on their way to the parent's.

worker: logger ──► handler ──► LOG frame ──► parent: the logger of the same name
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
from typing import Any, Callable

from parallel_exec._current import current
from parallel_exec.backends import _wire


class _FrameHandler(logging.handlers.QueueHandler):
    """Sends records as frames. Only in the worker itself: a process that a task forks must not write to our pipe."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__(queue=send)  # type: ignore[arg-type]  # the "queue" is only used by enqueue, below
        self._send = send
        self._pid = os.getpid()

    def enqueue(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._pid:
            running: Any = current.running
            record.task_id = running.id if running is not None else None
            self._send(_wire.encode(_wire.LOG, payload=pickle.dumps(record.__dict__)))


def send_records(send: Callable[[bytes], None], levels: dict[str, int]) -> None:
    """Send this process's records to the parent, filtered here by the parent's levels."""
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:  # a forked worker inherited handlers
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True  # one with handlers of its own may have been told not to
    logging.root.addHandler(_FrameHandler(send))


def levels() -> dict[str, int]:
    """Return the levels of this process's loggers, by name; the root's name is ""."""
    found = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            found[name] = logger.level
    return found


def receive_record(payload: bytes) -> None:
    """Give a worker's record to the logger of its name."""
    record = logging.makeLogRecord(pickle.loads(payload))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
