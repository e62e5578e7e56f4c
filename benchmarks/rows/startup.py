"""What `import parallel_exec` adds to the start of an interpreter."""

from __future__ import annotations

from functools import cache

from benchmarks._fresh import run_fresh
from benchmarks._harness import OURS, REGISTRY, Settings

BARE = "python + concurrent.futures"

_CODE = {
    OURS: "import parallel_exec",
    # concurrent.futures loads its pools on first use; naming `thread` loads the one that everybody uses.
    BARE: "import concurrent.futures, concurrent.futures.thread",
}


@cache
def _compiled(side: str) -> None:
    """Run once, so that the compiled modules are there; the measured runs start as the second run of a script does."""
    run_fresh(_CODE[side])


@REGISTRY.row(
    "import",
    what="import parallel_exec in a fresh interpreter, against a bare one that imports concurrent.futures; median",
    goals={BARE: 0.015},
    kind="difference",
    pick="median",
    rounds=10,
)
def import_time(side: str, run: Settings) -> float:
    """Return the seconds from the start of the interpreter to its end."""
    _compiled(side)
    return run_fresh(_CODE[side])[0]
