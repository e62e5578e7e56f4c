"""A dask cluster as a back end: attempts on other machines, each in a process that can be killed.

    feeder ── RemoteJob ──► client's event loop: submit, gather ──► scheduler ──► a worker: `dask_worker.run_on_worker`
    settler ◄─ "it began" ◄─ event ◄──────────────────────────────────────────────┤
    settler ◄─ CallResult ◄─ gather ◄─────────────────────────────────────────────┘

Guarantees:
    The client itself is used: a task's priority is dask's, calls are never taken for pure, and no keyword of the user's
    function meets one of `submit`'s.
    A timeout counts on the worker, from when the attempt begins there, and kills the attempt's process there, even if
    the client is gone. `abort()` kills it, too. Its neighbours on the worker never notice.
    A worker's loss loses nothing: dask runs the attempt again on another, as the same one, and its clock starts anew.
    So it is when only the attempt's process dies, as often as dask's `allowed-failures` says; then the attempt has
    failed, with `WorkerCrashedError`. What dask gives up fails with dask's own error. Either is retried by policy.
    A task that waits in the cluster can be aborted, and is not charged; `cancel()` cannot have it, as dask does not say
    whether it has begun. Without a free worker tasks wait in the cluster: it may be about to grow.
    A client that was handed in is never closed; one that was made here, from an address, is closed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from typing import TYPE_CHECKING, Any

from parallel_exec._hints import refuse_names
from parallel_exec._sync.weak import weakly
from parallel_exec.backends import _exceptions
from parallel_exec.backends._culprit import find_culprit, parts_of
from parallel_exec.backends.base import Backend
from parallel_exec.backends.engine.adapter import Engine
from parallel_exec.backends.engine.dask_worker import CRASHED, RemoteJob, dismiss, dumps, kill_on_worker, run_on_worker
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, failed
from parallel_exec.backends.engine.runner import EngineRunner
from parallel_exec.errors import TaskSerializationError, WorkerCrashedError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Never

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.adapter import EngineFuture, RunnerPort
    from parallel_exec.backends.engine.submission import Submission

DISMISS_TIMEOUT = 5.0  # seconds that workers have to answer at the end; a guess, as the cluster may be gone


class DaskBackend(Backend):
    """Runs attempts on a dask cluster.

    Args:
        client: a `distributed.Client`, not an asynchronous one; or the address of a scheduler, to which a client is
            connected then and closed at the end.

    Raises:
        ModuleNotFoundError: distributed is not installed.
        TypeError: it is neither.
    """

    name = "dask"
    pickles_calls = True
    reports_in_one_thread = True

    def __init__(self, client: Any, **_misspelt: Never) -> None:
        if _misspelt:
            refuse_names("DaskBackend", _misspelt, DaskBackend.__init__)
        distributed = _import_distributed()
        if not isinstance(client, (str, distributed.Client)):
            raise TypeError(f"DaskBackend takes a distributed.Client or a scheduler's address, not {client!r}")
        if isinstance(client, distributed.Client) and client.asynchronous:
            raise TypeError("DaskBackend takes a client whose loop has a thread of its own, not an asynchronous one")
        self._client = client

    def make_runner(self, port: SchedulerPort, limit: int) -> EngineRunner:
        """Return a new runner, connected to dask's scheduler.

        Raises:
            OSError: there is no scheduler at the address.
        """
        return EngineRunner(DaskEngine(self._client), port, limit)

    def works_after_fork(self) -> bool:
        """Return False: the client's loop did not come along."""
        return False

    def prepare(self, job: AnyJob) -> bytes:
        """Return the call, pickled.

        Raises:
            TaskSerializationError: a part of it cannot be pickled.
        """
        call = (job.fn, job.args, job.kwargs or {})
        try:
            return dumps(call)
        except Exception as error:
            what, why, hint = find_culprit(parts_of(*call))
            raise TaskSerializationError(
                f"{what} of task {job.id!r}", "to the worker", why, hint
            ) from _exceptions.detached(error)


