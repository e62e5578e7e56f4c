"""What runs in a worker process; the standard library only."""
