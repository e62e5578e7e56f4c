"""`parallel_exec._stacks`: a dump of faulthandler's, or a thread of this process, as a person reads it."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
import work

from parallel_exec import _stacks
from parallel_exec._stacks import Frame, Stacks, Thread

OURS = os.path.dirname(_stacks.__file__)
LIBRARY = os.path.dirname(os.__file__)
LOOP = f"""\
  File "{OURS}/backends/_outcomes.py", line 60 in run
  File "{OURS}/backends/process/child/main.py", line 199 in _run
  File "<string>", line 1 in <module>
"""
ASKED = f"""\
Stack (most recent call first):
  File "{LIBRARY}/threading.py", line 7 in wait
  File "/app/caf\\xe9.py", line 12 in load
{LOOP}
Thread 0x00007f184ce426c0 [feeder] (most recent call first):
  File "{LIBRARY}/threading.py", line 917 in run
  File "{LIBRARY}/threading.py", line 980 in _bootstrap_inner
  File "{LIBRARY}/threading.py", line 937 in _bootstrap

Current thread 0x00007f184dfdcb80 [python] (most recent call first):
  File "{LIBRARY}/threading.py", line 7 in wait
  File "/app/caf\\xe9.py", line 12 in load
{LOOP}"""
CRASHED = f"""\
Fatal Python error: Segmentation fault

Current thread 0x00007f184ce426c0 (most recent call first):
  File "/app/native.py", line 3 in poke
  File "{LIBRARY}/threading.py", line 917 in run
  File "{LIBRARY}/threading.py", line 980 in _bootstrap_inner
  File "{LIBRARY}/threading.py", line 937 in _bootstrap

Thread 0x00007f184dfdcb80 (most recent call first):
  File "/app/main.py", line 5 in work
{LOOP}
Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python3.14", at _Py_DumpStack+0x4a [0x49b2f9]
  Binary file "/lib/libc.so.6", at +0x406b0 [0x7fcc887736b0]
  Binary file "/app/native.so", at poke_hard+0x12 [0x7fcc888ad718]
  Binary file "/usr/bin/python3.14" [0x53d28e]

Extension modules: native (total: 1)
"""


def test_one_that_was_asked() -> None:
    """The task's thread is the last, once, and begins with the task's call; names are as they are in the source."""
    stacks = _stacks.parse(ASKED.encode())
    assert [thread.title for thread in stacks.threads] == ["Thread 'feeder'", "The task's thread"]
    assert [frame.function for frame in stacks.threads[0].frames] == ["run"]
    assert stacks.threads[1].frames == [
        Frame("/app/café.py", 12, "load"),
        Frame(f"{LIBRARY}/threading.py", 7, "wait"),
    ]
    assert stacks.where() == "/app/café.py:12 in load"


def test_one_that_crashed() -> None:
    """The thread that crashed is the last, with the C code that it was in; and what it died of is said first."""
    stacks = _stacks.parse(CRASHED.encode())
    assert [thread.title for thread in stacks.threads] == ["The task's thread", "Thread 0x00007f184ce426c0"]
    assert stacks.where() == "/app/native.py:3 in poke"
    lines = stacks.text().splitlines()
    assert lines[0] == "Fatal Python error: Segmentation fault"
    assert lines[-3:] == ["C code (most recent call last):", "  /app/native.so: poke_hard", "  /lib/libc.so.6"]


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_one_that_is_asked_again_in_the_middle(cut: int) -> None:
    """The thread by itself may come anywhere amid all threads, which are read as if it had not."""
    alone, _, rest = ASKED.partition("\n\n")
    together = rest[:cut] + alone + "\n" + rest[cut:]
    stacks = _stacks.parse(together.encode())
    assert stacks.threads[-1].title == "The task's thread"
    assert [frame.function for frame in stacks.threads[-1].frames] == ["load", "wait"]
    assert "Stack (" not in stacks.text()


def test_the_task_is_known_though_it_was_left_out_of_the_rest() -> None:
    """faulthandler writes a hundred threads: then the first piece is all there is of the task's."""
    head, _, _ = ASKED.partition("Current thread")
    stacks = _stacks.parse(head.encode())
    assert [thread.title for thread in stacks.threads] == ["Thread 'feeder'", "The task's thread"]
    assert stacks.where() == "/app/café.py:12 in load"


def test_a_call_of_c_code_alone() -> None:
    """There is no line to show, and that is said."""
    stacks = _stacks.parse(f"Stack (most recent call first):\n{LOOP}".encode())
    assert stacks.where() == ""
    assert "without a line of Python" in stacks.text()
    assert stacks._replace(call="sleep").where() == "sleep (C code)"
    assert "sleep (C code" in stacks._replace(call="sleep").text()


