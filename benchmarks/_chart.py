"""Draws the README's chart from a run's JSON: how much longer each peer takes for the same work. SVG, by hand.

Each group has a scale of its own. A bar is the peer's time over ours *in the run that compared the two*; so it is the
table's ratio turned round, not a quotient of figures that were taken minutes apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks._harness import OURS
from benchmarks._report import show

if TYPE_CHECKING:
    from collections.abc import Mapping

# Pixels.
WIDTH = 880
MARGIN = 24
GAP = 40  # between the columns
COLUMN = (WIDTH - 2 * MARGIN - GAP) // 2
LABEL = 136  # for the names, right-aligned before the bars
FIGURE = 92  # for the figures, after the longest bar
BAR = COLUMN - LABEL - FIGURE
LINE = 22  # of one bar
THICK = 13  # of the bar itself
HEAD = 26  # of a group's title
SPACE = 18  # between two groups
TOP = 64  # of the page's title
FOOT = 34

TITLE = "Time for the same work, shorter is better"

_STYLE = """
  text { font: 12px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a; }
  .title { font-size: 16px; font-weight: 600; fill: #1f2328; }
  .group { font-weight: 600; fill: #1f2328; }
  .name, .figure-ours, .figure { dominant-baseline: central; }
  .name { text-anchor: end; }
  .ours, .figure-ours { font-weight: 600; fill: #0b6e4f; }
  .peer { fill: #afb8c1; }
  .faster { fill: #d29922; }
  .axis { stroke: #d0d7de; }
  .foot { font-size: 11px; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; }
    .title, .group { fill: #f0f6fc; }
    .ours, .figure-ours { fill: #3fb68b; }
    .peer { fill: #484f58; }
    .axis { stroke: #3d444d; }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One bar: a name, times `parallel_exec`'s time, and what stands behind it."""

    name: str
    times: float
    figure: str


@dataclass(frozen=True)
class Group:
    """The bars of one row, ours first."""

    title: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        """Pixels, without the space to the next."""
        return HEAD + LINE * len(self.bars)


def groups(report: Mapping[str, Any]) -> list[Group]:
    """Return what the chart shows of a run: each row that has a title, with all peers it was measured against."""
    by_title: dict[str, list[Mapping[str, Any]]] = {}
    for line in report["measurements"]:
        if line["title"] and line["kind"] == "ratio":
            by_title.setdefault(line["title"], []).append(line)
    return [Group(title, _bars(lines)) for title, lines in by_title.items()]


def _bars(lines: list[Mapping[str, Any]]) -> tuple[Bar, ...]:
    """Return our bar and the peers', the nearest first."""
    ours = min(lines, key=lambda line: float(line["ours"]))
    figure = " ".join(filter(None, [show(ours["ours"], ours["unit"]), ours["per"]]))
    peers = sorted((Bar(line["peer"], 1 / line["value"], "") for line in lines), key=lambda bar: bar.times)
    return (Bar(OURS, 1.0, figure), *(Bar(bar.name, bar.times, f"{show_times(bar.times)} ×") for bar in peers))


def show_times(times: float) -> str:
    """Return a factor with two digits, or all that stand before the point."""
    if times >= 9.95:
        return f"{times:.0f}"
    return f"{times:.1f}" if times >= 0.95 else f"{times:.2f}"


def columns(found: list[Group]) -> tuple[list[tuple[int, Group]], list[tuple[int, Group]]]:
    """Put each group below the shorter column; return both as (top in pixels, group)."""
    placed: tuple[list[tuple[int, Group]], list[tuple[int, Group]]] = ([], [])
    bottoms = [TOP, TOP]
    for group in found:
        column = bottoms.index(min(bottoms))
        placed[column].append((bottoms[column], group))
        bottoms[column] += group.height + SPACE
    return placed


def draw(report: Mapping[str, Any]) -> str:
    """Return the chart of a run (what `_report.report` gives, or its JSON read back) as an SVG document."""
    placed = columns(groups(report))
    bottom = max([top + group.height for column in placed for top, group in column], default=TOP)
    height = bottom + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<title>{TITLE}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 10}">{TITLE}</text>',
    ]
    for number, column in enumerate(placed):
        left = MARGIN + number * (COLUMN + GAP)
        for top, group in column:
            parts += _draw_group(group, left, top)
    parts.append(f'<text class="foot" x="{MARGIN}" y="{height - 12}">{escape(footnote(report))}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _draw_group(group: Group, left: int, top: int) -> list[str]:
    """Return the elements of one group whose corner is at (left, top)."""
    longest = max([bar.times for bar in group.bars if math.isfinite(bar.times)], default=1.0)
    start = left + LABEL
    parts = [f'<text class="group" x="{left}" y="{top + 14}">{escape(group.title)}</text>']
    for number, bar in enumerate(group.bars):
        middle = top + HEAD + LINE * number + LINE / 2
        ours = bar.name == OURS
        kind = "ours" if ours else ("peer" if bar.times >= 1 else "faster")
        length = max(2.0, BAR * bar.times / longest)
        box = f'x="{start}" y="{middle - THICK / 2:g}" width="{length:.1f}" height="{THICK}" rx="2"'
        end = f'x="{start + length + 6:.1f}" y="{middle:g}"'
        parts += [
            f'<text class="name{" ours" if ours else ""}" x="{start - 8}" y="{middle:g}">{escape(bar.name)}</text>',
            f'<rect class="{kind}" {box}/>',
            f'<text class="figure{"-ours" if ours else ""}" {end}>{escape(bar.figure)}</text>',
        ]
    bottom = top + group.height
    parts.append(f'<line class="axis" x1="{start - 0.5}" y1="{top + HEAD}" x2="{start - 0.5}" y2="{bottom}"/>')
    return parts


def footnote(report: Mapping[str, Any]) -> str:
    """Say where the figures come from."""
    machine, settings = report["machine"], report["settings"]
    how = "small sizes, for show only" if settings["quick"] else f"in turns, best of {settings['repeat']}"
    return (
        f"{machine['implementation']} {machine['python']}, {machine['cores']} cores, {settings['workers']} workers "
        f"each, {machine['cpu']}; {how}; timeout and retries armed in {OURS}."
    )
