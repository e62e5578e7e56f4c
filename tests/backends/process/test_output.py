"""What tasks print is that of their attempts: nothing is lost, and nothing mixed."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Iterator

import printing_tasks
import pytest
import work

from parallel_exec import ParallelExecutor, ProcessBackend, WorkerCrashedError
from parallel_exec.backends.process.output import MOST, SERIAL, WorkerOutput, text_of
from parallel_exec.backends.process.wire import HEARD, UNHEARD

from . import logging_tasks

BATCH = 300  # tiny tasks, which go to a worker together


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def capturing(request: pytest.FixtureRequest) -> Iterator[ParallelExecutor]:
    """An executor with one worker, whose output is captured, by each start method."""
    backend = ProcessBackend(mp_context=request.param, capture_output=True)
    with ParallelExecutor(max_concurrency=1, retry_count=0, timeout=60.0, backend=backend) as executor:
        yield executor


@pytest.fixture
def one() -> Iterator[ParallelExecutor]:
    """The same, by the fork server."""
    with ParallelExecutor(
        max_concurrency=1, retry_count=0, timeout=60.0, backend=ProcessBackend(capture_output=True)
    ) as executor:
        yield executor


def outputs(future: Any) -> list[str]:
    """Return what the attempts of a task have written."""
    future.exception()
    return [attempt.output for attempt in future.task_result().attempts]


# ── whose it is ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_captured(capturing: ParallelExecutor) -> None:
    """Python's prints, C's, those of subprocesses, and what is written to the descriptors."""
    first, second = (capturing.submit(printing_tasks.say_everywhere, word) for word in "ab")
    for word, future in zip("ab", (first, second)):
        (output,) = outputs(future)
        lines = [f"{word}: {way}" for way in ("echo", "print", "printf", "stderr", "write 1", "write 2")]
        assert sorted(output.splitlines()) == lines


def test_nothing_is_mixed_in_a_batch(capturing: ParallelExecutor) -> None:
    """Each of many tiny tasks, which travel together, has what it printed, and no more."""
    futures = [capturing.submit(printing_tasks.say, f"task {number}") for number in range(BATCH)]
    assert [outputs(future) for future in futures] == [[f"task {number}\n"] for number in range(BATCH)]


def test_what_no_line_end_flushes(one: ParallelExecutor) -> None:
    """What is still in a buffer when a task ends is that task's."""
    futures = [one.submit(printing_tasks.say_without_end, f"<{number}>") for number in range(3)]
    assert [outputs(future) for future in futures] == [[f"<{number}><{number}>"] for number in range(3)]


def test_who_prints_nothing(one: ParallelExecutor) -> None:
    """Its output is empty, also between two that print."""
    futures = [one.submit(printing_tasks.say, "x"), one.submit(work.double, 1), one.submit(printing_tasks.say, "y")]
    assert [outputs(future) for future in futures] == [["x\n"], [""], ["y\n"]]


def test_nothing_is_captured_unless_wanted() -> None:
    """Without `capture_output` there is no output, and the workers write where this process does."""
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        assert outputs(executor.submit(work.double, 1)) == [""]


def test_a_buffer_of_ones_own(one: ParallelExecutor) -> None:
    """A task that redirects its output keeps it."""
    future = one.submit(printing_tasks.say_to_myself, "mine")
    assert future.result() == "mine\n"
    assert outputs(future) == [""]


def test_children_of_a_task(one: ParallelExecutor) -> None:
    """What a forked child prints is the task's."""
    assert outputs(one.submit(printing_tasks.fork_and_say, "child")) == ["child\n"]


def test_what_is_no_text(one: ParallelExecutor) -> None:
    """Bytes that are not UTF-8 are replaced; what is, stays."""
    assert outputs(one.submit(os.write, 1, b"\xffno\xe2\x82\xac")) == ["�no€"]
    assert outputs(one.submit(printing_tasks.say, "\ud800 ü")) == ["\\ud800 ü\n"]


# ── ends of all kinds ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_failed(one: ParallelExecutor) -> None:
    """Each attempt has its own."""
    future = one.options(retry_count=1, backoff=0.01).submit(printing_tasks.say_then_fail, "oh")
    assert outputs(future) == ["oh\n", "oh\n"]


def test_what_died(capturing: ParallelExecutor) -> None:
    """What was printed before a crash is there, and the next task's is its own."""
    future = capturing.submit(printing_tasks.say_then_die, "last words")
    after = capturing.submit(printing_tasks.say, "next")
    assert isinstance(future.exception(), WorkerCrashedError)
    assert "last words\nlast words in C\n" in outputs(future)[0]
    assert outputs(after) == ["next\n"]


def test_what_was_killed_for_its_timeout(one: ParallelExecutor) -> None:
    """So is what was printed before the time was up."""
    future = one.options(timeout=0.3).submit(printing_tasks.say_then_hang, "here I hang")
    assert outputs(future)[0].startswith("here I hang\n")


def test_a_flood(one: ParallelExecutor) -> None:
    """Of much output the last 64 KB are kept; a worker that writes faster than it is read waits."""
    (output,) = outputs(one.submit(printing_tasks.flood, 20))
    assert len(output) == MOST
    assert output.endswith("9\nthe end\n")


