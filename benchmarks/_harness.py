"""How a figure is taken: rows register here, and `compare` measures one of them against one peer.

    for each repeat:   collect garbage ─► ours, one sample ─► collect garbage ─► peer, one sample
    then:              best (or median) of ours  against  best (or median) of the peer's

Guarantees:
    Both sides of a ratio run in one process, on the same work, with the same number of workers, in turns: what slows
    the machine slows both. The garbage collector is on for both and has nothing to do when either starts. A pool lives
    for one sample only, so nobody's idle threads stand beside another's run.
"""

from __future__ import annotations

import gc
import importlib
import statistics
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Callable, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

OURS = "parallel_exec"

STDLIB_THREADS = "ThreadPoolExecutor"
STDLIB_PROCESSES = "ProcessPoolExecutor"
STDLIB_POOL = "multiprocessing.Pool"
STDLIB_POOL_CHUNKS = "multiprocessing.Pool(chunks of 64)"

#: Peers that have to be installed: their name here is the module's; the value is what pip calls it.
DISTRIBUTIONS: Mapping[str, str] = {
    "pebble": "pebble",
    "loky": "loky",
    "deadpool": "deadpool-executor",
    "joblib": "joblib",
    "mpire": "mpire",
    "numpy": "numpy",
    "distributed": "distributed",
}

