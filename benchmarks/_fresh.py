"""Runs a piece of Python in a fresh interpreter, for what can only be measured there: start-up and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # where both `benchmarks` and `parallel_exec` can be imported from


def environment() -> dict[str, str]:
    """Return the environment for a child: it finds what we find, and may keep compiled modules."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def run_fresh(code: str) -> tuple[float, str]:
    """Run `code` in a new interpreter and wait for its end.

    Returns:
        The seconds from before its start until after its end, and what it printed.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    elapsed = time.monotonic() - start
    if done.returncode:
        raise RuntimeError(f"python -c {code!r} failed with {done.returncode}:\n{done.stderr.strip()}")
    return elapsed, done.stdout
