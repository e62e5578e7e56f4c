"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _chart, _report
from benchmarks._harness import Registry, Row, Settings, Unmeasured, load_rows
from benchmarks._isolate import Line, child_main, measure, measure_here

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
JSON_FILE = HERE / "results.json"
SVG_FILE = HERE / "chart.svg"

_EPILOG = """
A full run (no --row, --peer, --quick) writes results.json and chart.svg into the folder of the benchmarks, unless told
where; any other run writes only what --json and --svg ask for. Each ratio comes from one process: ours and the peer in
turns, on the same work, best of --repeat. A peer that is not installed is named and passed over.
The exit code is 0 when everything ran, whether or not a goal is met, and 1 when something failed.
"""


def positive(text: str) -> int:
    """Return `text` as a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure parallel_exec.", epilog=_EPILOG)
    add = parser.add_argument
    add("--list", action="store_true", help="show the rows with their peers and goals, and end")
    add("--row", action="append", default=[], metavar="NAME", help="only this row, or group of rows; repeatable")
    add("--peer", action="append", default=[], metavar="NAME", help="only against this peer; repeatable")
    add("--quick", action="store_true", help="small sizes: shows that all rows work, says nothing about speed")
    add("--repeat", type=positive, metavar="N", help="samples of each side (default: 5, with --quick 1)")
    add("--workers", type=positive, default=cores, metavar="N", help=f"of each pool (default: the cores, {cores} here)")
    add("--json", type=Path, metavar="FILE", help="write every sample, with machine and versions")
    add("--svg", type=Path, metavar="FILE", help="draw the chart")
    add("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: take the JSON of an earlier run")
    add("--limit", type=float, default=900.0, metavar="SECONDS", help="for one comparison (default: 900)")
    add("--here", action="store_true", help="measure in this process instead of one a comparison; for profilers")
    add("--child", nargs=2, help=argparse.SUPPRESS)
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """Return how this run measures."""
    return Settings(workers=args.workers, repeat=args.repeat or (1 if args.quick else 5), quick=args.quick)


def run(chosen: Sequence[tuple[Row, str]], settings: Settings, args: argparse.Namespace) -> list[Line]:
    """Measure all comparisons, saying on stderr which is under way. What was done before a Ctrl-C is kept."""
    lines: list[Line] = []
    try:
        for number, (row, peer) in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {row.name} against {peer} ...", file=sys.stderr, flush=True)
            one = measure_here(row, peer, settings) if args.here else measure(row, peer, settings, args.limit)
            lines.append(one)
            if isinstance(one, Unmeasured) and one.failed:
                print(one.detail, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        lines += [Unmeasured(row.name, peer, "interrupted", True) for row, peer in chosen[len(lines) :]]
    return lines


def write(report: dict[str, Any], json_file: Path | None, svg_file: Path | None) -> None:
    """Write the files that were asked for."""
    if json_file:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if svg_file:
        svg_file.write_text(_chart.draw(report), encoding="utf-8")
    for file in filter(None, [json_file, svg_file]):
        print(f"wrote {file}", file=sys.stderr)


def measure_all(args: argparse.Namespace, registry: Registry) -> int:
    """Measure what is asked for, print the table, write the files, and return the exit code."""
    settings = settings_of(args)
    lines = run(registry.select(args.row, args.peer), settings, args)
    print(_report.table(lines))
    full = not (args.row or args.peer or args.quick)
    failed = any(isinstance(line, Unmeasured) and line.failed for line in lines)
    keep = full and not failed  # the README's figures are not overwritten by half a run
    write(
        _report.report(lines, settings),
        args.json or (JSON_FILE if keep else None),
        args.svg or (SVG_FILE if keep else None),
    )
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parse = parser()
    args = parse.parse_args(argv)
    if args.source:
        report = json.loads(args.source.read_text(encoding="utf-8"))
        print(_report.table(_report.lines_of(report)))
        write(report, args.json, args.svg)
        return 0
    registry = load_rows()
    if args.list:
        print(_report.listing(list(registry.rows.values())))
        return 0
    if args.child:
        name, peer = args.child
        return child_main(registry.rows[name], peer, settings_of(args), args.limit)
    try:
        return measure_all(args, registry)
    except LookupError as error:
        parse.error(str(error.args[0]))


if __name__ == "__main__":
    sys.exit(main())
