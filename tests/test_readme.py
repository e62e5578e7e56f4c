"""The README is the manual, so all that it shows is run."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import inspect
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import python

import parallel_exec
from parallel_exec import (
    DaskBackend,
    Event,
    ExecutorBackend,
    InlineBackend,
    Journal,
    JournalError,
    ParallelConfig,
    ProcessBackend,
    TaskEvent,
    ThreadBackend,
)

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


class Fence(NamedTuple):
    """A piece of code of the README."""

    line: int
    kind: str
    code: str


def fences(*kinds: str) -> list[Fence]:
    """Return the fences of these kinds."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    every = [Fence(TEXT[: match.start()].count("\n") + 1, match[1], match[2]) for match in found]
    return [fence for fence in every if fence.kind in kinds]


def by_line(fence: Fence) -> str:
    """Name a test case."""
    return f"line-{fence.line}"


class Site:
    """A web site on this machine, which stands in for those of the first example.

    Args:
        pages: the size of each page that is to be had, by its path.
        dropped: the path of the page that is there only when it is asked for again.
    """

    def __init__(self, pages: dict[str, int], dropped: str) -> None:
        unanswered = [dropped]

        class Pages(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                if self.path in unanswered:
                    unanswered.remove(self.path)
                    self.close_connection = True
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"x" * pages[self.path])

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        """Serve, and return the address."""
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


HOST, DOWN = "https://example.com", "https://down.example.com"
SHOWN = fences("text")[0].code


