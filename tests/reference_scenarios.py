"""Uses of an executor, each of which makes one, does something with it and keeps nothing: for `test_references.py`.

No variable that an error's traceback leads to may hold what the error belongs to: that circle would be the caller's own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, as_completed, wait
from functools import partial
from typing import Any, Callable, Iterator

import tenacity
import tracked
import work
from tracked import Call, Fail, Nap, Tracked, swallow

from parallel_exec import ParallelExecutor, ProcessBackend, Task, TaskResult, ThreadBackend

Make = Callable[..., ParallelExecutor]
Use = Callable[[Make], None]
MOMENT = 0.05  # seconds

EVERYWHERE: list[Use] = []
BESIDE_THE_CALLER: list[Use] = []  # where the caller goes on while a task runs
IN_THREADS: list[Use] = []
IN_PROCESSES: list[Use] = []


def use(group: list[Use]) -> Callable[[Use], Use]:
    """Put a use into a group."""

    def put(function: Use) -> Use:
        group.append(function)
        return function

    return put


def _unwrap_last(results: list[TaskResult[Any]]) -> None:
    """Raise the error of the last result, with nothing else in this frame."""
    swallow(results.pop().unwrap)


# ── executors ───────────────────────────────────────────────────────────────────────────────────────────────────────


@use(EVERYWHERE)
def nothing(make: Make) -> None:
    """Shut one down that was never used."""
    make().shutdown()


@use(EVERYWHERE)
def nothing_and_drop(make: Make) -> None:
    """Drop one that was never used."""
    make()


@use(EVERYWHERE)
def stage_and_drop(make: Make) -> None:
    """Drop one with tasks that were never started."""
    executor = make()
    for _ in range(3):
        executor.add_task(Call())


@use(EVERYWHERE)
def submit_and_drop(make: Make) -> None:
    """Drop one without `shutdown`."""
    make().submit(tracked.echo, Tracked()).result()


@use(EVERYWHERE)
def submit_after_shutdown(make: Make) -> None:
    """Be refused."""
    executor = make()
    executor.shutdown()
    swallow(partial(executor.submit, tracked.echo, Tracked()))


@use(EVERYWHERE)
def shut_down_and_cancel(make: Make) -> None:
    """Cancel what has not begun."""
    executor = make(max_concurrency=1)
    for _ in range(5):
        executor.submit(tracked.echo, Tracked())
    executor.shutdown(cancel_futures=True)


@use(BESIDE_THE_CALLER)
def pause_and_resize(make: Make) -> None:
    """Pause, resume, resize."""
    with make() as executor:
        executor.pause()
        future = executor.submit(tracked.echo, Tracked())
        executor.resume()
        future.result()
        executor.resize(1)
        executor.resize(4)


def broken_threads() -> ParallelExecutor:
    """Return an executor whose initializer has failed."""
    executor = ParallelExecutor(backend=ThreadBackend(initializer=work.fail_deeply, initargs=(1,)))
    swallow(executor.submit(tracked.echo, Tracked()).result)
    return executor


@use(IN_THREADS)
def break_threads(make: Make) -> None:
    """Meet again and again the error of an initializer that fails."""
    executor = broken_threads()
    for _ in range(3):
        swallow(partial(executor.submit, tracked.echo, Tracked()))
    executor.shutdown()


@use(IN_PROCESSES)
def break_processes(make: Make) -> None:
    """Do the same in processes."""
    executor = make(backend=ProcessBackend(initializer=work.fail_deeply, initargs=(1,)))
    swallow(executor.submit(tracked.echo, Tracked()).result)
    for _ in range(3):
        swallow(partial(executor.submit, tracked.echo, Tracked()))
    executor.shutdown()


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@use(EVERYWHERE)
def run_and_look(make: Make) -> None:
    """Look at all that a result shows."""
    with make() as executor:
        for number in range(5):
            executor.add_task(Task(Call(), id=f"t{number}"))
        assert all((result.success, result.task.id, result.attempts) for result in executor.execute_all())


@use(EVERYWHERE)
def run_again(make: Make) -> None:
    """Run several times, and ask for the last results."""
    with make() as executor:
        for _ in range(3):
            executor.add_task(Call())
            executor.execute_all()
        executor.results()


@use(EVERYWHERE)
def run_with_events(make: Make) -> None:
    """Keep the events."""
    seen: list[object] = []
    with make(on_event=seen.append) as executor:
        executor.add_task(Fail())
        executor.add_task(Call())
        executor.execute_all()


def _refuse(event: object) -> None:
    raise work.CodedError(1)


@use(EVERYWHERE)
def run_with_a_bad_hook(make: Make) -> None:
    """Have a hook that raises."""
    with make(on_event=_refuse) as executor:
        executor.add_task(Fail())
        executor.execute_all()


@use(EVERYWHERE)
def run_before_the_deadline(make: Make) -> None:
    """End long before a deadline, whose timer is still there."""
    with make() as executor:
        executor.add_task(Call())
        executor.execute_all(deadline=3600.0)


@use(EVERYWHERE)
def run_into_the_deadline(make: Make) -> None:
    """Have the deadline end tasks."""
    with make(max_concurrency=1) as executor:
        for _ in range(3):
            executor.add_task(Nap(3 * MOMENT))
        executor.execute_all(deadline=MOMENT)


@use(EVERYWHERE)
def run_and_fail_fast(make: Make) -> None:
    """Have a failure cancel the rest."""
    with make(retry_count=0) as executor:
        executor.add_task(Task(Fail(), priority=1))
        for _ in range(3):
            executor.add_task(Call())
        executor.execute_all(fail_fast=True)


@use(EVERYWHERE)
def fill_the_queue(make: Make) -> None:
    """Be refused, as the queue is full."""
    with make(queue_size=1) as executor:
        executor.add_task(Call())
        swallow(partial(executor.add_task, Call()))
        executor.execute_all()


@use(EVERYWHERE)
def look_at_the_queue(make: Make) -> None:
    """Take tasks out of the queue, and put some in."""
    executor = make()
    executor.add_task(Call())
    executor.queue.peek()
    executor.queue.dequeue()
    executor.queue.enqueue(Task(Call()))
    executor.queue.clear()
    executor.shutdown()


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


@use(EVERYWHERE)
def fail_twice(make: Make) -> None:
    """Fail, be retried, and fail again, in a run and beside it."""
    with make(retry_count=1) as executor:
        executor.add_task(Fail())
        assert not any(result.success for result in executor.execute_all())
        executor.submit(Fail()).exception()


@use(EVERYWHERE)
def raise_the_error(make: Make) -> None:
    """Raise the error by `result()`, more than once."""
    with make(retry_count=0) as executor:
        swallow(executor.submit(Fail()).result)


@use(EVERYWHERE)
def unwrap_the_error(make: Make) -> None:
    """Raise the error by `unwrap()`."""
    executor = make(retry_count=0)
    executor.add_task(Fail())
    results = executor.execute_all()
    executor.shutdown()
    del executor  # which `results` of it would lead back to
    _unwrap_last(results)


@use(EVERYWHERE)
def fail_while_looking(make: Make) -> None:
    """Fail with `current_task()` in a variable, and by its `check`."""
    with make(retry_count=0) as executor:
        executor.add_task(tracked.look_and_fail)
        executor.add_task(Task(tracked.look_until_told, timeout=MOMENT))
        executor.execute_all()


@use(EVERYWHERE)
def exit_from_a_task(make: Make) -> None:
    """Fail by `sys.exit`."""
    with make() as executor:
        swallow(executor.submit(work.exit_with, 3).result)


@use(EVERYWHERE)
def interrupt_from_a_task(make: Make) -> None:
    """Fail by `KeyboardInterrupt`, which is the caller's, too, inline."""

    def run() -> None:
        with make() as executor:
            executor.add_task(tracked.Interrupt())
            executor.execute_all()

    swallow(run)


