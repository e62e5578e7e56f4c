"""Tasks that have a soft timeout."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from typing import Any

from parallel_exec import ParallelExecutor, SoftTimeoutError


def spin(seconds: float) -> str:
    """Compute for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "whole"


def save_what_there_is(seconds: float = 60.0) -> tuple[int, Any]:
    """Compute, and when the time is up return how far that came, and the facts."""
    done: list[None] = []
    try:
        _work(seconds, done)
    except SoftTimeoutError as error:
        return len(done), (error.task_id, error.soft_timeout, error.attempt, str(error), type(error).__name__)
    return len(done), None


def _work(seconds: float, done: list[None]) -> None:
    """Note each step. (CPython 3.13 does not catch what is raised at the end of a `while` that ends a `try`.)"""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done.append(None)
        del done[100:]


def take_about(seconds: float, rounds: int) -> int:
    """End just when the time is up, again and again."""
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        count += 1
    return rounds


def spin_if(number: int) -> int:
    """Compute for too long if the number is 3."""
    if number == 3:
        spin(60.0)
    return number


def spin_in_a_callback(seconds: float) -> Any:
    """Compute for so long in a callback that the library calls, and then for as long as it takes; returns how both ended."""
    ended = []

    def callback(_: Any) -> None:
        try:
            ended.append(spin(seconds))
        except SoftTimeoutError:
            ended.append("torn")
            raise

    try:
        with ParallelExecutor(max_concurrency=1) as executor:
            future = executor.submit(int)
            future.result()
            future.add_done_callback(callback)
        spin(60.0)
    except SoftTimeoutError as error:
        return ended, error.task_id
    return ended, None


def run_others_here(soft_timeout: float, seconds: float) -> Any:
    """Have calls made in this very thread, with a soft timeout of their own; returns how they ended, and whose time is up."""
    ended = []
    try:
        with ParallelExecutor(backend="inline", soft_timeout=soft_timeout, timeout=None, retry_count=0) as executor:
            ended.append(type(executor.submit(spin, seconds).exception()).__name__)
            ended.append(type(executor.options(soft_timeout=None).submit(spin, seconds).exception()).__name__)
        spin(60.0)
    except SoftTimeoutError as error:
        return ended, error.task_id
    return ended, None


def log_much(size: int, seconds: float = 60.0) -> str:
    """Log as fast as that goes, so large records."""
    logger = logging.getLogger("parallel_exec_test.much")
    until = time.monotonic() + seconds
    try:
        for _ in itertools.takewhile(lambda _: time.monotonic() < until, itertools.repeat(None)):
            logger.warning("x" * size)
    except SoftTimeoutError:
        return "in time"
    return "never"


def wait_for_another(seconds: float) -> str:
    """Wait for a task of another executor that takes so long."""
    with ParallelExecutor(max_concurrency=1, timeout=None) as executor:
        future = executor.submit(time.sleep, seconds)
        start = time.monotonic()
        try:
            future.result()
        except SoftTimeoutError:
            return "interrupted" if time.monotonic() - start < seconds else "late"
    return "never"


def submit_for(executor: Any, number: int, seconds: float) -> None:
    """Have another executor do something, again and again; one of this process's own, if none is given."""
    if executor is None:
        executor = _own_executor()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        future = executor.submit(int)
        if number % 2:
            future.result()
        else:
            future.cancel()


@functools.cache
def _own_executor() -> ParallelExecutor:
    return ParallelExecutor(max_concurrency=2)
