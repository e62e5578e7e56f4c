"""The thread of a process pool, and the files that it waits for: a poller, and a pipe to wake it. Knows callbacks, not jobs.

    turn ──► select, at most for as long as the turn said ──► callbacks of the files that are ready ──► turn ──► ...
                ▲
    wakeup ─────┘ a byte in the pipe, from any thread

Guarantees:
    Nothing is opened, and no thread started, before `start`.
    A wake-up is never lost: `wakeup` writes a byte unless one is under way, and the thread takes that out of the pipe before
    its next turn, which so sees all that was written before `wakeup` was called.
    What is raised in a turn or a callback is logged, and the loop goes on; what is raised twice in a row while nothing moves
    ends it, so that nothing is logged for ever.
    `wakeup` waits for no lock, as finalizers call it, in whatever thread, with whatever held there. The pipe is closed when the
    last who writes to it is done: no thread writes to a number that another one has just closed. The scheduler's lock guards
    the poller.
    Wherever a signal handler raises, in `start` or `wakeup`, nothing stays open for that, also if what it raised is kept.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import threading

from parallel_exec._dispatcher import logger
from parallel_exec._sync.threads import arrive, launch
from parallel_exec.backends._descriptors import fill_standard, put_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence


class _Selector:
    """Stands for `select.epoll` where there is none. Where there is, that is used itself, as each lone call waits for it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close
        self.register = self._selector.register
        self.unregister = self._selector.unregister

    def poll(self, seconds: float | None) -> list[tuple[int, int]]:
        """Return the descriptors that are ready, each with its events."""
        return [(key.fd, events) for key, events in self._selector.select(seconds)]


_Poller: Any = getattr(select, "epoll", _Selector)
_HAS_EPOLL = _Poller is not _Selector
READABLE: int = select.EPOLLIN if _HAS_EPOLL else selectors.EVENT_READ
WRITABLE: int = select.EPOLLOUT if _HAS_EPOLL else selectors.EVENT_WRITE
ENDED = -1.0  # what a turn returns instead of a time: there will be nothing more to do


class _Bell:
    """The pipe that wakes the thread; closed when nobody holds the object any more.

    Attributes:
        ends: what is read, and what is written to; -1 for both once they are forgotten.
    """

    ends: Sequence[int] = ()  # also where a signal handler raises as it is made

    def __init__(self) -> None:
        ends: list[int] = []
        self.ends = ends
        del self  # else whoever keeps what is raised here, and so this frame, would keep the pipe
        put_pipe(ends)
        os.set_blocking(ends[1], False)

    def forget(self) -> None:
        """Do not close them: their numbers may be others' by now."""
        self.ends = (-1, -1)

    def __del__(self, _close: Any = os.close) -> None:
        if -1 not in self.ends:
            list(map(_close, self.ends))  # in one step, as a signal handler may raise


