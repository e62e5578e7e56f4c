"""Workers that are forked because the user wants it so: no warning, whatever the filters, and nobody else's filters change."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import Any

import pytest
import script

from parallel_exec.backends.process.fork_warning import no_fork_warning

WARNS = sys.version_info >= (3, 12)  # CPython warns of a fork amid threads
SHOWN = ("-X", "faulthandler", "-W", "always")
INHERITED = (*script.QUIET, "-X", "context_aware_warnings=1", "-X", "thread_inherit_context=1")


@pytest.mark.parametrize("flags", [script.QUIET, SHOWN, INHERITED], ids=["errors", "shown", "filters of a context"])
def test_forked_workers_start_without_a_warning(tmp_path: Any, flags: tuple[str, ...]) -> None:
    """With warnings shown, and with warnings as errors, in whatever way, workers start, and none is left unwaited for."""
    said = script.run(
        tmp_path,
        """
        import warnings, psutil
        from parallel_exec import ProcessBackend
        with warnings.catch_warnings():
            warnings.simplefilter("error" if "error" in sys.warnoptions else "always")
            with ParallelExecutor(backend=ProcessBackend(mp_context="fork"), max_concurrency=2) as executor:
                say(*executor.map(work.double, range(4), chunksize=1))
        say(*(child.status() for child in psutil.Process().children() if "tracker" not in "".join(child.cmdline())))
        """,
        flags=flags,
    )
    assert said == "0 2 4 6"


def test_a_pool_that_one_brings_forks_without_a_warning(tmp_path: Any) -> None:
    """The threads that the warning is about are ours. It used to leave copies of the program that never ended."""
    said = script.run(
        tmp_path,
        """
        import multiprocessing, psutil
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            with ParallelExecutor(backend=pool, max_concurrency=2, retry_count=0) as executor:
                say(*executor.map(work.double, range(4)))
        say(*(child.status() for child in psutil.Process().children() if "tracker" not in "".join(child.cmdline())))
        """,
    )
    assert said == "0 2 4 6"


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _warnings_of_a_fork() -> int:
    """Return how many warnings there are when this process forks amid threads."""
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _fork()
    finally:
        gate.set()
        thread.join()
    return len(caught)


def test_a_task_that_forks_is_warned(pool: Any) -> None:
    """What keeps the warning from the start of a worker does not go on in the worker."""
    executor = pool(backend={"mp_context": "fork"})
    assert executor.submit(_warnings_of_a_fork).result() == WARNS


def test_other_threads_are_warned() -> None:
    """While one thread may fork without the warning, another one may not."""
    counts: list[int] = []

    def fork_in_another() -> None:
        thread = threading.Thread(target=lambda: counts.append(_warnings_of_a_fork()))
        thread.start()
        thread.join()

    with no_fork_warning():
        fork_in_another()
    assert counts == [WARNS]


def test_the_filters_are_as_they_were() -> None:
    """Also if another thread enters `catch_warnings` before the fork and leaves it after, or the other way round."""
    filters, before = warnings.filters, list(warnings.filters)
    catcher: Any = None

    def fork_then_enter() -> None:
        nonlocal catcher
        _fork()
        catcher = warnings.catch_warnings()
        catcher.__enter__()

    with no_fork_warning():
        fork_then_enter()
    catcher.__exit__(None, None, None)
    assert warnings.filters is filters
    assert list(filters) == before

    def leave_after_the_fork() -> None:
        _fork()
        catcher.__exit__(None, None, None)

    catcher = warnings.catch_warnings()
    catcher.__enter__()
    with no_fork_warning():
        leave_after_the_fork()
    assert warnings.filters is filters
    assert list(filters) == before


def test_filters_that_are_reset_meanwhile() -> None:
    """A reset of all filters between the fork and the end is no error."""

    def fork_and_reset() -> None:
        _fork()
        warnings.resetwarnings()

    with warnings.catch_warnings():
        with no_fork_warning():
            fork_and_reset()
        assert list(warnings.filters) == []


def test_what_fails_leaves_no_filter() -> None:
    """An error of the start comes through, and the filters are as they were."""
    before = list(warnings.filters)

    def fork_and_fail() -> None:
        _fork()
        raise OSError("no process can be made")

    with pytest.raises(OSError, match="no process"), no_fork_warning():
        fork_and_fail()
    assert list(warnings.filters) == before
