"""A dask cluster as a back end: attempts on other machines, each in a process that can be killed.

    feeder ── AttemptGroup ──► client's event loop: submit, gather ──► scheduler ──► a worker: `dask_worker.run_on_worker`
    settler ◄─ "it runs long" ◄─ event ◄──────────────────────────────────────────────┤
    settler ◄─ CallResults ◄─ gather ◄────────────────────────────────────────────────┘

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
    Tiny calls travel in groups, as one task of dask's. There are no more groups in the cluster than attempts may be live,
    and of each one attempt runs at a time. What has not begun in a group goes back to the queue and is not charged: when
    an attempt before it runs long, is killed or dies, or a worker refuses the group. What has ended by then does not wait
    for one that runs long. Of a group whose worker is lost, dask runs again also what had ended there, if we had not been
    told. When dask gives up a group, what is known to have begun fails with its error; the rest goes back.
    A client that was handed in is never closed; one that was made here, from an address, is closed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

from parallel_exec import _sharing
from parallel_exec._checks import refuse_names
from parallel_exec._sync.weak import weakly
from parallel_exec.backends import _exceptions, _reducers
from parallel_exec.backends._culprit import find_culprit, parts_of
from parallel_exec.backends.base import Backend, lowest_free
from parallel_exec.backends.engine.adapter import Engine
from parallel_exec.backends.engine.dask_group import AttemptFuture, AttemptGroup, make_pace
from parallel_exec.backends.engine.dask_shared import PickledCall, Scattered
from parallel_exec.backends.engine.dask_worker import (
    CRASHED,
    RemoteJob,
    dismiss,
    dumps,
    greet,
    kill_on_worker,
    run_on_worker,
    withdraw_on_worker,
)
from parallel_exec.backends.engine.grouping import Precedence
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

DISMISS_TIMEOUT = 5.0  # seconds that workers have to answer, at the end too; a guess, as the cluster may be gone
WITHDRAW_AGAIN = 0.5  # seconds until workers are asked again to give back what waits behind a long call; a guess


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

    def auto_concurrency(self) -> int:
        """Return how many calls the cluster's workers run at once, as far as they have come; of an address, as for processes."""
        threads = 0 if isinstance(self._client, str) else sum(self._client.nthreads().values())
        return threads or super().auto_concurrency()

    def works_after_fork(self) -> bool:
        """Return False: the client's loop did not come along."""
        return False

    def check_limit(self, name: str, spec: Any) -> None:
        """Refuse a list of what cannot be pickled."""
        from parallel_exec.limits import check_items

        check_items(name, spec, dumps)

    def store(self, content: Any) -> None:
        """Put something that is shared in memory; it is scattered with the first call that has it."""
        content.store(has_main=None, by_value=True)

    def prepare(self, job: AnyJob) -> bytes:
        """Return the call, pickled.

        Raises:
            TaskSerializationError: a part of it cannot be pickled.
        """
        call = (job.fn, job.args, job.kwargs or {})
        try:
            if _sharing.bind is None:
                return dumps(call)
            with _reducers.noting() as kept:
                data = dumps(call)
            return PickledCall.of(data, kept) if kept else data
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
        # Changed by single atomic calls, from any thread:
        self._given_up: set[int] = set()  # serials that may yet begin
        self._killing: dict[int, Future[Any]] = {}  # of attempts that hold something of a limit; the settler's own
        self._ending: deque[int] = deque()  # serials whose workers are to be told that nobody waits for them
        self._open_groups: set[AttemptGroup] = set()  # handed to the loop, and somebody waits for some of it
        self._sent: dict[int, AttemptGroup] = {}  # by its serial: those that dask has not done with
        # The feeder's own:
        self._filling: AttemptGroup | None = None
        self._precedence = Precedence()
        self._latest_serial = 0
        self._has_greeted = False
        # The loop's own:
        self._scattered = Scattered(self._client)
        self._pace = make_pace()
        self._workers_take_groups = False  # whether workers take groups; the feeder reads it

    def open(self, runner: RunnerPort) -> None:
        """Listen to the workers."""
        super().open(runner)
        self._client.subscribe_topic(self._topic, weakly(self._heard))

    # ── handing over: the feeder ────────────────────────────────────────────────────────────────────────────────────

    def has_room(self, limit: int, holding: int) -> bool:
        """Return whether another group may go to the cluster, or there is one that is being filled."""
        return len(self._open_groups) < limit

    def must_wait(self, port: SchedulerPort) -> bool:
        """Look at the groups."""
        filling = [] if self._filling is None else [self._filling]
        return self._precedence.must_wait(port, [*filling, *list(self._open_groups)])

    def submit(self, submission: Submission) -> EngineFuture:
        """Put a pickled call in the group that is being filled, or in a new one."""
        if self._client.status not in ("running", "connecting", "newly-created"):
            raise ConnectionError(f"the dask client {self._client.id} is {self._client.status}")
        job, serial = submission.job, submission.serial
        granted = b"" if submission.grant is None else dumps(submission.granted())
        timeout, soft = job.settings.timeout, job.settings.soft_timeout
        info = AttemptInfo(job.id, submission.number, timeout, 0, b"", granted, job.root_seed, 0, soft)
        shared = job.payload.numbers() if isinstance(job.payload, PickledCall) else ()
        remote_job = RemoteJob(serial, info, bytes(job.payload), shared)
        priority = job.priority
        del job  # an error's traceback holds this frame
        self._latest_serial = serial
        if not self._has_greeted:
            self._has_greeted = True
            self._soon(self._greet(serial))
        if self._filling is not None and (granted or not self._filling.takes(remote_job, priority)):
            self.flush()
        if self._filling is None:
            place = lowest_free(group.place for group in list(self._sent.values()))
            self._filling = AttemptGroup(submission.name, priority, serial, place)
        remote_job = remote_job._replace(info=info._replace(place=self._filling.place))
        submission.send()
        engine_future = self._filling.add(remote_job)
        self._precedence.added(priority)
        if granted or not self._workers_take_groups or len(self._filling.futures) >= self._pace.depth:
            self.flush()  # (What holds something of a limit goes alone: it is not to wait behind others.)
        return engine_future

    def flush(self) -> None:
        """Hand the group that is being filled to the client's loop."""
        group, self._filling = self._filling, None
        if group is None:
            return
        self._sent[group.serial] = group
        self._open_groups.add(group)
        seeing = self._see_through(group)
        try:
            group.sent(asyncio.run_coroutine_threadsafe(seeing, self._loop))
        except BaseException as error:  # the loop is closed
            seeing.close()
            self._end(group, error)
        self._close_if_over(group)

    # ── in the client's loop ────────────────────────────────────────────────────────────────────────────────────────

    async def _greet(self, serial: int, workers: list[str] | None = None) -> None:
        """Have workers take groups from attempt `serial` on: all that there are, or these."""
        await self._client.run(greet, self._topic, serial, workers=workers, asynchronous=True)
        self._workers_take_groups = True

    async def _see_through(self, group: AttemptGroup) -> None:
        """Have a group run, and complete its futures."""
        try:
            jobs = group.jobs()
            if len(jobs) > 1:
                await self._run_group(jobs, group)
            elif jobs:
                await self._run_alone(jobs[0], group)
        except asyncio.CancelledError:  # by us, or the client was closed
            self._end(group, None)
            raise
        except BaseException as error:
            self._end(group, error)
        else:
            self._end(group, None)

    def _end(self, group: AttemptGroup, error: BaseException | None) -> None:
        """Forget a group of which dask knows nothing any more."""
        group.end(error)
        self._sent.pop(group.serial, None)
        self._close(group)

    def _close(self, group: AttemptGroup) -> None:
        """Let the next group take this one's room."""
        if group in self._open_groups:
            self._open_groups.discard(group)
            with contextlib.suppress(ReferenceError):  # the executor is gone
                self.runner.wake()

    def _close_if_over(self, group: AttemptGroup) -> None:
        """Have dask forget a group for which nobody waits."""
        if group.is_over() and group.let_go():
            self._close(group)

    async def _run_group(self, jobs: list[RemoteJob], group: AttemptGroup) -> None:
        """Have attempts run, and give back those that did not begin."""
        try:
            reply = await self._run(jobs, f"{group.name}-{uuid.uuid4().hex}", group.priority)
        except asyncio.CancelledError:
            if group.was_let_go():
                raise
            self._give_up(group, None)  # dask says so, too, of what was lost with a worker on its way to us
            return
        except Exception as error:
            self._give_up(group, error)
            return
        results: dict[int, CallResult | None] = dict.fromkeys(job.serial for job in jobs)
        if not isinstance(reply, str):
            results.update(zip(results, reply))
        else:  # a new worker's address
            self._workers_take_groups = False  # until it is greeted
            with contextlib.suppress(Exception):
                await self._greet(self._latest_serial + 1, [reply])
        self._given_up.difference_update(results)  # none of them begins any more
        self._pace.observe([result.duration for result in results.values() if result is not None])
        for job, deaths in group.finish(results):
            await self._run_alone(job, group, deaths)

    def _give_up(self, group: AttemptGroup, error: Exception | None) -> None:
        self._pace.forget()
        group.give_up(error)

    async def _run_alone(self, job: RemoteJob, group: AttemptGroup, died: int = 0) -> None:
        """Have an attempt run, and run again if its process dies; `died` processes did so before."""
        import dask.config

        allowed = int(dask.config.get("distributed.scheduler.allowed-failures", 3))
        key = f"{group.name}-{uuid.uuid4().hex}"
        result: CallResult
        for deaths in itertools.count(died + 1):
            (result,) = await self._run([job], f"{key}-{deaths}", group.priority)
            if result.kind != CRASHED:
                break
            if deaths > allowed:
                pid, exitcode = result.payload
                result = failed(WorkerCrashedError(pid, exitcode, job.info.id), result.duration, result.worker)
                break
        self._given_up.discard(job.serial)
        self._pace.observe([result.duration])
        group.finish({job.serial: result})

    async def _run(self, jobs: list[RemoteJob], key: str, priority: int) -> Any:
        """Have attempts run as one task of dask's, and return what `run_on_worker` does."""
        numbers = {number for job in jobs for number in job.shared}
        shared = await self._scattered.futures(numbers) if numbers else ()
        remote = self._client.submit(
            run_on_worker, self._topic, pickle.dumps(jobs), *shared, key=key, pure=False, priority=priority
        )
        del shared
        try:
            return await remote
        except asyncio.CancelledError:
            await self._client.cancel([remote], asynchronous=True)
            raise
        finally:
            remote.release()

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take note that an attempt has begun and runs long."""
        _, said = event
        serial, address = said["serial"], said["address"]
        submission = self.runner.submission(serial)
        if submission is not None:
            submission.locate(address)
        if serial in self._given_up:
            self._given_up.discard(serial)
            self._soon(self._kill([serial], [address]))
        elif submission is not None:
            self.runner.began(submission, said["name"])
        group = self._sent.get(said["group"])
        if group is not None:
            group.begin(serial)
            if group.unknown():
                self._pace.forget()
                self._soon(self._withdraw_rest(group), limit=None)

    async def _withdraw_rest(self, group: AttemptGroup) -> None:
        """Have a group's results so far, and give back what has not begun as soon as it is certain that no worker begins it."""
        while unknown := group.unknown():
            try:
                answers = await self._client.run(
                    withdraw_on_worker, self._topic, unknown, self._floor(), asynchronous=True
                )
            except Exception:  # a worker is about to be lost, say
                await asyncio.sleep(WITHDRAW_AGAIN)
            else:
                for answer in answers.values():
                    group.finish(answer)
                return

    def _floor(self) -> int:
        return min(list(self._sent), default=self._latest_serial)

    # ── ends from outside ───────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self, submission: Submission, engine_future: EngineFuture) -> bool:
        """Cancel an attempt in the cluster, and kill its process; returns True, as that never fails to end it."""
        if engine_future.done():
            return True
        assert isinstance(engine_future, AttemptFuture), "it is what `submit` has returned"
        group, serial = engine_future.group, submission.serial
        # Before the address is read: `_heard` writes the address before it looks whether the attempt was given up.
        self._given_up.add(serial)
        address = submission.address
        engine_future.cancel()
        if address is not None:
            self._given_up.discard(serial)
            killing = self._soon(self._kill([serial], [address]))
            if submission.grant is not None and killing is not None:
                self._killing[serial] = killing
        elif group.is_shared():  # dask cancels whole groups only, and none that has begun
            self._ending.append(serial)
            self._soon(self._kill_ending())
        self._close_if_over(group)
        return True

    def killing(self, submission: Submission) -> Future[Any] | None:
        """Return what is done once the worker has killed the attempt's process."""
        return self._killing.pop(submission.serial, None)

    async def _kill_ending(self) -> None:
        """Have all workers end what the settler has cancelled by now."""
        serials = []
        with contextlib.suppress(IndexError):
            while True:
                serials.append(self._ending.popleft())
        if serials:
            await self._kill(serials, None)

    async def _kill(self, serials: list[int], workers: list[str] | None) -> None:
        await self._client.run(kill_on_worker, self._topic, serials, self._floor(), workers=workers, asynchronous=True)

    def _soon(self, coroutine: Any, limit: float | None = DISMISS_TIMEOUT) -> Future[Any] | None:
        """Run a coroutine in the client's loop, if that still runs, for so many seconds at the most."""

        async def quietly() -> None:
            with contextlib.suppress(Exception):  # the worker is gone: so is what we would have of it
                await asyncio.wait_for(coroutine, limit)

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
