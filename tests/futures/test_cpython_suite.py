"""CPython's own tests of executors, from the running interpreter, against `parallel_exec.futures`.

Nothing of theirs is in this repository: what an interpreter ships is what it is held to. `run_cpython.py` says which tests
are left out, and why; what runs here are threads and one start method, the rest is for that script, run by hand.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "test.test_concurrent_futures"


def _modules() -> list[str]:
    """Return the modules that this interpreter ships, none if it ships none: some distributions leave them out."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ImportError:
        return []
    if spec is None:
        return []
    folders = spec.submodule_search_locations
    if folders is None:  # one module, before 3.12
        return [PACKAGE]
    names = sorted(info.name for info in pkgutil.iter_modules(folders) if info.name.startswith("test_"))
    return [f"{PACKAGE}.{name}" for name in names if name != "test_interpreter_pool"]


def _parts() -> list[tuple[str, str]]:
    """Return what to run, with a pattern for the tests' ids: where all are in one module, it is cut as the later ones are."""
    every = _modules()
    if every == [PACKAGE]:
        waits = r"\w*(Wait|AsCompleted)Test"
        patterns = (".*ThreadPool", f".*ProcessPool{waits}", f".*ProcessPool(?!{waits})", "(?!.*(Thread|Process)Pool)")
        return [(PACKAGE, pattern) for pattern in patterns]
    return [(module, "") for module in every or [""]]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("module", "pattern"), _parts())
def test_cpythons_tests(module: str, pattern: str) -> None:
    """All of a module's tests pass, and leave no thread behind."""
    if not module:
        pytest.skip(f"this interpreter ships no {PACKAGE}")
    script = Path(__file__).with_name("run_cpython.py")
    command = [sys.executable, str(script), "--quick", "--match", pattern, module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout.startswith("0 run")
