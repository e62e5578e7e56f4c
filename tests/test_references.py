"""What is freed when: with the last reference, in all back ends, also while the cyclic collector is switched off."""

from __future__ import annotations

import gc
import pickle
import traceback
import weakref
from concurrent.futures import wait
from functools import partial
from typing import Any, Iterator

import inside
import pytest
import reference_scenarios
import script
import tracked
import work
from backend_kinds import IN_THIS_PROCESS, over
from tracked import Call, Fail, Tracked

from parallel_exec import ParallelExecutor, Task, TaskSerializationError, TaskStarted
from parallel_exec._core.job import Job
from parallel_exec._core.settings import Settings
from parallel_exec._outcome import Success
from parallel_exec.config import policy_for

KINDS = ("thread", "process", "inline", "thread-pool", "process-pool")
BESIDE_THE_CALLER = tuple(name for name in KINDS if name != "inline")


@pytest.fixture(autouse=True, scope="module")
def no_collector() -> Iterator[None]:
    """The collector is off in every test here."""
    with tracked.no_collector():
        yield


def _make(kind: Any, **settings: Any) -> ParallelExecutor:
    """Return an executor that nobody keeps: `lab` would."""
    settings.setdefault("backoff", 0.0)
    settings.setdefault("backend", kind.make())
    return ParallelExecutor(**settings)


# ── the last reference ──────────────────────────────────────────────────────────────────────────────────────────────


def _nothing_is_left(kind: Any, use: reference_scenarios.Use) -> None:
    gc.collect()  # what a test before this one left
    assert tracked.nothing_alive()
    use(partial(_make, kind))
    assert tracked.wait_until(lambda: tracked.has_ended() and tracked.nothing_alive())
    assert tracked.garbage() == []


@over(KINDS)
@pytest.mark.parametrize("use", reference_scenarios.EVERYWHERE, ids=lambda use: use.__name__)
def test_nothing_is_left(kind: Any, use: reference_scenarios.Use) -> None:
    """An executor that was used and dropped leaves nothing alive, and nothing for the collector."""
    _nothing_is_left(kind, use)


@over(BESIDE_THE_CALLER)
@pytest.mark.parametrize("use", reference_scenarios.BESIDE_THE_CALLER, ids=lambda use: use.__name__)
def test_nothing_is_left_beside_the_caller(kind: Any, use: reference_scenarios.Use) -> None:
    """Nor does one whose tasks run while the caller goes on."""
    _nothing_is_left(kind, use)


@over(("thread",))
@pytest.mark.parametrize("use", reference_scenarios.IN_THREADS, ids=lambda use: use.__name__)
def test_nothing_is_left_of_threads(kind: Any, use: reference_scenarios.Use) -> None:
    """Nor does one of threads."""
    _nothing_is_left(kind, use)


@over(("process", "fork"))
@pytest.mark.parametrize("use", reference_scenarios.IN_PROCESSES, ids=lambda use: use.__name__)
def test_nothing_is_left_of_processes(kind: Any, use: reference_scenarios.Use) -> None:
    """Nor does one of processes."""
    _nothing_is_left(kind, use)


@over(KINDS)
def test_an_idle_executor_keeps_no_task(kind: Any) -> None:
    """Workers that wait for the next task hold nothing of the last: no argument, result, error, callable or future."""
    with _make(kind, retry_count=1) as executor:
        for _ in range(3):
            executor.submit(tracked.echo, Tracked()).result()
            assert executor.submit(Fail()).exception() is not None
            assert tracked.wait_until(tracked.nothing_alive)


