"""What a journal keeps of a task that has ended, and how values and errors become bytes and come back.

    job ──► Codec.record ──► Record ──► Database ──► Record ──► Codec.restore ──► Restored ──► job, or TaskResult

A column is empty where another says the same, as there may be millions of records. `attempts` is a JSON text: the worker's
name alone, if there was one attempt that took all of `duration` and ended as the task did; else a list with a row for
each: number, seconds from `started_at` to its start, duration, worker, and its error's place in `error`, or null.

`error` has the different exceptions of a task, the one that it ended with first: pickled, as `_exceptions` describes them; or
as a JSON text, in a journal with `encode` and `decode`, in which nothing is pickled.

Guarantees:
    `record` never raises, whatever a result or an exception does when it is encoded, but for Ctrl-C. A value that cannot be
    encoded makes the record VALUELESS, and a warning says what in it is why: such a task runs again.
    An error comes back as from a worker process: a stand-in, if its class is not there; its traceback as text.
    With `encode` and `decode`, nothing is unpickled, whoever has written the file.
    Times are recorded as wall clock, and come back on this process's monotonic clock; so they may be negative.
"""

from __future__ import annotations

import functools
import json
import pickle
import threading
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence, Union

from parallel_exec._core.journaling import Restored
from parallel_exec._dispatcher import logger
from parallel_exec._names import describe_failure, type_name
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import main
from parallel_exec.backends import _exceptions, _pickling
from parallel_exec.backends._reducers import ATOMS
from parallel_exec.errors import RemoteTaskError
from parallel_exec.task import Attempt

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._outcome import Outcome

SUCCEEDED, FAILED, VALUELESS = STATES = range(3)

Data = Union[str, bytes]
Encode = Callable[[Any], Data]
Decode = Callable[[Any], Any]

_LARGEST = 900_000_000  # bytes of a value; SQLite takes no row of more than a billion
_TOLD = 5  # warnings for values that cannot be encoded; a guess: then they are counted


class Record(NamedTuple):
    """What a journal has of one task.

    Attributes:
        id: the task's.
        key: the fingerprint of its call.
        state: SUCCEEDED, FAILED, or VALUELESS: it has returned, and its value could not be encoded.
        result: what it returned, encoded; None unless it has SUCCEEDED.
        error: its errors, encoded; None if there are none.
        attempts: its attempts, encoded; None if none began.
        started_at: `time.time()` when the first attempt began; None if none began.
        queued_for: as a `TaskResult`'s.
        duration: as a `TaskResult`'s.
    """

    id: str
    key: bytes
    state: int
    result: Data | None
    error: Data | None
    attempts: str | None
    started_at: float | None
    queued_for: float
    duration: float


_record_of: Callable[[tuple[Any, ...]], Record] = functools.partial(tuple.__new__, Record)  # runs no Python


class UndecodableError(Exception):
    """What was recorded of a task cannot be read back: a class is gone, or `decode` raised."""


class Codec:
    """Makes records, and reads them. `record` is for one thread at a time, `restore` for any.

    Args:
        encode: returns a string or bytes for what a task returned; None: it is pickled.
        decode: undoes that.

    Attributes:
        is_own: whether `encode` and `decode` are the user's, so that nothing is pickled.
        valueless: how many values could not be encoded.
    """

    def __init__(self, encode: Encode | None = None, decode: Decode | None = None) -> None:
        self.is_own = encode is not None
        self.valueless = 0
        self._encode: Encode = encode or _pickle
        self._decode: Decode = decode or pickle.loads

    # ── to the file ─────────────────────────────────────────────────────────────────────────────────────────────────

    def record(self, job: AnyJob, key: bytes) -> Record:
        """Return the record of a job that has ended, and was not cancelled."""
        if job.attempt_number == 1 and not job.past and job.succeeded():
            return self._simple(job, key)
        ended = job.task_result()
        attempts, failure = job.attempts(), ended.error
        result = self._value(job.id, ended.result) if failure is None else None
        state = FAILED if failure is not None else VALUELESS if result is None else SUCCEEDED
        errors = _distinct(failure, attempts)
        error = None if not errors else _errors_to_json(errors) if self.is_own else _errors_to_pickle(errors)
        history = _attempts_to_json(attempts, errors, ended.duration)
        started_at = attempts[0].started_at + time.time() - time.monotonic() if attempts else None
        return Record(job.id, key, state, result, error, history, started_at, ended.queued_for, ended.duration)

    def _simple(self, job: AnyJob, key: bytes) -> Record:
        """Return the record of a job that has succeeded at once, as most do."""
        task_id, first = job.id, job.started_at
        result = self._value(task_id, job.result())
        state = VALUELESS if result is None else SUCCEEDED
        started_at = first + time.time() - time.monotonic()
        worker, queued_for, duration = _worker_to_json(job.worker), first - job.queued_at, job.ended_at - first
        return _record_of((task_id, key, state, result, None, worker, started_at, queued_for, duration))

    def _value(self, id: str, value: Any) -> Data | None:
        """Return what a task returned, encoded; None if it cannot be, which is told of."""
        try:
            data = self._encode(value)
            if isinstance(data, str):
                data.encode()  # not each string is text: SQLite takes no surrogates
            elif not isinstance(data, bytes):
                raise TypeError(f"encode returned {type_name(type(data))}: it must return a string or bytes")
            if len(data) > _LARGEST:
                raise ValueError(f"it takes {len(data):,} bytes, and SQLite has no room for more than a billion")
        except BaseException as error:  # in it runs code of the value's class, or the user's `encode`
            if isinstance(error, KeyboardInterrupt) and threading.get_ident() == main.ident:
                raise
            self._tell(id, value, error)
            return None
        return data

    def _tell(self, id: str, value: Any, error: BaseException) -> None:
        self.valueless += 1
        if self.valueless > _TOLD:
            return
        if self.is_own:
            why = f"encode raised {describe_failure(error)}"
        else:
            from parallel_exec.backends._culprit import unsendable  # only a failure needs it

            why = " ".join(unsendable(value, error))
        logger.warning("the journal has no value of task %r, which will run again: %s", id, why)

    def tell_rest(self) -> None:
        """Warn of those values that could not be encoded, and of which was told nothing."""
        if self.valueless > _TOLD:
            more = self.valueless - _TOLD
            logger.warning("the journal has no value of %d more tasks either, which will run again", more)

    # ── and back ────────────────────────────────────────────────────────────────────────────────────────────────────

    def restore(self, record: Record) -> Restored:
        """Return how the task of a record ended; for one that has its value, or has failed.

        Raises:
            UndecodableError: it cannot be read back.
        """
        try:
            errors = self._errors(record.error)
            outcome: Outcome = Failure(errors[0]) if record.state == FAILED else Success(self._decode(record.result))
            return Restored(outcome, _attempts_of(record, errors), record.queued_for, record.duration)
        except (Exception, SystemExit) as error:  # the code of any class, or the user's `decode`, runs in it
            why = f"what the journal has of task {record.id!r} cannot be read back: {describe_failure(error)}"
            raise UndecodableError(why) from error

    def _errors(self, data: Data | None) -> list[BaseException]:
        if data is None:
            return []
        return _errors_of_json(data) if self.is_own else _errors_of_pickle(data)


