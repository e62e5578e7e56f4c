"""Where threads are, as text that a person reads like a traceback.

    faulthandler's dump of a worker process ─► parse ─┐
    a thread of this process ─► of_thread ────────────┴─► Stacks ─► text(), where() ─► an error's `stack` and message

The lines of the source are looked up here, as tracebacks do; so they are those that the files have by now. The frames by which
we run a call are left out: the first frame is the call's own.

Guarantees:
    What cannot be understood of a dump is shown as it is, or left out: nothing here raises for what a dying process wrote.
    No code of the user's runs, and no frame, nor what its variables hold, is kept.
"""

from __future__ import annotations

import os
import re
from itertools import groupby

from parallel_exec._sync.threads import frame_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple, Sequence
else:
    from parallel_exec._typing import NamedTuple

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
# The modules of ours that run a call, or load it, in a process, and in a thread of this one; what calls them is a worker's loop.
_IN_PROCESS = tuple(
    os.path.join(_OURS, "backends", *names)
    for names in (("_outcomes.py",), ("process", "child", "map_runner.py"), ("process", "child", "main.py"))
)
_IN_THREAD = (os.path.join(_OURS, "backends", "_call.py"),)
_THREADING, _BOOTSTRAP = f"{_LIBRARY}threading.py", ("_bootstrap", "_bootstrap_inner", "run")  # how each thread begins
_TASKS_THREAD = "The task's thread"
_MOST_REPEATS = 3  # times that a frame is shown which calls itself, as in tracebacks
_MOST_BINARIES = 12  # frames of C code that are shown, the innermost ones; a guess

_HEADER = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):")
_ALONE = re.compile(
    r"Stack \(most recent call first\):\n((?:  .*\n)*)"
)  # of the thread that got the signal; amid all, maybe
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_BINARY = re.compile(r'  Binary file "(.*?)"(?:, at ([^+\s]*)\+?\S*)?')
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")  # how a dump has what is not ASCII


class WorkerStack(Exception):  # noqa: N818  # it is no error
    """Where the threads of a worker were, as text: the cause of an error that knows, so that it is printed with that."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


class Frame(NamedTuple):
    """A call under way: where it is in the source, and in which function. Without a file it is a remark of the dump's."""

    file: str
    line: int
    function: str


class Thread(NamedTuple):
    """A thread: what it is called, and its frames, the outermost first."""

    title: str
    frames: list[Frame]


class Stacks(NamedTuple):
    """The threads of a process.

    Attributes:
        threads: the one that matters is the last.
        headline: what the process died of, in the interpreter's words; "" if it was asked for a dump.
        binaries: the C code that the last thread was in, the outermost first, if that is known.
        call: the name of what was called, which is shown if that has no line of Python.
    """

    threads: list[Thread]
    headline: str = ""
    binaries: Sequence[str] = ()
    call: str = ""

    def text(self) -> str:
        """Return all of it as text, the last call last; "" if nothing is known."""
        parts = [_text_of(thread, self.call or "the call itself") for thread in self.threads]
        if self.binaries:
            parts.append("\n".join(["C code (most recent call last):", *(f"  {each}" for each in self.binaries)]))
        if self.headline:
            parts.insert(0, self.headline)
        return "\n\n".join(parts)

    def where(self) -> str:
        """Return the place that says most of the last thread: the innermost line of the user's; "" if there is none."""
        frames = self.threads[-1].frames if self.threads else []
        if self.threads and not frames and self.call:
            return f"{self.call} (C code)"
        known = [frame for frame in frames if frame.file and not frame.file.startswith((_OURS, "<frozen "))]
        own = [frame for frame in known if _is_users(frame.file)]
        if not known:
            return ""
        innermost = (own or known)[-1]
        return f"{_shortened(innermost.file)}:{innermost.line} in {innermost.function}"


def _is_users(file: str) -> bool:
    """Return whether a file is neither the standard library's nor an installed package's."""
    return not file.startswith(_LIBRARY) and not any(folder in file for folder in _INSTALLED)


def _shortened(file: str) -> str:
    """Return a path from the current folder, if it is in there."""
    try:
        here = os.getcwd() + os.sep
    except OSError:  # it is gone
        return file
    return file.removeprefix(here)


def _text_of(thread: Thread, call: str) -> str:
    lines = [f"{thread.title} (most recent call last):"]
    for frame, group in groupby(thread.frames):
        times = len(list(group))
        lines += _lines_of(frame) * min(times, _MOST_REPEATS)
        if times > _MOST_REPEATS:
            rest = times - _MOST_REPEATS
            lines.append(
                f"  [Previous line repeated {rest} more time{'s' if rest > 1 else ''}]"
            )  # as tracebacks say it
    if not thread.frames:
        lines.append(f"  {call} (C code, without a line of Python)")
    return "\n".join(lines)