@over(BESIDE_THE_CALLER)
@pytest.mark.parametrize("needs", [{}, {"db": 1}], ids=["free", "limited"])
def test_what_was_cancelled_goes_with_the_last_before_it(kind: Any, lab: Any, needs: dict[str, int]) -> None:
    """Nobody looks into a queue that is empty, least of all in a pause."""
    with _make(kind, max_concurrency=1, limits={"db": 1}) as executor:
        begun, gate = lab.latch(), lab.latch()
        first = executor.submit(work.hold, begun, gate)
        begun.wait()
        limited = executor.options(needs=needs)
        others = [limited.submit(int), limited.submit(int)]
        others[1].add_done_callback(lambda _: executor.pause())
        assert limited.submit(tracked.echo, Tracked()).cancel()
        gate.set()
        wait([first, *others])
        assert tracked.wait_until(tracked.nothing_alive)


def test_a_worker_that_is_about_to_begin_keeps_nothing_of_the_last_task(lab: Any) -> None:
    """A hook holds up the start of the next."""
    added, begins, gate = lab.event(), lab.event(), lab.event()

    def hook(event: Any) -> None:
        if added.is_set() and isinstance(event, TaskStarted):
            begins.set()
            gate.wait(work.PATIENCE)

    def make() -> Tracked:
        added.wait(work.PATIENCE)
        return Tracked()

    executor = lab.executor(max_concurrency=1, on_event=hook)
    first: Any = executor.submit(make)
    executor.submit(int)
    added.set()
    assert begins.wait(work.PATIENCE)
    assert first.result() is not None
    del first
    assert tracked.wait_until(tracked.nothing_alive)
    gate.set()


@over(BESIDE_THE_CALLER)
def test_a_cancelled_task_is_let_go_before_its_timer_is_due(kind: Any) -> None:
    """The timer of a wait that was cancelled keeps neither the task nor its future."""
    with _make(kind, backoff=3600.0, max_backoff=3600.0) as executor:
        future: Any = executor.submit(Fail())
        assert tracked.wait_until(lambda: executor.stats().waiting == 1)
        assert future.cancel()
        del future
        assert tracked.wait_until(tracked.nothing_alive)


@over(BESIDE_THE_CALLER)
def test_an_aborted_task_is_let_go_once_its_call_has_returned(kind: Any) -> None:
    """The worker that has taken over the slot keeps nothing of it, however long it lives."""
    with _make(kind, retry_count=0) as executor:
        future: Any = executor.submit(tracked.Nap(0.05))
        assert tracked.wait_until(future.running)
        assert future.abort()
        assert tracked.wait_until(future.done)
        del future
        assert executor.submit(work.double, 1).result() == 2
        assert tracked.wait_until(tracked.nothing_alive)


class _Telltale:
    """Says when it goes."""

    def __init__(self, log: work.Log) -> None:
        self.log = log

    def __del__(self) -> None:
        self.log.write("gone")


def _look_at(told: _Telltale) -> None:
    """Take it."""


@over(("process", "fork", "process-pool"))
def test_an_idle_worker_process_keeps_no_task(lab: Any) -> None:
    """In the worker, too, the arguments go with the end of the call."""
    executor, log = lab.executor(max_concurrency=1), lab.log()
    executor.submit(_look_at, _Telltale(log)).result()
    executor.submit(int).result()
    assert tracked.wait_until(lambda: len(log.lines()) == 2)  # here, and there


@over(KINDS)
def test_an_error_leads_to_nothing_but_its_frames(kind: Any) -> None:
    """Who keeps an error, traceback and all, keeps neither its future nor the executor."""
    executor: Any = _make(kind, retry_count=1)
    future: Any = executor.submit(Fail())
    error = future.exception()
    kept = weakref.ref(future), weakref.ref(executor), weakref.ref(inside.scheduler(executor))
    executor.shutdown()
    del executor, future
    assert tracked.wait_until(lambda: [reference() for reference in kept] == [None] * 3)
    assert type(error) is work.CodedError


@over(IN_THIS_PROCESS)
def test_a_traceback_can_still_be_read(kind: Any) -> None:
    """An error has its traceback, with the frames of the call and their variables."""
    with _make(kind, retry_count=0) as executor:
        error = executor.submit(Fail()).exception()
        assert error is not None
        frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
        assert type(frame.f_locals["tracked"]) is Tracked
        del frame, error


