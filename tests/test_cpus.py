"""`max_concurrency="auto"`: the CPUs that this process may really use."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from parallel_exec import InlineBackend, ParallelConfig, ParallelExecutor, ProcessBackend, ThreadBackend
from parallel_exec import _cpus as cpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight CPUs, whose control groups are files in this directory."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def group(machine: Path, path: str, **files: str) -> None:
    """Make a control group."""
    folder = machine / "cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("900000 50000", 8),
        ("odd", 8),
    ],
)
def test_a_quota_bounds_the_cpus(machine: Path, quota: str, expected: int) -> None:
    """A control group of the second version says so in `cpu.max`."""
    (machine / "own").write_text("0::/a/b\n")
    group(machine, "a/b", cpu__max=quota)
    assert cpus.usable_cpus() == expected


def test_the_quota_of_an_outer_group_counts(machine: Path) -> None:
    """A group has no more than those that it is in."""
    (machine / "own").write_text("0::/a/b\n")
    group(machine, "a/b", cpu__max="max 100000")
    group(machine, "a", cpu__max="300000 100000")
    assert cpus.usable_cpus() == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("150000", 2)])
def test_a_quota_of_the_first_version(machine: Path, quota: str, expected: int) -> None:
    """It has files of its own; a container sees its own group where the machine's root would be."""
    (machine / "own").write_text("12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n")
    group(machine, "cpu,cpuacct", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cpus.usable_cpus() == expected


def test_a_machine_without_control_groups(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPUs that it may run on count, or else all that there are."""
    assert not (machine / "own").exists()
    assert cpus.usable_cpus() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.usable_cpus() == (os.cpu_count() or 1)


@pytest.mark.parametrize(("said", "expected"), [("3", 3), ("0", 1), ("default", 8), ("many", 8), ("", 8)])
def test_what_the_user_says_counts(machine: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: int) -> None:
    """`PYTHON_CPU_COUNT` goes before affinity and quota, on Pythons too that do not know it."""
    assert not (machine / "own").exists()
    monkeypatch.setenv("PYTHON_CPU_COUNT", said)
    assert cpus.usable_cpus() == expected


def test_the_interpreters_option_goes_before_the_environment() -> None:
    """`-X cpu_count=7` counts on every Python, and `-E` has the environment ignored."""
    code = "from parallel_exec._cpus import usable_cpus; print(usable_cpus())"
    environment = {**os.environ, "PYTHON_CPU_COUNT": "5"}

    def count(*flags: str) -> int:
        command = [sys.executable, *flags, "-c", code]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout)

    assert count("-X", "cpu_count=7") == 7
    assert count() == 5
    assert count("-E") == cpus.usable_cpus()


@pytest.mark.parametrize(("make_backend", "expected"), [(ThreadBackend, 7), (ProcessBackend, 3), (InlineBackend, 1)])
def test_auto_suits_the_back_end(monkeypatch: pytest.MonkeyPatch, make_backend: Any, expected: int) -> None:
    """Processes are as many as CPUs, threads four more; the caller's own thread is one. The setting stays as it was said."""
    monkeypatch.setenv("PYTHON_CPU_COUNT", "3")
    config = ParallelConfig(max_concurrency="auto")
    with ParallelExecutor(config, backend=make_backend()) as executor:
        assert executor.config.max_concurrency == "auto"
        assert executor._completion.runner.slots() == expected


def test_auto_is_no_more_than_32_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many CPUs there are."""
    monkeypatch.setenv("PYTHON_CPU_COUNT", "96")
    with ParallelExecutor(max_concurrency="auto") as executor:
        assert executor._completion.runner.slots() == 32


def test_auto_is_what_an_executor_has() -> None:
    """Somebody else's pool says how many workers there are."""
    with ThreadPoolExecutor(9) as pool, ParallelExecutor(max_concurrency="auto", backend=pool) as executor:
        assert executor._completion.runner.slots() == 9


@pytest.mark.parametrize(
    ("mounted", "files"),
    [("", {"cpu.max": "100000 100000"}), ("cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"})],
    ids=["v2", "v1"],
)
def test_the_quota_of_a_real_control_group(
    monkeypatch: pytest.MonkeyPatch, mounted: str, files: dict[str, str]
) -> None:
    """In a control group that may use one CPU "auto" is 1 for processes."""
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    code = (
        "from parallel_exec import ParallelExecutor; "
        "executor = ParallelExecutor(max_concurrency='auto', backend='process'); "
        "print(executor._completion.runner.slots())"
    )
    folder = os.path.join("/sys/fs/cgroup", mounted, f"parallel_exec-test-{os.getpid()}")
    try:
        os.mkdir(folder)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, text in files.items():
            if not os.path.exists(os.path.join(folder, name)):
                pytest.skip(f"a control group here has no {name}")
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(text)
        enter = f"import os; print(os.getpid(), file=open({folder!r} + '/cgroup.procs', 'w')); "
        done = subprocess.run([sys.executable, "-c", enter + code], capture_output=True, check=True, timeout=60)
        assert int(done.stdout) == 1
    finally:
        os.rmdir(folder)
