"""Tasks for workers that do not live long: this module imports hardly anything, so that they spend their lives on tasks."""

import os
import time


def note_and_nap(path: str, number: int, seconds: float) -> int:
    """Append the number to a file, take so many seconds, and return it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    if seconds:
        time.sleep(seconds)
    return number
