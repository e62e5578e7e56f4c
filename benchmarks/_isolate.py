"""Runs each comparison in an interpreter of its own, so that one that hangs or crashes costs one line of the table.

    measure ──► python -m benchmarks --child ROW PEER ──► compare ──► one line of JSON on stdout ──► Measurement
                        └── own session: a hang ends with a SIGKILL to all of it

Both sides of a ratio are still measured in that one process; see `_harness`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict
from typing import IO, Any, Union

from benchmarks._fresh import environment
from benchmarks._harness import Measurement, Row, Settings, Unmeasured, compare, missing

Line = Union[Measurement, Unmeasured]

GRACE = 5.0  # seconds between the child's own dump of its stacks and its end


def measure(row: Row, peer: str, settings: Settings, limit: float) -> Line:
    """Measure in a child process, and end it after `limit` seconds. Blocks."""
    wanted = missing(row, peer)
    if wanted:
        return Unmeasured(row.name, peer, f"not installed: pip install {wanted}", failed=False)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # Files, not pipes: a peer's helper process that outlives the child would hold a pipe open, and us with it.
        child = subprocess.Popen(
            _command(row, peer, settings, limit), stdout=out, stderr=err, env=environment(), start_new_session=True
        )
        try:
            code: int | None = child.wait(limit + GRACE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.returncode is None:
                _kill(child)
        if code == 0:
            return from_json(json.loads(_text(out).splitlines()[-1]))
        detail = _text(err).strip()
        why = f"not done after {limit:g} s" if code is None else _last_line(detail) or f"ended with exit code {code}"
        return Unmeasured(row.name, peer, why, failed=True, detail=detail)


def measure_here(row: Row, peer: str, settings: Settings) -> Line:
    """Measure in this process; for debuggers and profilers, and for the child."""
    wanted = missing(row, peer)
    if wanted:
        return Unmeasured(row.name, peer, f"not installed: pip install {wanted}", failed=False)
    try:
        return compare(row, peer, settings)
    except Exception:
        detail = traceback.format_exc().strip()
        return Unmeasured(row.name, peer, _last_line(detail), failed=True, detail=detail)


def child_main(row: Row, peer: str, settings: Settings, limit: float) -> int:
    """Be the child: print the measurement as one line of JSON, and return the exit code."""
    faulthandler.dump_traceback_later(limit, exit=False)
    line = measure_here(row, peer, settings)
    faulthandler.cancel_dump_traceback_later()
    if isinstance(line, Unmeasured):
        print(line.detail or line.reason, file=sys.stderr)
        return 1
    print(json.dumps(asdict(line)))
    return 0


def from_json(line: dict[str, Any]) -> Measurement:
    """Return the measurement that `asdict` took apart."""
    samples = {name: tuple(line[name]) for name in ("ours_samples", "their_samples")}
    return Measurement(**{**line, **samples})


def _command(row: Row, peer: str, settings: Settings, limit: float) -> list[str]:
    """Return the child's command line."""
    command = [sys.executable, "-m", "benchmarks", "--child", row.name, peer, "--limit", str(limit)]
    command += ["--workers", str(settings.workers), "--repeat", str(settings.repeat)]
    return [*command, "--quick"] if settings.quick else command


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child with all it started, as far as the platform has sessions."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _text(file: IO[str]) -> str:
    """Return all that was written to a file."""
    file.seek(0)
    return file.read()


def _last_line(text: str) -> str:
    """Return the last line, which of a traceback is the error."""
    return text.splitlines()[-1] if text else ""
