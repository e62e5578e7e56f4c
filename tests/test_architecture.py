"""The house: who may import whom, how long things may be, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

import parallel_exec

ROOT = Path(parallel_exec.__file__).parent

# From the ground up. What is imported when a module is imported stands above it in this list; where a module must be
# imported lazily (the optional and the costly ones) that is said in the function that does it. The package's own
# `__init__` only re-exports, so nobody in the package imports from it.
ORDER = [
    "_sync",
    "_sync.clock",
    "_hints",
    "_current",
    "errors",
    "_crash_error",
    "_outcome",
    "_forks",
    "_lazy",
    "_checks",
    "_sync.threads",
    "_sync.lazy_condition",
    "_sync.weak",
    "task",
    "config",
    "task_queue",
    "events",
    "retry",
    "_sync.timers",
    "future",
    "_core",
    "_core.job",
    "_core.batch",
    "_core.registry",
    "_core.ready_queue",
    "_core.completion",
    "_core.admission",
    "_core.scheduler",
    "_core.map_chunk",
    "backends",
    "backends.base",
    "backends.process",
    "backends.process.child",
    "backends.engine",
    "backends.thread",
    "backends.inline",
    "backends._descriptors",
    "backends.process.inherited",
    "backends.process.fork_server",
    "backends.process.fork_warning",
    "backends._platform",
    "backends.process.segments",
    "backends._reducers",
    "backends._pickling",
    "backends._culprit",
    "backends._exceptions",
    "backends._outcomes",
    "backends.process.wire",
    "backends.process.log_relay",
    "backends.process.payload",
    "backends.process.child.reader",
    "backends.process.child.writer",
    "backends.process.child.map_runner",
    "backends.process.child.main",
    "backends.process.preload",
    "backends.process.spawn",
    "backends.process.worker_handle",
    "backends.process.launcher",
    "backends.process.assignments",
    "backends.process.prefetch",
    "backends.process.receiver",
    "backends.process.io_loop",
    "backends.process.supervisor",
    "backends.process.pool",
    "backends.process.backend",
    "backends.engine.serial_thread",
    "backends.engine.submission",
    "backends.engine.settling",
    "backends.engine.start_signal",
    "backends.engine.remote_call",
    "backends.engine.runner",
    "backends.engine.executor",
    "backends.engine.dask_worker",
    "backends.engine.dask",
    "backends.registry",
    "stream",
    "options",
    "_queue_view",
    "_lifecycle",
    "executor",
    "futures",
    "futures.pool",
    "futures.thread",
    "futures.process",
    "progress",
    "_stdio",
    "cli.cpus",
    "cli.writer",
    "cli.reader",
    "cli.main",
    "cli",
    "__main__",
]

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", ""): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}

PACKAGES = {module for module, path in MODULES.items() if path.name == "__init__.py"}


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _runs_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that an import of the module runs, in whatever `if` or `try` of its top level."""
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from _runs_on_import(statement.orelse)
            continue
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _runs_on_import(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from _runs_on_import(handler.body)


def _module_of(origin: str, name: str) -> str:
    """Return the module that `from origin import name` imports."""
    inner = f"{origin}.{name}".partition(".")[2]
    return f"{origin}.{name}" if inner in MODULES else origin


def _imported(module: str) -> set[str]:
    """Return the modules of ours that this one imports when it is imported."""
    found = set()
    for statement in _runs_on_import(_tree(module).body):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module} has a relative import"
            names = [_module_of(str(statement.module), alias.name) for alias in statement.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "parallel_exec":
                assert rest, f"{module} imports from the package's root"
                found.add(rest)
    return {name for name in found if name in MODULES and name not in PACKAGES}


def test_the_list_is_complete() -> None:
    """Every module has its place in the list above, and every place its module."""
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", [module for module in ORDER if module in MODULES])
def test_imports_point_down(module: str) -> None:
    """A module imports only what stands above it in the list, so there are no cycles."""
    below = ORDER[: ORDER.index(module)]
    assert _imported(module) - set(below) == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    """Each module opens with a docstring that begins with a sentence."""
    docstring = ast.get_docstring(_tree(module))
    assert docstring
    assert len(docstring.splitlines()[0]) > 20


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module: str) -> None:
    """No module has more than 500 lines."""
    length = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert length <= 500


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function's body has, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    """No function's body has more than 40 lines."""
    functions = [node for node in ast.walk(_tree(module)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {function.name for function in functions if _body_length(function) > 40} == set()


def _loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after running some code."""
    program = f"import sys; sys.path[:0] = [{str(ROOT.parent)!r}]; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


EXTRAS = {
    "tenacity",
    "asyncio",
    "multiprocessing",
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
    """Neither the import nor a thread pool that works loads tenacity, asyncio, multiprocessing or an extra."""
    assert _loaded_by(code) & EXTRAS == set()


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
        "cli.main",
        "futures.thread",
        "futures.process",
    }  # the last two are one kind of pool each
    for module in ORDER:
        if module in MODULES and not module.startswith("backends") and module not in free:
            names = {name for name in _imported(module) if name.startswith("backends.")}
            assert names <= {"backends.registry", "backends.base"}, module
