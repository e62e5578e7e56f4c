"""Tasks for workers that do not live long: this module imports hardly anything, so that they spend their lives on tasks."""

import os
import time


def wait_unless_first(path: str, number: int) -> int:
    """Return the number, a positive one only once there is such a file."""
    while number and not os.path.exists(path):
        time.sleep(0.002)
    return number


def note_and_nap(path: str, number: int, seconds: float) -> int:
    """Append the number to a file, take so many seconds, and return it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    if seconds:
        time.sleep(seconds)
    return number
