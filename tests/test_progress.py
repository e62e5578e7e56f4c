"""The bar of a run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from parallel_exec import ParallelExecutor, Task
from parallel_exec.progress import progress_bar


def test_a_bar_tells_how_far_the_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar's last state says how many are done, of how many, and how many failed."""
    pytest.importorskip("tqdm")
    with progress_bar(2) as bar:
        bar.update_to(1, 2, 0)
        bar.update_to(2, 4, 1)  # tasks were added during the run
        bar.update_to(4, 4, 1)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in shown
    assert "4/4" in shown
    assert "1 failed" in shown


def test_a_bar_of_unknown_length_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a total the bar counts."""
    pytest.importorskip("tqdm")
    with progress_bar(0) as bar:
        bar.update_to(3, 0, 0)
    assert "3 tasks [" in capsys.readouterr().err


def test_a_bar_leaves_nothing_behind() -> None:
    """A bar starts no thread and no tracker process, and leaves multiprocessing's start method open."""
    pytest.importorskip("tqdm")
    script = """if True:
        import multiprocessing, threading
        from multiprocessing import resource_tracker
        from parallel_exec.progress import progress_bar
        with progress_bar(1) as bar:
            with bar.hidden():
                pass
            bar.update_to(1, 1, 0)
        assert threading.active_count() == 1, threading.enumerate()
        assert resource_tracker._resource_tracker._pid is None
        assert multiprocessing.get_start_method(allow_none=True) is None
    """
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True)


def test_a_missing_tqdm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says which command installs it."""
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "parallel_exec\[progress\]"'), progress_bar(1):
        pass


def test_execute_all_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """`execute_all(progress=True)` draws on standard error, and ends with all tasks done."""
    pytest.importorskip("tqdm")
    with ParallelExecutor(retry_count=0) as executor:
        for number in range(5):
            executor.add_task(Task(dict, id=str(number)))
        executor.add_task(Task(lambda: 1 // 0, id="fails"))
        executor.execute_all(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6/6" in shown.err.split("\r")[-1]
    assert "1 failed" in shown.err.split("\r")[-1]
