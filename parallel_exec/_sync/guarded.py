"""Calling what may run somebody else's code, and going on whatever that raises.

A callback of a future may raise what is no `Exception`, `sys.exit()` for one: the standard library's futures let it through.
It must not end a thread that others count on, nor keep the rest of what is to be done from being done.
"""

from __future__ import annotations

import logging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_logger = logging.getLogger("parallel_exec")


def guarded(act: Callable[..., object], *args: Any, said: str = "a callback raised", owner: Any = None) -> None:
    """Call `act`, and log what it raises with the message `said`, into which the `id` of its owner is put, if one is given."""
    try:
        act(*args)
    except BaseException:
        if owner is None:
            _logger.exception(said)
        else:
            _logger.exception(said, owner.id)
