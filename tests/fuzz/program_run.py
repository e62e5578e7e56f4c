"""Does the steps of a random program, and keeps what came of each: what was given, and to whom."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import traceback
import weakref
from concurrent.futures import CancelledError, wait
from concurrent.futures import TimeoutError as WaitTimeout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

import forked
import fuzz_calls
from fuzz_calls import RUNS, Place, Thing, Token
from random_program import IN_THIS_PROCESS, Plan, Program, Step
from records import Given, Series
from set_up import engine_of, settings_of, spec_of

from parallel_exec import ParallelExecError, ParallelExecutor, Task

if TYPE_CHECKING:
    from fuzz_calls import Note

    from parallel_exec import Shared

FORGOTTEN = 3.0  # seconds within which what is dropped is gone
_numbers = itertools.count()

# What a step may raise: that it comes too late, that there is no room, that it would wait for ever, or what a task has raised.
EXPECTED = (RuntimeError, ParallelExecError, ValueError, KeyError, CancelledError, WaitTimeout, TimeoutError)
PLANNED = (fuzz_calls.PlannedError, SystemExit)


class Run:
    """One run of a program. Thread-safe without locks of its own, which Ctrl-C might leave taken.

    Attributes:
        calls: what the calls of this process noted.
        over: whether what hangs is to come to its end.
        children: processes that were forked, and not waited for.
        things: all that was ever shared.
        journal: a file's path.
        began_at: when the executor was made (monotonic).
    """

    def __init__(self, program: Program, folder: str) -> None:
        self.program = program
        self.number = next(_numbers)
        is_here = program.kind in IN_THIS_PROCESS
        path = "" if is_here else os.path.join(folder, f"calls-{self.number}")
        self.place = Place(self.number, path, bool(program.backend.get("capture_output")))
        self.calls: list[Note] = []
        self.over = False
        self.given: dict[str, Given] = {}
        self.series: list[Series] = []
        self.events: list[tuple[str, str, int]] = []
        self.surprises: list[str] = []
        self._counts: dict[str, Any] = {}
        self._tokens: list[weakref.ref[Token]] = []
        self.children: list[int] = []
        self.things: list[Thing] = []
        self._shared: dict[str, Shared[Thing]] = {}
        self.journal = os.path.join(folder, "journal")
        self._journal: dict[str, Any] = {"journal": self.journal} if program.journal else {}
        self._engine = engine_of(program)
        settings = settings_of(program, self.place, self._engine, self._hear)
        self.bounds = [1 if program.kind == "inline" else settings["max_concurrency"]]
        self.specs = {name: [spec] for name, spec in settings.get("limits", {}).items()}
        RUNS[self.number] = self
        self.began_at = time.monotonic()
        self._executor: ParallelExecutor | None = ParallelExecutor(**settings)

    @property
    def executor(self) -> ParallelExecutor:
        """The executor."""
        executor = self._executor
        if executor is None:
            raise RuntimeError("it was dropped")
        return executor

    def drop(self) -> None:
        """Drop the executor."""
        self._executor = None
        gc.collect()  # a step's error may lead to it, and to itself

    def let_go(self) -> None:
        """Let what hangs come to its end, and go on with what is paused."""
        self.over = True
        if self.place.path:
            Path(f"{self.place.path}.over").touch()
        self.do(Step("resume"))

    def close(self) -> None:
        """Let the engine go, unless others use it, and what is shared."""
        self._shared.clear()
        self.things.clear()
        if self._engine is not None and self.program.kind != "pool":
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
        if plan.soft_timeout:
            settings["soft_timeout"] = plan.soft_timeout
        if plan.timeout:
            settings["timeout"] = plan.timeout
        if plan.retry_count >= 0:
            settings["retry_count"] = plan.retry_count
        if plan.needs:
            settings["needs"] = plan.needs
        return settings

    def task(self, given: Given) -> Task[Any]:
        """Return the task of a record."""
        call = (fuzz_calls.call, self.place, given.name, *self._rest(given.plan, Token(given.name)))
        return Task(*call, id=given.name, **self._own_settings(given.plan))

    def _rest(self, plan: Plan, token: Token) -> tuple[Any, ...]:
        """Return the last arguments of a call."""
        handle = self._shared.get(plan.shares)
        if handle is None:
            return self._brief(plan), token
        return Plan(plan.name, plan.acts, shares=plan.shares), token, handle

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
            rest = self._rest(plan, self._token(given.name))
            self._took(given, view.submit(fuzz_calls.call, self.place, given.name, *rest))
            del rest

    def _add(self, step: Step) -> None:
        for plan in step.plans:
            given = self._name(plan, "add")
            self._took(given, self.executor.add_task(self.task(given)))

    def _execute_all(self, step: Step) -> None:
        me = threading.get_ident()
        mine = [each.name for each in list(self.given.values()) if each.via == "add" and each.thread == me]
        series = Series(step, me, mine)
        self.series.append(series)
        try:
            deadline = step.seconds or None
            order: Any = "completed" if step.flag2 else "submitted"
            results = self.executor.execute_all(deadline=deadline, fail_fast=step.flag, order=order, **self._journal)
            series.out = [result.task.id for result in results]
            series.whole = True
        except BaseException as error:
            series.error = type(error)
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
            series.error = type(error)
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
            series.error = type(error)
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
                yield self.task(given)

        def note(result: Any) -> None:
            series.out.append(result.task.id)
            self.given[result.task.id].result = result

        order: Any = "submitted" if step.flag else "completed"
        self._read(series, self.executor.stream(tasks(), order=order, **(step.spec or {}), **self._journal), note)

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
        for ask in (queue.size, queue.peek, queue.is_empty):
            ask()

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

    def _abort_all(self, step: Step) -> None:
        self.executor.abort_all()

    def _share(self, step: Step) -> None:
        thing = Thing(step.target)
        self.things.append(thing)
        self._shared[step.target] = self.executor.share(thing)

    def _unshare(self, step: Step) -> None:
        handle = self._shared.get(step.target) if step.flag else self._shared.pop(step.target, None)
        if handle is not None and step.flag:
            handle.close()

    def _running(self, step: Step) -> None:
        over = {name for name, each in list(self.given.items()) if each.future is not None and each.future.done()}
        running = self.executor.running()
        most = max(self.bounds)
        if len(running) > most:
            self.surprises.append(f"{running} run, of {self.bounds}")
        if any(each.id in over or each.attempt < 1 or each.seconds < 0 for each in running):
            self.surprises.append(f"running() has {running}, of which these had ended before: {over}")
        if sorted(running, key=lambda each: -each.seconds) != running:
            self.surprises.append(f"running() is in no order: {running}")

    def _fork(self, step: Step) -> None:
        forked.fork(self, step, EXPECTED)
