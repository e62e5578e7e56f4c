"""The house: who may import whom, who owns what, how long things may be, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Iterator

import pytest
import source
import walls
from source import FILES, PACKAGES, ROOT

# From the ground up. Whatever a module imports stands above it in this list. Where a module must be imported lazily (the
# optional and the costly ones) that is said in the function that does it. The package's own `__init__` only re-exports, so
# nobody in the package imports from it.
ORDER = [
    "_typing",
    "_sync",
    "_sync.clock",
    "_sync.guarded",
    "_sync.locks",
    "_sync.parking",
    "_sync.threads",
    "_sync.lazy_condition",
    "_sync.weak",
    "_sync.timers",
    "_hints",
    "_current",
    "_names",
    "_cpus",
    "_stacks",
    "_dataclasses",
    "errors",
    "_outcome",
    "_forks",
    "_lazy",
    "_checks",
    "_needs",
    "_sharing",
    "running_task",
    "worker",
    "task",
    "task_queue",
    "events",
    "_dispatcher",
    "retry",
    "future",
    "limits",
    "_core",
    "_core.limits",
    "_core.limits.needs",
    "_core.limits.kind",
    "_core.limits.rate",
    "_core.limits.adaptive",
    "_core.limits.kinds",
    "_core.limits.grant",
    "_core.phase",
    "_core.settings",
    "_core.journaling",
    "_core.batch",
    "_core.job",
    "_core.limits.line",
    "_core.limits.lines",
    "_core.limits.limits",
    "backends",
    "backends.base",
    "_core.gate",
    "_core.running",
    "_core.registry",
    "_core.ready_queue",
    "_core.idle",
    "_core.callers",
    "_core.monitor",
    "_core.completion",
    "_core.admission",
    "_core.backoff",
    "_core.grants",
    "_core.recovery",
    "_core.scheduler",
    "_core.map_chunk",
    "_core.map_feed",
    "backends.process",
    "backends.process.child",
    "backends.engine",
    "backends._interruptible",
    "backends._soft_timeout",
    "backends._cpu_time",
    "backends._call",
    "backends._thread_pool",
    "backends.thread",
    "backends.inline",
    "backends._descriptors",
    "backends.process.inherited",
    "backends.process.fork_warning",
    "backends._platform",
    "backends.process.child.last_words",
    "backends.process.child.start",
    "backends.process.child.when_imported",
    "backends.process.child.lazy_multiprocessing",
    "backends.process.resource_tracker",
    "backends.process.fork_server",
    "backends.process.segments",
    "backends._reducers",
    "backends._pickling",
    "backends._culprit",
    "backends._exceptions",
    "backends._outcomes",
    "backends.process.wire",
    "backends.process.output",
    "backends.process.child.capture",
    "backends.process.log_relay",
    "backends.process.environment",
    "backends.process.payload",
    "backends._contents",
    "shared",
    "backends.process.child.housekeeping",
    "backends.process.child.reader",
    "backends.process.child.writer",
    "backends.process.child.map_runner",
    "backends.process.child.usage",
    "backends.process.child.soft_timeout",
    "backends.process.child.main",
    "backends.process.child.server",
    "backends.process.start_method",
    "backends.process.mp_process",
    "backends.process.spawn",
    "backends.process.semaphore",
    "backends.process.worker_files",
    "backends.process.assigned",
    "backends.process.worker_process",
    "backends.process.worker_handle",
    "backends.process.launcher",
    "backends.process.idle_workers",
    "backends.process.assignments",
    "backends.process.prefetch",
    "backends.process.oom",
    "backends.process.deaths",
    "backends.process.receiver",
    "backends.process.io_loop",
    "backends.process.supervisor",
    "backends.process.releases",
    "backends.process.repeats",
    "backends.process.pool",
    "backends.process.backend",
    "backends.engine.serial_thread",
    "backends.engine.submission",
    "backends.engine.start_signal",
    "backends.engine.remote_call",
    "backends.engine.adapter",
    "backends.engine.grouping",
    "backends.engine.group_journal",
    "backends.engine.remote_group",
    "backends.engine.call_group",
    "backends.engine.kept_grants",
    "backends.engine.runner",
    "backends.engine.exit_hook",
    "backends.engine.executor",
    "backends.engine.dask_shared",
    "backends.engine.dask_worker",
    "backends.engine.dask_group",
    "backends.engine.dask",
    "backends.registry",
    "_journal",
    "_journal.runs",
    "_journal.records",
    "_journal.file",
    "_journal.keys",
    "_journal.database",
    "journal",
    "_journal.recorder",
    "_journal.run",
    "config",
    "_settings_for",
    "stream",
    "options",
    "_queue_view",
    "_limits_view",
    "_lifecycle",
    "progress",
    "executor",
    "sigterm",
    "futures.pool",
    "futures.thread",
    "futures.process",
    "futures",
    "_stdio",
    "cli.options",
    "cli.limits",
    "cli.output",
    "cli.writer",
    "cli.reader",
    "cli.recording",
    "cli.map_command",
    "cli.journal_command",
    "cli.main",
    "cli",
    "__main__",
]

# Private names of others that we use, and why; with most of them we do without where they are not there.
PRIVATE = {
    "_cpus": {"_xoptions": "how many CPUs the user says there are"},
    "_forks": {
        "_children": "multiprocessing waits for them at exit, and in a forked child they are the parent's",
        "_parent_pid": "of one of those",
        "_exit_function": "multiprocessing waits for what the child has started itself",
        "_threads_queues": "ThreadPoolExecutor waits for its threads, of which the forked one may be a copy",
        "_shutdown": "threading waits for the threads of the child",
    },
    "_lifecycle": {"_register_atexit": "what is to end before threads are waited for must be told where threads are"},
    "backends._soft_timeout": {
        "_getframe": "where the call of a task begins: documented, in spite of its name",
    },
    "backends.process.child.soft_timeout": {"_getframe": "the same"},
    "_sync.locks": {
        "_is_owned": "whether the calling thread holds a re-entrant lock: Condition asks so",
        "_at_fork_reinit": "a lock that another thread held when the process forked",
    },
    "_sync.threads": {
        "_current_frames": "where a thread is that cannot be asked: documented, in spite of its name",
        "_active_limbo_lock": "what Ctrl-C leaves taken in the start of a thread",
        "_started": "the same",
        "_cond": "the same",
        "_is_owned": "whether it is a re-entrant lock, as in _sync.locks",
    },
    "backends._exceptions": {"_slotnames": "copyreg's list of what pickle takes along"},
    "backends._platform": {"_daemonic": "of a thread that has started, it cannot be changed otherwise"},
    "backends._reducers": {
        "_extra_reducers": "what others have registered with ForkingPickler",
        "_wrapper": "what multiprocessing.sharedctypes knows its values by",
    },
    "backends.engine.executor": {
        "_max_workers": "how many workers other people's executors have",
        "_processes": "whether one of the stdlib's was used before a fork",
        "_threads": "the same, of threads",
    },
    "backends.engine.exit_hook": {
        "_register_atexit": "as in _lifecycle",
        "_threads_wakeups": "what the exit hook of the stdlib's process pools wakes them up by, without their lock",
    },
    "backends.process.child.main": {"_inheriting": "multiprocessing refuses starts while a main module is imported"},
    "backends.process.child.lazy_multiprocessing": {
        "_current_process": "who this process is, for multiprocessing, which tells its own processes so itself",
        "_parent_pid": "the same",
        "_parent_process": "the same",
        "_ParentProcess": "the same",
        "_process_counter": "the same",
        "_identity": "the same",
        "_resource_tracker": "its processes have their parent's",
        "_fd": "the same",
    },
    "backends.process.child.server": {
        "_shutdown": "threading waits for the threads of the worker",
        "_clear": "exit handlers of the server are not the worker's, as in processes of multiprocessing",
        "_run_exitfuncs": "the same",
    },
    "backends.process.fork_server": {
        "_args_from_interpreter_flags": "how a Python is started that is like this one",
        "_xoptions": "whether anything is to be said of that",
        "_python_exe": "to be asked while another thread imports multiprocessing.spawn",
        "_forkserver": "what the user has its fork server import",
        "_preload_modules": "the same",
        "_rebuild": "how a semaphore is opened that another process has made",
    },
    "backends.process.resource_tracker": {
        "_resource_tracker": "multiprocessing has one, and starts it before it is needed",
        "_fd": "the same",
        "_pid": "the same",
        "_stop": "the same",
        "_lock": "the same",
    },
    "backends.process.semaphore": {
        "_make_name": "to have a semaphore's name tracked before the semaphore is there",
        "_semlock": "what became of such a name",
    },
    "backends.process.mp_process": {"_children": "else each start of any process polls ours"},
    "backends.process.spawn": {
        "_process_counter": "each worker has a number of its own among all that multiprocessing starts here",
        "_identity": "the same",
    },
    "backends.process.start_method": {
        "_inheriting": "whether a main module is being imported",
        "_current_process": "to be asked while another thread imports it",
    },
}

# Attributes of others' objects that are there to be set.
SET = {
    "_forks": {"_children"},
    "_lifecycle": {"atexit"},  # weakref.finalize
    "_stdio": {"stdout"},  # sys
    "_sync.threads": {"_cond"},  # of the event by which a thread says that it has started
    "backends._platform": {"name", "_daemonic"},  # a thread
    "backends.process.child.main": {"_inheriting"},
    "backends.process.child.capture": {"stdout", "stderr"},  # sys
    "backends.process.child.lazy_multiprocessing": {  # multiprocessing.process and its resource tracker
        "_current_process",
        "_parent_process",
        "_process_counter",
        "ORIGINAL_DIR",
        "_fd",
    },
    "backends.process.child.when_imported": {"loader"},  # a module's spec
    "backends.process.resource_tracker": {"_fd", "_stop"},  # multiprocessing's resource tracker
    "backends.process.log_relay": {"propagate", "exc_info"},  # a logger, a record
    "backends.process.mp_process": {"get_preparation_data"},  # multiprocessing.spawn
    "cli.map_command": {"unraisablehook"},  # sys
    "cli.reader": {"args"},  # an error
    "cli.recording": {"showwarning"},  # warnings
    "progress": {"total"},  # tqdm's bar
    "retry": {"attempt_number", "idle_for", "next_action", "upcoming_sleep"},  # tenacity's state
}

# What is derived from a class of another module is a kind of it; beside exceptions and what is abstract, these are.
KINDS = {
    "_core.job.Job": "future.TaskFuture",  # and its record; a user knows it as the future alone
    "_core.map_chunk.MapChunk": "_core.job.Job",
    "_queue_view.LiveQueue": "task_queue.TaskQueue",
    "cli.recording.MapExecutor": "executor.ParallelExecutor",
    "executor.ParallelExecutor": "options.Submitter",  # `submit` and `map`, as with settings of their own
    "futures.pool.Pool": "executor.ParallelExecutor",
    "futures.process.ProcessPoolExecutor": "futures.pool.Pool",
    "futures.thread.ThreadPoolExecutor": "futures.pool.Pool",
}


@pytest.fixture(scope="module", autouse=True)
def _forget_the_trees() -> Iterator[None]:
    """Keep no syntax trees for the tests to come: each collection of garbage would go through them."""
    yield
    source.tree.cache_clear()
    source.modules.cache_clear()


def _of_ours(imports: list[source.Import]) -> set[str]:
    """Return the modules that are imported; packages say nothing of themselves."""
    return {each.module for each in imports if each.module in FILES} - PACKAGES


def test_the_list_is_complete() -> None:
    """Every module has its place in the list above, and every place its module."""
    assert sorted(ORDER) == sorted(FILES)


def test_imports_point_down() -> None:
    """A module imports only what stands above it in the list, be it for types or when needed: so there are no circles."""
    for place, module in enumerate(ORDER):
        if module in FILES:
            assert _all_of_ours(module) <= set(ORDER[: place + 1]), module


def _all_of_ours(module: str) -> set[str]:
    """Return what a module imports whenever and for whatever, types too."""
    return set().union(*map(_of_ours, source.imports_of(module)))


def test_sync_knows_nothing_of_tasks() -> None:
    """Timers, parking and locks could be anybody's: they import only each other, and what stands in for `typing`."""
    for module in FILES:
        if module.startswith("_sync."):
            assert all(name.startswith("_sync.") for name in _all_of_ours(module) - {"_typing"}), module


