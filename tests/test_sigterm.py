"""`drain_on_sigterm`, in real programs: what runs may end, nothing begins, what has ended is kept, and the status is 143."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest
import script
import work

from parallel_exec import Journal, ParallelExecutor, drain_on_sigterm
from parallel_exec._outcome import TWIN

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SLACK = 10.0  # seconds; less than a grace that is not to be waited for
STATUS = 143

every_backend = pytest.mark.parametrize("backend", ["thread", "process", "inline"])
concurrent = pytest.mark.parametrize("backend", ["thread", "process"])

# READY is said once the first tasks run, DRAINING once the first SIGTERM was answered.
PROGRAM = """
    import logging
    from parallel_exec import drain_on_sigterm
    backend, folder = sys.argv[1:]
    started, gate = work.Latch(f"{folder}/started"), work.Latch(f"{folder}/gate")

    class Says(logging.Handler):
        def emit(self, record):
            if "SIGTERM" in record.getMessage():
                say("DRAINING")

    logging.getLogger("parallel_exec").addHandler(Says())
    logging.getLogger("parallel_exec").setLevel("INFO")
    threading.Thread(target=lambda: (started.wait(), ready()), daemon=True).start()
    executor = ParallelExecutor(backend=backend, max_concurrency=1, timeout=None, retry_count=0)
"""
RUN = """
    executor.add_task(Task(partial(work.double, 21), id="quick", priority=1))
    executor.add_task(Task(partial(work.hold, started, gate), id="held"))
    executor.add_task(Task(partial(work.double, 1), id="queued", priority=-1))