def _pickle(value: Any) -> bytes:
    if type(value) in ATOMS:
        return pickle.dumps(value, 5)
    return _pickling.dumps(value, inside=True).data  # a `bytes`, as nothing is outside


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _distinct(failure: BaseException | None, attempts: Sequence[Attempt]) -> list[BaseException]:
    """Return the exceptions of a task, each once, the one that it ended with first."""
    errors = [] if failure is None else [failure]
    for attempt in attempts:
        if attempt.error is not None and not any(attempt.error is error for error in errors):
            errors.append(attempt.error)
    return errors


def _errors_to_pickle(errors: Sequence[BaseException]) -> bytes:
    described = [_exceptions.read(_exceptions.describe(error)) for error in errors]
    return pickle.dumps([[tuple(one) for one in chain] for chain in described], 5)  # no class of ours is in the file


def _errors_of_pickle(data: Any) -> list[BaseException]:
    described = [[_exceptions.Described(*one) for one in chain] for chain in pickle.loads(data)]
    return [_exceptions.rebuild(chain) for chain in described]


def _errors_to_json(errors: Sequence[BaseException]) -> str:
    return json.dumps([_to_facts(error) for error in errors], separators=(",", ":"))


def _to_facts(error: BaseException) -> list[Any]:
    """Return what `RemoteTaskError` is made of."""
    if isinstance(error, RemoteTaskError):
        return [error.type_name, error.message, error.worker_traceback, error.type_names]
    described = _exceptions.describe_plainly(error)
    return [described.names[0], described.message, described.text, described.names]


def _errors_of_json(data: Any) -> list[BaseException]:
    return [RemoteTaskError(name, message, text, tuple(names)) for name, message, text, names in json.loads(data)]


# ── attempts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _attempts_to_json(attempts: Sequence[Attempt], errors: Sequence[BaseException], duration: float) -> str | None:
    if not attempts:
        return None
    first = attempts[0]
    if len(attempts) == 1 and first.duration == duration and first.error is (errors[0] if errors else None):
        return _worker_to_json(first.worker)
    rows = [
        [
            attempt.number,
            attempt.started_at - first.started_at,
            attempt.duration,
            attempt.worker,
            next((place for place, error in enumerate(errors) if error is attempt.error), None),
        ]
        for attempt in attempts
    ]
    return json.dumps(rows, separators=(",", ":"))


@functools.lru_cache(maxsize=256)
def _worker_to_json(worker: str) -> str:
    return json.dumps(worker)


def _attempts_of(record: Record, errors: Sequence[BaseException]) -> tuple[Attempt, ...]:
    if record.attempts is None or record.started_at is None:
        return ()
    started_at = record.started_at - time.time() + time.monotonic()
    found = json.loads(record.attempts)
    if isinstance(found, str):
        return (Attempt(1, started_at, record.duration, errors[0] if errors else None, found),)
    return tuple(
        Attempt(number, started_at + after, duration, None if place is None else errors[place], worker)
        for number, after, duration, worker, place in found
    )