class DaskEngine(Engine):
    """A dask cluster as an engine."""

    name = "dask"

    def __init__(self, client: Any) -> None:
        self.must_close = isinstance(client, str)
        self._client = _import_distributed().Client(client, set_as_default=False) if self.must_close else client
        self._loop = self._client.loop.asyncio_loop
        self._topic = f"parallel_exec-{uuid.uuid4().hex}"
        self._given_up: set[int] = set()  # serials that may yet begin; changed by single atomic calls

    def open(self, runner: RunnerPort) -> None:
        """Listen to the workers."""
        super().open(runner)
        self._client.subscribe_topic(self._topic, weakly(self._heard))

    def submit(self, submission: Submission) -> EngineFuture:
        """Hand a pickled call to the client's loop."""
        if self._client.status not in ("running", "connecting", "newly-created"):
            raise ConnectionError(f"the dask client {self._client.id} is {self._client.status}")
        job = submission.job
        info = AttemptInfo(job.id, submission.number, job.settings.timeout)
        remote_job = RemoteJob(self._topic, submission.serial, info, job.payload)
        submission.send()
        seeing = self._see_through(remote_job, f"{submission.name}-{uuid.uuid4().hex}", job.priority)
        del job  # an error's traceback holds this frame
        try:
            return asyncio.run_coroutine_threadsafe(seeing, self._loop)
        except BaseException:
            seeing.close()
            raise

    async def _see_through(self, remote_job: RemoteJob, key: str, priority: int) -> CallResult | None:
        """Have an attempt run, and run again if its process dies. In the client's loop."""
        import dask.config

        allowed = int(dask.config.get("distributed.scheduler.allowed-failures", 3))
        for deaths in itertools.count(1):
            result = await self._run(remote_job, f"{key}-{deaths}", priority)
            if result.kind != CRASHED:
                return result
            if deaths > allowed:
                pid, exitcode = result.payload
                return failed(WorkerCrashedError(pid, exitcode, remote_job.info.id), result.duration, result.worker)
        return None

    async def _run(self, remote_job: RemoteJob, key: str, priority: int) -> CallResult:
        remote = self._client.submit(run_on_worker, remote_job, key=key, pure=False, priority=priority)
        try:
            return await remote  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            await self._client.cancel([remote], asynchronous=True)
            raise
        finally:
            remote.release()

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take note that an attempt began. Called in the client's loop."""
        _, said = event
        serial, address = said["serial"], said["address"]
        submission = self.runner.submission(serial)
        if submission is not None:
            submission.locate(address)
        if serial in self._given_up:
            self._given_up.discard(serial)
            self._kill(address, serial)
        elif submission is not None:
            self.runner.began(submission, said["name"])

    def cancel(self, submission: Submission, engine_future: EngineFuture) -> bool:
        """Cancel an attempt in the cluster, and kill its process; returns True, as that never fails to end it."""
        if engine_future.done():
            return True
        # Before the address is read: `_heard` writes the address before it looks whether the attempt was given up.
        self._given_up.add(submission.serial)
        address = submission.address
        engine_future.cancel()
        if address is not None:
            self._given_up.discard(submission.serial)
            self._kill(address, submission.serial)
        return True

    def _kill(self, address: str, serial: int) -> None:
        self._soon(self._client.run(kill_on_worker, self._topic, serial, workers=[address], asynchronous=True))

    def _soon(self, coroutine: Any) -> Future[Any] | None:
        """Run a coroutine in the client's loop, if it still runs."""

        async def quietly() -> None:
            with contextlib.suppress(Exception):  # the worker is gone: so is what we would have of it
                await asyncio.wait_for(coroutine, DISMISS_TIMEOUT)

        running = quietly()
        try:
            return asyncio.run_coroutine_threadsafe(running, self._loop)
        except RuntimeError:
            running.close()
            coroutine.close()
            return None

    def close(self) -> None:
        """Have the workers dismiss our children, and close the client if it is ours."""
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(self._topic)
        if self._client.status == "running":
            dismissing = self._soon(self._client.run(dismiss, self._topic, asynchronous=True))
            if dismissing is not None:
                with contextlib.suppress(Exception):
                    dismissing.result(2 * DISMISS_TIMEOUT)
        if self.must_close:
            self._client.close()


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ModuleNotFoundError(
            'DaskBackend needs distributed: pip install "parallel_exec[dask]"', name="distributed"
        ) from error
    return distributed
