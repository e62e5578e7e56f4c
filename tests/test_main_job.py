"""The main job of the README, on real input: the standard library's whole source tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def stdlib_files() -> set[str]:
    """List the source files of the standard library without its tests."""
    files = set()
    for folder, folders, names in os.walk(os.path.dirname(os.__file__), followlinks=True):
        folders[:] = [name for name in folders if name not in {"site-packages", "test", "tests"}]
        files.update(os.path.join(folder, name) for name in names if name.endswith(".py"))
    return {file for file in files if os.path.isfile(file)}  # Debian has a link to a file that need not be there


def job_without_installation() -> str:
    """Return the README's first command from where the package is installed."""
    first_fence = README.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    installation, job = first_fence.split("&&\n", 1)
    assert "pip install" in installation
    return job


def stand_in_for_a_venv(folder: Path) -> None:
    """Make the commands of a virtual environment that lead to this interpreter."""
    folder.mkdir(parents=True)
    for name, start in (("python", ""), ("parallel-exec", "-m parallel_exec")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (folder / name).chmod(0o755)


def test_the_standard_library_is_compiled(tmp_path: Path) -> None:
    """Each file is compiled into the scratch folder by a worker process, the largest first, and has one line."""
    stand_in_for_a_venv(tmp_path / ".venv" / "bin")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", job_without_installation()],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / ".venv" / "compiled.jsonl").read_text().splitlines()]
    files = stdlib_files()
    assert len(lines) == len(files) >= 500
    assert {line["id"] for line in lines} == files
    for line in lines:
        assert line["success"]
        assert (tmp_path / line["result"]).stat().st_size > 0
        assert line["result"].startswith(".venv/pyc/")
        assert line["result"].endswith(f".{sys.implementation.cache_tag}.pyc")
    sizes = [os.path.getsize(line["id"]) for line in lines]
    assert sum(sizes[:50]) > 20 * sum(sizes[-50:])
    assert not list(Path(sysconfig.get_path("stdlib")).glob("*.pyc"))


def test_its_summary_tells_what_was_done(tmp_path: Path) -> None:
    """A person reads how many files there were and how long it took; that none took long needs no list."""
    stand_in_for_a_venv(tmp_path / ".venv" / "bin")
    job = job_without_installation().replace("-name '*.py'", "-name '__main__.py'")
    done = subprocess.run(["bash", "-c", job], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+ tasks in \d+\.\d\d s \(\d+\.\d\d s of work\): \d+ succeeded\n", done.stderr)
    assert done.stdout == ""


def test_its_summary_names_the_files_that_took_longest(tmp_path: Path) -> None:
    """Where some of many files took much longer than most, a person reads which."""
    stand_in_for_a_venv(tmp_path / ".venv" / "bin")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "__init__.py").write_text(
        "\n".join(f"a{number} = [{number}, a, b + c]" for number in range(60_000))
    )
    job = (
        job_without_installation().replace("-name '*.py'", "-name '__init__.py'").replace("find -L ", "find -L large ")
    )
    done = subprocess.run(["bash", "-c", job], cwd=tmp_path, capture_output=True, text=True, check=True)
    told = done.stderr.splitlines()
    assert told[1] == "slowest:"
    assert len(told) == 7 and all(line.endswith("/__init__.py") for line in told[2:])
    assert told[2].endswith(" s  large/__init__.py")