def test_a_pickling_error_says_where_it_came_from() -> None:
    """The traceback of what kept a call from being pickled is there as text."""
    with ParallelExecutor(backend="process") as executor:
        error = executor.submit(tracked.echo, tracked.Unpicklable()).exception()
    assert type(error) is TaskSerializationError
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in __reduce__" in text
    assert "CodedError" in text


def test_the_same_broken_pool_is_met_with_another_error_each_time() -> None:
    """An executor that cannot start workers does not raise the error that it keeps, which would gather tracebacks."""
    executor = reference_scenarios.broken_threads()
    met = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="initializer") as info:
            executor.submit(int)
        met.append(info.value)
    executor.shutdown()
    assert met[0] is not met[1]
    assert str(met[0]) == str(met[1])
    assert met[0].__cause__ is met[1].__cause__ is not None


def test_memory_stays_flat(tmp_path: Any) -> None:
    """Twenty runs of results of 20 MB each need little more memory than one, with the collector off."""
    body = """
        import resource
        gc.disable()
        used = []
        with ParallelExecutor(backend=sys.argv[1], max_concurrency=2) as executor:
            for _ in range(20):
                for _ in range(4):
                    executor.add_task(partial(bytes, 5_000_000))
                results = executor.execute_all()
                assert sum(len(result.result) for result in results) == 20_000_000
                used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        say(used[-1] - used[2] < 60)  # MB; 340 if all were kept
    """
    for backend in ("thread", "process", "inline"):
        assert script.run(tmp_path, body, backend).split() == ["True"]


# ── what a result keeps ─────────────────────────────────────────────────────────────────────────────────────────────


@over(KINDS)
def test_results_keep_no_arguments(kind: Any) -> None:
    """The results of a run, and the futures of submit and map, keep nothing of calls that have succeeded."""
    with _make(kind) as executor:
        for _ in range(5):
            executor.add_task(partial(bool, Tracked()))
        results = executor.execute_all()
        futures = [executor.submit(bool, Tracked()), executor.options(id="o").submit(bool, Tracked())]
        assert list(executor.map(bool, [Tracked() for _ in range(9)])) == [True] * 9
        assert [future.result() for future in futures] == [True, True]
        assert all(result.unwrap() for result in results)
        assert tracked.wait_until(tracked.nothing_alive)


@over(KINDS)
def test_the_task_of_a_result_has_all_but_its_call(kind: Any) -> None:
    """A succeeded task that nobody else kept is shown with its id, priority and settings, and refuses to run."""
    with _make(kind) as executor:
        executor.add_task(Task(Call(), id="a", priority=3, timeout=20.0, retry_count=1))
        future = executor.options(id="b", priority=2, timeout=30.0).submit(bool, Tracked())
        task = executor.execute_all()[0].task
        assert (task.id, task.priority, task.timeout, task.retry_count) == ("a", 3, 20.0, 1)
        with pytest.raises(RuntimeError, match=r"task 'a' .* keep the Task yourself"):
            task.execute()
        assert future.result() is True
        assert (future.task.id, future.task.priority, future.task.timeout) == ("b", 2, 30.0)


@over(KINDS)
def test_a_task_that_somebody_keeps_is_that_very_task(kind: Any) -> None:
    """While the `Task` that was added is alive, results and futures show it itself; it can be run again."""
    tasks = [Task(Call(), id=f"t{number}") for number in range(3)]
    with _make(kind) as executor:
        futures = [executor.add_task(task) for task in tasks]
        results = executor.execute_all()
        assert all(result.task is task for result, task in zip(results, tasks))
        assert all(future.task is task for future, task in zip(futures, tasks))
        executor.add_task(results[0].task)
        assert executor.execute_all()[0].success


