"""Every row of the benchmarks runs, and what is made of the figures is right. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # at the end: an installed parallel_exec goes before the tree's

from benchmarks import __main__ as command  # noqa: E402  # needs the path
from benchmarks import _chart, _harness, _isolate, _report  # noqa: E402  # needs the path
from benchmarks._harness import OURS, Measurement, Registry, Row, Settings, Unmeasured  # noqa: E402  # needs the path

ROWS = list(_harness.load_rows().rows)


def run_benchmarks(*arguments: str, module: str = "benchmarks") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command_line = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command_line, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=55, check=False
    )


def a_row(kind: _harness.Kind = "ratio", goal: float | None = 0.5, log: list[str] | None = None) -> Row:
    """Return a row whose samples are 1 for ours and 4 for the peer, and that logs whose turn it was."""

    def sample(side: str, run: Settings) -> float:
        if log is not None:
            log.append(side)
        return 1.0 if side == OURS else 4.0

    return Row("a-row", "what it is", {"a peer": goal}, sample, kind, title="A <row>")


def a_measurement(ours: float = 1.0, theirs: float = 4.0, kind: _harness.Kind = "ratio") -> Measurement:
    """Return the line of `a_row` for two figures."""
    return _harness.summarise(a_row(kind), "a peer", [ours], [] if kind == "absolute" else [theirs])


def a_report(*lines: _isolate.Line) -> dict[str, object]:
    """Return the report of a run, as its JSON gives it back."""
    report: dict[str, object] = json.loads(json.dumps(_report.report(lines, Settings())))
    return report


@pytest.mark.parametrize("name", ROWS)
def test_row_runs(name: str, tmp_path: Path) -> None:
    """Each row runs in small against every peer that is installed."""
    file = tmp_path / "out.json"
    done = run_benchmarks("--quick", "--here", "--workers", "2", "--row", name, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    lines = [*report["measurements"], *report["unmeasured"]]
    assert {line["peer"] for line in lines if line["row"] == name} == set(_harness.REGISTRY.rows[name].goals)


def test_scale_runs() -> None:
    """The table of sizes has a line for each way and size."""
    done = run_benchmarks("--quick", module="benchmarks.scale")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        [way, size] for way in ("execute_all", "stream") for size in ("100", "1,000")
    ]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it reads /proc")
def test_soak_runs() -> None:
    """A soak of a moment ends, and says whether anything has grown."""
    done = run_benchmarks("--minutes", "0.01", "--calls", "20", module="benchmarks.soak")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "grown" in done.stdout.splitlines()[-1]


def test_chart_is_drawn_from_a_run_of_its_own(tmp_path: Path) -> None:
    """The command measures in a child, writes the JSON, and draws the chart from it later."""
    file, chart = tmp_path / "out.json", tmp_path / "out.svg"
    done = run_benchmarks("--quick", "--row", "threads-submit", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    drawn = run_benchmarks("--from", str(file), "--svg", str(chart))
    assert drawn.stdout == done.stdout
    assert OURS in chart.read_text(encoding="utf-8")


def test_list_names_every_row_without_measuring() -> None:
    """`--list` names all rows."""
    listed = run_benchmarks("--list")
    assert listed.returncode == 0, listed.stderr
    assert [line for line in listed.stdout.splitlines() if not line.startswith(" ")] == ROWS


def test_unknown_row_is_a_usage_error() -> None:
    """A row that does not exist is named, with those that do."""
    done = run_benchmarks("--row", "no-such-row")
    assert done.returncode == 2
    assert "no-such-row" in done.stderr
    assert "threads-submit" in done.stderr


def test_sides_take_turns() -> None:
    """Ours and the peer are sampled in turns, as often as asked."""
    log: list[str] = []
    line = _harness.compare(a_row(log=log), "a peer", Settings(repeat=3))
    assert log == [OURS, "a peer"] * 3
    assert (line.ours_samples, line.their_samples) == ((1.0,) * 3, (4.0,) * 3)


def test_absolute_row_has_no_peer_to_sample() -> None:
    """A row that is held against a limit samples ours alone."""
    log: list[str] = []
    line = _harness.compare(a_row("absolute", log=log), "a peer", Settings(repeat=2))
    assert log == [OURS, OURS]
    assert line.theirs is None


@pytest.mark.parametrize(
    ("how", "value", "met"), [("ratio", 0.25, True), ("difference", -3.0, True), ("absolute", 1.0, False)]
)
def test_value_of_each_kind(how: _harness.Kind, value: float, met: bool) -> None:
    """The goal is held against the quotient, the difference, or our figure."""
    line = a_measurement(kind=how)
    assert (line.value, line.met) == (value, met)


def test_goal_is_met_at_its_limit_and_missing_goal_is_neither() -> None:
    """A value that equals its goal meets it; a peer without a goal is shown only."""
    assert a_measurement(2.0, 4.0).met is True
    assert _harness.summarise(a_row(goal=None), "a peer", [1.0], [4.0]).met is None


def test_best_and_median() -> None:
    """The best sample counts, or the median where the row says so."""
    best = a_row()
    median = Row("b", "", {"a peer": 1.0}, best.sample, pick="median")
    samples = [3.0, 1.0, 8.0]
    assert _harness.summarise(best, "a peer", samples, samples).ours == 1.0
    assert _harness.summarise(median, "a peer", samples, samples).ours == 3.0


def test_select_by_row_group_and_peer() -> None:
    """A name picks a row or its group; a peer picks the rows that have it."""
    registry = _harness.load_rows()
    assert {row.name for row, _ in registry.select(["cpu"], [])} == {"cpu-2ms", "cpu-10ms"}
    assert [(row.name, peer) for row, peer in registry.select([], ["pebble"])] == [("process-submit", "pebble")]
    with pytest.raises(LookupError, match="no peer 'nobody'"):
        registry.select([], ["nobody"])


def test_row_name_is_taken_once() -> None:
    """Two rows cannot share a name."""
    registry = Registry()
    register = registry.row("same", what="", goals={})
    register(a_row().sample)
    with pytest.raises(ValueError, match="same"):
        register(a_row().sample)


def test_missing_peer_is_named_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not installed costs its line, names the pip command, and is no failure."""
    monkeypatch.setattr(_harness, "find_spec", lambda name: None)
    row = _harness.load_rows().rows["process-submit"]
    for line in (_isolate.measure(row, "deadpool", Settings(), 1.0), _isolate.measure_here(row, "pebble", Settings())):
        assert isinstance(line, Unmeasured)
        assert not line.failed
        assert "pip install" in _report.table([line])


