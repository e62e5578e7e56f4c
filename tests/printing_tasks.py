"""Tasks that write to standard output and error, in every way there is."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import subprocess
import sys
import time
from typing import NoReturn


def say(words: str) -> str:
    """Print."""
    print(words)
    return words


def say_everywhere(word: str) -> None:
    """Write by Python, by C code, by a subprocess and to the descriptors."""
    print(f"{word}: print", flush=True)
    print(f"{word}: stderr", file=sys.stderr)
    ctypes.CDLL(None).printf(f"{word}: printf\n".encode())
    subprocess.run(["echo", f"{word}: echo"], check=True)
    os.write(1, f"{word}: write 1\n".encode())
    os.write(2, f"{word}: write 2\n".encode())


def say_without_end(words: str) -> None:
    """Write what no line end flushes, by Python and by C code."""
    print(words, end="")
    ctypes.CDLL(None).printf(words.encode())


def say_then_die(words: str) -> NoReturn:
    """Print, and be gone."""
    print(words)
    ctypes.CDLL(None).printf(f"{words} in C\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def say_then_fail(words: str) -> NoReturn:
    """Print, and fail."""
    print(words)
    raise OSError(words)


def say_twice(words: str) -> None:
    """Print, and once more a moment later."""
    print(words)
    time.sleep(0.01)
    print(words)


def fill_without_waiting() -> None:
    """Fill the pipe of standard output, as one that does not wait."""
    os.set_blocking(1, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(1, b"x" * 65536)


def say_then_hang(words: str) -> None:
    """Print, and get stuck."""
    print(words)
    time.sleep(3600)


def flood(mib: int) -> None:
    """Write much, and a last line."""
    for number in range(mib):
        os.write(1, f"{number % 10}".encode() * (1 << 20))
    print("\nthe end")


def say_to_myself(words: str) -> str:
    """Print into a buffer of one's own."""
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        print(words)
    return mine.getvalue()


def fork_and_say(words: str) -> None:
    """Have a child of this process print."""
    pid = os.fork()
    if pid == 0:
        print(words, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)


def close_all() -> None:
    """Close what leads to where standard output does, but for that itself."""
    pipe = os.readlink("/proc/self/fd/1")
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == pipe:
                os.close(fd)
    print("closed")
