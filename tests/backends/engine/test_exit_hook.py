"""`parallel_exec.backends.engine.exit_hook`: the standard library's process pools, at interpreter exit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import script

if TYPE_CHECKING:
    from pathlib import Path

# A pool that an executor of ours has used; the pipe by which its manager thread is woken up tells when that happens at exit.
POOL = """
        import concurrent.futures.process as stdlib

        class Pipe:
            def __init__(self, pipe):
                self.pipe, self.close = pipe, pipe.close

            def send_bytes(self, data):
                if stdlib._global_shutdown and not self.told:
                    self.told.append(True)
                    at_exit()
                self.pipe.send_bytes(data)

            told = []

        pool = stdlib.ProcessPoolExecutor(1)
        with ParallelExecutor(backend=pool) as executor:
            executor.submit(int).result()
        ((manager, wakeup),) = stdlib._threads_wakeups.items()
"""
WATCHED = POOL + "        wakeup._writer = Pipe(wakeup._writer)\n"


def test_a_pool_that_closes_itself_at_exit(tmp_path: Path) -> None:
    """It does not close between its exit hook's look whether it has, and the wake-up; so the hooks after that one are called."""
    body = """
        def at_exit():
            waking.set()
            manager.join(1)  # of a manager thread that has the time to close the pipe
            say("woken")

        gate, waking = work.Latch(sys.argv[1]), threading.Event()
        future = pool.submit(gate.wait)
        # The manager thread runs this, and looks whether the interpreter is ending when it has.
        future.add_done_callback(lambda _: waking.wait(work.PATIENCE))
        gate.set()
    """
    assert script.run(tmp_path, WATCHED + body, str(tmp_path / "gate")) == "woken"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it is woken up as CPython does it")
def test_a_pool_that_is_collected_at_exit(tmp_path: Path) -> None:
    """It is not collected by the thread that is just waking it up: that would wait for its own lock."""
    body = """
        def at_exit():
            kept.clear()
            gc.collect()
            say("collected" if seen() is None else "kept")

        kept = [pool]
        seen = __import__("weakref").ref(pool)
        del pool, executor
        gc.collect()
        atexit.register(lambda: say("collected" if seen() is None else "kept"))
    """
    assert script.run(tmp_path, WATCHED + body).split() == ["kept", "collected"]


def test_a_child_that_was_forked_with_the_pools_lock(tmp_path: Path) -> None:
    """It has the hooks, too, but no manager thread; and the lock may be held there for ever."""
    body = """
        import multiprocessing, warnings

        warnings.simplefilter("ignore", DeprecationWarning)  # it has threads
        child = multiprocessing.get_context("fork").Process(target=int)
        with pool._shutdown_lock:
            child.start()
        child.join(work.SOON)
        say(child.exitcode)
        child.kill()
    """
    assert script.run(tmp_path, POOL + body) == "0"


def test_a_pool_that_others_use_at_exit(tmp_path: Path) -> None:
    """The pool is its maker's: after our exit hook it still takes the calls of threads that are waited for."""
    body = """
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

        def submit_late():
            exiting.wait()
            say(pool.submit(int).result())

        pool, exiting = ProcessPoolExecutor(1), threading.Event()
        ThreadPoolExecutor(1).submit(submit_late)
        threading._register_atexit(exiting.set)  # called after ours, and before the thread pool's
        ParallelExecutor(backend=pool).submit(int).result()
    """
    assert script.run(tmp_path, body) == "0"