"""
TELL = "say([(r.task.id, r.result) for r in executor.results()], type(sys.exc_info()[1]).__mro__[1].__name__)"


def _start(folder: Path, body: str, backend: str) -> subprocess.Popen[str]:
    """Start a program, and return when its first task runs."""
    process = script.start(folder, PROGRAM + body, backend, str(folder))
    _await_line(process, "READY")
    return process


def _await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


def _terminate(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Send SIGTERM to the program alone, wait until it is answered, and return its children."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _await_line(process, "DRAINING")
    return children


def _end(process: subprocess.Popen[str], children: list[psutil.Process]) -> str:
    """Return what a program says until it has ended as SIGTERM would have it, and its children with it."""
    out, err = script.finish(process)
    assert (process.returncode, err) == (STATUS, ""), f"it said:\n{out}\n{err}"
    assert psutil.wait_procs(children, timeout=work.PATIENCE)[1] == []
    return out.strip()


def _run_to_the_end(folder: Path, body: str, backend: str) -> str:
    """Start a program, send SIGTERM, let what runs end then, and return what it says."""
    process = _start(folder, body, backend)
    children = _terminate(process)
    work.Latch(folder / "gate").set()
    return _end(process, children)


@every_backend
def test_what_runs_may_end(tmp_path: Path, backend: str) -> None:
    """It ends within the grace, nothing else begins, and `results()` and the journal have all that has ended."""
    body = f"""{RUN}
    with executor:
        drain_on_sigterm(executor, 100)
        try:
            executor.execute_all(journal=folder + "/run.db")
        finally:
            {TELL}
    """
    assert _run_to_the_end(tmp_path, body, backend) == "[('quick', 42), ('held', 'held')] SystemExit"
    journal = Journal(tmp_path / "run.db")
    assert {result.task.id: result.result for result in journal.results()} == {"quick": 42, "held": "held"}


@every_backend
def test_what_outlasts_the_grace_is_stopped(tmp_path: Path, backend: str) -> None:
    """It ends as cancelled, and the program ends."""
    body = f"""{RUN}
    with executor:
        drain_on_sigterm(executor, 0.3)
        try:
            executor.execute_all()
        finally:
            {TELL}
    """
    process = _start(tmp_path, body, backend)
    assert _end(process, _terminate(process)) == "[('quick', 42)] SystemExit"


@every_backend
def test_a_second_sigterm_ends_it_at_once(tmp_path: Path, backend: str) -> None:
    """Whatever runs, and however long the grace is."""
    body = f"""{RUN}
    with executor:
        drain_on_sigterm(executor, None)
        try:
            executor.execute_all(journal=folder + "/run.db")
        finally:
            {TELL}
    """
    process = _start(tmp_path, body, backend)
    children = _terminate(process)
    time.sleep(1.5 * TWIN)  # else it would be the same request
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert _end(process, children) == "[('quick', 42)] SystemExit"
    assert time.monotonic() - began < SLACK


def test_one_that_comes_twice_is_no_second_one(tmp_path: Path) -> None:
    """As `timeout` sends it, to the program and to its process group: the grace stands."""
    body = f"""{RUN}
    def terminate():
        started.wait()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        gate.set()

    threading.Thread(target=terminate, daemon=True).start()
    with executor:
        drain_on_sigterm(executor, 100)
        try:
            executor.execute_all()
        finally:
            {TELL}
    """
    for number in range(3):  # a machine may stand still between the two, so that they are two
        folder = tmp_path / str(number)
        folder.mkdir()
        process = script.start(folder, PROGRAM + body, "thread", str(folder))
        said = [line for line in _end(process, []).split("\n") if line != "READY"]
        if whole := said == ["DRAINING", "[('quick', 42), ('held', 'held')] SystemExit"]:
            break
    assert whole, said


@concurrent
def test_who_waits_for_a_future_is_told_to_end(tmp_path: Path, backend: str) -> None:
    """It gets the result of what ran, and where it waits for what will never run no `CancelledError`, but `SystemExit`."""
    body = """
    with executor:
        drain_on_sigterm(executor, 100)
        futures = [executor.submit(work.hold, started, gate), executor.submit(work.double, 1)]
        for future in futures:
            say(future.result())
    """
    assert _run_to_the_end(tmp_path, body, backend) == "held"


def test_a_task_that_waits_for_one_that_never_begins(tmp_path: Path) -> None:
    """It has no grace, as it comes no further; nor has one that waits for that, and nothing is said of either."""
    body = """
    def outer(depth):
        if depth == 1:
            started.set()
            gate.wait()
        return executor.submit(outer, depth - 1).result()

    with executor:
        drain_on_sigterm(executor, 100)
        executor.resize(3)
        executor.submit(outer, 2).result()
    """
    began = time.monotonic()
    assert _run_to_the_end(tmp_path, body, "thread") == ""
    assert time.monotonic() - began < SLACK


@pytest.mark.parametrize("call", ["execute_all(progress=True)", "execute_all(deadline=300)"])
def test_a_main_thread_that_looks_now_and_then(tmp_path: Path, call: str) -> None:
    """It waits all the same, if in many small steps."""
    body = f"""
    sys.stderr = open(os.devnull, "w")
    for _ in range(3):
        executor.add_task(work.hold, started, gate)
    with executor:
        drain_on_sigterm(executor, 100)
        executor.{call}
    """
    began = time.monotonic()
    _run_to_the_end(tmp_path, body, "thread")
    assert time.monotonic() - began < SLACK


def test_what_reads_the_input_is_not_cut_off(tmp_path: Path) -> None:
    """A generator that `stream` reads has the grace, too, wherever it is; one that waits is told to end."""
    body = """
    import queue
    def tasks():
        try:
            yield Task(partial(work.hold, started, gate))
            yield Task(partial(work.double, 1))
            gate.wait()
            time.sleep(0.5)
            say("read")
            queue.Queue().get()
        finally:
            say("closed")

    with executor:
        drain_on_sigterm(executor, 100)
        for result in executor.stream(tasks(), window=3):
            pass
    """
    began = time.monotonic()
    assert _run_to_the_end(tmp_path, body, "thread") == "read\nclosed"
    assert time.monotonic() - began < SLACK


@concurrent
def test_what_main_does_with_a_result_is_not_cut_off(tmp_path: Path, backend: str) -> None:
    """The body of a loop over a stream comes to its end; the next round ends the program."""
    body = """
    with executor:
        drain_on_sigterm(executor, 100)
        tasks = [Task(partial(work.double, 21)), Task(partial(work.hold, started, gate)), *[Task(partial(work.double, 1))] * 9]
        for result in executor.stream(tasks, window=3):
            gate.wait()
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                time.sleep(0.01)
            say(result.result)
    """
    assert _run_to_the_end(tmp_path, body, backend) == "42\nheld"


@concurrent
def test_a_program_that_comes_to_its_end_meanwhile(tmp_path: Path, backend: str) -> None:
    """All its tasks had begun: it is not interrupted, and the status is SIGTERM's all the same."""
    body = """
    with executor:
        drain_on_sigterm(executor, 100)
        executor.add_task(work.hold, started, gate)
        say([result.result for result in executor.execute_all()])
    say("end")
    """
    assert _run_to_the_end(tmp_path, body, backend) == "['held']\nend"


def test_what_others_do_at_exit_is_done_then(tmp_path: Path) -> None:
    """Also what they had registered before: the status is set last of all, whatever threads there are."""
    body = """
    atexit.register(say, "first")
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    with executor:
        drain_on_sigterm(executor, 100)
        executor.submit(work.hold, started, gate).result()
    print("end", end=" ")
    """
    assert _run_to_the_end(tmp_path, body, "thread") == "end first"


