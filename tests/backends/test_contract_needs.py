"""What every back end does alike: limits that tasks need, and that each end of an attempt gives back what it held, once."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import work
from backend_kinds import (
    ALL,
    CONCURRENT,
    EVERY_START_METHOD,
    IN_THIS_PROCESS,
    OWN,
    PROCESSES,
    SPAWN_AND_FORK,
    THREADS,
    over,
)

from parallel_exec import (
    DeadlineExceededError,
    ParallelExecError,
    PerKey,
    QueueFullError,
    Rate,
    RetryAfter,
    Task,
    TaskTimeoutError,
    WorkerCrashedError,
)

EVERY = (*ALL, *SPAWN_AND_FORK)


def in_use(executor: Any, name: str = "db") -> float:
    """Return how much of a limit is held."""
    return executor.stats().limits[name].in_use  # type: ignore[no-any-return]


def given_back(executor: Any, name: str = "db") -> None:
    """Wait until nothing of a limit is held, as it must be soon."""
    work.until(lambda: in_use(executor, name) == 0)


# ── what is granted ─────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_a_count_is_never_exceeded(lab: Any) -> None:
    """However many workers are free, no more attempts run at once than the limit allows, and all of them do run."""
    executor = lab.executor(max_concurrency=3, limits={"db": 2})
    log = lab.log()
    for _ in range(12):
        executor.add_task(Task(partial(work.span, log, 0.01), needs={"db": 1}))
    assert all(result.success for result in executor.execute_all())
    assert work.most_at_once(log) <= 2
    stats = executor.stats().limits["db"]
    assert (stats.in_use, stats.waiting, stats.granted) == (0, 0, 12)


@over(ALL)
def test_a_weight_counts_as_much(lab: Any) -> None:
    """A task that needs more than half runs alone."""
    executor = lab.executor(max_concurrency=3, limits={"mem": 16})
    log = lab.log()
    wait([executor.options(needs={"mem": 8.5}).submit(work.span, log, 0.01) for _ in range(5)])
    assert work.most_at_once(log) == 1


@over(EVERY)
def test_what_a_task_was_granted(lab: Any) -> None:
    """`current_task().granted` has a tuple of a list's items, else the amount; nothing where nothing is needed."""
    limits = {"db": 4, "gpu": ["cuda:0", "cuda:1"], "mem": 16, "host": PerKey(2), "api": Rate(1000)}
    executor = lab.executor(limits=limits)
    needs = {"db": 1, "gpu": 2, "mem": 3.5, "host": "example.com", "api": 1}
    seen = executor.options(needs=needs).submit(work.granted).result()
    assert sorted(seen.pop("gpu")) == ["cuda:0", "cuda:1"]
    assert seen == {"db": 1, "mem": 3.5, "host": 1, "api": 1}
    assert executor.submit(work.granted).result() == {}
    assert executor.options(needs={"db": 2}).submit(work.granted).result() == {"db": 2}


@over(IN_THIS_PROCESS)
def test_an_item_may_be_anything_here(lab: Any) -> None:
    """Tasks of this process are handed the very objects."""
    connections = [object(), object()]
    executor = lab.executor(limits={"db": connections})
    (got,) = executor.options(needs={"db": 1}).submit(work.granted).result()["db"]
    assert any(got is connection for connection in connections)


@over(EVERY_START_METHOD)
def test_an_item_must_be_fit_to_travel(lab: Any) -> None:
    """What cannot be sent to a worker process is refused when the limit is set, and breaks nothing."""
    with pytest.raises(
        TypeError, match=r"limits\['db'\] hands out <_thread.lock object>, which cannot be sent to a worker process"
    ):
        lab.executor(limits={"db": [threading.Lock()]})
    executor = lab.executor(limits={"db": [Path("one")]})
    assert executor.options(needs={"db": 1}).submit(work.granted).result() == {"db": (Path("one"),)}
    for spec in ([1, threading.Lock()], PerKey([threading.Lock()])):
        with pytest.raises(TypeError, match="cannot be sent to a worker process"):
            executor.limits["other"] = spec
    assert list(executor.limits) == ["db"]


