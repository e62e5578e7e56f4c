"""`parallel_exec._dataclasses`: whoever looks finds what `dataclasses` makes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import threading
from typing import Any, Callable

import pytest
import script
import work
from source import ROOT

from parallel_exec import _dataclasses as late


def make(module: Any) -> list[Any]:
    """Return a base and a class that derives from it, as the module makes them."""

    @module.dataclass(frozen=True)
    class Base:
        """A base."""

        first: int
        made: list[int] = module.field(init=False, compare=False, default_factory=list)

    @module.dataclass(frozen=True)
    class Derived(Base):
        """One that derives."""

        second: str = "2"

    return [Base, Derived]


LOOKS: list[Callable[[Any], Any]] = [
    lambda cls: repr(cls(1)).partition("<locals>")[2],
    lambda cls: (cls(1) == cls(1), cls(1) == cls(2), cls(1) == 1, hash(cls(1)) == hash(cls(1))),
    lambda cls: [(each.name, each.type, each.init, each.compare) for each in dataclasses.fields(cls)],
    lambda cls: dataclasses.asdict(cls(1)),
    lambda cls: dataclasses.replace(cls(1), first=3).first,
    dataclasses.is_dataclass,
    lambda cls: str(inspect.signature(cls)),
    lambda cls: (cls.__match_args__ if sys.version_info >= (3, 10) else (), cls.__doc__),
    lambda cls: hasattr(cls, "__replace__") and copy.replace(cls(1), first=3).first,  # type: ignore[attr-defined]
    lambda cls: hasattr(cls, "made"),
    lambda cls: isinstance(cls(1).made, list),
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("number", [0, 1])
def test_it_is_what_the_standard_library_makes(look: Callable[[Any], Any], number: int) -> None:
    """Whatever is looked at first, and of a class that derives as well."""
    assert look(make(late)[number]) == look(make(dataclasses)[number])


@pytest.mark.parametrize("number", [0, 1])
def test_it_is_frozen(number: int) -> None:
    """No field can be set or deleted; an attribute of a class of the user's that derives can."""
    ours, theirs = make(late)[number], make(dataclasses)[number]
    for change in (lambda one: setattr(one, "first", 2), lambda one: delattr(one, "first")):
        said = []
        for cls in (ours, theirs):
            with pytest.raises(dataclasses.FrozenInstanceError) as caught:
                change(cls(1))
            said.append(str(caught.value))
        assert said[0] == said[1]

    class Mine(ours):  # type: ignore[misc]
        """A class of the user's."""

    mine = Mine(1)
    mine.other = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.first = 2
    del mine.other


def test_any_thread_may_be_first() -> None:
    """Threads that need the real thing at the same time all have it."""
    for _ in range(20):
        cls = make(late)[1]
        seen: list[str] = []
        threads = [threading.Thread(target=_note_repr, args=(cls, seen)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(work.PATIENCE)
        assert len(seen) == 4
        assert len(set(seen)) == 1


def _note_repr(cls: Any, seen: list[str]) -> None:
    seen.append(repr(cls(1)))


def test_a_script_with_one_call_does_without() -> None:
    """Neither the import nor a call in a thread loads `dataclasses`, unless `concurrent.futures` does."""
    code = (
        "import sys, concurrent.futures; theirs = {*sys.modules}; from parallel_exec import ParallelExecutor;"
        "pool = ParallelExecutor(); assert pool.submit(pow, 2, 3).result() == 8; pool.shutdown();"
        "print({'dataclasses', 'inspect'} & ({*sys.modules} - theirs))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "set()\n"


def test_what_travels_is_the_same_before_and_after() -> None:
    """Instances that were pickled before the real thing was made are equal to those that were pickled afterwards."""
    from parallel_exec import TaskQueued

    event = TaskQueued(1.0, "a", 0)
    assert pickle.loads(pickle.dumps(event)) == event


def test_what_an_executor_makes_is_real_before_a_signal_handler_may_ask_for_it(tmp_path: Any) -> None:
    """A handler may have interrupted an import of `dataclasses`: neither statistics nor an event import it then."""
    body = """
        sys.modules["dataclasses"] = None  # as good as half imported: whoever imports it now fails
        from parallel_exec import ExecutorStats
        stats = ParallelExecutor().stats()
        say(stats.queued, ExecutorStats(3).queued)
        del sys.modules["dataclasses"]
        seen = []
        executor = ParallelExecutor(on_event=seen.append)
        sys.modules["dataclasses"] = None
        executor.submit(int).result()
        executor.shutdown()
        say(*[type(event).__name__ for event in seen][:2])
    """
    out, _ = script.finish(script.start(tmp_path, body))
    assert out.split() == ["0", "3", "TaskQueued", "WorkerStarted"]