def _lines_of(frame: Frame) -> list[str]:
    if not frame.file:
        return [f"  {frame.function}"]
    source = _source_of(frame)
    return [f'  File "{frame.file}", line {frame.line}, in {frame.function}', *([f"    {source}"] if source else [])]


def _source_of(frame: Frame) -> str:
    """Return a line of the source; "" if there is none, or it cannot be read: it is no text, or the name is none of a file's."""
    import linecache

    try:
        linecache.checkcache(frame.file)
        return linecache.getline(frame.file, frame.line).strip()
    except Exception:
        return ""


# ── a thread of this process ────────────────────────────────────────────────────────────────────────────────────────


def of_thread(ident: int, name: str) -> Stacks:
    """Return where a thread of this process is; nothing if it has ended, or is not in a call that we run."""
    frame = frame_of(ident)
    frames: list[Frame] = []
    while frame is not None:
        frames.append(Frame(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name))
        frame = frame.f_back
    frames.reverse()
    own = _without_ours(frames, _IN_THREAD, first=True)  # a call may run others, by another executor
    return Stacks([Thread(f"Thread {name!r}", own)]) if len(own) < len(frames) else Stacks([])


def _without_ours(frames: list[Frame], runners: Sequence[str], *, first: bool = False) -> list[Frame]:
    """Return the frames of the call alone, if it is one that we run: what follows the last frame of a runner's, or the first."""
    places = [place for place, frame in enumerate(frames) if frame.file in runners]
    if not places:
        return frames
    place = places[0 if first else -1]
    while place < len(frames) and frames[place].file.startswith(_OURS):
        place += 1
    return frames[place:]


# ── a process that has died ─────────────────────────────────────────────────────────────────────────────────────────


def parse(dump: bytes) -> Stacks:
    """Return what `faulthandler` has written: all threads, and perhaps, amid that, one of them by itself.

    Last is the thread that crashed, or else that of the task.
    """
    text = dump.decode("utf-8", "replace")
    alone = _ALONE.search(text)
    threads, headline, binaries = _parse_all(_ALONE.sub("", text))
    current = next((thread for thread in threads if thread.title.startswith("Current")), None)
    tasks = [thread for thread in threads if _is_tasks(thread)]
    if headline and current is not None:
        last: Thread | None = current
    elif alone is not None and alone[1]:  # the main thread, which was sent the other signal as well
        last = Thread(_TASKS_THREAD, [_frame(line) for line in alone[1].splitlines()])
        threads = [thread for thread in threads if thread is not current and thread not in tasks]
    else:
        last = next(iter(tasks or threads), None)
    others = [thread for thread in threads if thread is not last]
    return Stacks([_read(thread) for thread in (*others, last) if thread is not None], headline, _shown(binaries))


def _parse_all(text: str) -> tuple[list[Thread], str, list[str]]:
    """Return the threads of a dump, what the process died of, and the lines about C code."""
    threads: list[Thread] = []
    headline = ""
    binaries: list[str] = []
    for line in text.splitlines():
        header = _HEADER.fullmatch(line)
        if header is not None:
            threads.append(Thread(_title(header), []))
        elif line.startswith("Fatal Python error: "):
            headline = headline or line
        elif line.startswith("  Binary file "):
            binaries.append(line)
        elif line.startswith("  ") and threads:
            threads[-1].frames.append(_frame(line))
    return threads, headline, binaries


def _is_tasks(thread: Thread) -> bool:
    """Return whether a thread of a dump runs the task."""
    return any(frame.file in _IN_PROCESS for frame in thread.frames)


def _title(header: re.Match[str]) -> str:
    """Return what a thread is called: by its name, where the dump has that, and that of the process is not its name."""
    return f"{header[1]} {header[3]!r}" if header[3] and header[1] == "Thread" else f"{header[1]} {header[2]}"


def _frame(line: str) -> Frame:
    found = _FRAME.fullmatch(line)
    if found is None:
        return Frame("", 0, line.strip())
    file, number, function = found.groups()
    return Frame(_plain(file), int(number) if number.isdecimal() else 0, _plain(function))


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: found[0].encode().decode("unicode_escape"), text)


def _read(thread: Thread) -> Thread:
    """Return a thread of a dump, which has its frames the other way round."""
    title = _TASKS_THREAD if _is_tasks(thread) else thread.title.replace("Current thread", "Thread")
    frames = _without_ours(thread.frames[::-1], _IN_PROCESS)
    while len(frames) > 1 and frames[0].function in _BOOTSTRAP and frames[0].file == _THREADING:
        del frames[0]
    return Thread(title, frames)


def _shown(lines: list[str]) -> list[str]:
    """Return the C code that is of use, the outermost first: not the interpreter's own."""
    shown: list[str] = []
    for line in lines:
        found = _BINARY.match(line)
        if found is not None and not os.path.basename(found[1]).startswith(("python", "libpython")):
            place = f"{found[1]}: {found[2]}" if found[2] else found[1]
            if place not in shown[-1:]:
                shown.append(place)
    return shown[:_MOST_BINARIES][::-1]
