"""The back ends that the contract suite runs over, and what each can do."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import work

from parallel_exec import InlineBackend, ProcessBackend

SIZE = 3  # workers of the engines that are not ours: more than the limits that the tests set

# Why a test runs over less than all of them is said by the name of the group. Two start methods more are for the tests of
# what could depend on them: everything twice more would take a minute.
INTERPRETERS = ("interpreter-pool",) if sys.version_info >= (3, 14) else ()
ALL = (
    "thread",
    "process",
    "inline",
    "inline-skip",
    "thread-pool",
    "process-pool",
    *INTERPRETERS,
    "loky",
    "dask-executor",
)
SPAWN_AND_FORK = ("spawn", "fork")
EVERY_START_METHOD = ("process", *SPAWN_AND_FORK)
OWN = ("thread", "process", "inline")
CONCURRENT = tuple(name for name in ALL if not name.startswith("inline"))
IN_THIS_PROCESS = ("thread", "inline", "thread-pool")
THREADS = ("thread", "thread-pool")
PROCESSES = ("process", "process-pool", *INTERPRETERS, "loky")


def over(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a test once over each of these back ends; those of a module that share one run one after the other."""
    return pytest.mark.parametrize("kind", names, indirect=True, scope="module")


@dataclass(frozen=True)
class Kind:
    """A back end under test.

    Attributes:
        name: for people.
        make: returns what goes to `backend=`, once for each executor.
        restless: whether it starts threads and opens files of its own as it likes, at any time.
    """

    name: str
    make: Callable[[], Any]
    restless: bool = False


@contextmanager
def open_kind(name: str) -> Iterator[Kind]:
    """Open a back end for the tests of a module."""
    if name in OURS:
        yield Kind(name, OURS[name])
        return
    with ENGINES[name]() as engine:
        _start_all_workers(engine)
        yield Kind(name, lambda: engine, restless=name.startswith("dask"))


def _start_all_workers(engine: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        latches = [work.Latch(Path(folder) / str(number)) for number in range(SIZE)]
        wait([engine.submit(work.meet, latches, number) for number in range(SIZE)])


def _process_pool() -> Any:
    return ProcessPoolExecutor(SIZE, mp_context=multiprocessing.get_context("forkserver"))


def interpreter_pool(size: int = SIZE) -> Any:
    """Return the stdlib's pool of interpreters, which find the tests' modules as this one does."""
    from concurrent.futures import InterpreterPoolExecutor  # since 3.14

    return InterpreterPoolExecutor(size, initializer=exec, initargs=(f"import sys; sys.path[:] = {sys.path}",))


def _loky() -> Any:
    return pytest.importorskip("loky").ProcessPoolExecutor(SIZE)


@contextmanager
def _dask_executor() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    here: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": SIZE, "dashboard_address": ":0"}
    with distributed.LocalCluster(**here) as cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


OURS: dict[str, Callable[[], Any]] = {
    "thread": lambda: "thread",
    "inline": lambda: "inline",
    "inline-skip": lambda: InlineBackend(sleep=lambda seconds: None),
    "process": lambda: ProcessBackend(mp_context="forkserver"),
    "spawn": lambda: ProcessBackend(mp_context="spawn"),
    "fork": lambda: ProcessBackend(mp_context="fork"),
}

ENGINES: dict[str, Callable[[], Any]] = {
    "thread-pool": lambda: ThreadPoolExecutor(SIZE),
    "process-pool": _process_pool,
    "interpreter-pool": interpreter_pool,
    "loky": _loky,
    "dask-executor": _dask_executor,
}