def test_the_core_and_the_back_ends_meet_at_the_port() -> None:
    """The core knows back ends by the protocols in `backends.base`; they know a scheduler by the port, jobs and grants."""
    for module in FILES:
        if module.startswith("_core"):
            assert {name for name in _all_of_ours(module) if name.startswith("backends")} <= {"backends.base"}, module
        if module.startswith("backends"):
            core = {name for name in _all_of_ours(module) if name.startswith("_core")}
            assert core <= {f"_core.{name}" for name in ("job", "limits.grant", "map_chunk", "phase", "settings")}, (
                module
            )


def test_packages_import_nothing() -> None:
    """A package's `__init__` is its description, so that who needs one module gets no other: a worker process above all."""
    assert {module for module in PACKAGES if any(source.imports_of(module))} == {"cli", "futures"}


def test_a_worker_process_needs_few_modules() -> None:
    """What `process/child` imports is there, in `backends`, or tiny; none of it is about tasks and executors."""
    needed = {module for module in FILES if module.startswith("backends.process.child.")}
    while more := set().union(*(_of_ours(source.imports_of(module)[0]) for module in needed)) - needed:
        needed |= more
    assert {name for name in needed if not name.startswith("backends.")} <= {
        "_current",
        "_forks",
        "_lazy",
        "_names",
        "_outcome",
        "_sync.clock",
        "_typing",
    }


