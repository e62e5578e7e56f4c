"""Files as a kill in the middle of a commit leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path

from parallel_exec import Journal
from parallel_exec._journal.database import Database
from parallel_exec._journal.records import SUCCEEDED, Record

PAGE = 4096  # bytes


def test_killed_amid_a_checkpoint(tmp_path: Path) -> None:
    """A file that has the first of its new pages from the log, and says that it has the others too, is read and gone on with."""
    journal, cut = tmp_path / "run.db", tmp_path / "cut.db"
    database = Database.open(str(journal), write=True)
    database.begin_run("", is_encoded=False)
    database.write([Record(f"{n}", b"k" * 16, SUCCEEDED, b"N.", None, '"w"', 1.0, 0.0, 0.0) for n in range(500)])
    shutil.copy(journal, cut)
    shutil.copy(f"{journal}-wal", f"{cut}-wal")
    database.close()
    assert journal.stat().st_size > cut.stat().st_size
    with journal.open("rb") as whole, cut.open("r+b") as file:
        file.write(whole.read(PAGE))

    assert len(Journal(cut).results()) == 500
    again = Database.open(str(cut), write=True)
    assert again.find("499") is not None
    again.close()
