"""Connections, sockets and what is registered with `ForkingPickler` travel to workers and back, and leave nothing open."""

from __future__ import annotations

import itertools
import multiprocessing.sharedctypes
import os
import pickle
import socket
import threading
import weakref
from collections import deque
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Iterator

import pytest
import script
import work
from interruptions import interrupt, leaves_nothing_open

from parallel_exec import TaskSerializationError
from parallel_exec.backends import _reducers

from . import connection_tasks

SHARED = multiprocessing.sharedctypes.RawValue("i", 1)  # here, as the file that it lies in stays open
every_method = pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """Both ends of a pipe, the first to read from."""
    reading, writing = Pipe(False)
    with reading, writing:
        yield reading, writing


def _heard(reading: Connection) -> Any:
    assert reading.poll(work.SOON), "nothing was said"
    return reading.recv()


@every_method
def test_a_connection_is_an_argument(pool: Any, pipe: Any, method: str) -> None:
    """It is one in the worker, again and again, and no other file of the program is touched."""
    reading, writing = pipe
    executor = pool(backend={"mp_context": method})
    with open(os.devnull, "rb") as mine:
        for number in range(12):
            assert executor.submit(connection_tasks.say, writing, number).result(work.SOON) == number
            assert _heard(reading) == number
        assert executor.submit(os.listdir, "/proc/self/fd").result(work.SOON)
        mine.read(1)


def test_wherever_it_is(pool: Any, pipe: Any) -> None:
    """In containers, in keywords, in a partial, twice; with cloudpickle too."""
    pytest.importorskip("cloudpickle")
    reading, writing = pipe
    executor = pool()
    executor.submit(connection_tasks.say_in, {"here": [writing]}, "in", also=writing).result(work.SOON)
    executor.submit(partial(connection_tasks.say, writing), "partial").result(work.SOON)
    executor.submit(lambda: writing.send("closure")).result(work.SOON)
    executor.submit(lambda connection: connection.send("lambda"), writing).result(work.SOON)
    assert [_heard(reading) for _ in range(5)] == ["in", "in", "partial", "closure", "lambda"]


def test_two_tasks_with_the_same(pool: Any, pipe: Any) -> None:
    """Each has its own copy, also if ours was closed meanwhile."""
    reading, writing = pipe
    executor = pool(2)
    executor.pause()
    futures = [executor.submit(connection_tasks.say, writing, number) for number in range(40)]
    writing.close()
    executor.resume()
    assert [future.result(work.SOON) for future in futures] == list(range(40))
    assert sorted(_heard(reading) for _ in range(40)) == list(range(40))
    with pytest.raises(EOFError):
        reading.recv()  # nobody else has an end to write to


def test_items_of_a_map(pool: Any, pipe: Any) -> None:
    """They may be connections, or be told by one; chunks that are split included."""
    reading, writing = pipe
    with pool(2) as executor:
        workers = list(executor.map(connection_tasks.say_item, [writing] * 50))
        assert [_heard(reading) for _ in workers] == ["item"] * 50
        list(executor.map(partial(connection_tasks.say, writing), range(50)))
        assert sorted(_heard(reading) for _ in workers) == list(range(50))


@every_method
def test_sockets_both_ways(pool: Any, method: str) -> None:
    """A socket is one in the worker, and one that the worker made is one here; many at once, too."""
    executor = pool(backend={"mp_context": method})
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert executor.submit(connection_tasks.send_to, theirs, b"hello").result(work.SOON) == 5
        assert mine.recv(10) == b"hello"
        many = [theirs.dup() for _ in range(260)]
        assert executor.submit(connection_tasks.send_to_all, many).result(work.SOON) == 260
        assert len(mine.recv(1000)) == 260
        for each in many:
            each.close()
    for number, made in enumerate(executor.submit(connection_tasks.make_sockets, 30).result(work.SOON)):
        with made:
            assert made.recv(10) == b"%d" % number
    (several,) = executor.map(connection_tasks.make_sockets, [3])
    assert [made.recv(10) for made in several] == [b"0", b"1", b"2"]
    for made in several:
        made.close()


def test_connections_as_results(pool: Any) -> None:
    """Of tasks and of items."""
    executor = pool()
    results = [executor.submit(connection_tasks.make_pipe, number) for number in range(20)]
    readings = [future.result(work.SOON) for future in results] + list(
        executor.map(connection_tasks.make_pipe, range(20))
    )
    del results
    for number, reading in enumerate(readings):
        with reading:
            assert _heard(reading) == number % 20


