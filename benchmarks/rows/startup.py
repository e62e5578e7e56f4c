"""What a fresh interpreter pays: for `import parallel_exec`, and for a whole script that makes one call."""

from __future__ import annotations

from functools import cache

from benchmarks._fresh import run_fresh
from benchmarks._harness import OURS, REGISTRY, STDLIB_PROCESSES, STDLIB_THREADS, Settings

BARE = "python + concurrent.futures"

_CODE = {
    OURS: "import parallel_exec",
    # concurrent.futures loads its pools on first use; naming `thread` loads the one that everybody uses.
    BARE: "import concurrent.futures, concurrent.futures.thread",
}

_THREAD_SCRIPT = {
    OURS: "from parallel_exec import ParallelExecutor as Pool",
    STDLIB_THREADS: "from concurrent.futures import ThreadPoolExecutor as Pool",
}
_PROCESS_SCRIPT = {
    OURS: "from parallel_exec import ParallelExecutor as Pool",
    STDLIB_PROCESSES: "from concurrent.futures import ProcessPoolExecutor as Pool\nfrom multiprocessing import get_context",
}
_ONE_CALL = """
with Pool({workers}) as pool:
    print(pool.submit(pow, 2, 3).result())
"""


@cache
def _compiled(code: str) -> None:
    """Run once, so that the compiled modules are there; the measured runs start as the second run of a script does."""
    run_fresh(code)


@REGISTRY.row(
    "import",
    what="import parallel_exec in a fresh interpreter, against a bare one that imports concurrent.futures; median",
    goals={BARE: 0.015},
    kind="difference",
    pick="median",
    rounds=10,
)
def import_time(side: str, run: Settings) -> float:
    """Return the seconds from the start of the interpreter to its end."""
    _compiled(_CODE[side])
    return run_fresh(_CODE[side])[0]


@REGISTRY.row(
    "script-thread",
    what="a whole script with one call in a thread, interpreter start and end included; median",
    goals={STDLIB_THREADS: 1.15},
    pick="median",
    rounds=10,
)
def script_thread(side: str, run: Settings) -> float:
    """Return the seconds from the start of the interpreter to its end."""
    workers = f"max_concurrency={run.workers}" if side == OURS else run.workers
    code = _THREAD_SCRIPT[side] + _ONE_CALL.format(workers=workers)
    _compiled(code)
    return run_fresh(code)[0]


@REGISTRY.row(
    "script-process",
    what="a whole script with one call in a process (forkserver on both sides), interpreter start and end included; median",
    goals={STDLIB_PROCESSES: 0.85},
    pick="median",
    rounds=10,
)
def script_process(side: str, run: Settings) -> float:
    """Return the seconds from the start of the interpreter to its end."""
    settings = {
        OURS: f'backend="process", max_concurrency={run.workers}',
        STDLIB_PROCESSES: f'{run.workers}, mp_context=get_context("forkserver")',
    }
    code = _PROCESS_SCRIPT[side] + _ONE_CALL.format(workers=settings[side])
    _compiled(code)
    return run_fresh(code)[0]
