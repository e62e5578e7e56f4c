"""Makes the executor of a random program."""

from __future__ import annotations

import atexit
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import fuzz_calls
import tenacity

from parallel_exec import Adaptive, PerKey, ProcessBackend, Rate, ThreadBackend
from parallel_exec.backends.engine import runner

if TYPE_CHECKING:
    from fuzz_calls import Place
    from random_program import Program

runner.RECOVERY = 0.3  # seconds until what waits for an engine that abandoned calls have taken fails; it is 5
# Process pools of the standard library, by their size; module state, as one is started once for all programs that use it.
_pools: dict[int, ProcessPoolExecutor] = {}


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


def engine_of(program: Program) -> Any:
    """Return the engine that a program's executor runs over; None if there is none. One of processes is there already."""
    size = program.backend.get("size", 2)
    if program.kind == "pool":
        return pool_of(size)
    return ThreadPoolExecutor(size) if program.kind == "engine" else None


def pool_of(size: int) -> ProcessPoolExecutor:
    """Return a pool of the standard library's that has started all its threads and processes."""
    if size not in _pools:
        _pools[size] = ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("forkserver"))
        list(_pools[size].map(abs, range(4 * size)))
        if len(_pools) == 1:
            atexit.register(close_pools)
    return _pools[size]


def close_pools() -> None:
    """End all pools."""
    while _pools:
        _pools.popitem()[1].shutdown()


def settings_of(program: Program, place: Place, engine: Any, hear: Callable[[Any], None]) -> dict[str, Any]:
    """Return the settings of a program's executor."""
    settings = {"max_concurrency": 2, "retry_count": 1, "backoff": 0.0, "jitter": False, **program.settings}
    if "limits" in settings:
        settings["limits"] = {name: spec_of(spec) for name, spec in settings["limits"].items()}
    if "retry" in settings:
        settings["retry"] = _policy(settings["retry"])
    if program.listens:
        settings["on_event"] = hear
    backends: dict[str, Callable[..., Any]] = {"thread": ThreadBackend, "process": ProcessBackend}
    if program.kind in backends:
        own = dict(program.backend)
        if own.pop("finalizer", False):
            own.update(
                finalizer=partial(fuzz_calls.finalize, place), initializer=fuzz_calls.initialize, initargs=(place,)
            )
        settings["backend"] = backends[program.kind](**own)
    else:
        settings["backend"] = engine or "inline"
    return settings