def test_an_exception_with_a_connection(pool: Any) -> None:
    """It arrives whole."""
    error = pool().submit(connection_tasks.raise_pipe, "inside").exception(work.SOON)
    assert type(error) is connection_tasks.PipeError
    with error.reading as reading:
        assert _heard(reading) == "inside"


@every_method
def test_initargs(pool: Any, pipe: Any, method: str) -> None:
    """Each worker has a copy, one that replaces another as well."""
    reading, writing = pipe
    backend = {
        "mp_context": method,
        "initializer": connection_tasks.keep,
        "initargs": (writing,),
        "max_tasks_per_child": 1,
    }
    executor = pool(backend=backend)
    writing.close()
    workers = {executor.submit(connection_tasks.say_over_kept, number).result(work.SOON) for number in range(3)}
    assert len(workers) == 3
    assert [_heard(reading) for _ in workers] == [0, 1, 2]


def test_a_retry_has_it_too(pool: Any, pipe: Any, log: Any) -> None:
    """The same bytes are sent again, and what goes with them."""
    reading, writing = pipe
    assert pool(retry_count=2).submit(connection_tasks.fail_at_first, writing, log).result(work.SOON) == 3
    assert _heard(reading) == 3


def test_a_worker_that_dies_with_them(pool: Any, pipe: Any, bench: Any) -> None:
    """What was sent to a worker and not begun goes to the next one, with all that belongs to it."""
    reading, writing = pipe
    executor = pool(retry_count=1)
    first = executor.submit(connection_tasks.die_at_first, writing, bench.log())
    rest = [executor.submit(connection_tasks.say, writing, number) for number in range(20)]
    assert first.result(work.SOON) == 2
    assert [future.result(work.SOON) for future in rest] == list(range(20))
    assert sorted(map(str, (_heard(reading) for _ in range(21)))) == sorted([*map(str, range(20)), "alive"])


def test_what_is_never_sent_is_closed(pool: Any, pipe: Any, latch: Any) -> None:
    """A task that is cancelled, and one that is killed, leave no copy behind."""
    reading, writing = pipe
    executor = pool()
    blocking = executor.submit(latch.wait)
    waiting = [executor.submit(connection_tasks.say, writing, number) for number in range(20)]
    assert all(future.cancel() for future in waiting)
    blocking.abort()
    del waiting, blocking
    executor.submit(work.pid).result(work.SOON)
    writing.close()
    with pytest.raises(EOFError):
        reading.recv()


def test_beside_large_buffers(pool: Any, pipe: Any) -> None:
    """What travels through shared memory and what travels by itself do not get in each other's way."""
    numpy = pytest.importorskip("numpy")
    reading, writing = pipe
    executor = pool()
    for _ in range(3):
        assert executor.submit(connection_tasks.total, writing, numpy.ones(1 << 18)).result(work.SOON) == 1 << 18
        assert _heard(reading) == 1 << 18


def test_a_type_that_is_registered(pool: Any) -> None:
    """By a program, also after the first task."""
    executor = pool()
    executor.submit(work.pid).result(work.SOON)
    read_end, write_end = os.pipe()
    os.write(write_end, b"registered")
    ForkingPickler.register(connection_tasks.Reading, connection_tasks.reduce_reading)
    try:
        assert (
            executor.submit(connection_tasks.read, connection_tasks.Reading(read_end), 10).result(work.SOON)
            == b"registered"
        )
    finally:
        del ForkingPickler._extra_reducers[connection_tasks.Reading]  # type: ignore[attr-defined]
        os.close(read_end)
        os.close(write_end)
    with pytest.raises(TypeError, match="register me"):
        _reducers.dumps(connection_tasks.Reading(0))


@pytest.mark.parametrize("name", ["Lock", "Semaphore", "Queue", "Value", "RawArray"])
def test_what_is_inherited_is_refused_still(tmp_path: Path, name: str) -> None:
    """What `multiprocessing` only lets a new process have is no argument of a task; the error says what to do."""
    body = """
    import multiprocessing
    arguments = {"Value": ("i", 1), "RawArray": ("i", 5)}.get(sys.argv[1], ())
    made = getattr(multiprocessing.get_context("spawn"), sys.argv[1])(*arguments)
    with ParallelExecutor(backend="process") as executor:
        error = executor.submit(len, [made]).exception()
    say(type(error).__name__, "through inheritance" in str(error), "initargs=(it,)" in str(error))
    """
    assert script.run(tmp_path, body, name) == "TaskSerializationError True True"


