"""The command line: `main` runs it, `reader` makes tasks of the input, `writer` makes lines of the results."""

from parallel_exec.cli.main import main

__all__ = ["main"]
