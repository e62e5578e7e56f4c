"""What to write instead of a name that is not there, or of a value that cannot be what was meant.

    **_misspelt ──► refuse_names (`_checks.py`) ──► instead_of(name, known) ──► TypeError: the name here, or where it belongs

Every public call that takes settings catches the keywords that it does not know in a `**_misspelt: Never`: type checkers
refuse them, `help()` shows nothing new, and whoever writes one from memory of another library is told the name here.
Only a mistake costs anything: this module is imported by who has found one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Mapping, Sequence


# Names of other libraries, and of common sense, for a setting of ours: the first one that a call takes is offered.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("max_workers", "n_jobs", "jobs", "njobs", "processes", "workers", "num_workers", "n_workers", "nworkers"),
        ("max_concurrency",),
    ),
    **dict.fromkeys(
        ("threads", "num_threads", "n_threads", "nthreads", "max_threads", "num_processes", "n_processes", "nprocs"),
        ("max_concurrency",),
    ),
    **dict.fromkeys(("concurrency", "parallelism", "max_parallel", "pool_size"), ("max_concurrency",)),
    **dict.fromkeys(("retries", "max_retries", "num_retries", "n_retries", "max_retry"), ("retry_count",)),
    **dict.fromkeys(("attempts", "max_attempts", "tries", "max_tries", "retry_times"), ("retry_count",)),
    **dict.fromkeys(("delay", "retry_delay", "retry_backoff", "backoff_factor", "wait", "interval"), ("backoff",)),
    **dict.fromkeys(("max_delay", "backoff_max", "max_wait", "max_interval"), ("max_backoff",)),
    **dict.fromkeys(
        ("time_limit", "task_timeout", "timeout_seconds", "timeout_s", "timeouts"), ("timeout", "deadline")
    ),
    **dict.fromkeys(("timeout", "total_timeout", "run_timeout", "max_time"), ("deadline",)),
    **dict.fromkeys(("exceptions", "retry_exceptions", "retry_for", "autoretry_for", "catch"), ("retry_on",)),
    **dict.fromkeys(("maxsize", "max_queue_size", "queue_maxsize", "max_queue", "qsize", "bound"), ("queue_size",)),
    **dict.fromkeys(("callback", "callbacks", "hook", "listener", "on_progress", "on_result"), ("on_event",)),
    **dict.fromkeys(("executor", "pool", "engine", "kind", "mode", "scheduler", "prefer", "client"), ("backend",)),
    **dict.fromkeys(("name", "task_id", "label", "key", "task_name"), ("id",)),
    **dict.fromkeys(("fn", "func", "function", "target", "callable", "call"), ("execute",)),
    **dict.fromkeys(("nice", "weight", "prio"), ("priority",)),
    **dict.fromkeys(("requires", "resources", "need", "resource"), ("needs",)),
    **dict.fromkeys(("limit", "rate_limit", "rate", "rates", "semaphores", "semaphore", "quotas"), ("limits",)),
    **dict.fromkeys(("ageing", "aging", "priority_aging", "fairness"), ("priority_ageing",)),
    **dict.fromkeys(("context", "start_method", "mp_start_method", "mp_ctx", "ctx"), ("mp_context",)),
    **dict.fromkeys(
        ("maxtasksperchild", "max_tasks", "worker_lifespan", "max_tasks_per_worker"), ("max_tasks_per_child",)
    ),
    **dict.fromkeys(("mem_limit", "max_memory", "memory", "max_mem"), ("memory_limit",)),
    **dict.fromkeys(("init", "worker_init", "init_func", "setup"), ("initializer",)),
    **dict.fromkeys(("worker_exit", "exit_func", "teardown", "cleanup", "deinitializer"), ("finalizer",)),
    **dict.fromkeys(("environ", "environment", "env_vars"), ("env",)),
    **dict.fromkeys(("inner_max_num_threads", "blas_threads", "omp_threads"), ("threads_per_worker",)),
    **dict.fromkeys(("preload_modules", "imports"), ("preload",)),
    **dict.fromkeys(("random_seed", "random_state", "seeds"), ("seed",)),
    **dict.fromkeys(("init_args", "initargs_", "initializer_args"), ("initargs",)),
    **dict.fromkeys(("thread_name", "name_prefix", "thread_prefix"), ("thread_name_prefix",)),
    **dict.fromkeys(("cancel", "cancel_pending", "kill", "force"), ("cancel_futures",)),
    **dict.fromkeys(("show_progress", "verbose", "tqdm", "bar", "progress_bar"), ("progress",)),
    **dict.fromkeys(
        ("checkpoint", "checkpoint_path", "joblog", "resume_from", "state_file", "cache_file"), ("journal",)
    ),
    **dict.fromkeys(("failfast", "stop_on_error", "raise_on_error", "fail_on_error"), ("fail_fast",)),
    **dict.fromkeys(("ordered", "keep_order", "as_completed"), ("order",)),
    **dict.fromkeys(("chunk_size", "batch_size", "chunks"), ("chunksize",)),
    **dict.fromkeys(("buffer_size", "pre_dispatch", "prefetch"), ("buffersize", "window")),
}

# What else there is to know about some of them.
_COUNTED = " (it counts what follows the first attempt: 3 attempts are retry_count=2)"
_PROCESSES = ' (and backend="process", if they are to be processes)'
NOTES: Mapping[str, str] = {
    **dict.fromkeys(("attempts", "max_attempts", "tries", "max_tries"), _COUNTED),
    **dict.fromkeys(("processes", "num_processes", "n_processes", "nprocs"), _PROCESSES),
}

# How each setting of ours is written, by whoever wrote it in a place that does not take it.
_EXECUTOR = "ParallelExecutor({}=...)"
_PER_TASK = "Task(..., {}=...) or executor.options({}=...)"
_BOTH = f"{_EXECUTOR} for all tasks, {_PER_TASK} for one"
_PROCESS = "ParallelExecutor(backend=ProcessBackend({}=...))"
_THREAD = "ParallelExecutor(backend=ThreadBackend({}=...))"
_RUN = "execute_all({}=...)"
_MAP = "map(fn, items, {}=...)"
WRITTEN: Mapping[str, str] = {
    **dict.fromkeys(("max_concurrency", "max_backoff", "jitter"), _EXECUTOR),
    **dict.fromkeys(("queue_size", "backend", "on_event", "limits", "priority_ageing", "seed"), _EXECUTOR),
    **dict.fromkeys(("timeout", "soft_timeout", "retry_count", "retry", "retry_on", "backoff"), _BOTH),
    **dict.fromkeys(("priority", "id", "needs"), _PER_TASK),
    **dict.fromkeys(
        ("mp_context", "max_tasks_per_child", "memory_limit", "startup_timeout", "capture_output"), _PROCESS
    ),
    **dict.fromkeys(("max_memory_per_child", "threads_per_worker", "env", "preload"), _PROCESS),
    **dict.fromkeys(("thread_name_prefix", "max_abandoned"), _THREAD),
    **dict.fromkeys(
        ("initializer", "initargs", "finalizer", "min_workers", "idle_timeout"),
        "ParallelExecutor(backend=ThreadBackend({}=...)) or ProcessBackend({}=...)",
    ),
    **dict.fromkeys(("deadline", "fail_fast", "order", "progress", "journal"), _RUN),
    **dict.fromkeys(("chunksize", "buffersize"), _MAP),
    "window": "stream(tasks, {}=...)",
    "execute": "Task(fn)",
    "kwargs": "Task(fn, {}={...})",
    "tasks": "executor.add_task(task) for each of them, or executor.stream(tasks)",
    "cancel_futures": "shutdown({}=...)",
    "sleep": "ParallelExecutor(backend=InlineBackend({}=...))",
}

# What the pools of others offer, for what is written here.
METHODS: Mapping[str, str] = {
    "apply": "submit(fn, argument, ...).result()",
    "apply_async": "submit(fn, argument, ...)",
    "map_async": "map(fn, items), whose calls have started when it returns",
    **dict.fromkeys(("starmap", "starmap_async"), "map(fn, *zip(*tuples))"),
    "imap": "map(fn, items, buffersize=...)",
    "imap_unordered": "stream(tasks)",
    **dict.fromkeys(("close", "join"), "shutdown()"),
    **dict.fromkeys(
        ("terminate", "kill", "stop", "cancel", "cancel_all", "stop_and_join", "kill_workers", "terminate_workers"),
        "abort_all(), and then shutdown()",
    ),
    **dict.fromkeys(("run", "start", "execute", "run_all", "start_all"), "execute_all()"),
    **dict.fromkeys(("add", "add_tasks", "put", "schedule"), "add_task(task), or submit(fn, argument, ...)"),
    **dict.fromkeys(("wait", "as_completed"), "concurrent.futures.wait(futures), or as_completed(futures)"),
    **dict.fromkeys(("compute", "gather"), "execute_all(), or future.result()"),
}

_DASK = "give a dask Client, backend=Client(...), or backend=DaskBackend(address)"
_EXECUTOR_OBJECT = "give the executor itself, backend="
_NO_ASYNC = (
    "there is no back end for coroutines: keep those in your own event loop, and await what blocks by "
    "loop.run_in_executor(executor, fn, ...)"
)
BACKEND_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("threads", "threading", "multithreading", "multithread", "threadpool"), "did you mean 'thread'?"),
    **dict.fromkeys(
        ("processes", "multiprocessing", "multiprocess", "processpool", "fork", "spawn", "forkserver", "mp"),
        "did you mean 'process'?",
    ),
    **dict.fromkeys(
        ("serial", "sequential", "sync", "synchronous", "none", "single", "main", "debug"), "did you mean 'inline'?"
    ),
    **dict.fromkeys(("dask", "distributed", "cluster"), _DASK),
    **dict.fromkeys(("asyncio", "async", "trio", "coroutine", "anyio"), _NO_ASYNC),
    **dict.fromkeys(("executor", "futures", "concurrent.futures"), f"{_EXECUTOR_OBJECT}ThreadPoolExecutor(...)"),
    **dict.fromkeys(("interpreter", "interpreters"), f"{_EXECUTOR_OBJECT}InterpreterPoolExecutor(...)"),
    **dict.fromkeys(("loky", "joblib"), f"{_EXECUTOR_OBJECT}loky.get_reusable_executor(...)"),
}


def settings_of(function: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of a method's arguments that may be given by keyword, without what it is a method of."""
    code = function.__code__
    first = max(1, code.co_posonlyargcount)
    return tuple(code.co_varnames[first : code.co_argcount + code.co_kwonlyargcount])


