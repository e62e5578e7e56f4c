"""Limits against a real service: one that answers 429 with `Retry-After` to more than so many requests a second."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from parallel_exec import ParallelExecutor, Rate

sys.path.append(
    str(Path(__file__).resolve().parent.parent)
)  # at the end: an installed parallel_exec goes before the tree's

from benchmarks._service import get, serve  # needs the path


def test_requests_go_at_the_rate_of_the_service() -> None:
    """Hardly any is refused, all are answered in the end, and they take about the time that the rate wants.

    (The full size, 2,000 requests at 50 a second, is the benchmark's `limits-http`.)
    """
    rate, count = 100, 400
    with (
        serve(rate) as server,
        ParallelExecutor(limits={"api": Rate(rate)}, max_concurrency=8, retry_count=10) as executor,
    ):
        start = time.monotonic()
        submit = executor.options(needs={"api": 1}).submit
        futures = [submit(get, server.server_address[1]) for _ in range(count)]
        assert {future.result() for future in futures} == {200}
        elapsed = time.monotonic() - start
        stats = executor.stats().limits["api"]
    assert server.answered == count
    assert server.refused < 20
    assert stats.granted == count + server.refused
    assert stats.in_use == stats.waiting == 0
    assert elapsed >= 0.9 * count / rate


def test_a_service_without_a_known_rate() -> None:
    """Who knows no rate, and only does as it is told, is refused what is under way when the service has had enough, no more."""
    rate, workers = 100, 4
    with (
        serve(rate, burst=rate) as server,
        ParallelExecutor(limits={"api": workers}, max_concurrency=workers, retry_count=10) as executor,
    ):
        submit = executor.options(needs={"api": 1}).submit
        futures = [submit(get, server.server_address[1]) for _ in range(3 * rate)]
        assert {future.result() for future in futures} == {200}
    assert server.answered == 3 * rate
    assert server.refused <= 5 * workers
