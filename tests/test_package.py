"""What is shipped: the licence, the version, and a README that renders where it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from email.parser import HeaderParser
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest

import parallel_exec

ROOT = Path(__file__).parent.parent


def is_installed() -> bool:
    """Return whether the package is more here than a folder on the path, as in the runs on the wheel."""
    try:
        metadata.version("parallel_exec")
    except metadata.PackageNotFoundError:
        return False
    return True


needs_metadata = pytest.mark.skipif(not is_installed(), reason="parallel_exec is imported from its source tree")


def test_the_version_has_one_place() -> None:
    """The build reads `__version__` where it stands, as a literal, and no other place says one."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert '[tool.hatch.version]\npath = "parallel_exec/__init__.py"\n' in project
    assert not re.search(r"^version = ", project, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", parallel_exec.__version__)


@needs_metadata
def test_the_version_is_the_installed_one() -> None:
    """`__version__` says what the package's metadata says."""
    assert parallel_exec.__version__ == metadata.version("parallel_exec")


def test_asking_for_the_version_loads_nothing() -> None:
    """It is there without an import of anything else of ours."""
    code = "import sys, parallel_exec as p; p.__version__; print([n for n in sys.modules if n.startswith('parallel_exec.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_licence_is_in_the_package() -> None:
    """The MIT text lies beside the code."""
    text = files("parallel_exec").joinpath("LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) ")
    assert "THE SOFTWARE IS PROVIDED" in text


def test_the_readme_has_no_relative_links() -> None:
    """A package index shows the README without the files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]*)\)", prose) + re.findall(r"^\[[^\]]+\]: (\S+)", prose, re.MULTILINE)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_threads_and_executors_need_no_posix() -> None:
    """Nothing that only POSIX has is imported or called for them, nor by a call that travels to another process."""
    code = """
import os, pickle, sys
from concurrent.futures import ThreadPoolExecutor

for module in ("fcntl", "resource"):
    sys.modules[module] = None
for function in ("fork", "register_at_fork", "set_blocking"):
    delattr(os, function)

from parallel_exec import ExecutorBackend, ParallelExecutor

class Elsewhere(ThreadPoolExecutor):
    def submit(self, call):
        return super().submit(pickle.loads(pickle.dumps(call)))

for backend in "thread", "inline", ThreadPoolExecutor(1), ExecutorBackend(Elsewhere(1)):
    with ParallelExecutor(backend=backend) as executor:
        print(executor.submit(abs, -1).result(8))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("1\n" * 4, "")


@needs_metadata
def test_the_metadata() -> None:
    """The metadata name the licence by SPDX, its file, and the README as Markdown."""
    found = metadata.distribution("parallel_exec")
    headers = HeaderParser().parsestr(str(found.read_text("METADATA")))
    assert headers["License-Expression"] == "MIT"
    assert headers["License-File"] == "parallel_exec/LICENSE"
    assert headers["Description-Content-Type"] == "text/markdown"
    assert any(str(path).endswith(".dist-info/licenses/parallel_exec/LICENSE") for path in found.files or ())
