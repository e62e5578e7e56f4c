"""A task that forks: the child that comes back from the call ends as a process does, on every back end."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import forking_tasks
import pytest
import tenacity
import work
from backend_kinds import over

from parallel_exec import ParallelExecutor, ProcessBackend, ThreadBackend

OURS = ("thread", "inline", "process", "fork")
EVERY = over((*OURS, "thread-pool", "process-pool"))


@pytest.fixture
def children(tmp_path: Path) -> str:
    """A file to which children write their process ids."""
    return str(tmp_path / "children")


def _settled(executor: Any, call: Any, *args: Any) -> Any:
    """Run a call with two neighbours on either side; all of them come back, once."""
    before = [executor.submit(work.double, number) for number in range(2)]
    future = executor.submit(call, *args)
    after = [executor.submit(work.double, number) for number in range(2)]
    assert [neighbour.result(20) for neighbour in before + after] == [0, 2] * 2
    return future.result(20)


@EVERY
@pytest.mark.parametrize(
    ("how", "status"),
    [
        (int, 0),
        (partial(forking_tasks.exit_with, 0), 0),
        (partial(forking_tasks.exit_with, 7), 7),
        (partial(forking_tasks.exit_with, "a text"), 1),
        (forking_tasks.fail, 1),
        (partial(forking_tasks.use_library, "thread"), 0),
        (partial(forking_tasks.use_library, "process"), 0),
    ],
    ids=["returns", "exits", "exits with 7", "exits with a text", "raises", "uses threads", "uses processes"],
)
def test_a_child_that_comes_back(lab: Any, children: str, how: Any, status: int) -> None:
    """It ends with the status that a process has which ended like that; task and neighbours are none the wiser."""
    executor = lab.executor(max_concurrency=1, retry_count=0, timeout=20)
    assert _settled(executor, forking_tasks.come_back, children, how) == status
    assert len(Path(children).read_text().split()) == 1
    assert executor.submit(work.double, 4).result(20) == 8


@over((*OURS, "process-pool"))  # the stdlib's thread pools and `multiprocessing` do not go together
@pytest.mark.parametrize(
    "call", [forking_tasks.come_back_from_terminal, forking_tasks.fork_by_multiprocessing, forking_tasks.fork_in_thread]
)
def test_other_ways_to_fork(lab: Any, children: str, call: Any) -> None:
    """`pty.fork`, the processes of `multiprocessing`, and a thread of the task's."""
    assert _settled(lab.executor(max_concurrency=1, retry_count=0, timeout=20), call, children) == 0
    assert len(Path(children).read_text().split()) == 1


@EVERY
def test_items_that_fork(lab: Any, children: str) -> None:
    """Among the items of a `map`, in whatever kind of row."""
    executor = lab.executor(max_concurrency=1, retry_count=0, timeout=20)
    results = list(executor.map(partial(forking_tasks.come_back_for_item, children), range(100)))
    wanted = [number if number < 50 else str(number) for number in range(100)]
    wanted[5::10] = [0] * 10
    assert results == wanted
    assert len(set(Path(children).read_text().split())) == 10


@EVERY
def test_what_a_child_says_of_its_error(lab: Any, children: str) -> None:
    """The traceback of what it raised is on standard error."""
    executor = lab.executor(max_concurrency=1, retry_count=0, timeout=20)
    assert executor.submit(forking_tasks.come_back, children, partial(forking_tasks.fail, children)).result(20) == 1
    assert "ValueError: the child's own" in Path(children).read_text()


@EVERY
def test_a_callback_that_forks(lab: Any, children: str) -> None:
    """The child's copy of the thread that called it does nothing more."""
    executor = lab.executor(max_concurrency=1, retry_count=0, timeout=20)
    statuses: list[int] = []
    gate = lab.latch()
    if lab.kind.name == "inline":  # it would be called here
        pytest.skip("the callback is called in the caller's own thread")
    first = executor.submit(gate.wait)
    first.add_done_callback(lambda future: statuses.append(forking_tasks.come_back(children)))
    rest = [executor.submit(work.double, number) for number in range(20)]
    gate.set()
    assert [future.result(20) for future in rest] == [2 * number for number in range(20)]
    work.until(lambda: statuses == [0])
    assert len(Path(children).read_text().split()) == 1


@EVERY
def test_a_hook_that_forks(lab: Any, children: str) -> None:
    """In a thread of ours the child ends; in the caller's own it goes on, as the caller's."""
    me, statuses = os.getpid(), []

    def hook(event: Any) -> None:
        if type(event).__name__ == "TaskFinished" and os.getpid() == me and not statuses:
            statuses.append(
                forking_tasks.come_back(children, partial(os._exit, 3) if lab.kind.name == "inline" else int)
            )

    executor = lab.executor(max_concurrency=1, retry_count=0, timeout=20, on_event=hook)
    assert [executor.submit(work.double, number).result(20) for number in range(5)] == [0, 2, 4, 6, 8]
    assert statuses == [3 if lab.kind.name == "inline" else 0]


@EVERY
@pytest.mark.parametrize("hook", ["before", "after", "before_sleep"])
def test_a_hook_of_tenacity_that_forks(lab: Any, children: str, hook: str) -> None:
    """Its child ends when the hook does, in a thread of ours."""
    statuses: list[int] = []
    how = partial(os._exit, 0) if lab.kind.name == "inline" else int

    def fork(state: Any) -> None:
        if not statuses:
            statuses.append(forking_tasks.come_back(children, how))

    retry: Any = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none(), reraise=True, **{hook: fork}
    )
    executor = lab.executor(max_concurrency=1, timeout=20, retry=retry)
    assert type(executor.submit(forking_tasks.fail).exception(20)) is ValueError
    assert executor.submit(work.double, 2).result(20) == 4
    assert statuses == [0]
    assert len(Path(children).read_text().split()) == 1


@pytest.mark.parametrize("make", [ThreadBackend, ProcessBackend])
def test_a_finalizer_that_forks(make: Any, children: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child ends with the finalizer, and does not do what a worker does at its end."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.FINALIZER_LIMIT", work.PATIENCE)
    monkeypatch.setattr("parallel_exec.backends.process.worker_handle.STOP_GRACE", work.PATIENCE)
    finalizer = partial(forking_tasks.come_back_last, children, partial(forking_tasks.exit_with, 7))
    with ParallelExecutor(max_concurrency=1, backend=make(finalizer=finalizer)) as executor:
        executor.submit(int).result(work.PATIENCE)
    assert Path(children).read_text().split()[1:] == ["7"]
