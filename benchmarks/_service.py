"""An HTTP server on this machine that answers 429 with `Retry-After` to what is more than so many requests a second.

It lets through what comes a little early, as gateways do: nginx's `limit_req rate=50r/s burst=10 nodelay` is the same.
"""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Iterator


class Server(ThreadingHTTPServer):
    """Answers so many requests a second.

    Attributes:
        rate: that.
        burst: how many more may come at once.
        answered: the requests that it has answered.
        refused: the others.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, rate: int, burst: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rate = rate
        self.burst = burst
        self.answered = self.refused = 0
        self._lock = threading.Lock()
        self._level = 0.0  # of a bucket that leaks at the rate
        self._at = 0.0

    def admit(self) -> bool:
        """Count a request; return whether it is answered."""
        with self._lock:
            now = time.monotonic()
            self._level = max(0.0, self._level - (now - self._at) * self.rate)
            self._at = now
            if self._level > self.burst:
                self.refused += 1
                return False
            self._level += 1
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
def serve(rate: int, burst: int = 10) -> Iterator[Server]:
    """Run one while the block runs."""
    server = Server(rate, burst)
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
