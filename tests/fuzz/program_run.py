"""Does the steps of a random program, and keeps what came of each: what was given, and to whom."""

from __future__ import annotations

import atexit
import faulthandler
import gc
import itertools
import os
import signal
import threading
import time
import traceback
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as WaitTimeout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn

import fuzz_calls
import tenacity
from fuzz_calls import RUNS, Begin, End, Place, Token
from random_program import IN_THIS_PROCESS, Plan, Program, Step

from parallel_exec import (
    Adaptive,
    ParallelExecError,
    ParallelExecutor,
    PerKey,
    ProcessBackend,
    Rate,
    Task,
    ThreadBackend,
)

CHILD_LIMIT = 10.0  # seconds in which a forked child must end
FORGOTTEN = 3.0  # seconds within which what is dropped is gone
_numbers = itertools.count()

# What a step may raise: that it comes too late, that there is no room, that it would wait for ever, or what a task has raised.
EXPECTED = (RuntimeError, ParallelExecError, ValueError, KeyError, CancelledError, WaitTimeout, TimeoutError)
PLANNED = (fuzz_calls.PlannedError, SystemExit)


@dataclass
class Given:
    """A task that was given, and how it ended.

    Attributes:
        name: its id.
        plan: what it does.
        via: the step that gave it.
        thread: the thread that did.
        future: its future, if one is to be had.
        result: its `TaskResult`, if one came out of a future, or a stream.
        callbacks: how many it was given.
        called: those that were called, by their numbers.
    """

    name: str
    plan: Plan
    via: str
    thread: int
    future: Any = None
    result: Any = None
    callbacks: int = 0
    called: list[int] = field(default_factory=list)


@dataclass
class Series:
    """What came out of an `execute_all`, a `map` or a `stream`.

    Attributes:
        step: the step.
        thread: who did it.
        names: the tasks that it gave; of an `execute_all`, those that its thread had added before.
        out: what came, in order: names of tasks, or of a `map` what the calls returned.
        error: what ended it.
        whole: whether it came to its end.
    """

    step: Step
    thread: int
    names: list[str]
    out: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    whole: bool = False


@dataclass
class Record:
    """All that is known of a run.

    Attributes:
        program: which.
        given: the tasks, by their names.
        series: the runs, maps and streams.
        calls: begins and ends.
        events: kind, task and attempt of each, if somebody listened.
        bounds: all that `max_concurrency` ever was.
        specs: all that each limit ever was.
        stats: in the end.
        surprises: what no part of the program should have done, in words.
    """

    program: Program
    given: dict[str, Given]
    series: list[Series]
    calls: list[Begin | End]
    events: list[tuple[str, str, int]]
    bounds: list[int]
    specs: dict[str, list[Any]]
    stats: Any
    surprises: list[str]


def spec_of(text: Any) -> Any:
    """Return a limit as the library takes it."""
    return eval(text, {"Adaptive": Adaptive, "PerKey": PerKey, "Rate": Rate}) if isinstance(text, str) else text


def _rejects_first(value: Any) -> bool:
    return isinstance(value, tuple) and value[1] == 1


def _policy(text: str) -> tenacity.Retrying:
    retry: Any = tenacity.retry_if_exception_type()
    if "rejects" in text:
        retry |= tenacity.retry_if_result(_rejects_first)
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(int(text[5])), wait=tenacity.wait_none(), retry=retry)