def test_without_a_line_of_the_users_the_innermost_counts() -> None:
    """A hang in a library that was called directly is shown in the library."""
    frames = [Frame(f"{LIBRARY}/queue.py", 180, "get"), Frame(f"{LIBRARY}/threading.py", 327, "wait")]
    assert Stacks([Thread("a", frames)]).where() == f"{LIBRARY}/threading.py:327 in wait"


def test_what_is_installed_is_not_the_users() -> None:
    """The line that called a package says more than the package's."""
    frames = [Frame("/app/fetch.py", 3, "fetch"), Frame("/x/site-packages/requests/api.py", 59, "request")]
    assert Stacks([Thread("a", frames)]).where() == "/app/fetch.py:3 in fetch"


def test_paths_below_the_current_folder_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would type them."""
    monkeypatch.chdir(tmp_path)
    assert Stacks([Thread("a", [Frame(f"{tmp_path}/app/x.py", 3, "f")])]).where() == "app/x.py:3 in f"


def test_lines_of_the_source_are_shown(tmp_path: Path) -> None:
    """As in a traceback; of a file that is not there, none."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    return 1\n")
    text = Stacks([Thread("A", [Frame(str(file), 2, "f"), Frame("/not/there.py", 3, "g")])]).text()
    assert text.splitlines() == [
        "A (most recent call last):",
        f'  File "{file}", line 2, in f',
        "    return 1",
        '  File "/not/there.py", line 3, in g',
    ]


@pytest.mark.parametrize("text", [b"caf\xe9 = 1\nx\n", b"# coding: none\nx\n", b"\0\0\n", b"\xff\xfe"])
def test_a_file_that_is_no_source_is_shown_without_its_line(tmp_path: Path, text: bytes) -> None:
    """Such as a template that was compiled, in another encoding."""
    file = tmp_path / "page.txt"
    file.write_bytes(text)
    shown = Stacks([Thread("A", [Frame(str(file), 2, "f")])]).text()
    assert shown.splitlines()[:2] == ["A (most recent call last):", f'  File "{file}", line 2, in f']


@pytest.mark.parametrize("name", ["/x\0.py", "/\ud800.py"])
def test_a_name_that_no_file_can_have_is_shown(name: str) -> None:
    """Whatever code was compiled with."""
    stacks = Stacks([Thread("A", [Frame(name, 2, "f")])])
    assert stacks.text().endswith(f'  File "{name}", line 2, in f')
    assert stacks.where() == f"{name}:2 in f"


def test_a_recursion_is_shown_as_in_a_traceback() -> None:
    """Its frames thrice, and how many more there are."""
    frames = [Frame("/app/x.py", 1, "main"), *[Frame("/app/x.py", 7, "dig")] * 40, Frame("/app/x.py", 6, "dig")]
    assert Stacks([Thread("A", frames)]).text().splitlines() == [
        "A (most recent call last):",
        '  File "/app/x.py", line 1, in main',
        *['  File "/app/x.py", line 7, in dig'] * 3,
        "  [Previous line repeated 37 more times]",
        '  File "/app/x.py", line 6, in dig',
    ]


def test_a_task_so_deep_that_its_first_frames_are_left_out() -> None:
    """It is known as the task's thread all the same, and shown once: faulthandler writes a hundred frames of each."""
    deep = '  File "/app/x.py", line 7 in dig\n' * 100 + "  ...\n"
    dump = f"Stack (most recent call first):\n{deep}Current thread 0x00007f184dfdcb80 (most recent call first):\n{deep}"
    (thread,) = _stacks.parse(dump.encode()).threads
    assert thread.title == "The task's thread"
    assert thread.frames == [Frame("", 0, "..."), *[Frame("/app/x.py", 7, "dig")] * 100]


def test_a_dump_may_be_anything() -> None:
    """It is written by a process that dies: cut off anywhere, and overwritten with anything, it is read without an error."""
    dice = random.Random(1)
    for whole in (ASKED.encode(), CRASHED.encode()):
        for _ in range(300):
            data = bytearray(whole[: dice.randrange(len(whole))])
            for _ in range(dice.randrange(20)):
                data[dice.randrange(len(data)) if data else 0 : 0] = bytes([dice.randrange(1, 256)])
            stacks = _stacks.parse(bytes(data))
            assert isinstance(stacks.text() + stacks.where(), str)
    assert _stacks.parse(b"").text() == ""


def _wait(entered: threading.Event, gate: threading.Event) -> None:
    entered.set()
    gate.wait(work.SOON)


def test_a_thread_that_runs_no_call_of_ours() -> None:
    """Nothing is said of it: it has ended, and another has its number."""
    entered, gate = threading.Event(), threading.Event()
    thread = threading.Thread(target=_wait, args=(entered, gate))
    thread.start()
    assert entered.wait(work.SOON)
    assert _stacks.of_thread(thread.ident or 0, "x") == Stacks([])
    gate.set()
    thread.join()
    assert _stacks.of_thread(thread.ident or 0, "x") == Stacks([])
