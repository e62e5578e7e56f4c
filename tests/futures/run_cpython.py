"""Runs CPython's own executor tests, as the interpreter ships them, against `parallel_exec.futures`.

    python tests/futures/run_cpython.py [--quick] [MODULE ...]        all modules, each back end, without arguments

The two executors in `concurrent.futures` are replaced by ours before the tests are imported, and in the programs that the
tests start; so is nothing else. Threads that are left behind in the end are a failure, too. Left out are the tests of `LEFT_OUT`;
`--quick` leaves out those of two of the three start methods, and the slow ones.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import gc
import importlib
import pkgutil
import re
import sys
import threading
import time
import unittest
from pathlib import Path
from typing import Any, Iterator

from test.support import script_helper

import parallel_exec.futures

PACKAGE = "test.test_concurrent_futures"
POOLS = ("ThreadPoolExecutor", "ProcessPoolExecutor")

# Why a test is left out, by the end of its id.
LEFT_OUT = {
    # ── It reads a private attribute of the executor, or replaces a part of the standard library's pool. ──────────────────
    # Our own tests of the same: tests/futures/test_stdlib_contract.py, by the same names, and tests/futures/test_drop_in.py.
    "FailingInitializerTest.test_initializer": "reads executor._broken",
    ".test_threads_terminate": "reads executor._threads",
    ".test_thread_names_assigned": "reads executor._threads",
    ".test_thread_names_default": "reads executor._threads",
    ".test_idle_thread_reuse": "reads executor._threads",
    ".test_saturation": "reads executor._threads, executor._processes",
    ".test_context_manager_shutdown": "reads executor._threads, executor._processes",
    ".test_del_shutdown": "reads executor._threads, executor._processes, executor._call_queue",
    ".test_shutdown_no_wait": "reads executor._threads, executor._processes, executor._call_queue",
    ".test_processes_terminate": "reads executor._processes",
    ".test_killed_child": "reads executor._processes",
    ".test_broken_process_pool_traceback": "reads executor._processes",
    ".test_idle_process_reuse_one": "reads executor._processes",
    ".test_idle_process_reuse_multiple": "reads executor._processes",
    ".test_max_tasks_per_child": "reads executor._processes",
    ".test_max_tasks_per_child_defaults_to_spawn_context": "reads executor._mp_context",
    ".test_shutdown_deadlock_pickle": "reads executor._executor_manager_thread",
    ".test_shutdown_no_wait_max_tasks_gh119592": "reads executor._executor_manager_thread",
    ".test_gc_during_max_tasks_worker_exit_gh152967": "reads executor._executor_manager_thread",
    ".test_shutdown_gh_132969_case_1": "reads executor._executor_manager_thread",
    ".test_shutdown_gh_132969_case_2": "reads executor._executor_manager_thread",
    ".test_force_shutdown_during_max_tasks_worker_exit": "sets executor._force_shutting_down",
    ".test_failed_worker_replacement_breaks_pool": "replaces concurrent.futures.process._spawn_worker",
    ".test_terminate_workers": "replaces executor._force_shutdown",
    ".test_kill_workers": "replaces executor._force_shutdown",
    ".test_force_shutdown_workers_invalid_op": "calls executor._force_shutdown",
    ".test_force_shutdown_workers": "reads executor._processes",
    ".test_force_shutdown_workers_stops_pool": "reads executor._processes",
    ".test_traceback": "asks whether the cause is a concurrent.futures.process._RemoteTraceback; ours reads the same",
    ".test_traceback_when_child_process_terminates_abruptly": "asks for a _RemoteTraceback; our error itself says it",
    ".test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces _ExecutorManagerThread, _ThreadWakeup",
    "FailingInitializerResourcesTest.test_spawn": "runs one that reads executor._broken",
    "FailingInitializerResourcesTest.test_forkserver": "runs one that reads executor._broken",
    # ── It asserts that one bad call breaks the whole pool. Ours fails that call, and says which object it is about. ──────
    ".test_error_at_task_unpickle": "wants BrokenProcessPool, where ours is a TaskSerializationError of that call",
    ".test_exit_at_task_unpickle": "wants BrokenProcessPool, where ours is a TaskSerializationError of that call",
    ".test_error_during_result_unpickle_in_result_handler": "wants BrokenProcessPool, as above, of a result",
    ".test_exit_during_result_unpickle_in_result_handler": "wants BrokenProcessPool, as above, of a result",
    ".test_exit_during_result_pickle_on_worker": "wants SystemExit, where ours is a TaskSerializationError",
    # ── It asserts what is the other pool's own way. ──────────────────────────────────────────────────────────────────────
    "ProcessPoolShutdownTest.test_cancel_futures": "wants a call that no process has begun to count as running",
}


def replace_executors() -> None:
    """Put ours in the place of the standard library's, for the tests and for the programs that they start."""
    for pool in POOLS:
        setattr(concurrent.futures, pool, getattr(parallel_exec.futures, pool))
    root = str(Path(parallel_exec.__file__).parent.parent)

    def patched(assert_python: Any) -> Any:
        @functools.wraps(assert_python)
        def run(*args: str, **settings: str) -> Any:
            *flags, code = args
            code = code.replace("from concurrent.futures import", "from parallel_exec.futures import")
            return assert_python(*flags, f"import sys; sys.path.insert(0, {root!r})\n{code}", **settings)

        return run

    for name in ("assert_python_ok", "assert_python_failure"):
        setattr(script_helper, name, patched(getattr(script_helper, name)))


def do_not_await_collection() -> None:
    """Have the tests not wait, after each, until the `Thread` objects of ended threads are collected: up to 3.12 they do.

    Whether threads are left is seen in the end.
    """
    for name in ("test.support", "test.support.threading_helper"):
        with contextlib.suppress(ImportError):
            module: Any = importlib.import_module(name)
            module.threading_cleanup = lambda *_: None


def modules() -> list[str]:
    """Return the names of the modules of tests: one of them before 3.12."""
    package = importlib.import_module(PACKAGE)
    if not hasattr(package, "__path__"):
        return [PACKAGE]
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name.startswith("test_")]
    return [f"{PACKAGE}.{name}" for name in names if name != "test_interpreter_pool"]


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite, one by one."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_of(each)
        else:
            yield each


def is_left_out(test: unittest.TestCase) -> bool:
    """Return whether a test is one of `LEFT_OUT`, its parameters not counted."""
    return any(test.id().endswith(end) for end in LEFT_OUT)


def what_is_left() -> list[str]:
    """Return the threads that still run, once they have had a moment to end."""
    until = time.monotonic() + 5
    while (alive := threading.enumerate()[1:]) and time.monotonic() < until:
        gc.collect()  # a test may have let go of an executor
        time.sleep(0.01)
    return [thread.name for thread in alive]


def main() -> int:
    """Run what the command line says; the exit status is 0 if all of it passed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--match", default="", help="a regular expression for the tests' ids, from their beginning")
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args()
    replace_executors()
    do_not_await_collection()
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    left_out = []
    for name in options.modules or modules():
        for each in tests_of(loader.loadTestsFromModule(importlib.import_module(name))):
            if not re.match(options.match, each.id()):
                continue
            if is_left_out(each):
                left_out.append(each.id())
            elif not (options.quick and re.search("PoolFork(?!server)|PoolSpawn", each.id())):
                suite.addTest(each)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    leftovers = what_is_left()
    print(f"{result.testsRun} run, {len(left_out)} left out, left behind: {leftovers}")
    return 0 if result.wasSuccessful() and not leftovers else 1


if __name__ == "__main__":
    sys.exit(main())
