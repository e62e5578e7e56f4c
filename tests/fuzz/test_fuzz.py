"""Random programs over the public interface: whatever is called in whatever order, the guarantees hold."""

from __future__ import annotations

import pytest
from alone import check
from random_program import generate
from shortening import shorten

SHORTENING = 40.0  # seconds for making a program that breaks something shorter
HANGS = 3.0  # seconds that a shorter one may hang


@pytest.mark.usefixtures("pools")
@pytest.mark.timeout(150)
def test_a_random_program(fuzzed: str, seed: int) -> None:
    """The program of this seed breaks no guarantee; if it does, this says which, and shows the shortest one that does."""
    program = generate(fuzzed, seed)
    found = check(program)
    if not found:
        return
    shortest = shorten(program, lambda each: bool(check(each, HANGS)), SHORTENING, tries=3)
    again = "".join(f"\n  {what}" for what in check(shortest, HANGS))
    words = "".join(f"\n  {what}" for what in found)
    pytest.fail(
        f"seed {seed} of {fuzzed} broke:{words}\n\nthe program:\n{program}\n\nshortened:\n{shortest}\n"
        f"which breaks, this time:{again or ' nothing'}",
        pytrace=False,
    )
