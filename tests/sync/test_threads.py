"""How threads are started, and what one is at."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import script
import work
from interruptions import interrupt

from parallel_exec._sync import threads
from parallel_exec._sync.threads import arrive, frame_of, launch

if TYPE_CHECKING:
    from pathlib import Path


def test_where_a_thread_is() -> None:
    """That is the innermost of its frames."""
    entered, gate = threading.Event(), threading.Event()

    def stay() -> None:
        entered.set()
        gate.wait(work.PATIENCE)

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait(work.PATIENCE)
    frame = frame_of(thread.ident or 0)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    gate.set()
    thread.join()
    assert "stay" in names
    assert frame_of(thread.ident or 0) is None


def test_garbage_that_is_collected_as_it_is_asked(tmp_path: Path) -> None:
    """The interpreter does not stand still, whatever is collected just then: a `threading.local` needs what lists threads."""
    body = """
        import gc
        import threading

        from parallel_exec._sync.threads import frame_of


        class Circle:
            def __init__(self):
                self.me = self
                self.local = threading.local()
                self.local.value = 1


        def sink(depth):
            sink(depth - 1) if depth else gate.wait()


        gate = threading.Event()
        thread = threading.Thread(target=sink, args=(50,))
        thread.start()
        for number in range(200):
            Circle()
            gc.set_threshold(1 + number % 60)
            frame_of(thread.ident)
        gate.set()
        thread.join()
        print("collects" if gc.isenabled() else "does not")
    """
    out, err = script.finish(script.start(tmp_path, body))
    assert (out, err) == ("collects\n", "")


def test_a_start_that_is_interrupted() -> None:
    """Wherever Ctrl-C comes the thread runs, unless it came before anything was done; none is taken for coming up for ever."""
    for step in itertools.count(1):
        thread = threading.Thread(target=arrive)
        has_more = interrupt(lambda: launch(thread), step)  # noqa: B023  # it is called at once
        if thread.ident is not None:
            thread.join()
        assert thread not in threads._coming_up
        assert thread.ident is not None or step < 10
        if not has_more:
            break
    assert step > 20