@use(EVERYWHERE)
def be_interrupted(make: Make) -> None:
    """Be hit by Ctrl-C in the middle of a run."""

    def run() -> None:
        with make() as executor:
            executor.add_task(Call())
            for _ in range(2):
                executor.add_task(Nap(4 * MOMENT))
            threading.Timer(MOMENT, os.kill, (os.getpid(), signal.SIGINT)).start()
            executor.execute_all()
            time.sleep(work.PATIENCE)  # for the signal, should it be late

    swallow(run)
    time.sleep(4 * MOMENT)


@use(EVERYWHERE)
def outrun_the_timeout(make: Make) -> None:
    """Outrun the timeout, twice."""
    with make(retry_count=1, timeout=MOMENT) as executor:
        executor.add_task(Nap(3 * MOMENT))
        assert not executor.execute_all()[0].success
        time.sleep(4 * MOMENT)


@use(IN_THREADS)
def run_out_of_threads(make: Make) -> None:
    """Lose every slot to an abandoned thread."""
    executor = make(backend=ThreadBackend(max_abandoned=0), max_concurrency=1, retry_count=0, timeout=MOMENT)
    executor.add_task(Nap(4 * MOMENT))
    executor.add_task(Call())
    results = executor.execute_all()
    executor.shutdown()
    del executor
    _unwrap_last(results)
    time.sleep(4 * MOMENT)


