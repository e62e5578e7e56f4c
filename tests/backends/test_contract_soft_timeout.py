"""`soft_timeout`: an exception in the task, so that it can save what it has."""

from __future__ import annotations

import gc
import importlib
import itertools
import pickle
import signal
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import script
import soft_tasks
import work
from backend_kinds import ALL, EVERY_START_METHOD, IN_THIS_PROCESS, OWN, SPAWN_AND_FORK, over
from interruptions import interrupt

from parallel_exec import ParallelConfig, ParallelExecutor, SoftTimeoutError, Task, TaskTimeoutError
from parallel_exec.backends._soft_timeout import SoftCall

EVERY = (*ALL, *SPAWN_AND_FORK)
SOFT = 0.15
ROUNDS = 300  # calls that end just as their time is up


@over(EVERY)
def test_a_task_can_save_what_it_has(lab: Any) -> None:
    """The exception is raised in the task, which may return something else then."""
    executor = lab.executor(soft_timeout=SOFT)
    future = executor.options(id="slow").submit(soft_tasks.save_what_there_is)
    steps, facts = future.result()
    assert steps > 0
    text = f"attempt 1 of task 'slow' has run for its soft_timeout of {SOFT:g} s"
    assert facts == ("slow", SOFT, 1, text, "SoftTimeoutError")
    (attempt,) = future.task_result().attempts
    assert SOFT <= attempt.duration < 10.0


@over(EVERY)
def test_in_a_program_that_shares_something(lab: Any) -> None:
    """Where calls are looked at for handles, it comes as well."""
    executor = lab.executor(soft_timeout=SOFT)
    steps, facts = executor.submit(soft_tasks.save_what_there_is, executor.share(60.0)).result()
    assert steps > 0
    assert facts[-1] == "SoftTimeoutError"


@over(EVERY)
def test_one_that_lets_it_pass_has_failed(lab: Any) -> None:
    """It is an ordinary failure, with a traceback from the task, and retried by policy."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=1)
    future = executor.submit(soft_tasks.spin, 60.0)
    error = future.exception()
    assert type(error) is SoftTimeoutError
    assert isinstance(error, TimeoutError)
    assert [type(attempt.error) for attempt in future.task_result().attempts] == [SoftTimeoutError] * 2
    assert error.attempt == 2
    assert executor.submit(work.double, 1).result() == 2


@over(ALL)
def test_who_is_in_time_notices_nothing(lab: Any) -> None:
    """What ends before is what it is without."""
    executor = lab.executor(soft_timeout=20.0)
    assert [executor.submit(work.double, number).result() for number in range(20)] == list(range(0, 40, 2))
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result()


@over(OWN)
def test_a_tasks_own(lab: Any) -> None:
    """A task may have one of its own, or none."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=0)
    executor.add_task(Task(partial(soft_tasks.spin, 3 * SOFT), soft_timeout=None))
    executor.add_task(Task(soft_tasks.spin, 3 * SOFT))
    executor.add_task(Task(soft_tasks.spin, 3 * SOFT, soft_timeout=20.0))
    first, second, third = executor.execute_all()
    assert first.success
    assert isinstance(second.error, SoftTimeoutError)
    assert third.success
    own = executor.options(soft_timeout=2 * SOFT).submit(soft_tasks.save_what_there_is)
    assert own.result()[1][1] == 2 * SOFT


@over(EVERY_START_METHOD)
def test_a_sleep_is_interrupted(lab: Any) -> None:
    """In a worker process, what waits in the kernel is interrupted, too, again and again."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=0, max_concurrency=1)
    for _ in range(3):
        future = executor.submit(time.sleep, 60.0)
        assert isinstance(future.exception(), SoftTimeoutError)
        assert future.task_result().attempts[0].duration < 10.0


@over(EVERY_START_METHOD)
def test_a_program_that_blocks_the_signal(lab: Any) -> None:
    """What this process does with SIGALRM is not what its workers do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        executor = lab.executor(soft_timeout=SOFT, retry_count=0)
        assert isinstance(executor.submit(soft_tasks.spin, 5.0).exception(), SoftTimeoutError)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@over(EVERY_START_METHOD)
