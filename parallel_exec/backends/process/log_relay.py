"""Records of the workers' loggers, on their way to the parent's.

    worker: logger ──► handler ──► LOG frame ──► parent: the logger of the same name

Guarantees:
    A record is never lost for what is in it. Its message is filled in when it is made. What else it carries, `extra` and
    the exception, travels piece by piece: what cannot be pickled, or not be rebuilt here, is replaced by its `repr`.
    An exception arrives as `exc_info`, for handlers that look at it, and formatted, as `exc_text`: a formatter shows it once.
    What a process logs that a task has forked goes to standard error: the pipe to the parent is the worker's alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys

from parallel_exec._current import current
from parallel_exec._names import describe_failure
from parallel_exec.backends import _exceptions, _pickling, _reducers
from parallel_exec.backends.process import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_PLAIN_TYPES = frozenset((str, int, float, bool, type(None)))  # what arrives for certain
_LONGEST = 10_000  # characters of a `repr` that takes something's place; a guess
_FORMAT = logging.Formatter(logging.BASIC_FORMAT)


class _FrameHandler(logging.Handler):
    """Sends records as frames, or writes them to standard error: in a process that a task has forked."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Called with the handler's lock held, which is re-entrant: what a record carries may log."""
        try:
            if os.getpid() == self._pid:
                with _reducers.carry(None):  # it may be logged in the middle of a pickle
                    payload = _pickle(record)
                self._send(wire.encode(wire.LOG, payload=payload))
            else:
                sys.stderr.write(_FORMAT.format(record) + "\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _pickle(record: logging.LogRecord) -> bytes:
    """Pickle a record: what is plain as it is, the rest piece by piece, and the exception as exceptions travel."""
    running: Any = current.running
    facts = {"task_id": running.id if running is not None else None, **record.__dict__}
    facts["msg"] = facts["message"] = _message_of(record)
    facts["args"] = None
    described, facts["exc_info"] = b"", None
    if record.exc_info:
        error = record.exc_info[1]
        facts["exc_text"] = record.exc_text or _FORMAT.formatException(record.exc_info)
        described = b"" if error is None else _exceptions.describe(error)
    plain = {name: value for name, value in facts.items() if type(value) in _PLAIN_TYPES}
    pieces = {name: _pickle_piece(value) for name, value in facts.items() if type(value) not in _PLAIN_TYPES}
    return pickle.dumps((plain, pieces, described), 5)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return str(record.getMessage())
    except Exception as failed:
        why = describe_failure(failed)
        return f"{_repr(record.msg)} with {_repr(record.args)} (which is not to be formatted: {why})"


def _pickle_piece(value: Any) -> tuple[bytes, str]:
    """Return the pickle of something, b"" if there is none, and its `repr`."""
    try:
        data = _pickling.dumps(value, inside=True).data
    except BaseException:
        data = b""
    return data, _repr(value)


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException:
        text = f"<{type(value).__name__}, whose repr fails>"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


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
    plain, pieces, described = pickle.loads(payload)
    logger = logging.getLogger(plain["name"])
    if not logger.isEnabledFor(plain["levelno"]):
        return
    record = _make_record()
    record.__dict__.update(plain)
    for name, (data, text) in pieces.items():
        record.__dict__[name] = _load_piece(data, text)
    if described:
        error = _exceptions.rebuild(_exceptions.read(described))
        record.exc_info = (type(error), error, error.__traceback__)
    logger.handle(record)


def _make_record() -> logging.LogRecord:
    """Return a new record: from the program's own factory, unless that fails."""
    try:
        return logging.makeLogRecord({})
    except Exception:
        return logging.LogRecord("", 0, "", 0, "", None, None)


def _load_piece(data: bytes, text: str) -> Any:
    try:
        return pickle.loads(data) if data else text
    except BaseException:
        return text
