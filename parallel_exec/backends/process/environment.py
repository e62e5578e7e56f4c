"""The environment that workers have beside this process's: what the user sets, and how many threads numeric libraries start.

Libraries for linear algebra, and those that use OpenMP, start as many threads as there are CPUs in each process, as if it were
alone: with as many workers, that is the square of what runs well. They read the number from the environment as they are loaded.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Mapping

# Which libraries look, without their own variable, at that of OpenMP.
_OPENMP = "OMP_NUM_THREADS"
_AS_OPENMP = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
THREADS = (_OPENMP, *_AS_OPENMP, "VECLIB_MAXIMUM_THREADS")


def threads_of(wanted: int | Literal["auto"] | None, workers: int) -> int:
    """Return how many threads a library should have in each of so many workers; 0 for as many as it likes. Costs system calls."""
    if wanted == "auto":
        from parallel_exec._cpus import usable_cpus  # which a thread pool does not need

        return max(1, usable_cpus() // workers)
    return wanted or 0


def thread_variables(threads: int, own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say so; not those that the user has set, here or in `own`, nor those that follow from them."""
    known = {name for name in THREADS if name in own or os.environ.get(name)}
    if _OPENMP in known:
        known.update(_AS_OPENMP)
    return {name: str(threads) for name in THREADS if name not in known}


def check_environment(env: Any) -> dict[str, str]:
    """Return the variables to set.

    Raises:
        TypeError: it is no mapping of names to texts.
    """
    if env is None:
        return {}
    if not hasattr(env, "items"):
        raise TypeError(f"env takes a dict of variables, not {env!r}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env takes names and values as strings, not {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env takes variables that a process can have, not {name!r}: {value!r}")
    return dict(env.items())


def check_threads(threads: object) -> int | Literal["auto"] | None:
    """Return how many threads there are to be.

    Raises:
        TypeError, ValueError: it is no number of threads, nor "auto" or None.
    """
    if threads is None or (isinstance(threads, str) and threads == "auto"):
        return threads  # type: ignore[return-value]
    from parallel_exec._checks import check_count

    return check_count("threads_per_worker", threads, 1)  # type: ignore[arg-type]


def check_modules(preload: object) -> tuple[str, ...]:
    """Return the names of modules to import.

    Raises:
        TypeError: it is no list of names.
    """
    if isinstance(preload, (str, bytes)) or not isinstance(preload, (list, tuple, set, frozenset)):
        raise TypeError(f"preload takes a list of modules' names, not {preload!r}: one module is [name]")
    for name in preload:
        if not isinstance(name, str):
            raise TypeError(f"preload takes modules' names as strings, not {name!r}")
    return tuple(preload)
