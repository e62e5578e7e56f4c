"""`parallel_exec.config`: defaults as promised, and everything wrong refused at once, with what to write instead."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import inspect
import re
from typing import Any

import pytest
import tenacity

from parallel_exec import InlineBackend, ParallelConfig, ParallelExecutor, ProcessBackend, Task, ThreadBackend


def test_defaults() -> None:
    """The defaults are those of the documentation."""
    config = ParallelConfig()
    assert dataclasses.asdict(config) == {
        "max_concurrency": 5,
        "timeout": 30.0,
        "soft_timeout": None,
        "retry_count": 2,
        "backoff": 1.0,
        "max_backoff": 30.0,
        "jitter": True,
        "retry_on": (Exception,),
        "retry": None,
        "queue_size": 0,
        "backend": "thread",
        "on_event": None,
        "limits": None,
        "priority_ageing": None,
        "seed": None,
    }


def test_every_setting_is_keyword_only() -> None:
    """No setting can be confused with another by its place."""
    kinds = {parameter.kind for parameter in inspect.signature(ParallelConfig).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


def test_a_config_is_frozen() -> None:
    """A config cannot be changed once it was checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParallelConfig().timeout = 3.0  # type: ignore[misc]


def test_a_changed_copy() -> None:
    """`with_changes` returns a new, checked config."""
    config = ParallelConfig(timeout=5).with_changes(retry_count=7)
    assert (config.timeout, config.retry_count) == (5.0, 7)
    with pytest.raises(ValueError, match="retry_count"):
        config.with_changes(retry_count=-1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_concurrency", 0),
        ("max_concurrency", -1),
        ("timeout", 0),
        ("timeout", -0.5),
        ("timeout", float("nan")),
        ("retry_count", -1),
        ("backoff", -1),
        ("backoff", float("nan")),
        ("max_backoff", -1),
        ("queue_size", -1),
    ],
)
def test_a_value_out_of_range_is_refused(setting: str, value: Any) -> None:
    """A number that makes no sense is a `ValueError` that names the setting and the value."""
    with pytest.raises(ValueError, match=f"{setting} must be .*{value!r}"):
        ParallelConfig(**{setting: value})


@pytest.mark.parametrize("value", [None, -1])
def test_as_many_as_there_are_cpus(value: Any) -> None:
    """What other libraries take for that is told how it is written here."""
    with pytest.raises(
        (TypeError, ValueError), match=rf"max_concurrency .* not {value!r}: \"auto\" is one for each CPU"
    ):
        ParallelExecutor(max_concurrency=value)


@pytest.mark.parametrize("settings", [{"backoff": 60}, {"max_backoff": 0.5}, {"backoff": 3.0, "max_backoff": 2}])
def test_a_backoff_above_the_longest_is_refused(settings: Any) -> None:
    """The error names both, also the one that was not given, and says what to write."""
    shown = {"backoff": 1.0, "max_backoff": 30.0, **settings}
    words = (
        f"backoff={shown['backoff']:g} is more than max_backoff={shown['max_backoff']:g}, the most seconds between two "
        f"attempts: write max_backoff={shown['backoff']:g} as well, or a smaller backoff"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        ParallelConfig(**settings)
    ParallelConfig(backoff=60, max_backoff=60)


@pytest.mark.parametrize("way", ["options", "Task"])
def test_a_tasks_backoff_above_the_longest_is_refused(way: str) -> None:
    """A task's own is held against the executor's longest when it is added."""
    executor = ParallelExecutor(backend="inline", max_backoff=2)
    with pytest.raises(ValueError, match="backoff=3 is more than max_backoff=2"):
        executor.options(backoff=3) if way == "options" else executor.add_task(Task(print, backoff=3))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_concurrency", 2.5),
        ("max_concurrency", True),
        ("max_concurrency", "4"),
        ("max_concurrency", None),
        ("timeout", "30"),
        ("timeout", True),
        ("retry_count", None),
        ("backoff", "1"),
        ("backoff", None),
        ("max_backoff", None),
        ("jitter", "no"),
        ("retry_on", OSError()),
        ("retry_on", (OSError, "ValueError")),
        ("retry_on", int),
        ("retry_on", [OSError]),
        ("retry", 3),
        ("retry", tenacity.Retrying),
        ("queue_size", 1.5),
        ("on_event", "print"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(setting: str, value: Any) -> None:
    """A value of the wrong type is a `TypeError` that names the setting."""
    with pytest.raises(TypeError, match=setting):
        ParallelConfig(**{setting: value})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("max_concurency", "max_concurrency"), ("timeouts", "timeout"), ("retries_count", "retry_count")],
)
def test_a_misspelt_setting_is_refused(misspelt: str, meant: str) -> None:
    """A name that is none is a `TypeError` that offers the one meant."""
    with pytest.raises(TypeError, match=f"has no setting '{misspelt}': did you mean '{meant}'?"):
        ParallelExecutor(**{misspelt: 3})


