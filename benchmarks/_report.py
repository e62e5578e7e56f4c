"""What a run says: the table for people, the JSON for the chart and for whoever wants every sample."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _pools
from benchmarks._harness import DISTRIBUTIONS, Measurement, Row, Settings, Unmeasured
from benchmarks._isolate import Line, from_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1  # of the JSON; raise it when a field changes its meaning

_HEADER = ("row", "ours", "peer", "", "ratio", "goal", "met")


def show(value: float, unit: str) -> str:
    """Return a figure with three digits and the unit that suits it: seconds ("s") or bytes ("B").

    >>> show(0.0000182, "s")
    '18.2 µs'
    """
    scales = (
        [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]
        if unit == "s"
        else [(1e6, "MB"), (1e3, "kB"), (1.0, "B")]
    )
    factor, name = next(((f, n) for f, n in scales if abs(value) >= f), scales[-1])
    digits = f"{value / factor:.3g}" if abs(value / factor) < 999.5 else f"{value / factor:.0f}"
    return f"{digits} {name}"


def show_value(line: Measurement) -> str:
    """Return what the goal is held against, as the table shows it."""
    if line.kind == "ratio":
        return f"{line.value:#.3g}"
    if line.kind == "difference":
        return f"{'+' if line.value >= 0 else '−'}{show(abs(line.value), line.unit)}"
    return "—"


def show_goal(kind: str, unit: str, goal: float | None) -> str:
    """Return a goal as the table shows it."""
    if goal is None:
        return "—"
    if kind == "ratio":
        return f"≤ {goal:.2f}"
    return f"≤ {'+' if kind == 'difference' else ''}{show(goal, unit)}"


def _cells(line: Measurement) -> tuple[str, ...]:
    """Return the cells of one line of the table."""
    theirs = "—" if line.theirs is None else show(line.theirs, line.unit)
    met = {True: "met", False: "NOT MET", None: "—"}[line.met]
    goal = show_goal(line.kind, line.unit, line.goal)
    return (line.row, show(line.ours, line.unit), line.peer, theirs, show_value(line), goal, met)


def table(lines: Sequence[Line]) -> str:
    """Return the table, and below it what has no figure and why."""
    rows = [_HEADER] + [_cells(line) for line in lines if isinstance(line, Measurement)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    right = (1, 3, 4, 5)  # columns of figures
    text = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    text.insert(1, "  ".join("─" * width for width in widths))
    text += [
        f"{'FAILED' if line.failed else 'passed over'}: {line.row} against {line.peer}: {line.reason}"
        for line in lines
        if isinstance(line, Unmeasured)
    ]
    return "\n".join(text)


def listing(rows: Sequence[Row]) -> str:
    """Return all rows with what they measure, their peers and goals."""
    text = []
    for row in rows:
        goals = [f"{peer} ({show_goal(row.kind, row.unit, goal)})" for peer, goal in row.goals.items()]
        text.append(f"{row.name}\n    {row.what}\n    {', '.join(goals)}")
    return "\n".join(text)


def report(lines: Sequence[Line], settings: Settings) -> dict[str, Any]:
    """Return all of a run as what JSON can hold. Times in seconds, sizes in bytes."""
    return {
        "schema": SCHEMA,
        "taken_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": {**asdict(settings), "start_method": _pools.start_method()},
        "measurements": [asdict(line) for line in lines if isinstance(line, Measurement)],
        "unmeasured": [asdict(line) for line in lines if isinstance(line, Unmeasured)],
    }


def lines_of(report: Mapping[str, Any]) -> list[Line]:
    """Return the lines of a run from its JSON."""
    return [*map(from_json, report["measurements"]), *(Unmeasured(**line) for line in report["unmeasured"])]


def machine() -> dict[str, Any]:
    """Say what ran this, without its name."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
    }


def _cpu_model() -> str:
    """Return the processor's name where the platform tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Return the version of us and of each peer; None if not installed as a distribution."""
    return {name: _version(name) for name in ("parallel_exec", "tenacity", *DISTRIBUTIONS.values())}


def _version(distribution: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
