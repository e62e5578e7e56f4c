"""requests-futures, unchanged, with an executor of ours: real requests to a local server."""

from __future__ import annotations

import threading
from concurrent.futures import as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Iterator

import pytest

from parallel_exec import ParallelExecutor, TaskTimeoutError

sessions = pytest.importorskip("requests_futures.sessions")

LONG = 60.0


class Pages(BaseHTTPRequestHandler):
    """Answers with the path; fails `/flaky` once; and holds `/slow` until the server's gate opens."""

    def do_GET(self) -> None:
        """Answer a request."""
        server: Any = self.server
        server.seen.append(self.path)
        if self.path == "/slow":
            server.gate.wait(LONG)
        if self.path == "/flaky" and server.seen.count("/flaky") == 1:
            self.close_connection = True  # without an answer: a ConnectionError for who asked
            return
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server on the loopback, with a `url`, the paths it has `seen`, and a `gate`."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    made.seen, made.gate = [], threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.gate.set()
    made.shutdown()
    thread.join()
    made.server_close()


def test_many_requests(server: Any) -> None:
    """Requests run in our threads, and their futures serve wherever it looks at them."""
    with ParallelExecutor(max_concurrency=4) as executor, sessions.FuturesSession(executor=executor) as session:
        futures = [session.get(f"{server.url}/{number}") for number in range(20)]
        texts = {future.result().text for future in as_completed(futures, timeout=LONG)}
    assert texts == {f"/{number}" for number in range(20)}


def test_hooks(server: Any) -> None:
    """A response hook of its users runs in the task, with the response."""

    def shout(response: Any, *_: Any, **__: Any) -> None:
        response.shouted = response.text.upper()

    with ParallelExecutor() as executor, sessions.FuturesSession(executor=executor) as session:
        assert session.get(f"{server.url}/page", hooks={"response": shout}).result().shouted == "/PAGE"


def test_a_broken_connection_is_retried(server: Any) -> None:
    """What it gains: a request that fails is made again, and the future never shows it."""
    with (
        ParallelExecutor(retry_count=1, backoff=0.0) as executor,
        sessions.FuturesSession(executor=executor) as session,
    ):
        future = session.get(f"{server.url}/flaky")
        assert future.result().text == "/flaky"
        assert len(future.task_result().attempts) == 2


def test_a_slow_server_times_out(server: Any) -> None:
    """What it gains: a limit on the whole of a request, which requests itself does not have."""
    with ParallelExecutor(timeout=0.2, retry_count=0) as executor:
        session = sessions.FuturesSession(executor=executor)
        error = session.get(f"{server.url}/slow").exception(LONG)
        assert isinstance(error, TaskTimeoutError)
        server.gate.set()
        session.close()


def test_it_closes_only_its_own_executor(server: Any) -> None:
    """A session that was given its executor leaves it open."""
    with ParallelExecutor() as executor:
        with sessions.FuturesSession(executor=executor) as session:
            session.get(f"{server.url}/one").result()
        assert executor.submit(int).result() == 0
