"""Runs programs in interpreters of their own: for exits, signals and forks, which a test cannot survive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import work

import parallel_exec

LIMIT = 40.0  # seconds after which a program that should end by itself is killed
QUIET = ("-X", "faulthandler", "-W", "error")
HEAD = """\
import atexit, gc, os, signal, sys, threading, time
from functools import partial
import inside, work
from parallel_exec import ParallelExecutor, Task, TaskTimeoutError

def say(*words):
    # In one piece: unbuffered, `print` writes the end of the line by itself, and another process may come between.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def ready():
    # CPython loses a SIGINT that comes in the very moment in which the main thread begins to wait for a lock.
    time.sleep(0.1)
    say("READY")

def main():
"""
FOOT = """
if __name__ == "__main__":
    main()
"""


WARNING = re.compile(
    r"^Task timeout: attempt \d+ of task '.*; its call cannot be stopped, and still runs in .*\n", re.MULTILINE
)
DEATH = re.compile(
    r"^(worker process \d+ died .* while it ran task .*|Task timeout: attempt .*; its worker process \d+ was killed|"
    r"a worker process could not start: .*)\n",
    re.MULTILINE,
)


def start(folder: Path, body: str, *arguments: str, flags: tuple[str, ...] = QUIET) -> subprocess.Popen[str]:
    """Start a program whose `main` has this body, in a process group of its own.

    Args:
        folder: where the file goes.
        body: the statements of `main`, in which `say` prints.
        *arguments: for `sys.argv`.
        flags: for the interpreter.
    """
    program = folder / "program.py"
    program.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    ") + FOOT)
    paths = [str(Path(work.__file__).parent), str(Path(parallel_exec.__file__).parent.parent)]
    return subprocess.Popen(
        [sys.executable, *flags, str(program), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the program to end by itself, and return what it wrote; kill it if it hangs."""
    try:
        return process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler says where it hangs
        out, err = process.communicate()
        raise AssertionError(f"the program did not end by itself; it said:\n{out}\n{err}") from None


def run(folder: Path, body: str, *arguments: str, flags: tuple[str, ...] = QUIET, stuck: int = 0, dead: int = 0) -> str:
    """Run a program to its end, which must be a good one, and return what it said.

    Args:
        folder: as for `start`, and so are the next three.
        body: the statements of `main`.
        *arguments: for `sys.argv`.
        flags: for the interpreter.
        stuck: so many warnings of threads that are stuck are on standard error, and nothing else is but
        dead: so many warnings of workers that have died, were killed as time was up, or could not start.
    """
    process = start(folder, body, *arguments, flags=flags)
    out, err = finish(process)
    err, warnings = WARNING.subn("", err)
    err, deaths = DEATH.subn("", err)
    assert (warnings, deaths) == (stuck, dead), err
    assert (process.returncode, err) == (0, ""), f"exit status {process.returncode}; it said:\n{out}\n{err}"
    return out.strip()