def test_a_task_that_closes_the_pipe(one: ParallelExecutor) -> None:
    """It has what can be told to be its own, and the next one is run as well."""
    assert "closed" in outputs(one.submit(printing_tasks.close_all))[0]
    assert one.submit(work.double, 2).result() == 4


# ── what belongs to no attempt ──────────────────────────────────────────────────────────────────────────────────────


def test_the_initializer_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """What an initializer prints comes out here, and is no task's."""
    backend = ProcessBackend(initializer=printing_tasks.say, initargs=("from the initializer",), capture_output=True)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        assert outputs(executor.submit(printing_tasks.say, "task")) == ["task\n"]
    assert capfd.readouterr() == ("", "from the initializer\n")


def test_the_items_of_a_map_are_passed_on(one: ParallelExecutor, capfd: pytest.CaptureFixture[str]) -> None:
    """`map` has no attempts to look at, so what its items print comes out here."""
    assert list(one.map(printing_tasks.say, ["a", "b", "c"])) == ["a", "b", "c"]
    assert outputs(one.submit(printing_tasks.say, "task")) == ["task\n"]
    one.shutdown()
    assert capfd.readouterr().err == "a\nb\nc\n"


def test_nothing_of_a_long_map_is_lost(one: ParallelExecutor, capfd: pytest.CaptureFixture[str]) -> None:
    """What its items print comes out as they go, however much that is."""
    words = [f"{number} {'x' * 999}" for number in range(300)]
    assert sum(1 for _ in one.map(printing_tasks.say, words, chunksize=300)) == 300
    one.shutdown()
    assert capfd.readouterr().err.splitlines() == words


def test_an_item_that_fails_again(one: ParallelExecutor) -> None:
    """An item of a `map` that is tried again, by itself, takes nothing of what comes behind it."""
    results = one.options(retry_count=1, backoff=0.001).map(printing_tasks.say_then_fail, ["oh"])
    futures = [one.submit(printing_tasks.say_twice, f"task {number}") for number in range(20)]
    with pytest.raises(OSError, match="oh"):
        list(results)
    assert [outputs(future) for future in futures] == [[f"task {number}\n" * 2] for number in range(20)]


def test_a_pipe_that_a_task_leaves_full(one: ParallelExecutor) -> None:
    """One that a subprocess has told not to wait is made to wait again: else nobody knew where the next task's begins."""
    futures = [one.submit(printing_tasks.fill_without_waiting), one.submit(printing_tasks.say, "next")]
    assert [set(outputs(future)[0]) for future in futures] == [{"x"}, set("next\n")]


def test_log_records_travel_as_ever(one: ParallelExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """A worker's loggers are this process's, captured or not."""
    future = one.submit(logging_tasks.say, "chatter", logging.WARNING, "told")
    assert outputs(future) == [""]
    assert caplog.messages == ["told"]


# ── the reading end ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def both() -> Iterator[tuple[int, WorkerOutput]]:
    """A pipe's writing end, and what reads the other."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    output = WorkerOutput(reading)
    os.write(writing, output.token + SERIAL.pack(HEARD))
    yield writing, output
    os.close(reading)
    os.close(writing)


def test_a_marker_in_pieces(both: tuple[int, WorkerOutput]) -> None:
    """A marker is found wherever a read has cut it."""
    writing, output = both
    marker = output.token + SERIAL.pack(7)
    for cut in range(len(marker) + 1):
        os.write(writing, b"before" + marker[:cut])
        output.read()
        os.write(writing, marker[cut:] + b"after" + output.token + SERIAL.pack(8))
        output.read()
        assert output.take(7) == b"before"
        assert output.take(8) == b"after"


def test_nobodys_comes_out_at_once(both: tuple[int, WorkerOutput], capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever a read has cut a marker, and with nothing of that."""
    writing, output = both
    begin, end = (output.token + SERIAL.pack(which) for which in (UNHEARD, HEARD))
    for cut in range(1, len(end)):
        os.write(writing, begin + b"now")
        output.read()
        assert capfd.readouterr().err == "now"
        os.write(writing, b", then" + end[:cut])
        output.read()
        assert capfd.readouterr().err == ", then"
        os.write(writing, end[cut:] + b"mine" + output.token + SERIAL.pack(7))
        output.read()
        assert output.take(7) == b"mine"
        assert capfd.readouterr().err == ""


def test_who_floods_the_pipe_holds_up_nobody(both: tuple[int, WorkerOutput], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task has left behind may write faster than it is read: no end of a call, or of a worker, waits."""
    _, output = both
    output.read()
    monkeypatch.setattr(os, "read", lambda fd, count: b"y" * count)
    assert output.take(7) == b"y" * MOST
    output.drain()
    assert output.rest() == b"y" * MOST


def test_cut_in_the_middle_of_a_character() -> None:
    """What is cut off begins with a whole character."""
    data = ("€" * MOST).encode()
    for start in range(3):
        assert set(text_of(data[start : start + MOST])[:-1]) == {"€"}


@pytest.mark.skipif(sys.platform != "linux", reason="it is `/proc` that tells")
def test_nothing_is_imported_unless_wanted() -> None:
    """A worker that captures nothing does not import `ctypes`."""
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        assert not executor.submit(eval, "'ctypes' in __import__('sys').modules").result()
