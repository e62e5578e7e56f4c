"""The lines and the summary, apart from the command line."""

from __future__ import annotations

import itertools
import json
import os
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest
import work
from interruptions import interrupt

from parallel_exec import Attempt, ParallelExecutor, Task, TaskResult
from parallel_exec.cli.output import Output
from parallel_exec.cli.writer import WIDTH, Refused, Summary, Writer, shorten, to_json

if TYPE_CHECKING:
    from pathlib import Path


def result_of(
    name: str,
    *,
    value: Any = None,
    error: BaseException | None = None,
    attempts: int = 1,
    duration: float = 0.0,
    resumed: bool = False,
) -> TaskResult[Any]:
    """Make a result as an executor would."""
    made = tuple(Attempt(number + 1, 0.0, 0.25, error, "worker") for number in range(attempts))
    return TaskResult(Task(dict, id=name), error is None, value, error, made, 0.0, duration, False, resumed)


def test_the_summary_counts() -> None:
    """The first line says how many tasks did what, and how much work it was."""
    summary = Summary()
    summary.add(result_of("a", attempts=3))
    summary.add(result_of("b", error=ValueError("no")))
    summary.add(result_of("c", error=CancelledError(), attempts=0))
    first = summary.text().splitlines()[0]
    assert first.startswith("3 tasks in 0.0")
    assert first.endswith(" s (1.00 s of work): 1 succeeded, 1 failed, 1 cancelled, 1 retried")
    assert (summary.done, summary.failed, summary.cancelled) == (3, 1, 1)


def test_what_comes_from_the_journal_is_no_work() -> None:
    """It counts as what it was, and takes no part in how long things took."""
    summary = Summary()
    for number in range(10):
        summary.add(result_of(str(number), attempts=2, duration=0.2 * number, resumed=True))
    summary.add(result_of("bad", error=ValueError("no"), resumed=True))
    text = summary.text()
    assert (
        "(0.00 s of work): 10 succeeded, 1 failed, 11 taken from the journal\nfailed:\n  bad: ValueError: no\n" in text
    )


def test_the_summary_names_the_slowest() -> None:
    """The slowest five come first, the slowest of all on top."""
    summary = Summary()
    for number in (3, 1, 4, 6, 5, 2, 1, 1):
        summary.add(result_of(str(number), duration=float(number)))
    listed = summary.text().partition("slowest:\n")[2].splitlines()
    assert listed == [f"  {number:8.3f} s  {number}" for number in (6, 5, 4, 3, 2)]


@pytest.mark.parametrize(
    ("durations", "told"),
    [
        ([0.01] * 4 + [9.0], False),  # all would be in the list
        ([0.01] * 5 + [9.0], True),
        ([0.0] * 1000 + [0.09], False),  # nobody waits for that
        ([0.0] * 1000 + [0.11], True),
        ([1.0] * 500 + [1.5], False),  # it does not stand out
        ([1.0] * 500 + [4.0], True),
        ([0.5] * 10 + [3.0] * 20, False),  # most are like it
        ([], False),
    ],
)
def test_the_slowest_are_named_where_that_says_something(durations: list[float], told: bool) -> None:
    """There must be more than the list has, and one that took much longer than most, and a time that a person notices."""
    summary = Summary()
    for number, duration in enumerate(durations):
        summary.add(result_of(str(number), duration=duration))
    assert ("slowest:" in summary.text()) == told


def test_the_summary_of_one_task_has_one_line() -> None:
    """A single success needs no more."""
    summary = Summary()
    summary.add(result_of("only"))
    assert summary.text().count("\n") == 1
    assert summary.text().startswith("1 task in ")