def run_first(tmp_path: Path) -> tuple[int, str, str]:
    """Run the opening example with its hosts on this machine; returns the exit status, what it prints, and its errors."""
    code = fences("python")[0].code
    shown = re.findall(rf"^{HOST}(/\S*) (\d+) attempts: (\d)$", SHOWN, re.MULTILINE)
    (dropped,) = (path for path, _, attempts in shown if attempts == "2")
    with socket.socket() as nobody, Site({path: int(size) for path, size, _ in shown}, dropped) as address:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        (tmp_path / "example.py").write_text(code.replace(HOST, address).replace(DOWN, closed), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", "example.py"],
            cwd=tmp_path,
            env={**os.environ, "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=False,
        )
    return done.returncode, done.stdout.replace(address, HOST).replace(closed, DOWN), done.stderr


def test_the_first_example_prints_what_is_shown(tmp_path: Path) -> None:
    """The opening example is short, runs without a word on standard error, and prints the lines below it."""
    first = fences("python")[0]
    assert first.code.count("\n") <= 12
    assert set(re.findall(r"https://[^/]+", first.code)) == {HOST, DOWN}
    assert run_first(tmp_path) == (0, SHOWN, "")


@pytest.mark.parametrize("fence", fences("python")[1:], ids=by_line)
def test_python_runs(fence: Fence, tmp_path: Path) -> None:
    """Each other example runs as a script, with warnings as errors and nothing on standard error."""
    run_example(fence, tmp_path)


def run_example(fence: Fence, folder: Path) -> str:
    """Run an example as a script, and return what it prints."""
    (folder / "example.py").write_text(fence.code, encoding="utf-8")
    way = [sys.executable, "-W", "error", "example.py"]
    done = subprocess.run(way, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    """The example of a journal, killed with SIGKILL when some results are recorded, and started again, says how many were."""
    (example,) = (fence for fence in fences("python") if "squares.db" in fence.code)
    (tmp_path / "example.py").write_text(example.code, encoding="utf-8")
    with python("example.py", cwd=tmp_path, start_new_session=True) as process:
        recorded = until_recorded(Journal(tmp_path / "squares.db"))
        process.kill()
    done = run_example(example, tmp_path)
    (again,) = re.findall(r"^(\d+) of 400 were done before$", done)
    assert recorded <= int(again) < 400
    assert run_example(example, tmp_path) == "400 of 400 were done before\n"


def until_recorded(journal: Journal) -> int:
    """Wait until a journal has some results, and return how many."""
    while True:
        with contextlib.suppress(JournalError):  # the file is not there yet
            if found := journal.summary().succeeded:
                return found
        time.sleep(0.01)


def section(title: str) -> str:
    """Return a section of the README."""
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_settings_are_those_there_are() -> None:
    """The table has every setting of an executor, in order, with its default."""
    shown = re.findall(r"^\| `(\w+)` \| `([^|]*)` \| [^|]+ \|$", section("Settings"), re.MULTILINE)
    config = ParallelConfig()
    defaults = {"retry_on": "(Exception,)"}
    real = [(field.name, repr(getattr(config, field.name))) for field in dataclasses.fields(config)]
    assert shown == [(name, defaults.get(name, default)) for name, default in real]


def test_the_back_ends_settings_are_those_there_are() -> None:
    """The second table has every setting of each back end, in order, with its default."""
    shown = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(.*?)` \| .+ \|$", section("Settings"), re.MULTILINE)
    real = [
        (kind.__name__, name, repr(parameter.default))
        for kind in (ThreadBackend, ProcessBackend, InlineBackend, ExecutorBackend, DaskBackend)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    ]
    assert shown == real


def test_the_settings_of_a_journal_are_those_there_are() -> None:
    """The table has every parameter of `Journal`, in order, with its default."""
    shown = [
        (name, default)
        for names, default in re.findall(r"^\| (`.+?`) \| (.*?) ?\| .+ \|$", section("Runs that survive"), re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    ]
    real = [
        (name, "" if parameter.default is inspect.Parameter.empty else f"`{parameter.default!r}`")
        for name, parameter in inspect.signature(Journal).parameters.items()
    ]
    assert shown == real


def test_the_errors_are_those_there_are() -> None:
    """The tree has every public error, each once, and what stands in brackets is one of its bases."""
    (tree,) = (fence.code for fence in fences("text") if fence.code.startswith("ParallelExecError\n"))
    shown = re.findall(r"^(?:[├└]── )?(\w+)(?: \(([\w.]+)\))?(?:  +\S.*)?$", tree, re.MULTILINE)
    assert len(shown) == tree.count("\n")
    public = {name: getattr(parallel_exec, name) for name in parallel_exec.__all__}
    errors = {name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, BaseException)}
    assert sorted(name for name, _ in shown) == sorted(errors)
    for name, base in shown:
        assert not base or base.rpartition(".")[2] in {kind.__name__ for kind in public[name].__mro__}


def test_the_events_are_those_there_are() -> None:
    """The table has every event, with its fields; those of all events, and of all tasks' events, are told before it."""
    shown = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\| .+ \|$", section("Errors and events"), re.MULTILINE))
    public = {name: getattr(parallel_exec, name) for name in parallel_exec.__all__}
    events = {name: kind for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, Event)}
    common = {"time", "wall_time"}
    assert {field.name for field in dataclasses.fields(Event)} == common
    for name in ("Event", "TaskEvent"):
        del events[name]
    assert shown.keys() == events.keys()
    for name, kind in events.items():
        told = common | ({"task_id", "attempt"} if issubclass(kind, TaskEvent) else set())
        assert re.findall(r"`(\w+)`", shown[name]) == [f.name for f in dataclasses.fields(kind) if f.name not in told]


def without_times(text: str) -> list[str]:
    """Return lines in an order of their own, with the numbers that differ from run to run left out."""
    text = re.sub(r"\d+(\.\d+)?e-\d+|\d+\.\d+( s\b)?", "#", text)
    return sorted(re.sub(r" +#  ", " #  ", line) for line in text.splitlines())


@pytest.mark.parametrize("fence", fences("console"), ids=by_line)
def test_a_console_shows_what_it_prints(fence: Fence, tmp_path: Path) -> None:
    """What is shown after the prompts is what the commands print, but for times and order."""
    commands = [line[2:] for line in fence.code.splitlines() if line.startswith("$ ")]
    shown = "\n".join(line for line in fence.code.splitlines() if not line.startswith("$ "))
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert without_times(done.stdout) == without_times(shown)


def test_the_table_of_options_is_complete() -> None:
    """It has every option of the command line that the help has, no other, and their defaults."""
    done = subprocess.run([sys.executable, "-m", "parallel_exec", "--help"], capture_output=True, text=True, check=True)
    told = done.stdout.partition("options:\n")[2] or done.stdout.partition("optional arguments:\n")[2]  # as 3.9 says
    helped = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "".join(re.findall(r"^  -.*$", told, re.MULTILINE)))
    table = TEXT.partition("\n| option | default |")[2].partition("\n\n")[0]
    rows = [re.split(r" *\| *", line)[1:3] for line in table.splitlines()[2:]]
    assert sorted(helped) == sorted(name for row in rows for name in re.findall(r"`(--?[a-z][a-z-]*)", row[0]))
    defaults = dict(re.findall(r"(--[a-z-]+) [^-]*?\(default: (\S+)\)", " ".join(told.split())))
    shown = {re.findall(r"`(--[a-z-]+)", names)[-1]: default.strip("`") for names, default in rows if default}
    assert shown == {name: default.removesuffix(".0") for name, default in defaults.items()}


def test_the_two_first_commands_set_up() -> None:
    """The first command installs and does the main job, the second installs and runs the tests, as CI finds them."""
    first, second = fences("sh")[:2]
    for command in (first, second):
        assert command.code.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert ".venv/bin/parallel-exec map " in first.code
    assert second.code.endswith(".venv/bin/python -m pytest\n")
    assert len(fences("sh")) == 2


def test_links_lead_somewhere() -> None:
    """A link within the README has its heading, and a link to a file has its file."""
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    targets = re.findall(r"\]\((?!http)([^)]*)\)", TEXT)
    assert targets
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).exists(), target


def test_marked_cells_name_a_test() -> None:
    """Each mark in the table of what happens when is a link to a test that exists."""
    table = TEXT.partition("## What happens when")[2].partition("\n## ")[0]
    legend = TEXT.partition("\n## Development")[2]
    marks = set(re.findall(r"\[(\d\w)\]", table))
    links = dict(re.findall(r'^\[(\d\w)\]: \S*?(tests/\S+\.py)\S* "', legend, re.MULTILINE))
    names = dict(re.findall(r'^\[(\d\w)\]: \S+ "(\w+)"$', legend, re.MULTILINE))
    assert marks == links.keys() == names.keys()
    for mark, name in names.items():
        assert f"def {name}(" in (ROOT / links[mark]).read_text(encoding="utf-8"), f"no {name} in {links[mark]}"


def test_the_figures_are_the_measured_ones() -> None:
    """Each ratio in the table of the overhead is the one in the results that the chart was drawn from."""
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["measurements"]
    section = TEXT.partition("## Measured overhead")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| .* \| (.+) \| (\d+\.\d\d) \|$", section, re.MULTILINE)
    known = {(row["peer"], f"{row['value']:.2f}") for row in measured if row["kind"] == "ratio"}
    assert len(shown) > 10
    assert set(shown) <= known
