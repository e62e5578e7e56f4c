"""The command line: what `parallel-exec` runs.

main ──► options            what may be written
     ├─► map_command        reader (calls of the input) ──► executor ──► writer (lines of the results) ──► output
     └─► journal_command    what a run has left behind ──► a text, or lines ──► output
"""

try:
    from parallel_exec.cli.main import main
except KeyboardInterrupt:  # Ctrl-C while it is loaded: nobody wants to read where
    raise SystemExit(130) from None

__all__ = ["main"]