def instead_of(name: str, known: Sequence[str]) -> str:
    """Return what to write instead of a keyword, in words."""
    if name not in SYNONYMS and name not in WRITTEN:
        close = closest(name, [*known, *SYNONYMS, *WRITTEN])
        if close is None:
            return f"the settings are {', '.join(known)}" if known else "it has none"
        if close in known:
            return f"did you mean {close!r}?"
        name = close
    elsewhere = _home_of(name)
    for ours in SYNONYMS.get(name, ()):
        if ours in known:
            also = f" ({name} is {elsewhere})" if name in WRITTEN else NOTES.get(name, "")
            return f"did you mean {ours!r}?{also}"
    return f"write {elsewhere}{NOTES.get(name, '')}"


def _home_of(name: str) -> str:
    """Return how a setting of ours, by whatever name, is written where it belongs."""
    ours = name if name in WRITTEN else next(other for other in SYNONYMS[name] if other in WRITTEN)
    return WRITTEN[ours].replace("{}", ours)


def no_attribute(owner: object, name: str) -> AttributeError:
    """Return the error for an attribute that an object has not, with what to write if it is a method of other pools."""
    hint = f": write {METHODS[name]}" if name in METHODS else ""
    error: Any = AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}{hint}")
    if not hint and hasattr(error, "obj"):
        error.name, error.obj = name, owner  # for the interpreter's own suggestion, since Python 3.10
    return error  # type: ignore[no-any-return]


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the name that a misspelt one is close to; None if there is none."""
    import difflib  # only a mistake needs it

    close = difflib.get_close_matches(name, known, 1)
    return close[0] if close else None


def did_you_mean(name: str, known: Sequence[str], lead: str = "") -> str:
    """Return `lead` and a question after the name that is close to a misspelt one; "" if there is none."""
    close = closest(name, known)
    return "" if close is None else f"{lead}did you mean {close!r}?"


def backend_hint(name: str, known: Sequence[str]) -> str:
    """Return what to write instead of the name of a back end that there is not, after a colon; "" if nothing is known."""
    hint = BACKEND_HINTS.get(name.lower())
    return f": {hint}" if hint is not None else did_you_mean(name, known, ": ")
