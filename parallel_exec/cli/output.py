"""Where the lines go: standard output, a file that is added to, or a new file that takes the place of the one before.

    the path is absent, or a file   a temporary file beside it ──► its first lines, on disk ──► takes the path's place
    the path is anything else       opened as it is: a pipe, a terminal, a device

Guarantees:
    A file of the user's is either as it was, or has been replaced by one that begins with lines of this run: a run that is
    refused, or ends before it has a result, leaves it alone, and so does a disk that is full from the start. With `append`
    it keeps all that it has.
    To be used by one thread at a time. Nothing is buffered, and there is no lock: who writes may be blocked for ever, by a
    reader that has stopped, and the interpreter can end all the same.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import IO, TYPE_CHECKING

from parallel_exec._stdio import write_all
from parallel_exec.cli.options import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

CANNOT_WRITE = "stopped, because results cannot be written: {}\n"
DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/")  # where what looks like a file may be an open one, by its descriptor


def open_file(path: str, mode: str) -> IO[bytes]:
    """Open a file of the user's, unbuffered."""
    try:
        return open(path, mode, buffering=0)
    except OSError as error:
        raise UsageError(f"cannot open {path!r}: {error.strerror}") from error


class Output:
    """Writes to a descriptor, which the caller closes.

    Args:
        descriptor: where to.
        first: what is to come before the first text.
    """

    def __init__(self, descriptor: int, first: str = "") -> None:
        self._descriptor = descriptor
        self._first = first

    def is_terminal(self) -> bool:
        """Return whether a person sees what is written."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> None:
        """Write text. Blocks until all is written.

        Raises:
            OSError: it could not be.
        """
        write_all(self._descriptor, self._first + text)
        self._first = ""

    def complete(self) -> None:
        """Note that the run came to its end, whether there was text or not.

        Raises:
            OSError: what was to be done then could not be.
        """


class NewFile(Output):
    """Writes a file that takes the place of what is at a path, once it has text or is complete. A context manager.

    It has the permissions of the file that it replaces. A symbolic link stays one, and what it leads to is replaced.

    Args:
        path: of the file.

    Raises:
        UsageError: there can be no such file; what is at the path is as it was.
    """

    def __init__(self, path: str) -> None:
        super().__init__(-1)
        self._path = os.path.realpath(path)
        self._file: IO[bytes] | None = None
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise UsageError(f"cannot open {path!r}: it may not be written to")
        try:  # whether that works; made anew with the first text, so that a kill before that leaves nothing behind
            with self._made_beside():
                pass
        except OSError as error:
            raise UsageError(_refused_beside(path, os.path.dirname(self._path), error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, text: str) -> None:
        """Write text; the first puts the file in its place."""
        if self._file is None:
            self._put_in_place(text)
        else:
            super().write(text)

    def complete(self) -> None:
        """Put the file in its place if there was no text."""
        if self._file is None:
            self._put_in_place("")

    def _put_in_place(self, text: str) -> None:
        with self._made_beside() as file:
            write_all(file.fileno(), text)
            _copy_permissions(self._path, file.name)
            os.fsync(file.fileno())  # else a power cut might leave neither what was there nor this
            file.close()  # Windows renames no file that is open
            os.replace(file.name, self._path)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  # closed by the context
        self._descriptor = self._file.fileno()

    @contextlib.contextmanager
    def _made_beside(self) -> Iterator[IO[bytes]]:
        """Make a temporary file beside the path, and remove it if it has not been renamed by the end."""
        name = os.path.join(os.path.dirname(self._path), f".parallel-exec-{os.urandom(8).hex()}.part")
        try:
            with open(name, "xb", buffering=0) as file:
                yield file
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        except BaseException:  # Ctrl-C, too: also as it was made, or is removed
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _refused_beside(path: str, folder: str, error: OSError) -> str:
    """Return the message for a file that cannot be made."""
    if not os.path.exists(path):
        return f"cannot open {path!r}: {error.strerror}"
    return (
        f"cannot replace {path!r}: a new file in {folder!r}: {error.strerror}; "
        "--append adds to the one that is there, without a new one"
    )


def _copy_permissions(path: str, to: str) -> None:
    """Give a file the owner and mode of another, as far as we may; if there is no other, it has them by the umask."""
    with contextlib.suppress(OSError):
        there = os.stat(path)
        if hasattr(os, "chown"):
            with contextlib.suppress(PermissionError):
                os.chown(to, there.st_uid, there.st_gid)
        os.chmod(to, stat.S_IMODE(there.st_mode))


def open_output(path: str, append: bool, open_files: contextlib.ExitStack) -> Output:
    """Open what the lines are to be written to.

    Args:
        path: of it.
        append: whether a file keeps what it has.
        open_files: closes it.

    Raises:
        UsageError: it cannot be written to.
    """
    if append:
        file = open_files.enter_context(open_file(path, "ab"))
        return Output(file.fileno(), "\n" if _ends_amid_a_line(path) else "")
    if _is_replaced(path):
        return open_files.enter_context(NewFile(path))
    return Output(open_files.enter_context(open_file(path, "wb")).fileno())


def _is_replaced(path: str) -> bool:
    """Return whether a path is that of a file, by its own name, or of nothing, where a file can be."""
    if not os.path.basename(path) or os.path.abspath(path).startswith(DESCRIPTORS):
        return False
    return os.path.isfile(path) or not os.path.exists(path)


def _ends_amid_a_line(path: str) -> bool:
    """Return whether the last line of a file has no end, as a run that was killed may leave it."""
    if not os.path.isfile(path):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:  # it may not be read, or is empty
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
