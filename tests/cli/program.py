"""The command line as a real process, and callables for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

# What is printed is held back as for most users.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
BACKENDS = ("thread", "process", "inline")
WORK = '''
import os, subprocess, sys, time
from pathlib import Path

def double(item): return item * 2
async def no_loop(item): return item
def lines_of(item): yield item
def length(item): return len(item)
def no_rank(item): return {"a": 1}[item]
def half_rank(item): return 1 if item == "a" else 0.5
def leave_rank(item): return 1 if item == "a" else sys.exit(3)
def touch(item): Path("touched").touch()
def fail_if_even(item): return 1 // (item % 2)
def fail(item): raise ValueError(f"no {item}")
def fail_slowly_at_00(item):
    time.sleep(0.2 if item.startswith("00") else 0)
    raise ValueError(f"no {item}")

def fail_on_bad(item): return {"good": 1}[item]
def nan(item): return float("nan")
def big(item): return "x" * 200_000
def bytes_in_a_list(item): return [item.encode()]
def path_of(item): return os.fsencode(item).hex()

def circle(item):
    circle = []
    circle.append(circle)
    return circle

class Odd:
    def __repr__(self): raise RuntimeError("no repr")

def odd(item): return Odd()

def twice(item):
    """Fail at the first attempt, which leaves a file."""
    try:
        Path(item).touch(exist_ok=False)
    except FileExistsError:
        return item
    raise OSError("the first time")

def wait_for(item):
    """Leave word of having started; return at once, or for a "wait" item when the file "go-<item>" is there."""
    Path(f"started-{item}").write_text(str(os.getpid()))
    while item.startswith("wait") and not Path(f"go-{item}").exists():
        time.sleep(0.01)
    return item

class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), 2)
        time.sleep(0.1)

def interrupt_in_finalizer(item):
    Interrupting()
    Path("over").touch()
    while True: time.sleep(0.01)

class Holder:
    @staticmethod
    def method(item): return "held " + item

not_callable = 3
'''


def command(*arguments: str) -> list[str]:
    """Return the command line of a `map`."""
    return [sys.executable, "-W", "error", "-m", "parallel_exec", "map", *arguments]


def run(*arguments: str, cwd: Path, stdin: str | bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a `map` to its end."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=given,
        capture_output=True,
        timeout=40,
        env={**ENVIRONMENT, **env},
        check=False,
    )


def read(text: str | bytes) -> list[dict[str, Any]]:
    """Parse JSON lines strictly: no NaN."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def results(process: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the result of each id; all of them must have succeeded."""
    assert process.returncode == 0, process.stderr.decode()
    return {line["id"]: line["result"] for line in read(process.stdout)}


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def started(workdir: Path, *arguments: str, **how: Any) -> Any:
    """Start a `map` that is talked to while it runs, and see to its end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments), cwd=workdir, env=ENVIRONMENT, **{**pipes, **how}) as process:
        try:
            yield process
        finally:
            process.kill()
