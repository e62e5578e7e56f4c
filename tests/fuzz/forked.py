"""A step that forks the program's process: the child uses the copy of the executor, and ends."""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from program_run import Run
    from random_program import Step

CHILD_LIMIT = 10.0  # seconds in which a forked child must end


def fork(run: Run, step: Step, expected: tuple[Any, ...]) -> None:
    """Fork, and wait for the child."""
    pid = os.fork()
    if not pid:
        _be_child(run, step, expected)
    _unlock_logging()
    run.children.append(pid)
    until = time.monotonic() + 2 * CHILD_LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            run.children.remove(pid)
            if status:
                run.surprises.append(f"the child of {step} ended with status {status}: see standard error")
            return
        time.sleep(0.002)
    run.surprises.append(f"the child of {step} does not end")


def _unlock_logging() -> None:
    """Release the lock of `logging`, which its own hook leaves taken for good if Ctrl-C comes just there."""
    lock: Any = logging._lock  # type: ignore[attr-defined]
    while lock._is_owned():
        lock.release()


def _be_child(run: Run, step: Step, expected: tuple[Any, ...]) -> NoReturn:
    """Use the copy of the executor in a forked child, and end."""
    status = 3
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.dump_traceback_later(CHILD_LIMIT, exit=True)
        try:
            if step.target == "submit":
                run.executor.submit(int).result()
            elif step.target == "result":
                for each in list(run.given.values()):
                    if each.future is not None:
                        each.future.cancel()
                        each.future.exception()
            elif step.target == "drop":
                run.drop()
            else:
                run.executor.shutdown()
        except expected:
            pass
        if step.target == "exit":
            atexit._run_exitfuncs()
            threading._shutdown()  # type: ignore[attr-defined]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