@use(IN_THREADS)
def wait_for_ever(make: Make) -> None:
    """Be told that a task would wait for its own pool for ever."""
    executor = make(max_concurrency=1, retry_count=0)
    pools = [executor]
    swallow(executor.submit(lambda: pools[0].submit(tracked.echo, Tracked()).result()).result)
    executor.shutdown()
    pools.clear()


@use(IN_PROCESSES)
def crash(make: Make) -> None:
    """Lose a worker."""
    with make(retry_count=0) as executor:
        swallow(executor.submit(os._exit, 3).result)
        executor.submit(tracked.echo, Tracked()).result()


@use(EVERYWHERE)
def send_what_cannot_travel(make: Make) -> None:
    """Give what cannot be pickled, and return it."""
    with make(retry_count=0) as executor:
        executor.submit(tracked.echo, threading.Lock()).exception()
        swallow(executor.submit(tracked.echo, tracked.Unpicklable()).result)
        executor.submit(tracked.lock).exception()


@use(IN_PROCESSES)
def send_what_cannot_be_rebuilt(make: Make) -> None:
    """Give what cannot be unpickled, and return it, from a call and from the items of a map."""
    with make(retry_count=0) as executor:
        executor.submit(tracked.echo, tracked.Unreadable()).exception()
        swallow(executor.submit(tracked.unreadable, 1).result)
        swallow(partial(list, executor.map(tracked.unreadable, range(3))))
        swallow(partial(list, executor.map(tracked.echo, [1, threading.Lock(), 3])))
        swallow(partial(list, executor.map(tracked.echo, iter([[1], threading.Lock(), [3]]))))


# ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@use(BESIDE_THE_CALLER)
def cancel_between_attempts(make: Make) -> None:
    """Cancel what waits for its next attempt."""
    with make(backoff=3600.0, max_backoff=3600.0) as executor:
        future = executor.submit(Fail())
        assert tracked.wait_until(lambda: executor.stats().waiting == 1)
        future.cancel()


@use(EVERYWHERE)
def retry_by_tenacity(make: Make) -> None:
    """Have a tenacity object decide on successes and failures."""
    with make(retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(2))) as executor:
        executor.add_task(Call())
        executor.add_task(Fail())
        executor.execute_all()


@use(EVERYWHERE)
def reject_by_tenacity(make: Make) -> None:
    """Have a result rejected until the attempts are used up."""
    reject = tenacity.retry_if_result(lambda value: True)
    with make(retry=tenacity.Retrying(stop=tenacity.stop_after_attempt(2), retry=reject)) as executor:
        executor.add_task(Call())
        executor.execute_all()


