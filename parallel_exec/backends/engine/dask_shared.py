"""What is shared, on a dask cluster: scattered once, and mapped by the children of each worker.

    Content ── SharedBlob, scattered ──► a dask worker, and others that need it: memory of their own, while dask keeps it
                                             │ its address, with each job that needs it
                                             ▼
                                          children: map it, and make the object once

Guarantees:
    It is scattered when the first call needs it, and again for later calls should the cluster lose it; workers get it from each
    other. (Not to all at once: dask soon drops what copies nobody needs just then.)
    The cluster keeps it as long as the content is there, and some call had it.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, Sequence

from parallel_exec._sync.weak import weakly
from parallel_exec.backends import _contents


class PickledCall(bytes):
    """A pickled call that refers to contents.

    Attributes:
        kept: them.
    """

    kept: Sequence[_contents.Content] = ()

    @classmethod
    def of(cls, data: bytes, kept: Sequence[_contents.Content]) -> PickledCall:
        """Return it."""
        made = cls(data)
        made.kept = kept
        return made

    def numbers(self) -> tuple[int, ...]:
        """Return the contents' numbers."""
        return tuple(content.number for content in self.kept)


class SharedBlob:
    """A content's number and its memory; pickled, it is the bytes, and arrives in memory of the process that gets it."""

    def __init__(self, number: int, memory: _contents.Memory) -> None:
        self.number = number
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _arrived, (self.number, pickle.PickleBuffer(self.memory.whole()))

    def __sizeof__(self) -> int:
        return self.memory.size  # dask asks so


def _arrived(number: int, whole: Any) -> SharedBlob:
    return SharedBlob(number, _contents.Memory([memoryview(whole)]))


class Scattered:
    """What an executor has scattered. The client's loop's own, but for `release`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._scattering: dict[int, asyncio.Future[Any]] = {}  # by number; each leads to dask's future
        self._forget = weakly(self.release)

    async def futures(self, numbers: set[int]) -> list[Any]:
        """Return dask's futures of contents, scattering those that are not in the cluster."""
        return [await self._future(number) for number in sorted(numbers)]

    async def _future(self, number: int) -> Any:
        scattering = self._scattering.get(number)
        if (
            scattering is not None
            and scattering.done()
            and (scattering.exception() or scattering.result().status != "finished")
        ):
            scattering = None
        if scattering is None:
            scattering = self._scattering[number] = asyncio.ensure_future(self._scatter(number))
        return await asyncio.shield(scattering)  # others may wait for it, too

    async def _scatter(self, number: int) -> Any:
        content = _contents.known(number)
        if content is None:
            raise LookupError("what was shared is gone: all tasks that had it have ended")
        blob = SharedBlob(number, content.memory())
        content.used_by(self._forget)
        del content
        while True:
            try:
                return await self._client.scatter(blob, hash=False, asynchronous=True)
            except (TimeoutError, asyncio.TimeoutError):  # there is no worker yet
                continue

    def release(self, number: int) -> None:
        """Let the cluster forget a content; in any thread."""
        self._scattering.pop(number, None)
