"""`--limit` and `--needs`: what may be written, and what is said of what may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from program import BACKENDS, read, results, run, started

from parallel_exec.cli.limits import read_limits, read_needs
from parallel_exec.cli.options import UsageError
from parallel_exec.limits import Adaptive, PerKey, Rate

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = read_limits(["api=10/s", "db=4", "gpu=0,1", "host=2/key"])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("4", 4),
        ("3.5", 3.5),
        ("10/s", Rate(10)),
        ("0.5/s", Rate(0.5)),
        ("90/min", Rate(90, per=60)),
        ("10/30s", Rate(10, per=30)),
        ("1/1.5h", Rate(1, per=5400)),
        ("5/100ms", Rate(5, per=0.1)),
        ("1000/day", Rate(1000, per=86400)),
        ("10/s,burst=20", Rate(10, burst=20)),
        ("0,1", ("0", "1")),
        ("0,", ("0",)),
        ("a,a", ("a", "a")),
        ("/dev/nvidia0,/dev/nvidia1", ("/dev/nvidia0", "/dev/nvidia1")),
        ("1..64", Adaptive(max=64)),
        ("..64", Adaptive(max=64)),
        ("4..64", Adaptive(min=4, max=64)),
        ("2/key", PerKey(2)),
        ("5/s/key", PerKey(Rate(5))),
        ("5/s,burst=5/key", PerKey(Rate(5, burst=5))),
        ("a,b/key", PerKey(["a", "b"])),
        ("1..8/key", PerKey(Adaptive(max=8))),
    ],
)
def test_what_a_limit_may_be(text: str, limit: Any) -> None:
    """Each kind of limit can be written."""
    assert read_limits([f"name={text}"]) == {"name": limit}


def test_a_limit_may_have_any_name() -> None:
    """What comes before the first equals sign is its name."""
    assert read_limits(["the db=4", "a=b=c,d"]) == {"the db": 4, "a": ("b=c", "d")}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("api", "--limit takes NAME=SPEC, such as api=10/s, db=4, gpu=0,1 or host=2/key, not 'api'"),
        ("=4", "--limit takes NAME=SPEC"),
        ("db=", "--limit db=: write a count as in db=4, a rate as in api=10/s"),
        ("db=many", "--limit db=many: write a count as in db=4, a rate as in api=10/s"),
        ("db=nan", "--limit db=nan: the limit must be a number above 0, and finite, not nan"),
        ("db=-1", "the limit must be a number above 0, and finite, not -1"),
        ("gpu=0", "a list of one slot is written with a comma, 0,"),
        ("gpu=0,,1", "an item of the list is empty"),
        ("gpu=,", "an item of the list is empty"),
        ("api=0/s", "--limit api=0/s: Rate's n must be a number above 0"),
        ("api=x/s", "'x' is no number"),
        ("api=10/0s", "Rate's per must be a number above 0"),
        ("api=10/1.2.3s", "'1.2.3' is no number"),
        ("api=10/", "there is no unit '': write N/s, N/min"),
        ("api=10/parsec", "there is no unit 'parsec'"),
        ("api=10/mins", "there is no unit 'mins'; did you mean 'min'?"),
        ("host=4/keys", "there is no unit 'keys'; did you mean 'key'?"),
        ("api=10/s,20", "after a rate comes burst=N: write 10/s,burst=5"),
        ("api=10/s,burst=0", "Rate's burst must be"),
        ("llm=64..2", "Adaptive's max must be at least its min, 64, not 2"),
        ("host=2/key/key", "PerKey takes a count, a Rate, a list or an Adaptive, not another PerKey"),
    ],
)
def test_what_a_limit_may_not_be(option: str, message: str) -> None:
    """What is no limit is refused, with what to write."""
    with pytest.raises(UsageError) as refused:
        read_limits([option])
    assert message in str(refused.value)


def test_a_name_has_one_limit() -> None:
    """A name that is given twice is refused, before the second limit hides the first."""
    with pytest.raises(UsageError, match="--limit db=5: there is a limit 'db' already"):
        read_limits(["db=4", "db=5"])


def needs_of(item: Any, option: str) -> Any:
    """Return what an item needs by an option, in which a callable returns the item itself."""
    name = option.partition("=")[0]
    needs = read_needs([option], {name: LIMITS[name]}, lambda name: lambda item: item)
    assert needs is not None
    return needs.of(item)


def test_what_an_item_needs() -> None:
    """A limit's name alone is 1 of it; a number is so much; a callable computes an amount, or a key, from the item."""
    assert needs_of("a", "db") == {"db": 1}
    assert needs_of("a", "db=2.5") == {"db": 2.5}
    assert needs_of("a", "host=m:f") == {"host": "a"}
    assert needs_of(3, "db=m:f") == {"db": 3}
    needs = read_needs(["gpu=2", "host=m:f", "api", "db=0.5"], LIMITS, lambda name: str.upper)
    assert needs is not None and needs.of("a") == {"gpu": 2, "host": "A", "api": 1, "db": 0.5}
    assert read_needs([], {}, lambda name: str) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hots"], "--needs hots: there is no limit 'hots'; did you mean 'host'?"),
        (["memory"], "--needs memory: there is no limit 'memory': add --limit memory=SPEC"),
        (["=2"], "--needs takes NAME or NAME=EXPR, with the NAME of a --limit, not '=2'"),
        (["db", "db=2"], "--needs db=2: what is needed of 'db' is said already"),
        (["db="], "--needs db=: write how much each item needs, a number, or MODULE:CALLABLE"),
        (["db=some"], "--needs db=some: write how much each item needs"),
        (["db=5"], "--needs db=5: needs['db'] is 5, and there is no more than 4 of 'db'"),
        (["db=0"], '--needs db=0: needs={"db": 0}: an amount must be more than 0'),
        (["db=nan"], '--needs db=nan: needs={"db": nan}: an amount must be more than 0'),
        (["gpu=1.5"], "--needs gpu=1.5: needs['gpu'] takes a whole number"),
        (["host"], "--needs host: a limit for each key needs the key: write --needs host=MODULE:CALLABLE"),
        (["host=example.com"], "a limit for each key needs the key: write --needs host=MODULE:CALLABLE"),
        (["db", "gpu", "host=m:f"], "--limit api=... limits nothing, as no item needs it: add --needs api"),
        (
            ["db", "gpu", "api"],
            "--limit host=... limits nothing, as no item needs it: add --needs host=MODULE:CALLABLE",
        ),
    ],
)
def test_what_cannot_be_needed(options: list[str], message: str) -> None:
    """What can never be granted is refused, with what to write."""
    with pytest.raises(UsageError) as refused:
        read_needs(options, LIMITS, lambda name: str)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("option", "item", "message"),
    [
        ("db=m:f", 9, "needs['db'] is 9, and there is no more than 4 of 'db'"),
        ("db=m:f", "a", "needs['db'] takes how much, a number, as that limit has no keys, not 'a'"),
        ("host=m:f", 1, "write str(1)"),
        ("host=m:f", None, 'needs={"host": None}: how much of a limit is a number, as 1 or 0.5, and which key is text'),
        ("host=m:f", ["a"], "needs={\"host\": ['a']}: a key must be hashable, as text or a tuple"),
    ],
)
def test_an_item_that_cannot_be_granted_what_it_needs(option: str, item: Any, message: str) -> None:
    """What is computed of an item is checked before anything is started for it."""
    with pytest.raises((TypeError, ValueError)) as refused:
        needs_of(item, option)
    assert message in str(refused.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rate_spaces_calls(workdir: Path, backend: str) -> None:
    """Calls that need a rate begin at that rate, in every back end."""
    process = run(
        "work:began", *"abcdef", "--limit", "api=5/s,burst=1", "--needs", "api", "--backend", backend, cwd=workdir
    )
    began = sorted(results(process).values())
    assert began[-1] - began[0] >= 0.3  # and not 1: the first may begin long after it was let in


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_are_told_to_the_calls(workdir: Path, backend: str) -> None:
    """A call that needs a slot is told which it has, as text."""
    items = [f"item-{number}" for number in range(12)]
    process = run("work:slot", *items, "--limit", "gpu=0,1", "--needs", "gpu", "--backend", backend, cwd=workdir)
    assert {slot for (slot,) in results(process).values()} == {"0", "1"}


@pytest.mark.parametrize("staged", [(), ("--priority", "work:length")])
def test_each_key_has_a_limit(workdir: Path, staged: tuple[str, ...]) -> None:
    """The key is computed from the item, whether all are read first or not."""
    items = [f"{host}/{page}" for page in range(6) for host in ("a", "b")]
    how = ("--limit", "host=1/key", "--needs", "host=work:host", "--retries", "0", "-j", "8", *staged)
    assert len(results(run("work:alone", *items, *how, cwd=workdir))) == 12


@pytest.mark.parametrize("staged", [(), ("--fail-fast",)])
def test_an_item_without_a_key_fails_by_itself(workdir: Path, staged: tuple[str, ...]) -> None:
    """What is wrong with an item's needs is told in its line, with where it stands; nothing is called with it."""
    how = ("--json", "--keep-order", "--limit", "db=3", "--needs", "db=work:length", *staged)
    process = run("work:double", '"a"', '"abcd"', "3", *how, cwd=workdir)
    assert process.returncode == 1
    fine, too_much, no_length = read(process.stdout)
    assert fine["success"] or staged
    assert too_much["error"] == (
        "ItemError: argument 2 cannot say what it needs: ValueError: needs['db'] is 4, and there is no more than 3 of 'db'"
    )
    assert no_length["error"].startswith(
        "ItemError: argument 3 cannot say what it needs: TypeError: object of type 'int'"
    )
    assert (too_much["attempts"], no_length["attempts"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "db"], "--limit takes NAME=SPEC, such as api=10/s, db=4, gpu=0,1 or host=2/key, not 'db'"),
        (["--limit", "api=0/s", "--needs", "api"], "--limit api=0/s: Rate's n must be a number above 0"),
        (["--limit", "db=4"], "--limit db=... limits nothing, as no item needs it: add --needs db"),
        (["--needs", "db"], "--needs db: there is no limit 'db': add --limit db=SPEC"),
        (["--limit", "db=4", "--needs", "db=work:lenght"], "did you mean 'length'?"),
        (["--limits", "db=4"], "there is no option --limits; did you mean '--limit'?"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(workdir: Path, options: list[str], message: str) -> None:
    """Wrong limits and needs end in exit status 2 and one message that says what to write."""
    process = run("work:touch", "a", *options, cwd=workdir)
    told = process.stderr.decode()
    assert process.returncode == 2
    assert message in told and told.startswith("parallel-exec: error: ") and told.count("\n") == 1
    assert not (workdir / "touched").exists()


def test_keys_that_wait_hold_back_no_others(workdir: Path) -> None:
    """However many items wait for one key, those behind them with another are read, and run."""
    many = [f"wait/{number}" for number in range(1500)]
    (workdir / "items.txt").write_text("\n".join([*many, "other/0"]))
    how = ("--file", "items.txt", "--limit", "host=1/key", "--needs", "host=work:host", "-j", "2")
    with started(workdir, "work:host_or_wait", *how) as process:
        assert read(process.stdout.readline())[0]["id"] == "other/0"
