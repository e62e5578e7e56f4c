"""`executor.share`, the same in every back end."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import shared_tasks
import tracked
import work
from backend_kinds import ALL, EVERY_START_METHOD, IN_THIS_PROCESS, INTERPRETERS, OWN, PROCESSES, over

from parallel_exec import ParallelExecutor, ProcessBackend, Shared, Task, TaskSerializationError

NUMBERS = [1, 2, 3]


@over((*ALL, "spawn", "fork"))
def test_an_argument_arrives_as_the_object(lab: Any) -> None:
    """By position, by name, in a partial or in a `Task`: the callee gets the object itself."""
    executor = lab.executor(max_concurrency=2)
    with executor.share(NUMBERS) as numbers:
        assert executor.submit(shared_tasks.kinds, numbers, 1, last=numbers).result() == ["list", "int", "list"]
        assert executor.submit(partial(shared_tasks.add, numbers), 4).result() == 10
        assert executor.submit(partial(shared_tasks.add, more=4), numbers).result() == 10
        assert executor.options(priority=1).submit(shared_tasks.add, more=5, numbers=numbers).result() == 11
        executor.add_task(Task(shared_tasks.add, numbers, id="sum", kwargs={"more": 1}))
        executor.add_task(shared_tasks.add, numbers)
        assert [result.unwrap() for result in executor.execute_all()] == [7, 6]
        assert [result.unwrap() for result in executor.stream([Task(shared_tasks.add, numbers)])] == [6]


@over(ALL)
def test_items_of_a_map_arrive_as_the_object(lab: Any) -> None:
    """So does an item of `map`, be it of a list or of an iterator, and what is in the function."""
    executor = lab.executor(max_concurrency=2)
    numbers = executor.share(NUMBERS)
    sums = [6 + n for n in range(20)]
    assert list(executor.map(shared_tasks.add, [numbers] * 20, range(20))) == sums
    assert list(executor.map(shared_tasks.add, iter([numbers] * 20), iter(range(20)))) == sums
    assert list(executor.map(partial(shared_tasks.add, numbers), range(20))) == sums
    assert list(executor.map(partial(shared_tasks.add, numbers), iter(range(20)))) == sums
    assert list(executor.map(shared_tasks.kinds, iter([numbers, 1, numbers]))) == [["list"], ["int"], ["list"]]
    assert list(executor.map(shared_tasks.add, [numbers] * 3, chunksize=2, buffersize=2)) == [6] * 3


@over(ALL)
def test_deeper_it_stays_a_handle(lab: Any) -> None:
    """In a list it is a `Shared`, whose value is the object."""
    executor = lab.executor(max_concurrency=1)
    numbers = executor.share(NUMBERS)
    assert executor.submit(shared_tasks.value_of, [numbers]).result() == ("Shared", NUMBERS)
    assert numbers.value == NUMBERS


@over(IN_THIS_PROCESS)
def test_threads_get_the_very_object(lab: Any) -> None:
    """Nothing is copied or pickled where the call runs in this process."""
    executor = lab.executor(max_concurrency=1)
    lock = threading.Lock()
    shared = executor.share(lock)
    assert shared.value is lock
    assert executor.submit(shared_tasks.same, shared, id(lock)).result()


@over((*PROCESSES, "spawn"))
def test_it_is_made_once_a_worker(lab: Any) -> None:
    """Each worker unpickles it once, however many calls get it; nor does it travel with each of them."""
    if lab.kind.name in INTERPRETERS:
        pytest.skip("a log is written by the process, of which there is one")
    executor, log = lab.executor(max_concurrency=2), lab.log()
    shared = executor.share(shared_tasks.Counted(log))
    pids = {future.result() for future in [executor.submit(shared_tasks.pid, shared) for _ in range(50)]}
    assert sorted(log.lines()) == sorted(map(str, pids))


@over(OWN)
def test_a_closed_handle_is_refused(lab: Any) -> None:
    """It says so, where it is given to the executor; and what was added before has what it needs."""
    executor = lab.executor(max_concurrency=1)
    numbers = executor.share(NUMBERS)
    gate = lab.latch()
    if lab.kind.name != "inline":  # where it would wait for itself
        executor.submit(gate.wait)
    before = executor.submit(shared_tasks.add, numbers)
    numbers.close()
    numbers.close()
    gate.set()
    assert before.result() == 6
    assert repr(numbers) == "Shared(closed)"
    for call in (
        partial(executor.submit, shared_tasks.add, numbers),
        partial(executor.add_task, shared_tasks.add, numbers),
    ):
        with pytest.raises(ValueError, match="this Shared was closed"):
            call()
    with pytest.raises(ValueError, match="closed"):
        list(executor.map(shared_tasks.add, [numbers]))
    with pytest.raises(ValueError, match="closed"):
        numbers.value  # noqa: B018  # it raises
    assert executor.stats().waiting == 0


@pytest.mark.parametrize("maker", OWN)
@pytest.mark.parametrize("user", OWN)
def test_another_executors_handle_works(maker: Any, user: Any) -> None:
    """A handle is good for every executor of the process, and when its own has been shut down."""
    with ParallelExecutor(backend=maker, max_concurrency=1) as one:
        numbers = one.share(NUMBERS)
    with ParallelExecutor(backend=user, max_concurrency=1) as other:
        assert other.submit(shared_tasks.add, numbers, 1).result() == 7


@over(OWN)
def test_retries_get_it_again(lab: Any) -> None:
    """Each attempt has the object."""
    executor, log = lab.executor(max_concurrency=1, retry_count=2), lab.log()
    numbers = executor.share(NUMBERS)
    assert executor.submit(shared_tasks.fail_twice, numbers, log).result() == 6


@over(OWN)
def test_it_is_gone_with_the_handle_and_the_tasks(lab: Any) -> None:
    """What nobody has any more is freed, results or not."""
    executor = lab.executor(max_concurrency=1)
    shared = executor.share(tracked.Tracked())
    results = [executor.submit(shared_tasks.kinds, shared).result() for _ in range(3)]
    executor.add_task(Task(shared_tasks.kinds, shared))
    results += executor.execute_all()
    del shared
    results.pop()  # its `Task` was the user's own
    gc.collect()
    assert tracked.wait_until(tracked.nothing_alive)


def test_a_handle_says_what_it_stands_for() -> None:
    """Its repr has the type, and the size where there is one."""
    with ParallelExecutor(max_concurrency=1) as threads, ParallelExecutor(backend="process") as processes:
        assert repr(threads.share([1])) == "Shared(list)"
        assert repr(processes.share([1])) == "Shared(list, 128 bytes)"


def test_what_cannot_be_pickled_is_named_at_once() -> None:
    """For processes it is pickled when it is shared, and the error says what in it cannot be."""
    with ParallelExecutor(backend="process") as executor, pytest.raises(TaskSerializationError) as info:
        executor.share({"lock": threading.Lock()})
    assert "what is shared (dict" in str(info.value)
    assert "['lock']" in str(info.value)


def test_an_executor_that_has_ended_shares_nothing() -> None:
    """After `shutdown`, `share` says so."""
    executor = ParallelExecutor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot share with an executor after shutdown: make a new"):
        executor.share(1)


@over(EVERY_START_METHOD)
def test_a_handle_comes_back_as_one(lab: Any) -> None:
    """A task may return it: here it stands for what it stood for, as long as that is there."""
    executor = lab.executor(max_concurrency=1)
    numbers = executor.share(NUMBERS)
    back: Shared[Any] = executor.submit(shared_tasks.hand_back, [numbers]).result()
    assert back.value is numbers.value


def test_it_is_a_snapshot_in_processes() -> None:
    """What happens to the object afterwards changes nothing for the workers."""
    with ParallelExecutor(backend="process", max_concurrency=1) as executor:
        value = [1]
        shared = executor.share(value)
        value.append(2)
        assert executor.submit(shared_tasks.add, shared).result() == 1


def test_a_pickle_outlives_nothing() -> None:
    """A handle that was pickled by hand says what is wrong where the object is gone."""

    def pickle_and_close() -> tuple[bytes, Any]:
        shared = executor.share([1])
        data = pickle.dumps(shared)
        gone = weakref.ref(shared.content())
        shared.close()
        return data, gone()

    # In a thread that no test has interrupted: what that leaves may live as long as the frames that were traced.
    with ParallelExecutor(backend="process", max_concurrency=1) as executor, ThreadPoolExecutor(1) as fresh:
        data, left = fresh.submit(pickle_and_close).result()
        assert left is None
        with pytest.raises(LookupError, match="must not have closed it"):
            pickle.loads(data).value  # noqa: B018  # it raises


@pytest.mark.parametrize("soft_timeout", [None, work.SOON])
def test_one_that_cannot_be_read_fails_the_attempt(soft_timeout: Any) -> None:
    """In an executor of threads it is put in its place as the call begins: an error of that is the attempt's own."""
    with ParallelExecutor(backend="process", max_concurrency=1) as processes, ThreadPoolExecutor(1) as pool:
        settings: Any = {"retry_count": 1, "backoff": 0.0, "soft_timeout": soft_timeout}
        with ParallelExecutor(backend=pool, **settings) as executor:
            future = executor.submit(shared_tasks.kinds, processes.share(shared_tasks.Unreadable()))
            assert type(future.exception(work.PATIENCE)) is ValueError
            assert [type(attempt.error) for attempt in future.task_result().attempts] == [ValueError] * 2
            assert executor.submit(shared_tasks.kinds, processes.share(NUMBERS)).result() == ["list"]