@over(CONCURRENT)
def test_an_item_is_used_by_one_at_a_time(lab: Any, tmp_path: Any) -> None:
    """Tasks that each are handed an item never share it."""
    executor = lab.executor(max_concurrency=3, limits={"gpu": ["cuda0", "cuda1"]}, retry_count=0)
    use = partial(work.use_device, str(tmp_path), "gpu", 0.005)
    for number in range(20):
        executor.add_task(Task(partial(use, "fails" if number % 5 == 0 else "returns"), needs={"gpu": 1}))
    results = executor.execute_all()
    assert [str(result.error) for result in results if not result.success] == ["failed"] * 4
    assert {result.result for result in results if result.success} <= {"cuda0", "cuda1"}
    given_back(executor, "gpu")


@over(CONCURRENT)
def test_tasks_that_need_nothing_pass(lab: Any) -> None:
    """What waits for a limit holds no worker, and nobody up."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1})
    started, gate = lab.latch(), lab.latch()
    holding = executor.options(needs={"db": 1}).submit(work.hold, started, gate)
    started.wait()
    waiting = [executor.options(needs={"db": 1}, priority=9).submit(work.double, number) for number in range(5)]
    assert [executor.submit(work.double, number).result() for number in range(5)] == [0, 2, 4, 6, 8]
    assert executor.stats().limits["db"].waiting == 5
    assert not any(future.done() for future in waiting)
    gate.set()
    assert [future.result() for future in waiting] == [0, 2, 4, 6, 8]
    assert holding.result() == "held"


@over(CONCURRENT)
def test_the_highest_priority_is_granted_first(lab: Any) -> None:
    """Among those that wait for one limit the highest priority goes first, and equals in the order they came."""
    executor = lab.executor(max_concurrency=3, limits={"db": 1})
    started, gate, log = lab.latch(), lab.latch(), lab.log()
    executor.options(needs={"db": 1}).submit(work.hold, started, gate)
    started.wait()
    for number, priority in enumerate((0, 2, 1, 2, 0)):
        executor.options(needs={"db": 1}, priority=priority).submit(work.note, log, f"{priority}-{number}")
    gate.set()
    executor.shutdown()
    assert log.lines() == ["2-1", "2-3", "1-2", "0-0", "0-4"]


@over(ALL)
def test_map_takes_the_limit_for_each_item(lab: Any) -> None:
    """A `map` with needs never runs more of its items at once than the limit allows, and each is granted it."""
    executor = lab.executor(max_concurrency=3, limits={"db": 2})
    log = lab.log()
    assert len(list(executor.options(needs={"db": 1}).map(work.span, [log] * 8, [0.005] * 8))) == 8
    assert work.most_at_once(log) <= 2
    assert executor.stats().limits["db"].granted == 8


@over(ALL)
def test_stream_takes_the_limit_for_each_task(lab: Any) -> None:
    """So does a stream, whose window is larger than the limit."""
    executor = lab.executor(max_concurrency=3, limits={"db": 1})
    log = lab.log()
    tasks = (Task(partial(work.span, log, 0.005), needs={"db": 1}) for _ in range(8))
    assert all(result.success for result in executor.stream(tasks, window=6))
    assert work.most_at_once(log) == 1


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_retries_take_the_limit_again(lab: Any) -> None:
    """Each attempt is granted by itself, and gives back when it fails."""
    executor = lab.executor(limits={"db": 1, "api": Rate(1000)}, retry_count=2)
    needs = {"db": 1, "api": 1}
    assert executor.options(needs=needs).submit(work.granted_then_fail, lab.log(), 2).result() == needs
    stats = executor.stats().limits
    assert [(stats[name].granted, stats[name].waiting) for name in needs] == [(3, 0), (3, 0)]
    assert in_use(executor) == 0


@over(CONCURRENT)
def test_a_backoff_holds_nothing(lab: Any) -> None:
    """While a task waits for its next attempt, others have what it needs."""
    executor = lab.executor(limits={"db": 1}, backoff=60.0, max_backoff=60.0)
    failing = executor.options(needs={"db": 1}).submit(work.fail, OSError())
    assert executor.options(needs={"db": 1}).submit(work.double, 4).result() == 8
    work.until(lambda: executor.stats().waiting == 1)
    assert in_use(executor) == 0
    assert failing.cancel()


@over(ALL)
def test_each_end_gives_back(lab: Any) -> None:
    """When a task's result is there, what it held can be had, however it ended."""
    executor = lab.executor(max_concurrency=1, limits={"db": 1}, retry_count=0)
    needy = executor.options(needs={"db": 1})
    for _ in range(3):
        assert needy.submit(work.double, 2).result() == 4
        assert in_use(executor) == 0
        assert isinstance(needy.submit(work.fail, OSError()).exception(), OSError)
        assert in_use(executor) == 0
        assert isinstance(needy.submit(work.exit_with, 3).exception(), SystemExit)
        assert in_use(executor) == 0