def _raise_again(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None
    state.outcome.result()


def _raise_anew(state: tenacity.RetryCallState) -> None:
    raise work.CodedError(state.attempt_number)


@use(EVERYWHERE)
def raise_from_hooks(make: Make) -> None:
    """Have tenacity's hooks raise: the task's own error, and another, before and after an attempt."""
    stop = tenacity.stop_after_attempt(2)
    again = tenacity.Retrying(stop=stop, retry_error_callback=_raise_again)
    after, before = tenacity.Retrying(stop=stop, before_sleep=_raise_anew), tenacity.Retrying(before=_raise_anew)
    with make() as executor:
        for retry in (again, after, before):
            executor.add_task(Task(Fail(), retry=retry))
        executor.execute_all()


# ── futures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@use(EVERYWHERE)
def cancel_what_is_queued(make: Make) -> None:
    """Cancel what has not begun."""
    with make() as executor:
        future = executor.add_task(Call())
        future.cancel()
        swallow(future.result)


@use(BESIDE_THE_CALLER)
def abort_what_runs(make: Make) -> None:
    """Abort a running attempt."""
    with make() as executor:
        future = executor.submit(Nap(3 * MOMENT))
        assert tracked.wait_until(future.running)
        future.abort()
        swallow(future.result)
        time.sleep(4 * MOMENT)


def _look_at(future: Future[Any], again: Future[Any]) -> None:
    assert future is again
    future.exception()


@use(EVERYWHERE)
def call_back(make: Make) -> None:
    """Have callbacks that lead back to their future, and wait in every way."""
    with make(retry_count=0) as executor:
        futures: list[Future[Any]] = [executor.submit(Call()), executor.submit(Fail())]
        for future in futures:
            future.add_done_callback(partial(_look_at, future))
        wait(futures)
        list(as_completed(futures))


@use(EVERYWHERE)
def see_tasks(make: Make) -> None:
    """Have tasks made of calls, before and after their end."""
    with make() as executor:
        view = executor.options(priority=3, timeout=10, id="x")
        future = view.submit(tracked.echo, Tracked())
        assert future.task is future.task
        future.result()
        assert future.task.id == "x"


@use(IN_THREADS)
def nest(make: Make) -> None:
    """Submit and wait inside a task."""
    with make() as executor:
        executor.submit(lambda: executor.submit(tracked.echo, Tracked()).result()).result()


# ── map and stream ──────────────────────────────────────────────────────────────────────────────────────────────────


@use(EVERYWHERE)
def map_all(make: Make) -> None:
    """Take all results, of a list and of a generator."""
    with make() as executor:
        list(executor.map(tracked.echo, [Tracked() for _ in range(30)]))
        list(executor.map(tracked.echo, (Tracked() for _ in range(9))))
        list(executor.map(tracked.echo, (Tracked() for _ in range(9)), buffersize=3))


@use(EVERYWHERE)
def map_half(make: Make) -> None:
    """Drop the iterator in the middle."""
    with make() as executor:
        results = executor.map(tracked.echo, [Tracked() for _ in range(30)])
        next(results)
        next(results)


@use(EVERYWHERE)
def map_and_fail(make: Make) -> None:
    """Have a call raise in the middle, of a list and of a generator, at once and after a retry."""
    for retries in (0, 1):
        with make(retry_count=retries) as executor:
            swallow(partial(list, executor.map(tracked.fail_at_three, range(9))))
            swallow(partial(list, executor.map(tracked.fail_at_three, iter(range(9)))))


@use(BESIDE_THE_CALLER)
def map_too_slowly(make: Make) -> None:
    """Have a result come too late."""
    with make() as executor:
        swallow(partial(list, executor.map(time.sleep, [3 * MOMENT] * 3, timeout=MOMENT)))


@use(EVERYWHERE)
def stream_all(make: Make) -> None:
    """Take all results of a stream."""
    with make() as executor:
        assert sum(result.success for result in executor.stream(Task(Call()) for _ in range(9))) == 9


@use(EVERYWHERE)
def stream_half(make: Make) -> None:
    """Drop a stream in the middle."""
    with make() as executor:
        results = executor.stream(Task(Call()) for _ in range(9))
        next(results)
        next(results)


def _one_and_fail() -> Iterator[Task[Any]]:
    yield Task(Call())
    raise work.CodedError(1)


@use(EVERYWHERE)
def stream_and_fail(make: Make) -> None:
    """Have the tasks' iterable raise."""
    with make() as executor:
        swallow(partial(list, executor.stream(_one_and_fail())))
