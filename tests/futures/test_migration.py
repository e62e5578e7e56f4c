"""The README's table of what to write in place of other pools: both sides of each row are run, and give the same."""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import work

from parallel_exec import ParallelExecutor, Task
from parallel_exec.futures import ProcessPoolExecutor

README = Path(__file__).parent.parent.parent.joinpath("README.md").read_text(encoding="utf-8")
XS = list(range(20))


def rows() -> list[tuple[str, str]]:
    """Return the rows' two pieces of code."""
    table = README.partition("| in place of | write |\n|---|---|\n")[2].partition("\n\n")[0]
    found = [re.fullmatch(r"\| `(.*)` \| `(.*)` \|", line) for line in table.splitlines()]
    assert all(found)
    return [(row[1], row[2]) for row in found if row]


IMPORTS = [row for row in rows() if row[0].startswith("from ")]
CALLS = [row for row in rows() if row not in IMPORTS]


def add(x: int, y: int = 0) -> int:
    """Return a sum."""
    return x + y


class Notes:
    """Takes what a callback is given."""

    def __init__(self) -> None:
        self._come = threading.Event()
        self._value: object = None

    def __call__(self, value: object) -> None:
        """Take it."""
        self._value = value
        self._come.set()

    def taken(self) -> object:
        """Wait for it, and return it."""
        assert self._come.wait(work.PATIENCE)
        return self._value


def run(code: str, **names: Any) -> object:
    """Return what an expression comes to: of an iterator the items, in the order in which they are promised."""
    notes = Notes()
    here: dict[str, Any] = {
        "f": work.double,
        "g": add,
        "xs": XS,
        "pairs": list(zip(XS, XS)),
        "note": notes,
        "Task": Task,
    }
    value = eval(code, here | names)
    if "note" in code:
        return notes.taken()
    if not isinstance(value, Iterator):
        return value
    return sorted(value) if "unordered" in code or "stream" in code else list(value)


def test_the_table_has_what_people_come_from() -> None:
    """Each way of the other pools is there."""
    left = " ".join(old for old, _ in rows())
    for name in ("ThreadPoolExecutor", "ProcessPoolExecutor", "Parallel(", "delayed("):
        assert name in left
    for name in ("map", "imap", "imap_unordered", "starmap", "apply", "apply_async"):
        assert f"pool.{name}(" in left


@pytest.mark.parametrize(("old", "new"), IMPORTS)
def test_an_import(old: str, new: str) -> None:
    """What was written for the one works with the other."""

    def use(code: str) -> tuple[Any, ...]:
        names: dict[str, Any] = {}
        exec(code, names)
        [make] = [value for name, value in names.items() if name.endswith("PoolExecutor")]
        more = {"mp_context": multiprocessing.get_context("forkserver")} if "Process" in code else {}
        with make(2, **more) as pool:
            futures = {pool.submit(add, x, y=1): x for x in XS}
            done = {futures[future]: future.result() for future in as_completed(futures)}
            return done, list(pool.map(work.double, XS, chunksize=3))

    assert use(new) == use(old)


@pytest.mark.parametrize("retries", [False, True], ids=["drop-in", "ParallelExecutor"])
@pytest.mark.parametrize(("old", "new"), CALLS)
def test_a_call(old: str, new: str, retries: bool) -> None:
    """Both sides come to the same."""
    with ExitStack() as stack:
        if "Parallel" in old:
            joblib = pytest.importorskip("joblib")
            stack.enter_context(joblib.parallel_config(backend="threading"))  # loky's workers would outlive the test
            theirs = {"Parallel": joblib.Parallel, "delayed": joblib.delayed}
        else:
            theirs = {"pool": stack.enter_context(multiprocessing.get_context("forkserver").Pool(2))}
        expected = run(old, **theirs)
        if "pool" in theirs:
            theirs["pool"].close()
            theirs["pool"].join()
    with ParallelExecutor(max_concurrency=4, backend="process") if retries else ProcessPoolExecutor(4) as executor:
        assert run(new, executor=executor) == expected