def test_the_summary_survives_an_error_without_message() -> None:
    """An exception whose `__str__` raises is still named."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    summary = Summary()
    summary.add(result_of("a", error=MuteError()))
    summary.add(result_of("b", error=KeyboardInterrupt()))
    assert summary.text().endswith("a: " + f"{MuteError.__qualname__}: (its __str__ raised)\n  b: KeyboardInterrupt\n")


@pytest.mark.parametrize("text", ["a\nb\t c", "x" * 99, "x" * 100, "x" * 101, "begin" + "x" * 5000 + "end"])
def test_shortened_text_fits_a_line(text: str) -> None:
    """Long text keeps its begin and end, short text is kept as it is."""
    short = shorten(text)
    assert len(short) <= WIDTH
    assert "\n" not in short
    assert (short[0], short[-1]) == (text[0], text[-1])
    assert short == text or "..." in short or text == "a\nb\t c"


@pytest.mark.parametrize("value", [None, 1.5, "é\udc80\n\x85\u2028", [1, {"a": None}], True])
def test_json_carries_what_it_can(value: Any) -> None:
    """A JSON value comes back as it was, on one line, with its characters as they are."""
    line = to_json(1, result_of("a", value=value), False)
    assert json.loads(line)["result"] == value
    assert "repr" not in json.loads(line)
    assert len(line.splitlines()) == 1
    assert ("é" in line) == ("é" in str(value))


def test_a_line_says_where_it_comes_from() -> None:
    """What an earlier run has done is marked, and what is of no input has no index."""
    assert json.loads(to_json(1, result_of("a", resumed=True), False))["resumed"] is True
    assert list(json.loads(to_json(None, result_of("a"), False))) == [
        *("id", "success", "result", "error", "attempts", "duration")
    ]


@pytest.mark.parametrize("value", [{1, 2}, b"x", float("inf"), [float("nan")], {(1, 2): 3}, object, 1j])
def test_json_says_when_it_has_the_repr(value: Any) -> None:
    """Anything else is written as its repr, and marked."""
    line = json.loads(to_json(1, result_of("a", value=value), False))
    assert (line["result"], line["repr"]) == (repr(value), True)


def test_a_writer_lets_in_no_more_than_it_has_room_for() -> None:
    """`admit` waits while as many futures as there is room for are not written yet."""
    read_end, write_end = os.pipe()
    go = threading.Event()
    admitted = []
    try:
        with Writer(Output(write_end), None, 0, room=2) as writer, ParallelExecutor(max_concurrency=4) as executor:

            def feed() -> None:
                for number in range(3):
                    assert writer.admit()
                    admitted.append(number)
                    writer.watch(0, executor.submit(go.wait, 30))

            feeder = threading.Thread(target=feed)
            feeder.start()
            work.until(lambda: len(admitted) == 2)
            feeder.join(0.3)  # nothing to wait for: what is looked for is that nothing more happens
            assert admitted == [0, 1]
            go.set()
            feeder.join(30)
            writer.wait()
            assert admitted == [0, 1, 2]
        assert os.read(read_end, 10_000).count(b"\n") == 3
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_writer_lets_nothing_in_that_it_cannot_write(tmp_path: Path) -> None:
    """After an error of the output, `admit` refuses, what is watched is aborted, and the rest is still counted."""
    path = tmp_path / "read-only"
    path.touch()
    output = os.open(path, os.O_RDONLY)
    go = threading.Event()
    try:
        with (
            Writer(Output(output), None, 0, room=3) as writer,
            ParallelExecutor(max_concurrency=2, timeout=None) as executor,
        ):
            assert writer.admit()
            stuck = executor.submit(go.wait)
            writer.watch(0, stuck)
            assert writer.admit()
            writer.watch(0, executor.submit(dict))
            writer.wait()  # both are told of, though nothing ended `stuck` but its abort
            assert stuck.cancelled()
            late = executor.submit(go.wait)
            writer.watch(0, late)
            assert late.cancelled()
        assert isinstance(writer.output_error, OSError)
        assert (writer.summary.done, writer.summary.cancelled) == (3, 2)
        assert not writer.admit()
    finally:
        go.set()
        os.close(output)


def test_ctrl_c_while_it_waits_for_the_writing_thread() -> None:
    """Wherever it comes, that thread goes on: all that was let in is written, and the block ends."""
    for step in itertools.count(1):
        read_end, write_end = os.pipe()
        with Writer(Output(write_end), None, 0, room=1) as writer:

            def feed(writer: Writer = writer) -> None:
                for number in range(2):
                    writer.admit()
                    writer.refuse(number, Refused("item", ValueError()))
                writer.wait()

            has_more = interrupt(feed, step)
        written = os.read(read_end, 10_000).count(b"\n") if writer.summary.done else 0
        assert written == writer.summary.done
        os.close(read_end)
        os.close(write_end)
        if not has_more:
            break
    assert (step > 10, written) == (True, 2)
