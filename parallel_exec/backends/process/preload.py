"""What the fork server imports before it forks: then no worker has to, and a replacement is ready in a fraction of the time.

Guarantees:
    What others have the fork server import is added to, never replaced.
    Our own modules are imported there only if a Python that is started here and now finds the very files that run here.
    Workers are told this process's `sys.path`, but the fork server, on most versions, is not: it could find another
    version, and the workers would be stuck with it.
"""

from __future__ import annotations

import os
import site
import sys
from importlib.machinery import PathFinder

from parallel_exec.backends.process import fork_server

OURS = "parallel_exec.backends.process.child.server"
_THEIRS = ("logging.handlers", "mmap", "multiprocessing.synchronize", "pickle", "re", "socket", "traceback", "typing")


def preload() -> None:
    """Have the fork server import what workers need. Does nothing if that is on its list, or cannot be put there."""
    listed = fork_server.preloaded()
    if listed is not None and not {OURS, _THEIRS[0]}.intersection(listed):
        fork_server.preload((OURS,) if is_found_anew() else _THEIRS)


def is_found_anew() -> bool:
    """Return whether `python -c`, started here and now with the same flags, would import the same `parallel_exec`."""
    places = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        places.insert(0, site.getusersitepackages())
    path = None if sys.flags.ignore_environment else os.environ.get("PYTHONPATH")
    if path:
        places[:0] = path.split(os.pathsep)
    try:
        if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
            places.insert(0, os.getcwd())
        found = PathFinder.find_spec("parallel_exec", places)
        folders = (found and found.submodule_search_locations) or []
        here = os.path.dirname(str(sys.modules["parallel_exec"].__file__))
        return not sys.flags.no_site and any(os.path.samefile(folder, here) for folder in folders)
    except OSError:  # the current folder is gone, say
        return False
