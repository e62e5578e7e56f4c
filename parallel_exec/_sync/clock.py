"""A copy of the module `time` that is the library's own: a test that stops or moves the clock does not reach it.

`freezegun`, and tests that patch `time.monotonic`, replace the functions of `time` for the whole process, also where a module
has imported them by name, and also if that was done before this library was imported. Timeouts, retries and the threads that
wait for workers would then never come to the end of any wait. Import it as `from parallel_exec._sync.clock import time`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import time as time  # noqa: PLC0414  # handed on
    from typing import Any
else:

    def _copy() -> Any:
        """Return another instance of the module, with functions of its own."""
        importer: Any = sys.__spec__.loader  # of what is built in, as `time` is
        module = importer.create_module(importer.find_spec("time"))
        importer.exec_module(module)
        return module

    time = _copy()