def test_child_that_fails_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child said last becomes the line's reason."""
    monkeypatch.setattr(_isolate, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('what went wrong')"])
    line = _isolate.measure(a_row(), "a peer", Settings(), 30.0)
    assert isinstance(line, Unmeasured)
    assert line.failed
    assert "what went wrong" in line.reason


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that does not end is killed, and the run goes on."""
    monkeypatch.setattr(_isolate, "_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(_isolate, "GRACE", 0.1)
    line = _isolate.measure(a_row(), "a peer", Settings(), 0.1)
    assert isinstance(line, Unmeasured)
    assert "not done after 0.1 s" in line.reason


def test_failure_in_this_process_is_a_line_too() -> None:
    """With `--here` an exception keeps its traceback and ends one comparison."""

    def fails(side: str, run: Settings) -> float:
        raise OSError("the disk is full")

    line = _isolate.measure_here(Row("a-row", "", {"a peer": 1.0}, fails), "a peer", Settings())
    assert isinstance(line, Unmeasured)
    assert "the disk is full" in line.reason


def test_table() -> None:
    """The table shows each side, the value, the goal and whether it is met; below it, what has no figure."""
    slow = a_measurement(0.012, 0.004)
    text = _report.table([a_measurement(), slow, Unmeasured("b-row", "b", "not installed", failed=False)])
    _, _, met, not_met, passed_over = text.splitlines()
    assert met.split() == ["a-row", "1", "s", "a", "peer", "4", "s", "0.250", "≤", "0.50", "met"]
    assert not_met.split() == ["a-row", "12", "ms", "a", "peer", "4", "ms", "3.00", "≤", "0.50", "NOT", "MET"]
    assert passed_over == "passed over: b-row against b: not installed"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123, "s", "12.3 ms"),
        (18.2e-6, "s", "18.2 µs"),
        (5e-10, "s", "0.5 ns"),
        (0.0, "s", "0 ns"),
        (999.9, "s", "1000 s"),
        (812.0, "B", "812 B"),
        (1234.0, "B", "1.23 kB"),
        (250e6, "B", "250 MB"),
    ],
)
def test_show(value: float, unit: str, text: str) -> None:
    """Figures have three digits and a unit that suits them."""
    assert _report.show(value, unit) == text


def test_json_round_trip() -> None:
    """A report's lines come back from its JSON as they were, with machine and versions beside them."""
    lines: list[_isolate.Line] = [a_measurement(), Unmeasured("b-row", "b", "not installed", failed=False)]
    report = a_report(*lines)
    assert _report.lines_of(report) == lines
    assert report["schema"] == _report.SCHEMA
    assert set(report) >= {"machine", "versions", "settings", "taken_at"}


def test_full_run_alone_overwrites_the_published_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json, half a run, a quick run or a failed one writes nothing; a full run writes both files."""
    monkeypatch.setattr(command, "JSON_FILE", tmp_path / "results.json")
    monkeypatch.setattr(command, "SVG_FILE", tmp_path / "chart.svg")
    registry = Registry({"a-row": a_row()})
    for arguments in (["--quick"], ["--row", "a-row"], ["--peer", "a peer"]):
        assert command.measure_all(command.parser().parse_args(["--here", *arguments]), registry) == 0
        assert not list(tmp_path.iterdir())
    assert command.measure_all(command.parser().parse_args(["--here"]), registry) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chart.svg", "results.json"]
    assert "a-row" in capsys.readouterr().out


def test_chart_is_well_formed_and_scaled() -> None:
    """The chart is XML with one bar a side, whose lengths are as the times."""
    root = ET.fromstring(_chart.draw(a_report(a_measurement())))
    bars = [float(rect.attrib["width"]) for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars == [pytest.approx(_chart.BAR / 4, abs=0.1), pytest.approx(_chart.BAR, abs=0.1)]
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "A <row>" in texts
    assert "4.0 ×" in texts


def test_chart_shows_a_faster_peer_as_such() -> None:
    """A peer that is faster than ours is drawn shorter, in a colour of its own."""
    drawn = _chart.draw(a_report(a_measurement(4.0, 1.0)))
    assert '<rect class="faster"' in drawn
    assert "0.25 ×" in drawn


def test_chart_of_nothing_is_still_a_chart() -> None:
    """A run without ratios draws an empty chart rather than failing."""
    ET.fromstring(_chart.draw(a_report(a_measurement(kind="absolute"))))


def test_columns_are_balanced() -> None:
    """Each group goes below the shorter column."""
    bar = _chart.Bar("x", 1.0, "")
    groups = [_chart.Group(str(number), (bar,) * bars) for number, bars in enumerate((6, 2, 2))]
    left, right = _chart.columns(groups)
    assert [group.title for _, group in left] == ["0"]
    assert [group.title for _, group in right] == ["1", "2"]


def test_lines_are_plain_data() -> None:
    """What a child sends back is what `from_json` rebuilds."""
    line = a_measurement()
    assert _isolate.from_json(json.loads(json.dumps(asdict(line)))) == line
