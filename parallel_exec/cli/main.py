"""The program: from the arguments to the exit status.

Its exit status is 2 for what it refuses, 130 after Ctrl-C; else the command says what it is. What is refused is told in one
message on standard error, without a traceback.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from parallel_exec._stdio import STDERR, open_missing, write_all
from parallel_exec.cli.map_command import run_map
from parallel_exec.cli.options import INTERRUPTED, USAGE, UsageError, parse

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. To be called in the main thread, as a program of its own.

    The process's standard output is taken over for good: what is still running when this returns may print.

    Args:
        argv: the arguments after the program's name; default: those of this process.

    Raises:
        SystemExit: `--help` or `--version` (status 0).
    """
    missing = open_missing()
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.command == "map":
            return run_map(options, missing)
        from parallel_exec.cli.journal_command import run_journal  # few runs have to do with journals

        return run_journal(options, missing)
    except UsageError as error:
        with contextlib.suppress(OSError):  # there may be nobody to be told
            write_all(STDERR, f"parallel-exec: error: {error}\n")
        return USAGE
    except KeyboardInterrupt:  # before the first task, or once more while the first was being answered
        return INTERRUPTED