@pytest.mark.parametrize("backend", OWN)
def test_a_task_that_failed_has_it_when_it_is_added_again(backend: Any) -> None:
    """Such a task keeps its call, with what was shared."""
    with ParallelExecutor(backend=backend, max_concurrency=1, retry_count=0) as executor:
        future = executor.submit(shared_tasks.add, executor.share(["a"]))
        assert isinstance(future.exception(work.PATIENCE), TypeError)
        executor.add_task(future.task)
        (result,) = executor.execute_all()
        assert isinstance(result.error, TypeError)


@pytest.mark.parametrize("backend", OWN)
def test_a_journal_knows_a_call_by_what_is_shared(backend: Any, tmp_path: Any) -> None:
    """A later run that shares an equal object resumes, on any back end; one that shares another does not."""
    journal = tmp_path / "run.db"

    def run(kind: Any, value: Any) -> list[bool]:
        with ParallelExecutor(backend=kind, max_concurrency=1) as executor:
            shared = executor.share(value)
            executor.add_task(Task(shared_tasks.add, shared, id="added"))
            executor.add_task(Task(partial(shared_tasks.add, shared), id="partial"))
            resumed = [result.resumed for result in executor.execute_all(journal=journal)]
            tasks = [Task(shared_tasks.add, shared, id="streamed"), Task(shared_tasks.value_of, [shared], id="deep")]
            return resumed + [result.resumed for result in executor.stream(tasks, journal=journal, order="submitted")]

    assert run("thread", [1, 2]) == [False] * 4
    assert run(backend, [1, 2]) == [True] * 4
    assert run(backend, [1, 3]) == [False] * 4