@over(KINDS)
def test_a_result_whose_call_was_let_go_is_not_added_again(kind: Any) -> None:
    """It is refused at once, not run and retried; nothing else is lost for it."""
    with _make(kind) as executor:
        executor.add_task(Task(bool, id="a"))
        result = executor.execute_all()[0]
        with pytest.raises(RuntimeError, match=r"task 'a' .* keep the Task yourself"):
            executor.add_task(result.task)
        with pytest.raises(RuntimeError, match="keep the Task yourself"):
            list(executor.stream([result.task]))
        assert executor.submit(int).result() == 0


class _SeenMeanwhile(Job[bool]):
    """A future whose `task` another thread looks at while it lets its call go."""

    _made: Any = None

    @property  # type: ignore[override]
    def _task(self) -> Any:
        made = self._made
        if type(made) is Task:
            self._made = weakref.ref(made)  # as `_make_task` does once it sees that the call was let go
        return made

    @_task.setter
    def _task(self, task: Any) -> None:
        self._made = task


def test_a_task_seen_while_the_call_is_let_go() -> None:
    """The future settles, whoever was first to keep its task weakly."""
    with ParallelExecutor(backend="inline") as executor:
        task = Task(bool, id="a")
        future = _SeenMeanwhile.of_task(inside.scheduler(executor), Settings(None, policy_for(executor.config)), task)
        future.let_go(Success(None))
        assert future.task is task


class _Named(Task[Any]):
    """A task that carries something of the user's."""

    origin = ""


@over(KINDS)
def test_a_task_of_a_class_of_the_users_is_kept(kind: Any) -> None:
    """It may carry what nobody could make again."""
    with _make(kind) as executor:
        task = _Named(bool, id="n")
        object.__setattr__(task, "origin", "here")
        executor.add_task(task)
        del task
        assert executor.execute_all()[0].task.origin == "here"  # type: ignore[attr-defined]


@over(KINDS)
def test_failed_tasks_can_be_added_again(kind: Any) -> None:
    """`result.task` of one that failed, was cancelled or timed out is callable, also if nobody kept it."""
    with _make(kind, retry_count=0) as executor:
        executor.add_task(Task(Fail(), id="failed"))
        executor.add_task(Task(Call(), id="cancelled", priority=-1)).cancel()
        executor.add_task(Task(tracked.look_until_told, id="late", timeout=0.05))
        for result in executor.execute_all():
            assert not result.success
            executor.add_task(result.task)
        again = executor.execute_all()
        assert [(result.task.id, result.success) for result in again] == [
            ("failed", False),
            ("cancelled", True),
            ("late", False),
        ]


def test_a_task_seen_before_its_end_lets_the_call_go_as_well() -> None:
    """Whoever looked at `future.task` while it ran does not make the future keep the arguments."""
    with ParallelExecutor(backend="inline") as executor:
        future = executor.add_task(partial(bool, Tracked()))
        early = future.task
        assert early.id == future.task.id
        executor.execute_all()
        assert future.task is early
        del early
        assert tracked.nothing_alive()
        assert future.task.id == future.id


def test_a_result_without_its_call_pickles() -> None:
    """A result whose call was let go can be sent and stored as before."""
    with ParallelExecutor(backend="inline") as executor:
        executor.add_task(Task(bool, id="a"))
        result = pickle.loads(pickle.dumps(executor.execute_all()[0]))
    assert (result.task.id, result.success, result.result) == ("a", True, False)
    with pytest.raises(RuntimeError, match="keep the Task"):
        result.task.execute()


def test_a_hook_that_leads_to_the_executor() -> None:
    """Once it was shut down, nothing keeps an executor whose hook is a method of what has it."""

    class Application:
        def __init__(self) -> None:
            self.executor = ParallelExecutor(on_event=self.hear)

        def hear(self, event: Any) -> None:
            pass

    application = Application()
    application.executor.submit(int).result()
    application.executor.shutdown()
    gone = weakref.ref(application)
    del application
    gc.collect()
    assert gone() is None
