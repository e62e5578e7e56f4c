"""How a call ended, there and back: each kind of outcome, alone."""

from __future__ import annotations

import os
import pickle
from typing import Any, NamedTuple

import pytest

from parallel_exec import TaskSerializationError
from parallel_exec._lazy import LazyResultError
from parallel_exec.backends import _pickling
from parallel_exec.backends._outcomes import (
    AS_IS,
    RAISED,
    RETURNED,
    UNREADABLE,
    UNSENDABLE,
    Encoder,
    decode,
    encode_unreadable,
)
from parallel_exec.backends.process.segments import Received


class Named(NamedTuple):
    """A task, as far as messages need it."""

    id: str = "a-task"


LOCAL = Encoder(_pickling.dumps, carries=True)
ELSEWHERE = Encoder(None, carries=False)


class Locked:
    """What cannot be pickled, and says why."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a lock")


class Exploding:
    """What can be pickled, and not be rebuilt."""

    def __reduce__(self) -> Any:
        return os.strerror, ("no number",)


def there_and_back(encoder: Encoder, fn: Any, *args: Any) -> tuple[int, Any]:
    """Return the kind of a call's outcome, and the outcome."""
    kind, pickled = encoder.run(fn, args, {})
    return kind, decode(kind, pickled.data, Named())


def raise_it(error: BaseException) -> None:
    """Raise."""
    raise error


def test_what_a_call_returns() -> None:
    """Its value, pickled, or itself where an engine pickles it."""
    assert there_and_back(LOCAL, divmod, 7, 2) == (RETURNED, ((3, 1),))
    given = Locked()
    kind, outcome = there_and_back(ELSEWHERE, lambda: given)
    assert kind == AS_IS
    assert outcome.value is given


@pytest.mark.parametrize("encoder", [LOCAL, ELSEWHERE])
@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_call_raises(encoder: Encoder, error: BaseException) -> None:
    """Any exception is the task's; its cause is the worker's traceback."""
    kind, outcome = there_and_back(encoder, raise_it, error)
    assert kind == RAISED
    assert (type(outcome.error), outcome.error.args) == (type(error), error.args)
    assert "in raise_it" in str(outcome.error.__cause__)


@pytest.mark.parametrize("encoder", [LOCAL, ELSEWHERE])
def test_what_has_not_run(encoder: Encoder) -> None:
    """A generator is an error of the task's, whoever would pickle it."""
    kind, outcome = there_and_back(encoder, lambda: (number for number in "ab"))
    assert kind == RAISED
    assert type(outcome.error) is LazyResultError


def test_what_cannot_be_pickled() -> None:
    """The error names the result, its task and the direction."""
    kind, outcome = there_and_back(LOCAL, Locked)
    assert kind == UNSENDABLE
    assert type(outcome.error) is TaskSerializationError
    assert outcome.error.direction == "from the worker"
    assert "Locked, of task 'a-task'" in str(outcome.error)
    assert "cannot pickle a lock" in str(outcome.error)


def test_what_cannot_be_rebuilt() -> None:
    """The error says why; its cause is what was raised here."""
    kind, outcome = there_and_back(LOCAL, Exploding)
    assert kind == RETURNED
    assert type(outcome.error) is TaskSerializationError
    assert "it cannot be rebuilt here: TypeError" in str(outcome.error)
    assert type(outcome.error.__cause__) is TypeError


@pytest.mark.parametrize(
    ("error", "expected", "hinted"),
    [
        (ImportError("no module"), TaskSerializationError, True),
        (ValueError("no number"), TaskSerializationError, False),
        (MemoryError("the call takes too much"), MemoryError, False),
    ],
)
def test_a_call_that_cannot_be_unpickled(error: BaseException, expected: type, hinted: bool) -> None:
    """What is wrong with the call is said; a lack of memory is itself."""
    kind, pickled = encode_unreadable(error)
    assert kind == UNREADABLE
    outcome: Any = decode(kind, pickled.data, Named())
    assert type(outcome.error) is expected
    assert str(error) in str(outcome.error)
    assert ("PYTHONPATH" in str(outcome.error)) == hinted


@pytest.mark.parametrize("data", [pickle.dumps(1), b"nonsense"])
def test_descriptors_are_closed_whatever_comes_of_them(data: bytes) -> None:
    """Also if the bytes with which they came are nonsense."""
    reading, writing = os.pipe()
    try:
        decode(RETURNED, data, Named(), 2, lambda _: Received([writing], has_segment=False))
        assert os.read(reading, 1) == b""
    finally:
        os.close(reading)


def test_descriptors_that_do_not_come() -> None:
    """The task fails, and nothing else."""
    outcome: Any = decode(RETURNED, pickle.dumps(1), Named(), 2)
    assert type(outcome.error) is TaskSerializationError
    assert "no descriptors" in str(outcome.error)