def test_every_module_says_what_it_is() -> None:
    """Each module opens with a docstring that begins with a sentence."""
    for module in FILES:
        docstring = ast.get_docstring(source.tree(module))
        assert docstring, module
        assert len(docstring.splitlines()[0]) > 20, module


def test_modules_are_short() -> None:
    """No module has more than 500 lines."""
    lengths = {module: path.read_text(encoding="utf-8").count("\n") for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > 500} == {}


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function's body has, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_functions_are_short() -> None:
    """No function's body has more than 40 lines."""
    functions = {
        (module, node)
        for module in FILES
        for node in ast.walk(source.tree(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {(module, function.name) for module, function in functions if _body_length(function) > 40} == set()


def test_nobody_reaches_into_others() -> None:
    """No module names a private attribute of another's object, or imports a private name, but the standard library's above."""
    places = walls.reach_ins()
    left = [place for place in places if place.attribute not in PRIVATE.get(place.module, {})]
    assert not left, "\n".join(map(str, left))
    used = {(place.module, place.attribute) for place in places}
    assert {(module, name) for module, names in PRIVATE.items() for name in names} - used == set()


def test_nobody_assigns_others_attributes() -> None:
    """An attribute is changed by its object, by the module that has its class, or by the function that has just made it."""
    places = walls.assignments()
    left = [place for place in places if place.attribute not in SET.get(place.module, ())]
    assert not left, "\n".join(map(str, left))
    used = {(place.module, place.attribute) for place in places}
    assert {(module, name) for module, names in SET.items() for name in names} - used == set()


def test_no_class_is_continued_elsewhere() -> None:
    """A class that is derived from another module's is a kind of it: of an exception, of an abstract class, or see above."""
    derived = {f"{kind.module}.{kind.name}": f"{base.module}.{base.name}" for kind, base in walls.derivations()}
    assert derived == KINDS


def test_imports_are_absolute_and_not_from_the_root() -> None:
    """The package's own `__init__` only hands names on, so nobody in the package imports from it."""
    for module in FILES:
        for node in ast.walk(source.tree(module)):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} has a relative import"
        assert all(each.module in FILES for each in source.imports_of(module)[0]), module


def _loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after running some code."""
    program = f"import sys; sys.path[:0] = [{str(ROOT.parent)!r}]; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


EXTRAS = {
    "tenacity",
    "asyncio",
    "dataclasses",
    "multiprocessing",
    "typing",
    "numpy",
    "tqdm",
    "cloudpickle",
    "loky",
    "distributed",
    "dask",
    "psutil",
}


@pytest.mark.parametrize(
    "code",
    [
        "import parallel_exec",
        "import parallel_exec.futures",
        "from parallel_exec.futures import ThreadPoolExecutor, wait; wait([ThreadPoolExecutor().submit(int)])",
        "from parallel_exec import ParallelExecutor, Task",
        "from parallel_exec import ParallelExecutor; assert ParallelExecutor().submit(int).result() == 0",
    ],
)
def test_an_import_is_cheap(code: str) -> None:
    """Neither the import nor a thread pool that works loads typing, tenacity, asyncio, multiprocessing or an extra.

    On some Pythons the standard library's own futures load one of them: 3.14's logging needs dataclasses.
    """
    assert (_loaded_by(code) - _loaded_by("from concurrent.futures import Future")) & EXTRAS == set()


def test_a_process_pool_loads_nobody_elses() -> None:
    """Worker processes run calls without the standard library's process pool, whose error only a crash needs."""
    code = "from parallel_exec import ParallelExecutor; import math"
    code += "; assert ParallelExecutor(backend='process').submit(math.sqrt, 4).result() == 2"
    assert "concurrent.futures.process" not in _loaded_by(code)


def test_the_childs_loop_needs_next_to_nothing() -> None:
    """What runs in a worker process loads neither the scheduler nor anything from outside the standard library."""
    loaded = _loaded_by("import parallel_exec.backends.process.child.main")
    ours = {name for name in loaded if name.startswith("parallel_exec.")}
    assert not ours & {
        "parallel_exec._core.scheduler",
        "parallel_exec.executor",
        "parallel_exec._core.job",
        "parallel_exec.future",
        "parallel_exec.retry",
    }
    assert loaded & {"tenacity", "typing_extensions", "asyncio", "numpy", "cloudpickle"} == set()


def test_only_one_place_branches_on_back_ends() -> None:
    """Nothing but the registry knows the back ends by type or name: the rest asks what they can do."""
    free = {
        "backends.registry",
        "cli.map_command",
        "futures.thread",
        "futures.process",
    }  # the last two are one kind of pool each
    same_pickles = {
        "_journal.records": {
            "backends._exceptions",
            "backends._pickling",
            "backends._reducers",
        },  # as to and from any worker
        "shared": {"backends._contents"},  # the same for all of them
    }
    for module in ORDER:
        if module in FILES and not module.startswith("backends") and module not in free:
            names = {name for name in _of_ours(source.imports_of(module)[0]) if name.startswith("backends.")}
            assert names <= {"backends.registry", "backends.base", *same_pickles.get(module, ())}, module
