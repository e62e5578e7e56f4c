"""What to run: `python -m pytest tests/fuzz --seeds 1000 --first 5000 --kind thread`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from random_program import KINDS
from set_up import close_pools, pool_of

if TYPE_CHECKING:
    from typing import Iterator

SEEDS = {
    "thread": 40,
    "engine": 40,
    "inline": 30,
    "process": 20,
    "pool": 15,
}  # unless told otherwise; some ten seconds of a processor in all, and under two minutes on a machine with much else to do


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, which are known where this folder is named on the command line."""
    group = parser.getgroup("fuzz", "random programs")
    group.addoption("--seeds", type=int, default=None, help="how many programs of each kind")
    group.addoption("--first", type=int, default=0, help="the first seed")
    group.addoption("--kind", action="append", choices=KINDS, help="only this kind; may be given more than once")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each seed."""
    if "seed" in metafunc.fixturenames:
        option = metafunc.config.getoption
        first = int(option("--first", 0) or 0)
        seeds = option("--seeds", None)
        cases = [
            (kind, seed)
            for kind in option("--kind", None) or KINDS
            for seed in range(first, first + (SEEDS[kind] if seeds is None else seeds))
        ]
        metafunc.parametrize(("fuzzed", "seed"), cases)


@pytest.fixture(scope="session")
def pools(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the pools that programs run over started before any test looks at what there is."""
    if any("pool-" in item.name for item in request.session.items):
        for size in (1, 2):
            pool_of(size)
    yield
    close_pools()
