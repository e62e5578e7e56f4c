"""In which order lines are written, how many calls there are at once, and what an item that is awaited holds up."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from program import BACKENDS, read, results, run, started, wait_until

from parallel_exec._cpus import usable_cpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_lines_keep_the_order_of_the_items(workdir: Path, backend: str, mode: tuple[str, ...]) -> None:
    """With `--keep-order` a line waits for those before it, and is written as soon as they are."""
    items = ("quick-1", "wait-1", "quick-2", "wait-2", "quick-3")
    with started(workdir, "work:wait_for", *items, "-j5", "--keep-order", "--backend", backend, *mode) as process:
        assert read(process.stdout.readline())[0]["id"] == "quick-1"
        (workdir / "go-wait-2").touch()
        wait_until(lambda: len(list(workdir.glob("started-*"))) == 5)
        (workdir / "go-wait-1").touch()
        lines = read(process.communicate(timeout=20)[0])
    assert process.returncode == 0
    assert [(line["index"], line["id"]) for line in lines] == list(enumerate(items[1:], 2))


def test_the_order_is_kept_under_priorities(workdir: Path) -> None:
    """The highest priority runs first, and the lines come in the order of the items all the same."""
    items = ("a", "bbb", "cc")
    process = run("work:double", *items, "--priority", "work:length", "--keep-order", "-j1", cwd=workdir)
    assert tuple(results(process)) == items


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_is_kept_amid_failures(workdir: Path, backend: str) -> None:
    """Lines of all kinds keep it: succeeded, failed, refused, and after lines that are empty."""
    stdin = "".join(f"{number}\n\n" if number % 3 else "{\n" for number in range(600))
    options = ("--json", "--keep-order", "--retries", "0", "--backend", backend)
    process = run("work:fail_if_even", *options, cwd=workdir, stdin=stdin)
    lines = read(process.stdout)
    numbers = [number for number, line in enumerate(stdin.splitlines(), 1) if line]
    assert [line["index"] for line in lines] == numbers
    assert [line["attempts"] for line in lines] == [0, 1, 1] * 200
    assert [line["success"] for line in lines] == [False, True, False, False, False, True] * 100


def test_an_item_that_takes_long_holds_up_endless_input(workdir: Path) -> None:
    """What is held back for the order is of bounded size."""
    stdin = "wait\n" + "".join(f"{number}\n" for number in range(1000))
    with started(workdir, "work:wait_for", "-j2", "--keep-order", "--timeout", "none") as process:
        process.stdin.write(stdin.encode())
        process.stdin.close()
        wait_until(lambda: len(list(workdir.glob("started-*"))) == 128)
        time.sleep(0.3)  # nothing to wait for: what is looked for is that nothing more happens
        assert len(list(workdir.glob("started-*"))) == 128
        (workdir / "go-wait").touch()
        lines = read(process.stdout.read())
        assert process.wait(20) == 0
    assert [line["index"] for line in lines] == list(range(1, 1002))


@pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
def test_ctrl_c_writes_what_was_held_back(workdir: Path, mode: tuple[str, ...]) -> None:
    """A finished result is written even if its turn has not come."""
    items = ("wait-1", "quick-1", "wait-2", "quick-2", "wait-3", "wait-4")
    with started(workdir, "work:wait_for", *items, "-j4", "--keep-order", *mode) as process:
        wait_until(lambda: len(list(workdir.glob("started-*"))) == 6)  # the last two where the quick ones have ended
        process.send_signal(signal.SIGINT)
        lines = read(process.communicate(timeout=20)[0])
    assert process.returncode == 130
    assert [line["index"] for line in lines] == [2, 4]


@pytest.mark.parametrize(("backend", "more"), [("thread", 4), ("process", 0)])
def test_as_many_calls_as_cpus(workdir: Path, backend: str, more: int) -> None:
    """With `-j auto` there are as many workers as CPUs that may be used, and four more threads."""
    most = min(usable_cpus() + more, 32)
    options = ("-j", "auto", "--backend", backend, "--timeout", "none")
    with started(workdir, "work:wait_for", *(f"wait-{number}" for number in range(most + 2)), *options) as process:
        wait_until(lambda: len(list(workdir.glob("started-*"))) == most)
        time.sleep(0.3)  # nothing to wait for: what is looked for is that nothing more happens
        assert len(list(workdir.glob("started-*"))) == most
        for number in range(most + 2):
            (workdir / f"go-wait-{number}").touch()
        assert len(read(process.communicate(timeout=20)[0])) == most + 2
