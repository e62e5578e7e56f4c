"""An HTTP server on this machine that answers 429 with `Retry-After` to what is more than so many requests a second."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Iterator


class Server(ThreadingHTTPServer):
    """Counts requests by the second, as the simplest of gateways do.

    Attributes:
        rate: the most it answers in a second.
        answered: those that it has.
        refused: the others.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, rate: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rate = rate
        self.answered = self.refused = 0
        self._lock = threading.Lock()
        self._second = 0.0  # when the one began that is counted
        self._count = 0

    def admit(self) -> bool:
        """Count a request; return whether it is answered."""
        with self._lock:
            now = time.monotonic()
            if now - self._second >= 1:
                self._second, self._count = now, 0
            self._count += 1
            if self._count > self.rate:
                self.refused += 1
                return False
            self.answered += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:  # as the base class wants it
        """Answer."""
        if self.server.admit():
            self.send_response(200)
        else:
            self.send_response(429)
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(rate: int) -> Iterator[Server]:
    """Run one while the block runs."""
    server = Server(rate)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(port: int) -> int:
    """Ask it, as a user's task would; return the status.

    Raises:
        RetryAfter: when it says so; it holds the limit "api".
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 429:
            from parallel_exec import RetryAfter  # here, so that --list works without

            raise RetryAfter(float(answer.headers["Retry-After"]), limit="api")
        return answer.status
    finally:
        connection.close()
