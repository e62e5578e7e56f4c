"""Runs a random program, and says what is broken: in this process or, if it forks or is interrupted, in one of its own.

python alone.py < a pickled program        prints what is broken, pickled and in hexadecimal
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import leaks
from execution import LIMIT, execute
from guarantees import broken

import parallel_exec

if TYPE_CHECKING:
    from random_program import Program

_HERE = Path(__file__).parent


def check(program: Program, limit: float = LIMIT) -> list[str]:
    """Run a program, and return what is broken; `limit` is how long it may hang, in seconds."""
    if not program.alone:
        return _check_here(program, limit)
    paths = [_HERE, Path(leaks.__file__).parent, Path(parallel_exec.__file__).parent.parent]
    command = [sys.executable, "-X", "faulthandler", str(_HERE / "alone.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            out, err = process.communicate(pickle.dumps((program, limit)), 3 * limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
            out, err = process.communicate()
            return [f"the interpreter does not end; it said:\n{err.decode()}"]
    said = f"it said:\n{err.decode()}" if err else ""
    if process.returncode or not out:
        return [f"the interpreter ended with {process.returncode}; {said}"]
    found: list[str] = pickle.loads(bytes.fromhex(out.decode().split()[-1]))
    return [f"{each}\n{said}" for each in found]


def _check_here(program: Program, limit: float) -> list[str]:
    record = execute(program, limit, broken)
    return [*record.broken, *record.surprises]


if __name__ == "__main__":
    print(pickle.dumps(_check_here(*pickle.load(sys.stdin.buffer))).hex())