@concurrent
def test_sigterm_while_the_interpreter_waits_for_what_was_started(tmp_path: Path, backend: str) -> None:
    """What runs may end, what waits is cancelled, `atexit` functions are called."""
    body = """
    drain_on_sigterm(executor, 100)
    atexit.register(say, "exit")
    futures = [executor.submit(work.hold, started, gate), executor.submit(work.double, 1)]
    for future in futures:
        future.add_done_callback(lambda future: say(future.cancelled() or future.result()))
    """
    assert _run_to_the_end(tmp_path, body, backend) == "held\nTrue\nexit"


def test_a_main_thread_that_waits_for_something_else(tmp_path: Path) -> None:
    """It is told as soon as nothing runs where it waits in the standard library, which has no end of its own."""
    body = """
    import queue
    with executor:
        drain_on_sigterm(executor, 100)
        executor.submit(work.hold, started, gate)
        queue.Queue().get()
    """
    began = time.monotonic()
    _run_to_the_end(tmp_path, body, "thread")
    assert time.monotonic() - began < SLACK


def test_several_executors(tmp_path: Path) -> None:
    """Each is drained, and the longest grace counts."""
    body = """
    other = ParallelExecutor(backend="thread", timeout=None)
    with executor, other:
        drain_on_sigterm(executor, 0.05)
        drain_on_sigterm(other, 100)
        held = other.submit(work.hold, started, gate)
        held.add_done_callback(lambda future: say(future.result()))
        blocked = executor.submit(work.hold, work.Latch(f"{folder}/other"), gate, "let go")
        blocked.add_done_callback(lambda future: say(future.result()))
        executor.submit(work.double, 1).result()
    """
    assert sorted(_run_to_the_end(tmp_path, body, "thread").split("\n")) == ["held", "let go"]


def test_once_it_is_shut_down_sigterm_does_what_it_did(tmp_path: Path) -> None:
    """The program's own handler is called then, and in a forked child always."""
    body = """
    signal.signal(signal.SIGTERM, lambda *_: say("mine"))
    drain_on_sigterm(executor)
    child = os.fork()
    os.kill(os.getpid() if child == 0 else child, signal.SIGTERM)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    executor.shutdown()
    os.kill(os.getpid(), signal.SIGTERM)
    """
    out = script.run(
        tmp_path, PROGRAM + body, "thread", str(tmp_path), flags=("-W", "ignore:This process:DeprecationWarning")
    )
    assert set(out.split("\n")) == {"mine"}


def test_a_handler_that_calls_the_one_before(tmp_path: Path) -> None:
    """One that was set between two calls may: in the end what was there at first is done, the signal's own way."""
    body = """
    drain_on_sigterm(executor)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: (say("mine"), before(number, frame)))
    with ParallelExecutor() as other:
        drain_on_sigterm(other)
    executor.shutdown()
    os.kill(os.getpid(), signal.SIGTERM)
    """
    out, err = script.finish(script.start(tmp_path, PROGRAM + body, "thread", str(tmp_path)))
    assert (out, err) == ("mine\n", "")


def test_an_executor_that_is_made_afterwards(tmp_path: Path) -> None:
    """What ends the program may use one: to drain that, too, cancels what is given to it, and nothing waits for ever."""
    body = """
    with executor:
        drain_on_sigterm(executor, 100)
        executor.submit(work.hold, started, gate)
        try:
            executor.submit(work.double, 1).result()
        finally:
            time.sleep(1.0)  # the drain is over by then
            with ParallelExecutor() as other:
                say(other.submit(work.double, 1).result())
                drain_on_sigterm(other)
                say(other.submit(work.double, 1).cancelled())
    """
    assert _run_to_the_end(tmp_path, body, "thread") == "2\nTrue"


def test_what_can_be_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor, in the main thread, with a grace that is positive."""
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("nothing is set"))
    with ParallelExecutor() as executor:
        with pytest.raises(ValueError, match="grace must be more than 0 seconds"):
            drain_on_sigterm(executor, 0)
        with pytest.raises(TypeError, match="takes a ParallelExecutor, not 5"):
            drain_on_sigterm(5)  # type: ignore[arg-type]


def test_only_the_main_thread_may_ask_for_it() -> None:
    """Python sets handlers there alone, and says so."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            drain_on_sigterm(executor)
        except ValueError as error:
            errors.append(error)

    with ParallelExecutor() as executor:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert "main thread" in str(errors[0])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