class IoLoop:
    """One thread, started by `start`, and its files.

    Attributes:
        thread: the thread; None before it was started. Written with the lock held.
    """

    def __init__(self, lock: Any, on_broken: Callable[[BaseException], object]) -> None:
        """Open nothing yet.

        Args:
            lock: the scheduler's.
            on_broken: called, in another thread, with what is raised when this one cannot be woken any more.
        """
        self.thread: threading.Thread | None = None
        self._lock = lock
        self._on_broken = on_broken
        self._poller: Any = None  # written with the lock held, as the next two
        self._wakeup_r = -1
        self._bell: _Bell | None = None
        self._wakeup_pending = False  # set by whoever wakes the thread, reset by the thread
        self._watched: dict[int, Callable[[], bool | None]] = {}  # by descriptor; the thread's own

    def start(self, serve: Callable[[], None]) -> None:
        """Open the files, and start the thread: it calls `serve`, which calls `run`. Called with the lock held.

        The thread keeps what `serve` belongs to.

        Raises:
            OSError: no file can be opened.
            RuntimeError: no thread can be started; MemoryError likewise.
        """
        thread = threading.Thread(target=serve, name="parallel_exec-io", daemon=True)
        try:
            self._open()
            launch(thread)
            self.thread = thread
        except BaseException as error:  # a signal handler's: it runs nevertheless, or was never touched
            if isinstance(error, (RuntimeError, MemoryError)) or thread.ident is None:
                self.close()
            else:
                self.thread = thread
            raise

    def _open(self) -> None:
        fill_standard()  # first: a poller cannot be moved
        self._wakeup_pending = False
        self._bell = _Bell()
        self._wakeup_r = self._bell.ends[0]
        self._poller = _Poller()
        self._poller.register(self._wakeup_r, READABLE)

    def run(self, turn: Callable[[], float | None], progress: Callable[[], object]) -> BaseException | None:
        """Take turns until there is nothing more to do, in the thread.

        Args:
            turn: does all that there is to do; returns for how many seconds there will be no more unless a file is ready (None:
                for ever), or `ENDED`.
            progress: returns what changes whenever anything has moved.

        Returns:
            None, or what was raised twice in a row without progress.
        """
        arrive()
        raised: object = None
        while True:
            try:
                seconds = turn()
                if seconds == ENDED:
                    return None
                watched = self._watched
                ready = [(fd, watched.get(fd)) for fd, _ in self._poller.poll(seconds)]
                for fd, callback in ready:
                    if fd == self._wakeup_r:
                        os.read(fd, 512)
                        self._wakeup_pending = False
                    elif callback is None or watched.get(fd) is not callback:  # it was closed just now
                        continue
                    elif callback():
                        self.unwatch(fd)
                raised = None
            except BaseException as error:  # of a user's callback, which may raise what is no Exception; or ours
                before, raised = raised, (type(error), progress())
                if raised == before:
                    return error
                logger.exception("raised in the I/O thread of a process pool, which goes on")

    def watch(self, fd: int, callback: Callable[[], bool | None], event: int = READABLE) -> None:
        """Have a callback called whenever a descriptor is ready, until it returns true. In the thread."""
        if fd not in self._watched:
            self._poller.register(fd, event)
            self._watched[fd] = callback

    def unwatch(self, *fds: int) -> None:
        """Watch descriptors no more, those that are; must be called before they are closed. In the thread."""
        for fd in fds:
            if self._watched.pop(fd, None) is not None:
                with contextlib.suppress(OSError):  # it was closed behind our back
                    self._poller.unregister(fd)

    def wakeup(self) -> None:
        """Have the thread take another turn; from any thread, and before there is one. Never waits."""
        bell = self._bell
        try:
            if bell is not None and not self._wakeup_pending:
                self._wakeup_pending = True
                os.write(bell.ends[1], b"!")
        except OSError as error:
            if bell is None or error.errno is None:  # a signal handler's `TimeoutError`, say
                self._wakeup_pending = False
                raise
            self._replace_thread(bell, error)  # closed behind our back: it sleeps, and cannot be woken any more
        except BaseException:  # a signal handler's, maybe before the byte: the next call writes one
            self._wakeup_pending = False
            raise
        finally:
            del bell  # else whoever keeps what is raised, and so this frame, would keep the pipe

    def _replace_thread(self, bell: _Bell, error: OSError) -> None:
        with self._lock:
            if self._bell is not bell:  # it was closed by us, or another thread is about it
                return
            bell.forget()
            self._bell = None
            self.thread = threading.Thread(target=self._on_broken, args=(error,), name="parallel_exec-io", daemon=True)
            self.thread.start()

    def join(self) -> None:
        """Wait until the thread has ended; returns at once where there is none, and in the thread itself."""
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """Close the files; nothing is watched any more."""
        with self._lock:
            poller = self._poller
            self._wakeup_r, self._bell, self._poller = -1, None, None
            self._watched = {}
            if poller is not None:
                poller.close()

    def forget(self) -> None:
        """Use the files no more, without closing them: their numbers may be others' by now."""
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.forget()
