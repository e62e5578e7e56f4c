"""Runs a random program to its end, and returns the record of what came of it.

    Program ─► Run: its threads do their steps ─► what hangs is let go ─► shutdown ─► Record ─► guarantees.py

Every wait has a limit: what outlasts it is a hang, and the record has all stacks.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Callable

import leaks
from fuzz_calls import Begin, End, Service
from program_run import Run
from random_program import Program, Step
from records import Record
from resuming import resume
from set_up import engine_of

from parallel_exec import SoftTimeoutError

if TYPE_CHECKING:
    from types import FrameType

PATIENCE = {"process": 1.2, "pool": 0.7}  # seconds until what hangs is let go
SHORT_PATIENCE = 0.25
WORKERS_END = 3.0  # seconds within which workers are gone that nobody waits for
LIMIT = 20.0  # seconds after which something hangs that should not
QUICK = 0.1  # seconds within which what is ending has ended mostly, without the collector's help
LOGGED = ("nobody looked at its result",)


class _Watch(logging.Handler):
    """Notes what is logged as an error, raised in threads, or ignored by the interpreter, as long as it is entered."""

    def __init__(self, *, is_interrupted: bool) -> None:
        super().__init__(logging.ERROR)
        self._is_interrupted = is_interrupted
        self.found: list[str] = []
        self._logger = logging.getLogger("parallel_exec")

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record, unless it is to be expected."""
        text = record.getMessage()
        if not any(each in text for each in LOGGED):
            self.found.append(f"logged: {logging.Formatter().format(record)}")

    def _raised(self, what: Any) -> None:
        if self._is_interrupted and issubclass(what.exc_type, KeyboardInterrupt):
            return  # Ctrl-C where nobody can raise it: in `logging`'s hook after a fork, say
        if issubclass(what.exc_type, SoftTimeoutError):
            return  # raised in a weakref's callback that has come amid the task
        lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
        self.found.append(f"nobody caught, or Python ignored: {''.join(lines)}")

    def __enter__(self) -> _Watch:
        self._hooks = threading.excepthook, sys.unraisablehook
        self._propagates = self._logger.propagate
        threading.excepthook = sys.unraisablehook = self._raised
        self._logger.addHandler(self)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook, sys.unraisablehook = self._hooks
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates


