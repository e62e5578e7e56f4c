"""What raises anything at all, and is gone on from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from parallel_exec._sync.guarded import guarded


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt()])
def test_what_is_raised_is_logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Also what is no `Exception`; and what comes next is done."""

    def act(heard: list[int], number: int) -> None:
        heard.append(number)
        raise error

    heard: list[int] = []
    guarded(act, heard, 1)
    guarded(act, heard, 2, said="a callback of task %r raised", owner=SimpleNamespace(id="sum-1"))
    assert heard == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "a callback raised",
        "a callback of task 'sum-1' raised",
    ]
    assert all(record.exc_info and record.exc_info[1] is error for record in caplog.records)


def test_what_raises_nothing_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """It is called, and that is all."""
    heard: list[int] = []
    guarded(heard.append, 1)
    assert (heard, caplog.records) == ([1], [])