def test_a_wait_for_another_task_is_interrupted(lab: Any) -> None:
    """So is what waits for a task of an executor of its own."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=0)
    assert executor.submit(soft_tasks.wait_for_another, 1.5).result() == "interrupted"


@over(("process",))
def test_an_item_of_a_map(lab: Any) -> None:
    """Each item has its own time."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=0, max_concurrency=1)
    results = executor.map(soft_tasks.spin_if, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SoftTimeoutError, match=r"task 'spin_if-\d+-3'"):
        next(results)


@over(("thread", "inline", "process", "thread-pool"))
def test_calls_that_end_as_their_time_is_up(lab: Any) -> None:
    """Each ends as what it returned, or with the exception: nothing of it comes afterwards, and nothing else breaks."""
    soft = 0.002
    executor = lab.executor(soft_timeout=soft, retry_count=0, max_concurrency=2)
    futures = [executor.submit(soft_tasks.take_about, soft * 0.98, number) for number in range(ROUNDS)]
    ended = [(future.exception(), number) for number, future in enumerate(futures)]
    assert {type(error) for error, _ in ended} <= {type(None), SoftTimeoutError}
    assert all(futures[number].result() == number for error, number in ended if error is None)
    calm = executor.options(soft_timeout=None)
    assert [calm.submit(soft_tasks.spin, 0.001).result() for _ in range(50)] == ["whole"] * 50


@pytest.mark.parametrize(("call", "has_ended"), [("soft_tasks.spin, 60.0", True), ("time.sleep, 3.0", False)])
def test_threads_that_are_traced_go_on(tmp_path: Path, call: str, has_ended: bool) -> None:
    """A debugger, or what measures coverage, runs on once the exception has come, and while it waits for C code to return."""
    body = f"""
    import soft_tasks
    with ParallelExecutor(soft_timeout={SOFT}, retry_count=0) as executor:
        future = executor.submit({call})
        threading.Event().wait({3 * SOFT})
        sys.settrace(lambda *_: None)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            work.double(1)
        sys.settrace(None)
        say(future.done(), type(future.exception()).__name__)
    """
    assert script.run(tmp_path, body) == f"{has_ended} SoftTimeoutError"


def test_ctrl_c_at_any_point_of_a_call_that_might_be_interrupted() -> None:
    """It comes through, and the call never waits for an exception that nobody sends."""
    for step in itertools.count(1):
        ended: list[str] = []

        def call(ended: list[str] = ended) -> None:
            soft = SoftCall(lambda: ended.append("call"), 60.0, "t", 1)
            soft()
            ended.append("all")

        if not interrupt(call, step):
            break
        assert "all" not in ended or step > 10
    assert (step > 10, ended) == (True, ["call", "all"])


@over((*OWN, *SPAWN_AND_FORK, "thread-pool"))
def test_it_is_not_raised_in_a_callback(lab: Any) -> None:
    """Nor in anything else that the library calls, where it would be logged, and gone: it comes when that is over."""
    executor = lab.executor(soft_timeout=SOFT, retry_count=0)
    ended, whose = executor.options(id="slow").submit(soft_tasks.spin_in_a_callback, 3 * SOFT).result()
    assert (ended, whose) == (["whole"], "slow")


@over((*OWN, *SPAWN_AND_FORK, "thread-pool"))
def test_calls_in_the_same_thread(lab: Any) -> None:
    """A task that has others run in its own thread gets its own exception, and they theirs."""
    executor = lab.executor(soft_timeout=4 * SOFT, retry_count=0)
    own = executor.options(id="own")
    assert own.submit(soft_tasks.run_others_here, 20.0, 0.01).result() == (["NoneType", "NoneType"], "own")
    ended, whose = own.submit(soft_tasks.run_others_here, SOFT, 6 * SOFT).result()
    assert (ended[0], whose) == ("SoftTimeoutError", "own")
    assert set(ended[1:]) <= {"NoneType"}  # it may come before that can be noted


@over(("thread", "process"))
def test_who_calls_us_all_the_time(lab: Any) -> None:
    """Whatever it interrupts, nothing of ours is left torn apart."""
    other = lab.executor(max_concurrency=2)
    if lab.kind.name == "process":
        other = None  # each has one of its own
    executor = lab.executor(soft_timeout=0.003, retry_count=0, max_concurrency=2)
    futures = [executor.submit(soft_tasks.submit_for, other, number, 0.02) for number in range(120)]
    assert {type(future.exception()) for future in futures} <= {type(None), SoftTimeoutError}
    assert other is None or other.submit(work.double, 1).result() == 2


