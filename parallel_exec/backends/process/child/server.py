"""What the fork server imports, of ours, before it forks: all that a worker needs. Imported nowhere else.

The garbage collector rests meanwhile, as nothing of it is garbage, and never looks at it again: not in the server, not in
the workers, which so share more of the server's memory, and not at the server's end, which takes half the time.
"""

from __future__ import annotations

import gc

_was_enabled = gc.isenabled()
gc.disable()

import multiprocessing.popen_forkserver  # noqa: E402
import multiprocessing.synchronize  # noqa: E402, F401

import parallel_exec.backends.process.child.main  # noqa: E402, F401

gc.freeze()
if _was_enabled:  # what else the server forks is not ours
    gc.enable()