@over(ALL)
def test_what_waits_can_be_cancelled(lab: Any) -> None:
    """A task that waits for a limit is cancelled as any that is queued, and the next takes its place."""
    executor = lab.executor(limits={"api": Rate(0.001)}, retry_count=0)
    first = Task(partial(work.double, 1), needs={"api": 1})
    futures = [executor.add_task(first), *(executor.add_task(Task(work.granted, needs={"api": 1})) for _ in range(3))]
    assert [future.cancel() for future in futures] == [True] * 4
    assert all(result.cancelled for result in executor.execute_all())
    assert executor.stats().limits["api"].granted == 0


@over(CONCURRENT)
def test_what_waits_behind_a_cancelled_one_is_granted(lab: Any) -> None:
    """A large request that is cancelled lets the small one behind it in at once."""
    executor = lab.executor(limits={"db": 2})
    started, gate = lab.latch(), lab.latch()
    executor.options(needs={"db": 1}).submit(work.hold, started, gate)
    started.wait()
    large = executor.options(needs={"db": 2}).submit(work.double, 1)
    small = executor.options(needs={"db": 1}).submit(work.double, 2)
    time.sleep(0.05)
    assert not small.done()
    assert large.cancel()
    assert small.result(work.PATIENCE) == 4
    gate.set()


@over((*PROCESSES, "thread", "thread-pool"))
def test_a_deadline_gives_back(lab: Any) -> None:
    """A run's deadline ends what waits for a limit, and what runs; then the limit can be had again."""
    executor = lab.executor(limits={"db": 1}, retry_count=0)
    gate = lab.latch()
    for _ in range(3):
        executor.add_task(Task(partial(work.hold, lab.latch(), gate), needs={"db": 1}))
    results = executor.execute_all(deadline=0.5)
    assert all(isinstance(result.error, DeadlineExceededError) for result in results)
    assert executor.stats().limits["db"].waiting == 0
    gate.set()  # a thread keeps what it has until it ends
    given_back(executor)