@pytest.mark.parametrize("size", [10, 300_000])
def test_who_logs(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A record is not torn apart on its way to the parent, nor is the exception lost there: `logging` catches what is raised."""
    with ParallelExecutor(backend="process", soft_timeout=0.02, retry_count=0, max_concurrency=2) as executor:
        futures = [executor.submit(soft_tasks.log_much, size) for _ in range(10)]
        assert [future.result() for future in futures] == ["in time"] * 10
        assert executor.submit(work.double, 1).result() == 2
    assert set(caplog.messages) == {"x" * size}


@over(("thread", "process"))
def test_the_timeout_still_ends_what_goes_on(lab: Any) -> None:
    """Who does not end at the soft timeout is ended by the other."""
    executor = lab.executor(soft_timeout=SOFT, timeout=3 * SOFT, retry_count=0)
    future = executor.submit(work.stubborn, lab.latch(), lab.latch())
    assert isinstance(future.exception(), TaskTimeoutError)


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_must_be_less_than_the_timeout() -> None:
    """One that never comes is a mistake, wherever it is made."""
    with pytest.raises(ValueError, match="soft_timeout must be less than timeout"):
        ParallelConfig(timeout=1.0, soft_timeout=1.0)
    with pytest.raises(ValueError, match="3 s is not less than 2 s"):
        Task(work.double, 1, timeout=2.0, soft_timeout=3.0)
    with ParallelExecutor(timeout=1.0) as executor:
        with pytest.raises(ValueError, match="soft_timeout must be less than timeout"):
            executor.options(soft_timeout=2.0)
        with pytest.raises(ValueError, match="soft_timeout must be less than timeout"):
            executor.add_task(Task(work.double, 1, soft_timeout=2.0))
        assert executor.options(soft_timeout=2.0, timeout=None).submit(work.double, 1).result() == 2


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_it_must_be_a_time(value: float) -> None:
    """As every other limit."""
    with pytest.raises(ValueError, match="soft_timeout"):
        ParallelConfig(soft_timeout=value)
    with pytest.raises(ValueError, match="soft_timeout"):
        Task(work.double, 1, soft_timeout=value)


def test_the_executors_means_nothing_to_a_shorter_timeout() -> None:
    """A task with a shorter timeout of its own is not refused for the executor's soft timeout."""
    with ParallelExecutor(soft_timeout=10.0, retry_count=0) as executor:
        future = executor.options(timeout=SOFT).submit(soft_tasks.spin, 1.0)
        assert isinstance(future.exception(), TaskTimeoutError)


def test_it_pickles() -> None:
    """With its facts."""
    error = pickle.loads(pickle.dumps(SoftTimeoutError("t", 2.5, 3)))
    assert type(error) is SoftTimeoutError
    assert (error.task_id, error.soft_timeout, error.attempt) == ("t", 2.5, 3)
    assert str(error) == "attempt 3 of task 't' has run for its soft_timeout of 2.5 s"


@over(IN_THIS_PROCESS)
def test_nothing_is_kept(lab: Any) -> None:
    """What a call was given is let go when it has ended, though its soft timeout is still to come."""
    executor = lab.executor(soft_timeout=20.0)
    given = work.Latch(Path("given"))
    known = weakref.ref(given)
    future = executor.submit(bool, given)
    assert future.result()
    del given
    work.until(lambda: gc.collect() >= 0 and known() is None)
    assert future.task_result().success


@over(IN_THIS_PROCESS)
def test_an_import_is_not_torn_apart(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once the import is over that the task was in: torn apart, that might stop all imports of the process."""
    name = f"slow_module_{lab.kind.name}"
    (tmp_path / f"{name}.py").write_text(
        f"import time\nuntil = time.monotonic() + {4 * SOFT}\nwhile time.monotonic() < until:\n    pass\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> Any:
        module = importlib.import_module(name)
        try:
            soft_tasks.spin(60.0)
        except SoftTimeoutError:
            return module.whole

    try:
        assert lab.executor(soft_timeout=SOFT).submit(load).result(work.PATIENCE) is True
    finally:
        sys.modules.pop(name, None)