def test_numbers_of_c_that_nobody_shares(pool: Any) -> None:
    """A value of ctypes travels, though shared memory has its type registered."""
    import ctypes

    assert type(SHARED) is ctypes.c_int
    assert pool().submit(work.same, ctypes.c_int(5)).result(work.SOON).value == 5


def test_a_closed_connection_is_named(pool: Any, pipe: Any) -> None:
    """One that is closed before it is pickled cannot travel."""
    pipe[1].close()
    error = pool().submit(connection_tasks.say, pipe[1], 1).exception(work.SOON)
    assert type(error) is TaskSerializationError
    assert "argument 0" in error.what
    assert "handle is closed" in str(error)


def test_where_nothing_can_be_carried(pipe: Any) -> None:
    """There a connection is refused, and not sent as a number."""
    with pytest.raises(TypeError, match="means something in this process only"):
        _reducers.dumps(pipe[0])


def test_partials_and_methods_pickle_as_ever() -> None:
    """What `multiprocessing` has for them loses attributes of a partial."""
    call = partial(int, "5")
    call.note = "kept"  # type: ignore[attr-defined]
    assert pickle.loads(_reducers.dumps(call)).note == "kept"
    assert pickle.loads(_reducers.dumps([1].append)).__self__ == [1]


def test_pickling_from_many_threads(pool: Any, pipe: Any) -> None:
    """What one thread pickles takes along its own descriptors only."""
    reading, writing = pipe
    executor = pool(2)
    errors: list[Any] = []

    def submit(number: int) -> None:
        futures = [executor.submit(connection_tasks.say, writing, (number, each)) for each in range(20)]
        errors.extend(future.exception(20) for future in futures)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    said = {_heard(reading) for _ in range(80)}
    for thread in threads:
        thread.join()
    assert errors == [None] * 80
    assert said == {(number, each) for number in range(4) for each in range(20)}


def test_no_descriptor_is_left_in_a_worker(pool: Any, pipe: Any) -> None:
    """What was made of a descriptor is the task's, and goes with it."""
    reading, writing = pipe
    executor = pool()
    count = partial(os.listdir, "/proc/self/fd")
    executor.submit(connection_tasks.say, writing, 0).result(work.SOON)
    before = len(executor.submit(count).result(work.SOON))
    for number in range(10):
        executor.submit(connection_tasks.say, writing, number).result(work.SOON)
        executor.submit(connection_tasks.make_pipe, number).result(work.SOON).close()
    assert len(executor.submit(count).result(work.SOON)) == before
    assert Path("/proc/self/fd").exists()
    assert reading.poll()


def test_what_is_left_of_a_torn_note_keeps_nothing() -> None:
    """An exception has torn it apart in this thread, and another one has collected it."""
    noting = _reducers.noting()
    noting.__enter__()
    ending = threading.Thread(target=noting.__exit__, args=(None, None, None))
    ending.start()
    ending.join()
    del noting, ending
    referred_to = threading.Event()
    _reducers.keep(referred_to)
    gone = weakref.ref(referred_to)
    del referred_to
    assert gone() is None


def test_ctrl_c_as_a_descriptor_is_copied() -> None:
    """Wherever it comes, on either side, nothing stays open."""
    with open(os.devnull, "rb") as file:

        def send() -> Any:
            along = _reducers.Carried()
            with _reducers.carry(along):
                _reducers._Carrier.duplicate_for_child(file.fileno())
            return along

        def receive() -> Any:
            with _reducers.deliver([file.fileno()]):
                return _reducers._Arrived(0)

        assert leaves_nothing_open(send, deque(maxlen=0)) > 20
        assert leaves_nothing_open(receive, deque(maxlen=0)) > 20


def test_ctrl_c_leaves_no_list_to_put_descriptors_in(pipe: Any) -> None:
    """Wherever it comes in what takes them along, what is pickled later has a connection refused."""

    def send() -> None:
        along = _reducers.Carried()
        with _reducers.carry(along):
            _reducers.dumps_along(pipe[0], along, None)

    for step in itertools.count(1):
        has_more = interrupt(send, step)
        with pytest.raises(TypeError, match="means something in this process only"):
            _reducers.dumps(pipe[0])
        if not has_more:
            break
    assert step > 20
