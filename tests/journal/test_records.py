"""`parallel_exec._journal.records`: what has ended becomes a record, and comes back as it was."""

from __future__ import annotations

import json
import logging
import pickle
import re
import sys
import threading
import time
import traceback
from typing import Any

import crashing_pickles
import journaled
import pytest
from journaled import FAILED, KEY, SUCCEEDED, VALUELESS

from parallel_exec import RemoteTaskError, TaskTimeoutError
from parallel_exec._journal.records import Codec, Record, UndecodableError
from parallel_exec._outcome import Failure, Success


class LockedError(ValueError):
    """An exception that does not pickle."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


CODECS = {"pickle": Codec, "json": lambda: Codec(json.dumps, json.loads)}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    """A codec of either kind."""
    return CODECS[request.param]()


def _raised(error: BaseException) -> BaseException:
    """Return an exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("value", [None, 0, 1.5, "text", "\x00ü", [1, {"a": None}], True, "x" * 100_000])
def test_values_come_back(codec: Codec, value: Any) -> None:
    """What a task returned is restored."""
    record = codec.record(journaled.ended_job(Success(value)), KEY)
    assert (record.id, record.key, record.state) == ("parse", KEY, SUCCEEDED)
    assert codec.restore(record).outcome == Success(value)


def test_an_attempt_comes_back() -> None:
    """The attempt of a task that needed one is restored with its worker and its time, in this process's clock."""
    job = journaled.ended_job(Success(1))
    ended, codec = job.task_result(), Codec()
    restored = codec.restore(codec.record(job, KEY))
    (was,), (attempt,) = ended.attempts, restored.attempts
    assert attempt._replace(started_at=was.started_at) == was
    assert attempt.started_at == pytest.approx(was.started_at, abs=0.05)
    assert (restored.queued_for, restored.duration) == (ended.queued_for, ended.duration)


def test_attempts_come_back(codec: Codec) -> None:
    """All attempts of a task that was retried are restored, with their errors."""
    job = journaled.ended_job(Success(1), (ValueError("no"), KeyError("x")))
    was = job.attempts()
    attempts = codec.restore(codec.record(job, KEY)).attempts
    assert [each.number for each in attempts] == [1, 2, 3]
    assert [each.worker for each in attempts] == ["w0", "w0", "w1"]
    assert [each.duration for each in attempts] == [each.duration for each in was]
    assert [str(each.error) for each in attempts[:2]] == [
        *(("no", "'x'") if not codec.is_own else ("ValueError: no", "KeyError: 'x'"))
    ]
    assert attempts[2].error is None
    offsets = [each.started_at - attempts[0].started_at for each in attempts]
    assert offsets == pytest.approx([each.started_at - was[0].started_at for each in was], abs=1e-6)


def test_no_attempt_comes_back(codec: Codec) -> None:
    """A task that failed before any attempt began has none."""
    job = journaled.ended_job(Success(1))
    job.attempt_number, job.past, job.first_started_at = 0, (), None
    record = codec.record(job, KEY)
    assert (record.attempts, record.started_at) == (None, None)
    assert codec.restore(record).attempts == ()


def test_an_error_comes_back_as_from_a_worker() -> None:
    """An exception is of its class again, has its cause, and its traceback as text; the attempt has the very same."""
    cause = _raised(KeyError("x"))
    try:
        raise ValueError("no") from cause
    except ValueError as caught:
        error = caught
    codec = Codec()
    record = codec.record(journaled.ended_job(Failure(error)), KEY)
    outcome, attempts, *_ = codec.restore(record)
    assert isinstance(outcome, Failure)
    assert record.state == FAILED
    assert type(outcome.error) is ValueError
    assert outcome.error.args == ("no",)
    assert isinstance(outcome.error.__cause__, KeyError)
    assert outcome.error.__traceback__ is None
    assert "in test_an_error_comes_back_as_from_a_worker" in "".join(
        traceback.format_exception(None, outcome.error, None)
    )
    assert attempts[-1].error is outcome.error


def test_an_error_of_ours_comes_back() -> None:
    """Errors of this library keep their facts."""
    codec = Codec()
    outcome = codec.restore(codec.record(journaled.ended_job(Failure(TaskTimeoutError("parse", 2.5, 1))), KEY)).outcome
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, TaskTimeoutError)
    assert outcome.error.timeout == 2.5


def test_an_error_that_does_not_pickle_has_a_stand_in() -> None:
    """It is of the exception's class all the same."""
    codec = Codec()
    error = LockedError("no")
    outcome = codec.restore(codec.record(journaled.ended_job(Failure(error)), KEY)).outcome
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, LockedError)
    assert "no" in str(outcome.error)


def test_errors_as_json_are_stand_ins() -> None:
    """Where values are encoded by the user, an error is text: its type, its message, its traceback."""
    codec = Codec(json.dumps, json.loads)
    record = codec.record(journaled.ended_job(Failure(_raised(ValueError("no")))), KEY)
    assert isinstance(record.error, str)
    outcome = codec.restore(record).outcome
    assert isinstance(outcome, Failure)
    error = outcome.error
    assert type(error) is RemoteTaskError
    assert (error.type_name, error.message) == ("ValueError", "no")
    assert error.type_names == ("ValueError", "Exception", "BaseException", "object")
    assert "in _raised" in error.worker_traceback