class Run:
    """One run of a program. Thread-safe without locks of its own, which Ctrl-C might leave taken.

    Attributes:
        calls: what the calls of this process noted.
        over: whether what hangs is to come to its end.
        executor: the executor.
        children: processes that were forked, and not waited for.
    """

    def __init__(self, program: Program, folder: str) -> None:
        self.program = program
        self.number = next(_numbers)
        is_here = program.kind in IN_THIS_PROCESS
        self.place = Place(self.number, "" if is_here else os.path.join(folder, f"calls-{self.number}"))
        self.calls: list[Begin | End] = []
        self.over = False
        self.given: dict[str, Given] = {}
        self.series: list[Series] = []
        self.events: list[tuple[str, str, int]] = []
        self.surprises: list[str] = []
        self._counts: dict[str, Any] = {}
        self._tokens: list[weakref.ref[Token]] = []
        self.children: list[int] = []
        self._engine = ThreadPoolExecutor(program.backend.get("size", 2)) if program.kind == "engine" else None
        settings = self._settings()
        self.bounds = [1 if program.kind == "inline" else settings["max_concurrency"]]
        self.specs = {name: [spec] for name, spec in settings.get("limits", {}).items()}
        self.executor = ParallelExecutor(**settings)
        RUNS[self.number] = self

    def _settings(self) -> dict[str, Any]:
        program = self.program
        settings = {"max_concurrency": 2, "retry_count": 1, "backoff": 0.0, "jitter": False, **program.settings}
        if "limits" in settings:
            settings["limits"] = {name: spec_of(spec) for name, spec in settings["limits"].items()}
        if "retry" in settings:
            settings["retry"] = _policy(settings["retry"])
        if program.listens:
            settings["on_event"] = self._hear
        backends: dict[str, Callable[..., Any]] = {"thread": ThreadBackend, "process": ProcessBackend}
        if program.kind in backends:
            settings["backend"] = backends[program.kind](**program.backend)
        else:
            settings["backend"] = self._engine or "inline"
        return settings

    def let_go(self) -> None:
        """Let what hangs come to its end, and go on with what is paused."""
        self.over = True
        if self.place.path:
            Path(f"{self.place.path}.over").touch()
        self.do(Step("resume"))

    def close(self) -> None:
        """Let the engine go."""
        if self._engine is not None:
            self._engine.shutdown()
        RUNS.pop(self.number, None)

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def do_all(self, steps: tuple[Step, ...]) -> None:
        """Do steps one after the other."""
        for step in steps:
            self.do(step)

    def do(self, step: Step) -> None:
        """Do a step; what it may raise is its end."""
        try:
            getattr(self, f"_{step.do}")(step)
        except (*EXPECTED, *PLANNED):
            pass
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # which tasks raise, and Ctrl-C
                lines = traceback.format_exception(type(error), error, error.__traceback__)
                self.surprises.append(f"{step} raised {''.join(lines)}")

    def _name(self, plan: Plan, via: str) -> Given:
        """Return a new record of a task, of a name of its own."""
        count = self._count(plan.name)
        name = plan.name if count == 1 else f"{plan.name}#{count}"
        return Given(name, plan, via, threading.get_ident())

    def _count(self, what: str) -> int:
        """Return how often this was called for something, this time included."""
        return next(self._counts.setdefault(what, itertools.count(1)))  # type: ignore[no-any-return]

    def _own_settings(self, plan: Plan) -> dict[str, Any]:
        settings: dict[str, Any] = {"priority": plan.priority}
        if plan.timeout:
            settings["timeout"] = plan.timeout
        if plan.retry_count >= 0:
            settings["retry_count"] = plan.retry_count
        if plan.needs:
            settings["needs"] = plan.needs
        return settings

    def _task(self, given: Given) -> Task[Any]:
        call = (fuzz_calls.call, self.place, given.name, self._brief(given.plan), Token(given.name))
        return Task(*call, id=given.name, **self._own_settings(given.plan))

    def _brief(self, plan: Plan) -> Plan:
        return Plan(plan.name, plan.acts)

    def _token(self, name: str) -> Token:
        """Return an argument for a call."""
        token = Token(name)
        self._tokens.append(weakref.ref(token))
        return token

    def forget(self) -> None:
        """Drop all futures, if they are done: then their calls must be gone, while the executor is still there.

        An empty run comes before that, so that `results()` keeps nothing: an error there leads to who has met it.
        """
        until = time.monotonic() + FORGOTTEN
        given = [each.future for each in self.given.values() if each.future is not None]
        wait(given, 0.2)
        if not all(future.done() for future in given):  # staged, and never run
            return
        del given
        try:
            self.executor.execute_all(deadline=FORGOTTEN)  # of what was added, if `submit` has started that
            self.executor.execute_all(deadline=FORGOTTEN)
        except RuntimeError:  # it was shut down
            return
        while True:
            self.given.clear()
            self.series.clear()  # a callback may still have added to it
            gc.collect()
            kept = self._kept()
            if not kept or time.monotonic() > until:
                break
            time.sleep(0.01)
        stats = self.executor.stats()
        if kept and not (stats.queued or stats.running or stats.waiting or stats.abandoned):
            self.surprises.append(f"kept by an executor that has nothing to do: {kept}; {stats}")

    def _kept(self) -> list[str]:
        return [token.name for each in self._tokens if (token := each()) is not None]

    def _took(self, given: Given, future: Any) -> None:
        given.future = future
        self.given[given.name] = given
        for number, steps in enumerate(given.plan.on_done):
            future.add_done_callback(partial(self._called, given, number, steps))
            given.callbacks = number + 1

    def _called(self, given: Given, number: int, steps: tuple[Step, ...], future: Any) -> None:
        given.called.append(number)
        if not future.done():
            self.surprises.append(f"a callback of {given.name} was called before its end")
        self.do_all(steps)

    def _hear(self, event: Any) -> None:
        kind = type(event).__name__
        self.events.append((kind, getattr(event, "task_id", ""), getattr(event, "attempt", 0)))
        count = self._count(kind)
        for hook in self.program.hooks:
            if hook.event == kind and hook.number == count:
                self.do_all(hook.steps)

    def _submit(self, step: Step) -> None:
        for plan in step.plans:
            given = self._name(plan, "submit")
            view = self.executor.options(id=given.name, **self._own_settings(plan))
            rest = (given.name, self._brief(plan), self._token(given.name))
            self._took(given, view.submit(fuzz_calls.call, self.place, *rest))
            del rest

    def _add(self, step: Step) -> None:
        for plan in step.plans:
            given = self._name(plan, "add")
            self._took(given, self.executor.add_task(self._task(given)))

    def _execute_all(self, step: Step) -> None:
        me = threading.get_ident()
        mine = [each.name for each in list(self.given.values()) if each.via == "add" and each.thread == me]
        series = Series(step, me, mine)
        self.series.append(series)
        try:
            deadline = step.seconds or None
            order: Any = "completed" if step.flag2 else "submitted"
            results = self.executor.execute_all(deadline=deadline, fail_fast=step.flag, order=order)
            series.out = [result.task.id for result in results]
            series.whole = True
        except BaseException as error:
            series.error = error
            raise

    def _read(self, series: Series, results: Iterator[Any], note: Callable[[Any], None]) -> None:
        """Take what the step says of an iterator's results, and leave it."""
        try:
            for result in results:
                note(result)
                if series.step.number and len(series.out) >= series.step.number:
                    break
            else:
                series.whole = True
        except BaseException as error:
            series.error = error
            raise
        finally:
            results.close()  # type: ignore[attr-defined]

    def _map(self, step: Step) -> None:
        tasks = [self._name(plan, "map") for plan in step.plans]
        series = Series(step, threading.get_ident(), [each.name for each in tasks])
        self.series.append(series)
        items: Any = [self._brief(each.plan) for each in tasks]
        spec = step.spec or {}
        if spec.get("lazy"):
            items = iter(items)
        try:
            results = self.executor.map(
                partial(fuzz_calls.call, self.place),
                series.names,
                items,
                map(self._token, series.names),
                timeout=step.seconds or None,
                chunksize=spec.get("chunksize", 1),
                buffersize=spec.get("buffersize"),
            )
        except BaseException as error:
            series.error = error
            raise
        self.given.update({each.name: each for each in tasks})
        self._read(series, results, series.out.append)

    def _stream(self, step: Step) -> None:
        series = Series(step, threading.get_ident(), [])
        self.series.append(series)

        def tasks() -> Iterator[Task[Any]]:
            for plan in step.plans:
                given = self._name(plan, "stream")
                self.given[given.name] = given
                series.names.append(given.name)
                yield self._task(given)

        def note(result: Any) -> None:
            series.out.append(result.task.id)
            self.given[result.task.id].result = result

        order: Any = "submitted" if step.flag else "completed"
        self._read(series, self.executor.stream(tasks(), order=order, **(step.spec or {})), note)

    def _future(self, step: Step) -> Any:
        given = self.given.get(step.target)
        return None if given is None else given.future

    def _cancel(self, step: Step) -> None:
        if (future := self._future(step)) and future.cancel() and not future.cancelled():
            self.surprises.append(f"cancel() of {step.target} returned True, and it is not cancelled")

    def _abort(self, step: Step) -> None:
        if future := self._future(step):
            future.abort()

    def _wait(self, step: Step) -> None:
        if future := self._future(step):
            future.exception(step.seconds)

    def _result(self, step: Step) -> None:
        if future := self._future(step):
            future.result()

    def _sleep(self, step: Step) -> None:
        time.sleep(step.seconds)

    def _pause(self, step: Step) -> None:
        self.executor.pause()

    def _resume(self, step: Step) -> None:
        self.executor.resume()

    def _resize(self, step: Step) -> None:
        if self.program.kind != "inline":
            self.bounds.append(step.number or 1)
        self.executor.resize(step.number or 1)

    def _stats(self, step: Step) -> None:
        stats = self.executor.stats()
        if stats.running > max(self.bounds):
            self.surprises.append(f"{stats.running} attempts had a slot of {self.bounds}")

    def _results(self, step: Step) -> None:
        for result in self.executor.results():
            if result.cancelled:
                self.surprises.append(f"results() has {result.task.id}, which was cancelled")

    def _queue(self, step: Step) -> None:
        queue = self.executor.queue
        queue.size(), queue.peek(), queue.is_empty()

    def _clear(self, step: Step) -> None:
        self.executor.queue.clear()

    def _dequeue(self, step: Step) -> None:
        self.executor.queue.dequeue()

    def _limit(self, step: Step) -> None:
        spec = spec_of(step.spec)
        self.specs.setdefault(step.target, []).append(spec)
        self.executor.limits[step.target] = spec

    def _shutdown(self, step: Step) -> None:
        self.executor.shutdown(wait=step.flag, cancel_futures=step.flag2)

    def _fork(self, step: Step) -> None:
        pid = os.fork()
        if not pid:
            self._be_child(step)
        self.children.append(pid)
        until = time.monotonic() + 2 * CHILD_LIMIT
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.children.remove(pid)
                if status:
                    self.surprises.append(f"the child of {step} ended with status {status}: see standard error")
                return
            time.sleep(0.002)
        self.surprises.append(f"the child of {step} does not end")

    def _be_child(self, step: Step) -> NoReturn:
        """Use the copy of the executor in a forked child, and end."""
        status = 3
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            faulthandler.dump_traceback_later(CHILD_LIMIT, exit=True)
            try:
                if step.target == "submit":
                    self.executor.submit(int).result()
                elif step.target == "result":
                    for each in list(self.given.values()):
                        if each.future is not None:
                            each.future.cancel()
                            each.future.exception()
                elif step.target == "drop":
                    self.executor = None
                else:
                    self.executor.shutdown()
            except EXPECTED:
                pass
            if step.target == "exit":
                atexit._run_exitfuncs()
                threading._shutdown()  # type: ignore[attr-defined]
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
