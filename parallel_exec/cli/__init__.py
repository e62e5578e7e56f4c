"""The command line: `main` runs it, `reader` makes calls of the input, `writer` makes lines of the results."""

try:
    from parallel_exec.cli.main import main
except KeyboardInterrupt:  # Ctrl-C while it is loaded: nobody wants to read where
    raise SystemExit(130) from None

__all__ = ["main"]