@over(CONCURRENT)
def test_shutdown_cancels_what_waits(lab: Any) -> None:
    """What waits for a limit when the executor is shut down is cancelled with the rest."""
    executor = lab.executor(limits={"db": 1})
    started, gate = lab.latch(), lab.latch()
    holding = executor.options(needs={"db": 1}).submit(work.hold, started, gate)
    started.wait()
    waiting = [executor.options(needs={"db": 1}).submit(work.double, 1) for _ in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    gate.set()
    assert holding.result() == "held"
    executor.shutdown()
    assert in_use(executor) == 0


@over(CONCURRENT)
def test_shutdown_finishes_what_waits(lab: Any) -> None:
    """Without `cancel_futures` it is waited for."""
    executor = lab.executor(limits={"db": 1})
    futures = [executor.options(needs={"db": 1}).submit(work.nap, 0.01) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() and not future.exception() for future in futures)


# ── what cannot be stopped keeps what it has ────────────────────────────────────────────────────────────────────────


@over(THREADS)
def test_an_abandoned_thread_keeps_what_it_has(lab: Any) -> None:
    """A thread that outran its timeout still uses what it was granted: nobody else has that before it ends."""
    executor = lab.executor(max_concurrency=2, limits={"gpu": ["cuda:0"]}, retry_count=0)
    needy = executor.options(needs={"gpu": 1})
    started, gate = lab.latch(), lab.latch()
    stuck = executor.options(needs={"gpu": 1}, timeout=0.1).submit(work.hold, started, gate)
    assert isinstance(stuck.exception(), TaskTimeoutError)
    next_one = needy.submit(work.granted)
    assert executor.submit(work.double, 2).result() == 4
    time.sleep(0.05)
    assert not next_one.done()
    assert in_use(executor, "gpu") == 1
    gate.set()
    assert next_one.result(work.PATIENCE) == {"gpu": ("cuda:0",)}
    given_back(executor, "gpu")
    assert executor.stats().limits["gpu"].granted == 2


@over((*THREADS, "inline"))
def test_an_aborted_task_keeps_what_it_has_while_it_runs(lab: Any) -> None:
    """A call that is aborted and goes on knows what it was granted, and gives it back when it returns."""
    executor = lab.executor(max_concurrency=2, limits={"gpu": ["cuda:0"]}, retry_count=0)
    seen: list[Any] = []

    def abort_self() -> None:
        futures[0].abort()
        seen.append((work.granted(), in_use(executor, "gpu")))

    futures = [executor.add_task(Task(abort_self, needs={"gpu": 1}))]
    assert executor.execute_all()[0].cancelled
    given_back(executor, "gpu")
    assert seen == [({"gpu": ("cuda:0",)}, 1)]


# ── killed and crashed ──────────────────────────────────────────────────────────────────────────────────────────────


@over(("process", *SPAWN_AND_FORK))
def test_kills_and_crashes_give_back(lab: Any, tmp_path: Any) -> None:
    """What a worker held is free again once it is dead, whatever it died of; and no sooner."""
    executor = lab.executor(max_concurrency=2, limits={"gpu": ["cuda0"]}, retry_count=0)
    needy = executor.options(needs={"gpu": 1})
    for ending, timeout, error in (
        ("dies", 30.0, WorkerCrashedError),
        ("is killed", 30.0, WorkerCrashedError),
        ("hangs", 0.2, TaskTimeoutError),
    ):
        quick = executor.options(needs={"gpu": 1}, timeout=timeout)
        broken = quick.submit(work.use_device, str(tmp_path), "gpu", 0.0, ending)
        following = needy.submit(work.use_device, str(tmp_path), "gpu")
        assert isinstance(broken.exception(), error)
        assert following.result() == "cuda0"
    started = lab.latch()
    aborted = needy.submit(work.begin, started)
    started.wait()
    assert aborted.abort()
    with pytest.raises(CancelledError):
        aborted.result()
    assert needy.submit(work.use_device, str(tmp_path), "gpu").result() == "cuda0"
    assert in_use(executor, "gpu") == 0


@over(("process",))
def test_four_devices_and_many_tasks_with_kills(lab: Any, tmp_path: Any) -> None:
    """400 tasks over 8 workers, one in ten of which does not survive it: no device is ever used by two, and none is lost."""
    devices = [f"cuda{number}" for number in range(4)]
    executor = lab.executor(max_concurrency=8, limits={"gpu": devices}, retry_count=3)
    endings = ["returns"] * 17 + ["dies", "hangs", "fails"]
    for number in range(400):
        ending = endings[number % len(endings)]
        use = partial(work.use_device, str(tmp_path), "gpu", 0.0005, ending)
        retries = 0 if ending in ("hangs", "dies", "fails") else 3
        executor.add_task(Task(use, needs={"gpu": 1}, timeout=0.15 if ending == "hangs" else 30.0, retry_count=retries))
    results = executor.execute_all()
    failed = [result.error for result in results if not result.success]
    assert [error for error in failed if isinstance(error, AssertionError)] == []
    assert len(failed) == 60
    assert {result.result for result in results if result.success} == set(devices)
    assert in_use(executor, "gpu") == 0
    # All four can be had at once.
    assert sorted(executor.options(needs={"gpu": 4}).submit(work.granted).result()["gpu"]) == devices


@over(("thread", "process", "thread-pool", "process-pool"))
def test_whatever_happens_each_gives_back_once(lab: Any, tmp_path: Any) -> None:
    """Tasks with all kinds of needs that end in all ways, amid cancels, aborts, pauses and changes of size and limits."""
    chance = random.Random(12)
    limits = {"gpu": ["cuda0", "cuda1"], "db": 4, "api": Rate(1000, burst=5), "host": PerKey(2)}
    executor = lab.executor(max_concurrency=3, limits=limits, retry_count=1)
    choices: dict[str, list[Any]] = {"db": [0.5, 1, 2, 4], "api": [1, 5], "host": ["one", "other"]}
    endings = ["returns"] * 8 + ["fails"] * 2 + ["dies"] * (lab.kind.name == "process")
    futures = []
    for _ in range(120):
        needs: dict[str, Any] = {"gpu": 1}
        needs.update((name, chance.choice(values)) for name, values in choices.items() if chance.random() < 0.3)
        timeout = 0.02 if chance.random() < 0.1 else 30.0
        call = partial(work.use_device, str(tmp_path), "gpu", chance.choice([0.0, 0.001, 0.03]), chance.choice(endings))
        futures.append(executor.options(needs=needs, timeout=timeout, priority=chance.randrange(3)).submit(call))
        does = chance.random()
        if does < 0.05:
            chance.choice(futures).cancel()
        elif does < 0.1:
            chance.choice(futures).abort()
        elif does < 0.13:
            executor.pause()
            executor.resume()
        elif does < 0.16:
            executor.resize(chance.choice([2, 3]))
        elif does < 0.19:
            executor.limits["db"] = chance.choice([4, 5, 8])
    wait(futures, work.PATIENCE)
    errors = [None if future.cancelled() else future.exception() for future in futures]
    assert [error for error in errors if isinstance(error, AssertionError)] == []
    for name in limits:
        given_back(executor, name)
    executor.limits["db"] = 4
    everything = {"gpu": 2, "db": 4, "api": 5, "host": "one"}
    assert executor.options(needs=everything).submit(work.double, 2).result(work.PATIENCE) == 4
    assert not any(stats.waiting for stats in executor.stats().limits.values())


@over(("process",))
def test_nothing_that_holds_a_limit_waits_in_a_worker(lab: Any) -> None:
    """What needs a limit is handed to a worker that begins it at once, also behind many tiny tasks."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1})
    wait([executor.submit(work.double, number) for number in range(500)])  # so many are sent ahead from now on
    log = lab.log()
    futures = []
    for number in range(300):
        needs = {"db": 1} if number % 3 == 0 else None
        futures.append(executor.options(needs=needs).submit(work.span, log, 0.0) if needs else executor.submit(abs, 1))
    wait(futures)
    assert work.most_at_once(log) == 1
    assert executor.stats().limits["db"].granted == 100


@over(("process",))
def test_a_rate_is_not_spent_by_what_is_taken_back(lab: Any) -> None:
    """A pause, a resize or a cancel that takes back what has not begun leaves a rate as it was."""
    executor = lab.executor(max_concurrency=2, limits={"api": Rate(1, per=3600.0, burst=3)})
    started, gate = lab.latch(), lab.latch()
    holding = [executor.submit(work.hold, started, gate), executor.submit(work.hold, lab.latch(), gate)]
    started.wait()
    needy = executor.options(needs={"api": 1})
    futures = [needy.submit(work.double, number) for number in range(3)]
    for _ in range(20):
        executor.pause()
        executor.resume()
    assert futures.pop().cancel()
    futures.append(needy.submit(work.double, 2))
    gate.set()
    assert [future.result(work.PATIENCE) for future in (*holding, *futures)] == ["held", "held", 0, 2, 4]
    assert executor.stats().limits["api"].granted == 3


# ── RetryAfter ──────────────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_retry_after_holds_the_limit_for_all(lab: Any) -> None:
    """Nothing that needs the limit begins before the time is over, and what needs nothing does."""
    executor = lab.executor(max_concurrency=1, limits={"api": 4}, retry_count=1, retry_on=(KeyError,))
    error = RetryAfter(1.0, limit="api")
    executor.add_task(Task(partial(work.busy, lab.log(), 1, error), needs={"api": 1}, priority=9))
    executor.add_task(Task(partial(work.double, 1), needs={"api": 1}))
    executor.add_task(Task(partial(work.double, 1)))
    results = executor.execute_all()
    assert all(result.success for result in results)
    refused, held, free = (result.attempts[0].started_at for result in results)
    if lab.kind.name != "inline-skip":  # whose `sleep` waits for nothing
        assert refused < free < held
        assert held >= refused + 1.0


@over(CONCURRENT)
def test_retry_after_holds_a_key_only(lab: Any) -> None:
    """Of a `PerKey` it is the limit of the task's own key that is held."""
    executor = lab.executor(limits={"host": PerKey(2)}, retry_count=1)
    one, other = (executor.options(needs={"host": host}) for host in ("one", "other"))
    busy = one.submit(work.busy, lab.log(), 1, RetryAfter(60.0, limit="host"))
    work.until(lambda: executor.stats().waiting == 1)
    held = one.submit(work.double, 1)
    assert other.submit(work.double, 2).result(work.PATIENCE) == 4
    assert not held.done()
    assert busy.cancel()
    assert held.cancel()


@over(CONCURRENT)
def test_another_error_that_says_when_holds_its_limit(lab: Any) -> None:
    """So does any exception that has both a `retry_after` and the name of a limit."""
    executor = lab.executor(limits={"api": 2}, retry_count=1)
    error = work.BusyError(60.0)
    error.limit = "api"  # type: ignore[attr-defined]  # as a user's own may have
    busy = executor.options(needs={"api": 1}).submit(work.busy, lab.log(), 1, error)
    work.until(lambda: executor.stats().waiting == 1)
    held = executor.options(needs={"api": 1}).submit(work.double, 1)
    assert executor.submit(work.double, 2).result() == 4
    assert not held.done()
    assert 0 < executor.stats().limits["api"].next_grant <= 60.0
    assert busy.cancel()
    assert held.cancel()


@over(ALL)
def test_retry_after_for_a_limit_that_is_not_there(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the task is retried."""
    executor = lab.executor(limits={"api": 2}, retry_count=3)
    assert executor.submit(work.busy, lab.log(), 3, RetryAfter(0.0, limit="apo")).result() == 4
    (said,) = [record.getMessage() for record in caplog.records if "apo" in record.getMessage()]
    assert "'api'" in said


# ── waits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(IN_THIS_PROCESS)
def test_waiting_for_what_only_the_waiter_could_let_in(lab: Any) -> None:
    """A task that holds all of a limit, and waits for a task that needs some, is told so at once."""
    executor = lab.executor(max_concurrency=2, limits={"db": 2}, retry_count=0)

    def outer() -> None:
        executor.options(needs={"db": 1}).submit(work.double, 1).result()

    failed = executor.options(needs={"db": 2}).submit(outer).exception()
    assert isinstance(failed, ParallelExecError)
    assert "would wait for ever" in str(failed)
    given_back(executor)


@over(("thread", "thread-pool"))
def test_a_nested_wait_that_can_end(lab: Any) -> None:
    """With enough of the limit left for the inner task it is no deadlock."""
    executor = lab.executor(max_concurrency=2, limits={"db": 2}, retry_count=0)

    def outer() -> int:
        return executor.options(needs={"db": 1}).submit(work.double, 1).result()  # type: ignore[no-any-return]

    assert executor.options(needs={"db": 1}).submit(outer).result() == 2


@over(("thread",))
def test_a_wait_behind_a_request_that_never_fits(lab: Any) -> None:
    """The inner task would fit, but a large one is before it, which waits for the outer task: told, and all end."""
    executor = lab.executor(max_concurrency=3, limits={"db": 2}, retry_count=0)

    def outer() -> int:
        executor.options(needs={"db": 2}).submit(work.double, 3)
        return executor.options(needs={"db": 1}).submit(work.double, 1).result()  # type: ignore[no-any-return]

    failed = executor.options(needs={"db": 1}).submit(outer).exception()
    assert isinstance(failed, ParallelExecError)
    assert "the limit 'db' lets in nothing more" in str(failed)
    given_back(executor)


@over(("thread",))
def test_a_wait_for_a_task_that_waits_for_the_waiters_limit(lab: Any) -> None:
    """A task that holds a limit, and waits for one that waits for what needs it, closes the circle, and is told."""
    executor = lab.executor(max_concurrency=3, limits={"db": 1}, retry_count=0)
    started, gate = lab.latch(), lab.latch()

    def middle() -> int:
        started.set()
        gate.wait()
        inner = executor.options(needs={"db": 1}).submit(work.double, 1)
        waits.set()
        return inner.result()  # type: ignore[no-any-return]

    def outer() -> int:
        gate.set()
        waits.wait()
        time.sleep(0.1)
        return between.result()  # type: ignore[no-any-return]

    waits = lab.latch()
    between = executor.submit(middle)
    started.wait()
    failed = executor.options(needs={"db": 1}).submit(outer).exception()
    assert isinstance(failed, ParallelExecError)
    assert between.result() == 2


@over(("thread",))
def test_waits_for_other_keys_and_for_rates_can_end(lab: Any) -> None:
    """What another key is held of is in nobody's way, nor is what time brings."""
    executor = lab.executor(max_concurrency=3, limits={"host": PerKey(1), "api": Rate(20, burst=1)}, retry_count=0)

    def outer() -> int:
        return executor.options(needs={"host": "two", "api": 1}).submit(work.double, 1).result()  # type: ignore[no-any-return]

    assert executor.options(needs={"host": "one", "api": 1}).submit(outer).result() == 2


@over(("thread",))
def test_a_wait_that_comes_to_be_in_vain(lab: Any) -> None:
    """What is added while a task waits may come before what it waits for, and never fit while it waits: it is told."""
    executor = lab.executor(max_concurrency=2, limits={"db": 2}, retry_count=0)
    gate, waits = lab.latch(), lab.latch()

    def outer() -> int:
        inner = executor.options(needs={"db": 1}).submit(work.double, 1)
        waits.set()
        return inner.result()  # type: ignore[no-any-return]

    executor.submit(gate.wait)
    waiter = executor.options(needs={"db": 1}).submit(outer)
    waits.wait()
    large = executor.options(needs={"db": 2}, priority=1).submit(work.double, 3)
    gate.set()
    failed = waiter.exception()
    assert isinstance(failed, ParallelExecError)
    assert "the limit 'db' lets in nothing more" in str(failed)
    assert large.result() == 6


@over(("thread", "thread-pool"))
def test_who_was_given_up_does_not_wait_with_what_it_holds(lab: Any) -> None:
    """An attempt that is aborted while it waits for a task of its executor ends, as others wait for what it keeps."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1}, retry_count=0)
    gate, waits = lab.latch(), lab.latch()

    def outer() -> None:
        waits.set()
        executor.submit(gate.wait).result()

    waiter = executor.options(needs={"db": 1}).submit(outer)
    waits.wait()
    other = executor.options(needs={"db": 1}).submit(work.double, 1)
    waiter.abort()
    assert other.result() == 2
    gate.set()


@over(("thread", "thread-pool"))
def test_adding_to_a_queue_that_is_full_of_what_waits_for_the_caller(lab: Any) -> None:
    """A task is refused that adds to a full queue where nothing can begin before it ends."""
    executor = lab.executor(max_concurrency=2, queue_size=1, limits={"db": 1}, retry_count=0)

    def outer() -> None:
        for _ in range(2):
            executor.options(needs={"db": 1}).submit(int)

    failed = executor.options(needs={"db": 1}).submit(outer).exception()
    assert isinstance(failed, QueueFullError)
    given_back(executor)


@over(("thread",))
def test_two_that_wait_for_each_others_limit(lab: Any) -> None:
    """Of two tasks that each hold what the other's inner task needs, the last to wait is told, and both end."""
    executor = lab.executor(max_concurrency=4, limits={"a": 1, "b": 1}, retry_count=0)
    latches = [lab.latch(), lab.latch()]

    def outer(mine: int, wanted: str) -> Any:
        work.meet(latches, mine)
        return executor.options(needs={wanted: 1}).submit(work.double, 1).result()

    futures = [
        executor.options(needs={"a": 1}).submit(outer, 0, "b"),
        executor.options(needs={"b": 1}).submit(outer, 1, "a"),
    ]
    errors = [future.exception() for future in futures]
    assert sorted(type(error).__name__ for error in errors) == ["NoneType", "ParallelExecError"]


@over(OWN)
def test_a_callback_may_wait_for_what_needs_the_same(lab: Any) -> None:
    """What a task held is given back before its callbacks are called."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1})
    seen: list[float] = []
    future = executor.add_task(Task(partial(work.double, 2), needs={"db": 1}))
    future.add_done_callback(lambda _: seen.append(in_use(executor)))
    executor.execute_all()
    assert seen == [0]