def test_stand_ins_stay_what_they_are() -> None:
    """The stand-in of an exception is not taken for the exception of a later run."""
    codec = Codec(json.dumps, json.loads)
    error = RemoteTaskError("app.PickyError", "no", "Traceback ...", ("app.PickyError", "Exception"))
    outcome = codec.restore(codec.record(journaled.ended_job(Failure(error)), KEY)).outcome
    assert isinstance(outcome, Failure)
    assert vars(outcome.error) == vars(error)


def test_no_pickle_with_an_encoding_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `encode` and `decode`, nothing that was recorded is unpickled, whatever is in the file."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("it was unpickled")

    codec = Codec(str, str)
    evil = pickle.dumps(LockedError)
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", refuse)
        with pytest.raises(UndecodableError):
            codec.restore(Record("a", KEY, FAILED, None, evil, None, None, 0.0, 0.0))
        assert codec.restore(Record("a", KEY, SUCCEEDED, evil, None, None, None, 0.0, 0.0)).outcome == Success(
            str(evil)
        )


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (threading.Lock(), r"the result, of type _thread.lock, .*cannot pickle '_thread.lock' object"),
        ({"a": [threading.Lock()]}, r"\['a'\] \(list\) → \[0\] \(_thread.lock\): TypeError"),
        (crashing_pickles.ExitAtPickle(), "SystemExit"),
    ],
    ids=["lock", "inside", "exit"],
)
def test_a_value_that_does_not_pickle(value: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is recorded as done without its value, and a warning names what in it is why."""
    codec = Codec()
    record = codec.record(journaled.ended_job(Success(value)), KEY)
    assert (record.state, record.result) == (VALUELESS, None)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "'parse'" in told.getMessage()
    assert "will run again" in told.getMessage()
    assert re.search(why, told.getMessage())


@pytest.mark.parametrize(
    ("encode", "why"),
    [
        (lambda value: 1 / 0, "encode raised ZeroDivisionError"),
        (lambda value: sys.exit(3), "encode raised SystemExit: 3"),
        (lambda value: value, "encode returned int: it must return a string or bytes"),
        (lambda value: None, "encode returned None"),
        (lambda value: "\udc80", "UnicodeEncodeError"),
    ],
    ids=["raises", "exits", "no text", "nothing", "surrogate"],
)
def test_an_encode_that_fails(encode: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same where the user's `encode` fails, or returns what cannot be written."""
    record = Codec(encode, str).record(journaled.ended_job(Success(1)), KEY)
    assert record.state == VALUELESS
    assert why.replace("None", "NoneType") in caplog.text


def test_a_value_too_large_for_a_row(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A row that SQLite would refuse, and all others of its transaction with it, is never written."""
    monkeypatch.setattr("parallel_exec._journal.records._LARGEST", 1000)
    assert Codec().record(journaled.ended_job(Success("x" * 1000)), KEY).state == VALUELESS
    assert "it takes 1,0" in caplog.text


def test_few_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Of many values that cannot be encoded the first ones are named, and the rest are counted in the end."""
    codec = Codec()
    for number in range(20):
        codec.record(journaled.ended_job(Success(threading.Lock()), id=f"t{number}"), KEY)
    codec.tell_rest()
    assert codec.valueless == 20
    assert len(caplog.records) == 6
    assert "15 more tasks" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (b"cnowhere\nThing\n.", "ModuleNotFoundError: .*nowhere"),
        (pickle.dumps(crashing_pickles.ExitAtUnpickle()), "SystemExit"),
        (None, "TypeError"),
    ],
    ids=["gone", "exits", "missing"],
)
def test_a_value_that_cannot_be_read_back(result: Any, why: str) -> None:
    """What is left of a class that is gone, say, is told of, and its task may run again."""
    with pytest.raises(UndecodableError, match=f"task 'a' cannot be read back: {why}"):
        Codec().restore(journaled.record("a")._replace(result=result))


def test_other_encodings() -> None:
    """Bytes are given to `decode` as bytes, and text as text."""
    given: list[Any] = []
    for encode in (lambda value: b"\x80\x04", lambda value: "text"):
        codec = Codec(encode, given.append)
        codec.restore(codec.record(journaled.ended_job(Success(1)), KEY))
    assert given == [b"\x80\x04", "text"]


def test_times_are_those_of_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What began before this machine was started, began at a negative time of its clock."""
    record = journaled.record("a")._replace(started_at=time.time() - 10 * time.monotonic())
    (attempt,) = Codec().restore(record).attempts
    assert attempt.started_at == pytest.approx(-9 * time.monotonic(), abs=1.0)


def test_names_of_workers_that_are_no_text() -> None:
    """A worker may be called anything."""
    codec = Codec()
    job = journaled.ended_job(Success(1))
    job.worker = 'w"\udc80\n['
    assert codec.restore(codec.record(job, KEY)).attempts[0].worker == 'w"\udc80\n['