def test_an_unknown_setting_is_refused() -> None:
    """A name like no other gets the list of all."""
    with pytest.raises(TypeError, match="the settings are max_concurrency, timeout, "):
        ParallelConfig(zzz=3)


@pytest.mark.parametrize(
    ("name", "hint"), [("threads", "did you mean 'thread'"), ("gpu", "'thread', 'process', 'inline'")]
)
def test_an_unknown_backend_is_refused(name: str, hint: str) -> None:
    """The name of a back end that does not exist gets a hint."""
    with pytest.raises(ValueError, match=hint):
        ParallelExecutor(backend=name)


@pytest.mark.parametrize("backend", [3, None, object])
def test_what_is_no_backend_is_refused(backend: Any) -> None:
    """The message says what may be given."""
    with pytest.raises(TypeError, match=r"backend takes one of .* not"):
        ParallelExecutor(backend=backend)


def test_a_class_of_backends_is_refused() -> None:
    """A class in place of its instance gets a hint."""
    from parallel_exec import ThreadBackend

    with pytest.raises(TypeError, match="make an instance of it"):
        ParallelExecutor(backend=ThreadBackend)


def test_a_config_in_place_of_settings_is_checked() -> None:
    """A number where the config goes, as with the stdlib's pools, gets a hint."""
    with pytest.raises(TypeError, match="max_concurrency=5"):
        ParallelExecutor(5)  # type: ignore[arg-type]


def test_settings_on_top_of_a_config() -> None:
    """Single settings override those of the config, which stays as it was."""
    config = ParallelConfig(max_concurrency=2)
    with ParallelExecutor(config, retry_count=0) as executor:
        assert (executor.config.max_concurrency, executor.config.retry_count) == (2, 0)
    assert config.retry_count == 2


def test_one_exception_type_will_do() -> None:
    """`retry_on` takes a single type, too."""
    assert ParallelConfig(retry_on=OSError).retry_on == (OSError,)


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("thraed", ValueError, "did you mean 'thread'"),
        (5, TypeError, "backend takes one of 'thread', 'process', 'inline'"),
        (None, TypeError, "not None"),
        (ThreadBackend, TypeError, "make an instance of it"),
        (concurrent.futures.ThreadPoolExecutor, TypeError, "make an instance of it"),
    ],
    ids=["misspelt", "number", "None", "class", "executor class"],
)
def test_a_wrong_backend_is_refused_by_the_config(backend: Any, error: type[Exception], message: str) -> None:
    """Not only once an executor is made with it."""
    with pytest.raises(error, match=re.escape(message)):
        ParallelConfig(backend=backend)


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
@pytest.mark.parametrize("initargs", [5, "ab", None])
def test_arguments_of_an_initializer_are_a_tuple(backend: Any, initargs: Any) -> None:
    """A bare argument is refused at once, with what to write."""
    with pytest.raises(TypeError, match=r"initargs takes a tuple of arguments, .* \(argument,\)"):
        backend(initializer=print, initargs=initargs)


@pytest.mark.parametrize("wrong", [0, True, "no"])
def test_a_sleep_that_is_none(wrong: Any) -> None:
    """What cannot be called is refused, with what to write."""
    with pytest.raises(TypeError, match=r"InlineBackend\(sleep=lambda seconds: None\) waits for nothing"):
        InlineBackend(sleep=wrong)


def test_a_sleep_of_asyncio() -> None:
    """A coroutine function would never sleep."""
    with pytest.raises(TypeError, match="sleep"):
        InlineBackend(sleep=asyncio.sleep)