def stacks() -> str:
    """Return where all threads are."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def execute(program: Program, limit: float = LIMIT, judge: Callable[[Record], list[str]] | None = None) -> Record:
    """Run a program, in this process; `judge` says what is broken, before all is dropped that might keep something."""
    if program.kind == "pool":
        engine_of(program)  # has started all that it starts
    whole = program.kind == "process"
    before = leaks.take(ours_only=False) if whole else None
    threads = set(threading.enumerate())
    interval = sys.getswitchinterval()
    folder = tempfile.mkdtemp()  # no `TemporaryDirectory`, which goes at the exit of a forked child
    try:
        with _Watch(is_interrupted=bool(program.interrupt)) as watch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Run(program, folder)
            try:
                sys.setswitchinterval(1e-5 if program.hurries else interval)
                record = _drive(run, limit)
            finally:
                sys.setswitchinterval(interval)
                if not run.surprises:
                    run.close()
            del run
            if not record.surprises:
                if judge is not None:
                    record.broken = judge(record)
                    record.drop()
                record.surprises += _left(before, threads, limit)
            record.surprises += watch.found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _drive(run: Run, limit: float) -> Record:
    """Have the threads do their steps, end what hangs, and then the executor."""
    program = run.program
    patience = PATIENCE.get(program.kind, SHORT_PATIENCE)
    workers = []
    if program.alone:
        over: list[bool] = []
        helper = _background(_let_go_again, run, patience, over)
        _interrupted(run)
        over.append(True)
        helper.join()
    else:
        workers = [_background(run.do_all, steps) for steps in program.threads]
        _join(workers, time.monotonic() + patience)
    run.let_go()
    until = time.monotonic() + limit
    while any(each.is_alive() for each in workers) and time.monotonic() < until:
        run.do(Step("resume"))
        _join(workers, min(until, time.monotonic() + 0.05))
    if program.forgets and not any(each.is_alive() for each in workers):
        run.forget()
    end = _background(_end, run, until)
    _join([end], until)
    if any(each.is_alive() for each in (*workers, end)):
        who = "shutdown" if end.is_alive() and not any(each.is_alive() for each in workers) else "a step"
        run.surprises.append(f"hangs: {who}; {_state(run)}\n{stacks()}")
    _await_calls(run, min(until, time.monotonic() + 10.0))
    return _record(run)


def _end(run: Run, until: float) -> None:
    """Shut the executor down, or drop it and wait until all has ended."""
    if not run.program.drops:
        run.executor.shutdown()
        return
    run.do(Step("resume"))  # as a call that was given up may still wait for it, and so keep it
    run.drop()
    while _unended(run) and time.monotonic() < until:
        time.sleep(0.001)
    until = min(until, time.monotonic() + WORKERS_END)
    while _are_serving(run) and time.monotonic() < until:
        time.sleep(0.001)
    if _unended(run):
        run.surprises.append(f"an executor was dropped, and has not ended {_unended(run)}\n{stacks()}")


def _are_serving(run: Run) -> bool:
    """Return whether workers have begun that have not called their finalizers."""
    services = [each for each in run.place.notes() if isinstance(each, Service)]
    return bool(services) and 2 * sum(each.what == "finalized" for each in services) < len(services)


def _record(run: Run) -> Record:
    """Return what is known of a run that is over."""
    for given in list(run.given.values()):
        if given.future is not None and given.future.done():
            given.future.exception() if not given.future.cancelled() else None
            given.result = given.future.task_result()
    notes = run.place.notes()
    return Record(
        run.program,
        run.given,
        run.series,
        [each for each in notes if not isinstance(each, Service)],
        [each for each in notes if isinstance(each, Service)],
        run.events,
        run.bounds,
        run.specs,
        None if run.surprises or run.program.drops else run.executor.stats(),
        {} if run.surprises else resume(run),
        run.began_at,
        run.surprises,
    )


def _let_go_again(run: Run, patience: float, over: list[bool]) -> None:
    """Let go what hangs once the time has come, and what is paused again and again."""
    since = time.monotonic()
    while not over:
        time.sleep(0.01)
        if time.monotonic() > since + patience:
            run.let_go()


def _interrupted(run: Run) -> None:
    """Do the steps in the main thread, where Ctrl-C comes once, some time, or not at all."""
    steps_left = [True]  # no event, whose lock Ctrl-C might leave taken

    def interrupt() -> None:
        time.sleep(run.program.interrupt)
        if steps_left:
            os.kill(os.getpid(), signal.SIGINT)

    def hear(_: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            _thread.start_new_thread(interrupt, ())  # once more, later
        else:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        try:
            if run.program.interrupt:
                _thread.start_new_thread(interrupt, ())
            for steps in run.program.threads:
                run.do_all(steps)
        finally:
            steps_left.clear()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for pid in run.children:
        with contextlib.suppress(ChildProcessError):  # Ctrl-C came just as it was waited for
            os.waitpid(pid, 0)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether an import is under way, of which Ctrl-C may leave CPython's lock for all imports taken for good."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _background(function: Callable[..., object], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True, name="fuzz")
    thread.start()
    return thread


def _join(threads: list[threading.Thread], until: float) -> None:
    for each in threads:
        each.join(max(0.0, until - time.monotonic()))


def _await_calls(run: Run, until: float) -> None:
    """Wait until abandoned calls have ended, and callbacks were called."""
    unsure = run.program.kind == "process" or run.program.is_softened()  # then an end may not have been noted

    def is_quiet() -> bool:
        notes = run.place.notes()
        begun = {each[:2] for each in notes if isinstance(each, Begin)}
        ended = {each[:2] for each in notes if isinstance(each, End)}
        called = all(len(each.called) >= each.callbacks for each in list(run.given.values()))
        open_calls = () if unsure else begun - ended
        if run.program.drops:
            return not open_calls and called and _is_told(run)
        stats = run.executor.stats()
        holds = stats.abandoned or any(limit.in_use for limit in stats.limits.values())
        return not open_calls and called and not holds

    while not is_quiet() and time.monotonic() < until:
        time.sleep(0.01 if run.place.path else 0.001)


def _is_told(run: Run) -> bool:
    """Return whether the hook knows of each end, which it hears after the callbacks."""
    if not run.program.listens or run.program.interrupt:
        return True
    told = {name for kind, name, _ in list(run.events) if kind in ("TaskFinished", "TaskCancelled")}
    return all(each.future is None or name in told for name, each in list(run.given.items()))


def _unended(run: Run) -> list[str]:
    return [name for name, each in list(run.given.items()) if each.future is not None and not each.future.done()]


def _state(run: Run) -> str:
    return f"not ended: {_unended(run)}; {'' if run.program.drops else run.executor.stats()}"


def _left(before: Any, threads: set[threading.Thread], limit: float) -> list[str]:
    """Return what a run has left behind, once what is ending may have ended."""
    left: list[str] = []
    for patience in (QUICK, limit):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            left = _newer(before, threads)
            if not left:
                return []
            time.sleep(0.001)
        gc.collect()  # an error and a frame may keep each other
    return [f"left behind: {', '.join(left)}"]


def _newer(before: Any, threads: set[threading.Thread]) -> list[str]:
    if before is not None:
        return leaks.take(ours_only=False).newer_than(before)  # type: ignore[no-any-return]
    new = set(threading.enumerate()) - threads
    # What a finalizer logs in the last moment of a thread's life makes `threading` list that once more.
    return [f"thread {each.name}" for each in new if not isinstance(each, threading._DummyThread)]
