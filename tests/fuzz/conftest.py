"""What to run: `python -m pytest tests/fuzz --seeds 1000 --first 5000 --kind thread`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from random_program import KINDS
from set_up import close_pools, pool_of

if TYPE_CHECKING:
    from typing import Iterator

SEEDS = {
    "thread": 60,
    "engine": 60,
    "inline": 40,
    "process": 30,
    "pool": 20,
}  # unless told otherwise; some twenty seconds in all


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