Kind = Literal["ratio", "difference", "absolute"]
Pick = Literal["best", "median"]


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        workers: threads or processes of each pool.
        repeat: samples of each side.
        quick: small sizes; shows that a row works, says nothing about speed.
    """

    workers: int = 2
    repeat: int = 5
    quick: bool = False

    def count(self, full: int, quick: int) -> int:
        """Return the size for this run."""
        return quick if self.quick else full


Sample = Callable[[str, Settings], float]


@dataclass(frozen=True)
class Row:
    """One row of the table of figures.

    Attributes:
        name: on the command line.
        what: what is measured, in words.
        goals: peer to the most the value may be; None for a peer that is shown but is no goal.
        sample: takes one sample of one side (`OURS` or a peer's name); returns it in `unit`.
        kind: the value is ours ÷ peer ("ratio"), ours − peer ("difference"), or ours alone ("absolute"); a goal has
            `unit` unless it is a ratio.
        unit: "s" for seconds, "B" for bytes.
        per: what one sample is counted for: "a task", or "" for the whole.
        pick: which of the samples counts.
        rounds: samples for each repeat, in a full run; more where one sample is short.
        needs: modules that both sides need.
        title: of its group in the chart; "" keeps it out.
    """

    name: str
    what: str
    goals: Mapping[str, float | None]
    sample: Sample
    kind: Kind = "ratio"
    unit: Literal["s", "B"] = "s"
    per: str = ""
    pick: Pick = "best"
    rounds: int = 1
    needs: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Measurement:
    """One line of the table: a row against one peer. Times in seconds, sizes in bytes.

    Attributes:
        ours, theirs: the figure of each side; `theirs` is None where the kind is "absolute".
        value: what the goal is held against.
        met: None where there is no goal.
        ours_samples, their_samples: every sample, in the order taken.
    """

    row: str
    peer: str
    what: str
    title: str
    kind: Kind
    unit: str
    per: str
    pick: Pick
    goal: float | None
    ours: float
    theirs: float | None
    value: float
    met: bool | None
    ours_samples: tuple[float, ...]
    their_samples: tuple[float, ...]


@dataclass(frozen=True)
class Unmeasured:
    """A line that has no figure.

    Attributes:
        reason: why, in one line.
        failed: something went wrong; otherwise it was passed over because something is not installed.
        detail: the traceback, or where each thread stood when the time was up.
    """

    row: str
    peer: str
    reason: str
    failed: bool
    detail: str = ""


@dataclass
class Registry:
    """All rows by name, in the order in which they registered.

    Filled while `benchmarks.rows` is imported, then only read.
    """

    rows: dict[str, Row] = field(default_factory=dict)

    def row(
        self,
        name: str,
        *,
        what: str,
        goals: Mapping[str, float | None],
        kind: Kind = "ratio",
        unit: Literal["s", "B"] = "s",
        per: str = "",
        pick: Pick = "best",
        rounds: int = 1,
        needs: tuple[str, ...] = (),
        title: str = "",
    ) -> Callable[[Sample], Sample]:
        """Register the decorated function as a row; the arguments are `Row`'s.

        Raises:
            ValueError: the name is taken.
        """

        def register(sample: Sample) -> Sample:
            if name in self.rows:
                raise ValueError(f"there is a row {name!r} already")
            self.rows[name] = Row(name, what, goals, sample, kind, unit, per, pick, rounds, needs, title)
            return sample

        return register

    def select(self, names: list[str], peers: list[str]) -> list[tuple[Row, str]]:
        """Return the comparisons that are asked for; no names, or no peers, means all.

        A name also stands for its group: "cpu" for "cpu-2ms" and "cpu-10ms".

        Raises:
            LookupError: a name or a peer is unknown.
        """
        known = {peer for row in self.rows.values() for peer in row.goals}
        for name in names:
            if not any(_matches(name, row) for row in self.rows):
                raise LookupError(f"there is no row {name!r}; the rows are {', '.join(self.rows)}")
        for peer in peers:
            if peer not in known:
                raise LookupError(f"there is no peer {peer!r}; the peers are {', '.join(sorted(known))}")
        return [
            (row, peer)
            for row in self.rows.values()
            if not names or any(_matches(name, row.name) for name in names)
            for peer in row.goals
            if not peers or peer in peers
        ]


def _matches(name: str, row: str) -> bool:
    """Tell whether `name` is the row or its group."""
    return row == name or row.startswith(name + "-")


REGISTRY = Registry()


def load_rows() -> Registry:
    """Import the rows, which registers them, and return the registry."""
    importlib.import_module("benchmarks.rows")
    return REGISTRY


def missing(row: Row, peer: str) -> str | None:
    """Return the distribution that this comparison needs and that is not installed, if there is one."""
    for module in (peer, *row.needs):
        if module in DISTRIBUTIONS and find_spec(module) is None:
            return DISTRIBUTIONS[module]
    return None


def compare(row: Row, peer: str, settings: Settings) -> Measurement:
    """Measure a row against one peer, in this process. Blocks for seconds to minutes."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(settings.repeat * settings.count(row.rounds, 1)):
        ours.append(_sample(row, OURS, settings))
        if row.kind != "absolute":
            theirs.append(_sample(row, peer, settings))
    return summarise(row, peer, ours, theirs)


def _sample(row: Row, side: str, settings: Settings) -> float:
    """Take one sample with the collector on and nothing for it to do."""
    gc.enable()
    gc.collect()
    return row.sample(side, settings)


def summarise(row: Row, peer: str, ours: list[float], theirs: list[float]) -> Measurement:
    """Make the line of the table from all samples."""
    pick = min if row.pick == "best" else statistics.median
    our_figure = float(pick(ours))
    their_figure = float(pick(theirs)) if theirs else None
    value = _value(row.kind, our_figure, their_figure)
    goal = row.goals[peer]
    return Measurement(
        row=row.name,
        peer=peer,
        what=row.what,
        title=row.title,
        kind=row.kind,
        unit=row.unit,
        per=row.per,
        pick=row.pick,
        goal=goal,
        ours=our_figure,
        theirs=their_figure,
        value=value,
        met=None if goal is None else value <= goal,
        ours_samples=tuple(ours),
        their_samples=tuple(theirs),
    )


def _value(kind: Kind, ours: float, theirs: float | None) -> float:
    """Return what the goal is held against."""
    if theirs is None:
        return ours
    return ours - theirs if kind == "difference" else ours / theirs
