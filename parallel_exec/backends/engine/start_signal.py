"""The signal that a call has begun in another process, and the answer that nobody waits for it any more.

    StartNotifier, in the worker ── "attempt 7 began in process 1234" ──► StartListener, in our process
                                 ◄────────── "it is unwanted" ──────────     datagrams on the loopback

Engines tell when a call has ended, not when it began: the stdlib's process pool calls a future running once it is in the
pipe to the workers, dask's executor never does. But a timeout counts from the beginning, what has begun must not be
cancelled as if it had not, and a task can look whether it is still wanted.

Guarantees:
    Neither end raises or hangs where there is no way between them (another machine, no loopback, too many open files): the
    listener has no port then, or hears nothing.
    Strangers' datagrams are dropped: ours begin with a random token.
    Datagrams on the loopback arrive in the order sent, so what was sent before `catch_up` has been passed on after it;
    one that is dropped costs `CATCH_UP` seconds.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._sync.threads import arrive, launch

if TYPE_CHECKING:
    import socket

CATCH_UP = 1.0  # seconds that the listener's own datagram may take; a guess: datagrams on the loopback may be dropped

_HOST = "127.0.0.1"
_TOKEN = 16  # bytes; nobody guesses so many
_SERIAL = 8  # bytes
_LONGEST = 1 << 16  # bytes; no datagram is longer
_NO_SERIAL = bytes(_SERIAL)  # what the listener sends itself to catch up: serial numbers begin with 1


class StartNotifier:
    """The worker's end: says that a call has begun, when made. Used by the thread that runs the call.

    Args:
        port: where the listener is; 0 if there is none.
        key: what the listener's `key` returned for this call.
        worker: where the call runs, in words.
        report: what else is to be said; for a call in a group only.
    """

    def __init__(self, port: int, key: bytes, worker: str, report: bytes = b"") -> None:
        self._socket: socket.socket | None = None
        self._unwanted = False
        if not port:
            return
        import socket

        from parallel_exec.backends._descriptors import datagram_socket

        try:
            self._socket = datagram_socket(socket.AF_INET)
            self._socket.setblocking(False)
            self._socket.connect((_HOST, port))
            self._socket.send(key + worker.encode() + (b"\0" + report if report else b""))
        except OSError:  # no loopback here, or no listener
            self.close()

    def is_unwanted(self) -> bool:
        """Return whether the listener has said so; costs a system call until then."""
        if not self._unwanted and self._socket is not None:
            with contextlib.suppress(OSError):  # nothing was said
                self._unwanted = bool(self._socket.recv(1))
        return self._unwanted

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class StartListener:
    """Our end, one for all calls of an executor; opened when the first call leaves the process.

    Attributes:
        has_heard: whether any call has ever said that it began; written by the listening thread.
    """

    def __init__(
        self, began: Callable[[int, str, Any], object], reported: Callable[[int, str, Any, bytes], object] | None = None
    ) -> None:
        """Make it; `began(serial, worker, address)` is called in a thread of its own, and must be quick.

        So is `reported`, instead, with what else a call said.
        """
        self.has_heard = False
        self._began = began
        self._reported = reported
        self._token = os.urandom(_TOKEN)
        self._caught_up = threading.Event()
        self._lock = threading.Lock()  # guards the two below
        self._socket: socket.socket | None = None
        self._closed = False

    def key(self, serial: int) -> bytes:
        """Return what the datagrams of call `serial` begin with."""
        return self._token + serial.to_bytes(_SERIAL, "big")

    def port(self) -> int:
        """Return the port, opening the socket if need be; 0 if that is not possible."""
        with self._lock:
            if self._socket is None and not self._closed:
                self._open()
            return self._socket.getsockname()[1] if self._socket is not None else 0

    def _open(self) -> None:
        import socket

        from parallel_exec.backends._descriptors import datagram_socket

        try:
            listening = datagram_socket(socket.AF_INET)
        except OSError:  # too many files are open
            self._closed = True
            return
        name = "parallel_exec-start-listener"
        thread = threading.Thread(target=self._listen, args=(listening,), name=name, daemon=True)
        try:
            listening.bind((_HOST, 0))
            launch(thread)
            self._socket = listening
        except (OSError, RuntimeError):  # no loopback, no thread
            listening.close()
            self._closed = True
        except BaseException:  # a signal handler's: it runs nevertheless, or was never touched
            if thread.ident is None:
                listening.close()
            else:
                self._socket = listening
            raise

    def _listen(self, listening: socket.socket) -> None:
        arrive()
        with listening:
            while True:
                try:
                    data, address = listening.recvfrom(_LONGEST)
                except ConnectionError:  # what some platforms say when a worker that was told something had gone
                    continue
                except OSError:  # the descriptor was closed by somebody else: it would say so for ever
                    return
                if data[:_TOKEN] != self._token:
                    continue
                serial, worker = data[_TOKEN : _TOKEN + _SERIAL], data[_TOKEN + _SERIAL :]
                if not serial:  # `close`
                    return
                if serial == _NO_SERIAL:
                    self._caught_up.set()
                    continue
                self.has_heard = True
                name, _, report = worker.partition(b"\0")
                if report and self._reported is not None:
                    self._reported(int.from_bytes(serial, "big"), name.decode(), address, report)
                else:
                    self._began(int.from_bytes(serial, "big"), name.decode(), address)

    def catch_up(self) -> None:
        """Wait until all that calls have said so far was passed on; a moment."""
        self._caught_up.clear()
        with self._lock:
            sent = self._send_self(_NO_SERIAL)
        if sent:
            self._caught_up.wait(CATCH_UP)

    def tell_unwanted(self, address: Any) -> None:
        """Tell the call that spoke from `address` that nobody waits for it."""
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendto(b"x", address)

    def close(self) -> None:
        """Let the listening thread end. Idempotent."""
        with self._lock:
            self._send_self(b"")
            self._closed, self._socket = True, None

    def _send_self(self, data: bytes) -> bool:
        """Send the listening thread a datagram; False if that is not possible. Called with the lock held."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(self._token + data, self._socket.getsockname())
        except OSError:
            return False
        return True
