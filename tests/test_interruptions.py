"""What tests rely on where they interrupt a call."""

from __future__ import annotations

import gc
import weakref
from typing import Any, NoReturn

from interruptions import interrupt


def test_what_is_raised_leads_to_no_call_that_had_ended() -> None:
    """Who keeps it, a log record for one, would keep a pipe open otherwise that is closed when nobody has it any more."""
    kept: list[KeyboardInterrupt] = []
    had: list[weakref.ref[Any]] = []

    def has_something() -> None:
        something: set[int] = set()
        had.append(weakref.ref(something))

    def call() -> None:
        has_something()
        for _ in range(10):
            repr(kept)

    def act() -> NoReturn:
        kept.append(KeyboardInterrupt())
        raise kept[-1]

    assert interrupt(call, 10, act=act)
    gc.collect()
    assert len(kept) == len(had) == 1
    assert had[0]() is None
