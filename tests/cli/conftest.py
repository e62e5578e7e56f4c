"""Fixtures for the tests of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from program import WORK

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A directory with a module of callables."""
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path
