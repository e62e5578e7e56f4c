"""What the system refuses: calls that a sandbox forbids, processes and threads beyond a limit, files beyond another."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from parallel_exec.backends import _memory

# ── sandboxes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_memory_that_is_refused_by_a_sandbox(pool: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where `memfd_create` is there and may not be called, files without a name serve: for journals and for large buffers."""

    def refuse(*_: object) -> int:
        raise OSError(number, "refused, for this test")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert pool().submit(len, bytearray(_memory.THRESHOLD * 2)).result(8) == _memory.THRESHOLD * 2
