"""`python -m parallel_exec`: the same program as `parallel-exec`."""

from __future__ import annotations

import sys

from parallel_exec.cli import main

if __name__ == "__main__":  # worker processes import the main module
    sys.exit(main())