@over((*OWN, "process-pool"))
def test_a_handle_in_what_is_shared(lab: Any) -> None:
    """What is shared may have handles in it, and keeps what they stand for."""
    executor = lab.executor(max_concurrency=1)
    inner = executor.share(NUMBERS)
    outer = executor.share([inner])
    del inner
    assert executor.submit(shared_tasks.value_of, outer).result() == ("Shared", NUMBERS)


@pytest.mark.parametrize("backend", OWN)
def test_a_handle_that_is_shared_is_another_handle(backend: Any) -> None:
    """The callee gets the object itself, also when a task that failed is added again."""
    with ParallelExecutor(backend=backend, max_concurrency=1, retry_count=0) as executor:
        first = executor.share(NUMBERS)
        second = executor.share(first)
        first.close()
        assert executor.submit(shared_tasks.add, second).result() == 6
        future = executor.submit(shared_tasks.fail_as, second)
        assert str(future.exception(work.PATIENCE)) == "list"
        executor.add_task(future.task)
        assert str(executor.execute_all()[0].error) == "list"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_handle_stands_for_the_same(copied: Any) -> None:
    """Nothing is pickled for it, and it has an end of its own."""
    with ParallelExecutor() as executor:
        lock = threading.Lock()
        shared = executor.share(lock)
        other = copied(shared)
        shared.close()
        assert other.value is lock


def test_a_task_that_failed_shows_handles() -> None:
    """What `task` has are handles, as they were given, whatever stood for them on the way."""
    with ParallelExecutor(backend="process", max_concurrency=1, retry_count=0) as executor:
        future = executor.submit(shared_tasks.fail_as, executor.share(NUMBERS), first=executor.share(NUMBERS))
        assert isinstance(future.exception(work.PATIENCE), ValueError)
        call: Any = future.task.execute
        assert [type(call.args[0]), type(call.keywords["first"])] == [Shared, Shared]
        assert call.args[0].value == NUMBERS


@pytest.mark.parametrize("value", [[1, 2], (1, [2]), "text", "long" * 5000, 7, b"bytes"], ids=repr)
def test_a_journal_has_one_key_for_it_everywhere(value: Any, tmp_path: Any) -> None:
    """Whatever it is, whoever has shared it, and wherever the call runs."""
    journal = tmp_path / "run.db"

    def run(maker: Any, user: Any) -> bool:
        with ParallelExecutor(backend=maker) as one, ParallelExecutor(backend=user, max_concurrency=1) as other:
            other.add_task(Task(shared_tasks.kinds, one.share(value), id="task"))
            (result,) = other.execute_all(journal=journal)
            return bool(result.resumed)

    assert [run(*both) for both in (("thread", "thread"), ("process", "process"), ("process", "inline"))] == [
        False,
        True,
        True,
    ]
    assert run("thread", "process")


def test_an_initializer_may_have_a_handle() -> None:
    """What stands for it is there for each worker that starts, though nobody else has it any more."""
    with ParallelExecutor(backend="process") as one:
        backend = ProcessBackend(initializer=shared_tasks.keep, initargs=(one.share(NUMBERS),), max_tasks_per_child=1)
    with ParallelExecutor(backend=backend, max_concurrency=1) as other:
        assert [other.submit(shared_tasks.sum_of_kept).result() for _ in range(2)] == [6, 6]
