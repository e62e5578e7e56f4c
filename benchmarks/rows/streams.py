"""What a task costs where tasks are read lazily, on processes: `stream`, and `map` over a generator."""

from __future__ import annotations

from typing import Any

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, STDLIB_POOL, STDLIB_POOL_CHUNKS, Settings
from benchmarks.work import nothing, tiny

CHUNK = 64  # of the pool's `imap`, where it is given a good size


def _stream(pool: Any, count: int) -> list[Any]:
    return [result.unwrap() for result in pool.stream(nothing for _ in range(count))]


def _unordered(pool: Any, count: int) -> list[Any]:
    return list(pool.imap_unordered(nothing, (None for _ in range(count)), chunksize=1))


_STREAM: dict[str, _pools.Call] = {OURS: _stream, STDLIB_POOL: _unordered}


@REGISTRY.row(
    "stream-process",
    what="stream of 20,000 no-op tasks from a generator, default window, on processes; the pool's imap_unordered",
    goals={STDLIB_POOL: 0.8},
    per="a task",
    title="stream of 20,000 no-op tasks, processes",
)
def stream_process(side: str, run: Settings) -> float:
    """Return seconds a task; the pool reads the whole generator at once, ours at most a window ahead."""
    count = run.count(20_000, 300)
    with _pools.processes(side, run.workers) as pool:
        return _pools.seconds_each(_STREAM[side], pool, [None] * count)


_MAP: dict[str, _pools.Call] = {
    OURS: lambda pool, count: list(pool.map(tiny, (item for item in range(count)))),
    STDLIB_POOL: lambda pool, count: list(pool.imap(tiny, (item for item in range(count)), chunksize=1)),
    STDLIB_POOL_CHUNKS: lambda pool, count: list(pool.imap(tiny, (item for item in range(count)), chunksize=CHUNK)),
}


@REGISTRY.row(
    "map-generator",
    what="map over a generator of 30,000 tiny items, on processes; the pool's imap, item by item and in chunks of 64",
    goals={STDLIB_POOL: 0.3, STDLIB_POOL_CHUNKS: 3.0},
    per="an item",
    title="map over a generator of 30,000 tiny items, processes",
)
def map_generator(side: str, run: Settings) -> float:
    """Return seconds an item."""
    count = run.count(30_000, 500)
    with _pools.processes(side, run.workers) as pool:
        return _pools.seconds_each(_MAP[side], pool, list(range(1, count + 1)))
