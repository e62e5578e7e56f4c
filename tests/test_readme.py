"""The README is the manual, so all that it shows is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

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


@pytest.mark.parametrize("fence", fences("python"), ids=by_line)
def test_python_runs(fence: Fence, tmp_path: Path) -> None:
    """Each example runs as a script, with warnings as errors and nothing on standard error."""
    (tmp_path / "example.py").write_text(fence.code, encoding="utf-8")
    way = [sys.executable, "-W", "error", "example.py"]
    done = subprocess.run(way, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_first_example_says_something(tmp_path: Path) -> None:
    """The opening example is short, and prints a line for each file of the folder it runs in."""
    first = fences("python")[0]
    assert first.code.count("\n") <= 12
    (tmp_path / "example.py").write_text(first.code, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("1 +\n")
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=here, capture_output=True, text=True, check=True
    )
    good, bad = sorted(line for line in done.stdout.splitlines() if ".py " in line)
    assert good.startswith("example.py __pycache__")
    assert bad.startswith("wrong.py ")
    assert "SyntaxError" in done.stdout


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
    marks = set(re.findall(r"\[(\d\w)\](?!:)", table))
    links = dict(re.findall(r'^\[(\d\w)\]: \S*?(tests/\S+\.py)\S* "', table, re.MULTILINE))
    names = dict(re.findall(r'^\[(\d\w)\]: \S+ "(\w+)"$', table, re.MULTILINE))
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
