"""Worker processes. Imports nothing: a worker imports this package before its own loop."""
