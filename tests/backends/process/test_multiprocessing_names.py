"""What we use of `multiprocessing` that is private may be called otherwise one day: then we do without."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest

NAMES = ("_make_name", "_preload_modules", "_forkserver_alive_fd", "_forkserver_pid", "_children", "_inheriting")

PROGRAM = """
import multiprocessing, os, sys
from parallel_exec import ParallelExecutor, ProcessBackend

def answer():
    return 42

if __name__ == "__main__":
    assert os.path.dirname(multiprocessing.__file__).startswith(os.path.dirname(__file__))
    backend = ProcessBackend(mp_context=sys.argv[1])
    with ParallelExecutor(max_concurrency=1, backend=backend, retry_count=0, timeout=20) as executor:
        print(type(executor.submit(os._exit, 1).exception()).__name__)
        print(executor.submit(answer).result(), executor.submit(len, b"x" * 3_000_000).result())
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_start_without_the_private_names(tmp_path: Path, method: str) -> None:
    """With a `multiprocessing` that has other names for them, here and in the workers, workers start and are replaced."""
    package = tmp_path / "multiprocessing"
    shutil.copytree(Path(multiprocessing.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    private = re.compile(rf"\b({'|'.join(NAMES)})\b")
    renamed = set()
    for module in package.rglob("*.py"):
        source = module.read_text(encoding="utf-8")
        renamed.update(private.findall(source))
        module.write_text(private.sub(r"\1_otherwise", source), encoding="utf-8")
    assert renamed == set(NAMES)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = processes.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    command = [sys.executable, "-W", "error", str(program), method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)
    assert done.stdout == "WorkerCrashedError\n42 3000000\n"
    assert re.fullmatch(r"worker process \d+ died \(exit code 1\) while it ran task '_exit-1'\n", done.stderr)
