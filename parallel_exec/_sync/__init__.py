"""What waits and wakes: locks, threads, timers; it knows nothing of tasks."""
