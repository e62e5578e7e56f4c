"""What a program is that the fuzzer runs, and how one is made of a seed.

    Program ─► threads, each a row of Steps ─► Plans, the tasks that a step gives ─► Acts, one for each attempt
       └─► hooks: steps that an event sets off            └─► steps of done callbacks    └─► steps within the task

All of it is data: it prints as lines that can be read, and becomes shorter by leaving parts out (`shortening.py`). Every field
but a name has a default, which is what a part is once it was left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

KINDS = ("thread", "process", "engine", "inline", "pool")  # the last is an engine, too: a process pool of the stdlib's
IN_THIS_PROCESS = ("thread", "engine", "inline")
ENGINES = ("engine", "pool")
FOREVER = 60.0  # seconds of what only a kill or the program's end cuts short
SHORT = 1.0  # seconds; a timeout below that may strike anywhere on a busy machine


def _words(value: Any) -> str:
    """Return the fields that are not at their defaults, as `name=value`."""
    given = [(each.name, getattr(value, each.name), each.default) for each in fields(value)]
    return ", ".join(f"{name}={_text(found)}" for name, found, default in given[1:] if found not in (default, (), {}))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{'; '.join(map(_text, value))}]"
    return str(value)


@dataclass(frozen=True)
class Act:
    """What one attempt does: its steps, then it takes some seconds, then it ends in some way."""

    how: str = "return"
    seconds: float = 0.0
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        words = _words(self)
        return f"{self.how}({words})" if words else self.how


@dataclass(frozen=True)
class Plan:
    """A task: what each of its attempts does (the last act is repeated), its settings, and what its callbacks do."""

    name: str
    acts: tuple[Act, ...] = ()
    priority: int = 0
    timeout: float = 0.0  # 0: the executor's
    soft_timeout: float = 0.0  # the same
    retry_count: int = -1  # -1: the executor's
    needs: dict[str, Any] = field(default_factory=dict)
    on_done: tuple[tuple[Step, ...], ...] = ()  # the steps of each callback
    shares: str = ""  # the name of what it gets that is shared

    def __str__(self) -> str:
        return f"{self.name}({_words(self)})"

    def act(self, attempt: int) -> Act:
        """Return what an attempt does, by its number."""
        return self.acts[min(attempt, len(self.acts)) - 1] if self.acts else Act()


@dataclass(frozen=True)
class Step:
    """One call of the public interface; what a step does not use it ignores."""

    do: str
    plans: tuple[Plan, ...] = ()
    target: str = ""  # a task's name, or a limit's
    seconds: float = 0.0  # 0: no limit
    number: int = 0
    flag: bool = False
    flag2: bool = False
    spec: Any = None

    def __str__(self) -> str:
        return f"{self.do}({_words(self)})"


@dataclass(frozen=True)
class Hook:
    """Steps that the event hook does when an event of this name comes for the n-th time."""

    event: str
    number: int = 0
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return f"on {self.event} {self.number}: {_text(self.steps)}"


@dataclass(frozen=True)
class Program:
    """A whole program."""

    kind: str
    threads: tuple[tuple[Step, ...], ...] = ()
    hooks: tuple[Hook, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    backend: dict[str, Any] = field(default_factory=dict)
    listens: bool = False
    forgets: bool = False  # whether all futures are dropped before the shutdown, and with them all calls must be gone
    drops: bool = False  # whether the executor is dropped in the end, and not shut down
    journal: bool = False  # whether runs and streams have one, with which all tasks are given once more in the end
    hurries: bool = False  # whether threads take turns as often as they can
    alone: bool = (
        False  # whether it runs in an interpreter of its own, in the main thread, and may fork and be interrupted
    )
    interrupt: float = 0.0  # seconds after which Ctrl-C comes; 0: never

    def __str__(self) -> str:
        names = ("backend", "listens", "forgets", "drops", "journal", "hurries", "alone", "interrupt")
        rest = {each: getattr(self, each) for each in names}
        lines = [f"{self.kind}: {self.settings} { ({name: value for name, value in rest.items() if value}) }"]
        lines += [f"  {hook}" for hook in self.hooks]
        for number, steps in enumerate(self.threads, 1):
            lines += [f"  thread {number}:", *(f"    {step}" for step in steps)]
        return "\n".join(lines)

    def plans(self) -> list[Plan]:
        """Return all tasks that any step gives."""
        return [plan for step in self.steps() for plan in step.plans]

    def is_softened(self) -> bool:
        """Return whether a soft timeout may come at any point of a call."""
        return "soft_timeout" in self.settings or any(plan.soft_timeout for plan in self.plans())

    def steps(self) -> list[Step]:
        """Return all steps, those within tasks, callbacks and hooks among them."""
        found: list[Step] = []
        rows = [*self.threads, *(hook.steps for hook in self.hooks)]
        while rows:
            for step in rows.pop():
                found.append(step)
                for plan in step.plans:
                    rows += [*plan.on_done, *(act.steps for act in plan.acts)]
        return found


def generate(kind: str, seed: int) -> Program:
    """Return the program of a seed."""
    return _Author(kind, random.Random(f"{kind} {seed}")).program()


_RATE = "Rate(1000)"
_SPECS: dict[str, tuple[Any, ...]] = {
    "db": (1, 2, 3),
    "mem": (2.0, 4.0),
    "gpu": (["a", "b"], ["b", "c", "d"], ["a", "b", "c"]),
    "host": ("PerKey(1)", "PerKey(2)"),
    "api": (_RATE, "Rate(200, burst=2)", "Rate(40, burst=1)", "Rate(2, per=0.02, burst=3)"),
    "llm": ("Adaptive(max=3)", "Adaptive(max=2, initial=1)"),
}
_NEEDS: dict[str, tuple[Any, ...]] = {
    "db": (1, 1, 1, 2),
    "mem": (0.5, 1, 2.0),
    "gpu": (1, 1, 2),
    "host": ("x", "y", "z"),
    "api": (1,),
    "llm": (1,),
}


class _Author:
    """Writes one program."""

    def __init__(self, kind: str, chance: random.Random) -> None:
        self.kind = kind
        self.chance = chance
        self.limits: list[str] = []
        self.names: list[str] = []
        self.is_slow = kind in ("process", "pool")
        self.unit = 0.02 if self.is_slow else 0.003  # seconds of what takes a moment
        self.crashes = kind == "process" and self.odds(0.6)
        self.alone = self.odds(0.04) and kind != "pool"
        self.softens = self.odds(0.15)
        self.journal = self.odds(0.12)
        self.stages = self.journal and self.odds(0.6)  # whether nothing starts but by a run or a stream
        self.shares = self.odds(0.2) and not self.journal

    def odds(self, share: float) -> bool:
        """Return True in this share of cases."""
        return self.chance.random() < share

    def program(self) -> Program:
        """Return a program."""
        chance = self.chance
        settings = self.settings()
        count = 1 if self.alone or self.kind == "inline" else chance.choice([1, 1, 2, 2, 3])
        length = chance.choice([2, 5, 9, 14]) if self.is_slow else chance.choice([3, 8, 15, 25])
        threads = tuple(
            tuple(self.step(0) for _ in range(chance.randint(1, max(1, length // count)))) for _ in range(count)
        )
        if self.shares:
            threads = ((Step("share", target="s1"), Step("share", target="s2"), *threads[0]), *threads[1:])
        listens = self.odds(0.35)
        hooks = tuple(self.hook() for _ in range(chance.choice([0, 1, 2]))) if listens else ()
        return Program(
            kind=self.kind,
            threads=threads,
            hooks=hooks,
            settings=settings,
            backend=self.backend(),
            listens=listens,
            forgets=self.odds(0.15),
            drops=self.odds(0.12),
            journal=self.journal,
            hurries=self.odds(0.4),
            alone=self.alone,
            interrupt=chance.uniform(0.001, 0.05) if self.alone and self.odds(0.7) else 0.0,
        )

    def settings(self) -> dict[str, Any]:
        """Return the executor's settings."""
        chance = self.chance
        tight = (0.15, 0.3) if self.is_slow else (0.01, 0.03)
        found: dict[str, Any] = {
            "max_concurrency": chance.choice([1, 2, 2, 3] if self.is_slow else [1, 1, 2, 3, 4]),
            "timeout": chance.choice([None, None, 20.0, 20.0, chance.choice(tight)]),
            "retry_count": chance.choice([0, 1, 2]),
            "backoff": chance.choice([0.0, 0.0, 0.002, 0.01]),
        }
        if self.odds(0.1):
            found["seed"] = chance.randint(0, 9)
        if self.softens and self.odds(0.4) and found["timeout"] in (None, 20.0):
            found["soft_timeout"] = chance.choice(tight)
        if self.odds(0.12):
            found["queue_size"] = chance.randint(1, 6)
        if self.odds(0.3):
            self.limits = chance.sample(sorted(_SPECS), chance.randint(1, 3))
            found["limits"] = {name: chance.choice(_SPECS[name]) for name in self.limits}
            if self.odds(0.3):
                found["priority_ageing"] = chance.choice([0.001, 0.01])
        if self.odds(0.1):
            found["retry"] = chance.choice(["stop 2", "stop 3, rejects"])
        return found

    def backend(self) -> dict[str, Any]:
        """Return the back end's settings."""
        chance = self.chance
        if self.kind in ENGINES:
            return {"size": chance.choice([1, 2, 3, 4] if self.kind == "engine" else [1, 2])}
        found: dict[str, Any] = {}
        if self.kind not in ("thread", "process"):
            return found
        if self.odds(0.25):
            found["finalizer"] = True
        if self.odds(0.2):
            found["idle_timeout"] = chance.choice([0.0001, 0.003, 0.03])
            found["min_workers"] = chance.choice([0, 0, 1])
        if self.kind == "thread" and self.odds(0.08):
            found["max_abandoned"] = chance.choice([0, 1, 2])
        if self.kind == "process":
            found.update(self.care())
        return found

    def care(self) -> dict[str, Any]:
        """Return settings that only processes have."""
        chance = self.chance
        found: dict[str, Any] = {}
        if self.odds(0.25):
            found["max_tasks_per_child"] = chance.choice([1, 2, 5])
        if self.odds(0.15):
            found["mp_context"] = chance.choice(["spawn", "fork", "fork"])
        if self.odds(0.25):
            found["capture_output"] = True
        if self.odds(0.05):
            found["max_memory_per_child"] = 1  # each task is too much
        return found

    def hook(self) -> Hook:
        """Return what an event sets off."""
        events = ("TaskQueued", "TaskStarted", "TaskRetrying", "TaskFinished", "TaskTimedOut", "TaskCancelled")
        return Hook(self.chance.choice(events), self.chance.choice([1, 1, 2, 4]), (self.step(1),))

    def plan(self, depth: int, via: str) -> Plan:
        """Return a task; `depth` says how deep in others' steps it is given, `via` by which step."""
        chance = self.chance
        name = f"t{len(self.names) + 1}"
        self.names.append(name)
        plain = via == "map"
        acts = [self.act(2 if plain else depth) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
        if plain and self.odds(0.7):
            acts = []
        on_done: list[tuple[Step, ...]] = []
        if not plain and self.odds(0.2) and depth < 2:
            on_done = [(self.step(depth + 1),) for _ in range(chance.choice([1, 1, 2]))]
        tight = chance.choice((0.1, 0.3) if self.is_slow else (0.005, 0.02))
        return Plan(
            name,
            tuple(acts),
            priority=0 if plain else chance.choice([0, 0, 0, 1, 2, -1]),
            timeout=0.0 if plain else chance.choice([0.0] * 8 + [tight, 20.0]),
            soft_timeout=0.0 if plain or not self.softens else chance.choice([0.0, 0.0, tight]),
            retry_count=-1 if plain else chance.choice([-1, -1, -1, 0, 2]),
            needs={} if plain else self.needs(),
            on_done=tuple(on_done),
            shares=chance.choice(["", "s1", "s2"]) if self.shares and not plain else "",
        )

    def needs(self) -> dict[str, Any]:
        """Return what a task needs of the limits."""
        return {name: self.chance.choice(_NEEDS[name]) for name in self.limits if self.odds(0.4)}

    def act(self, depth: int) -> Act:
        """Return what an attempt does."""
        chance = self.chance
        hows = ["return"] * 24 + ["raise"] * 6 + ["retry after"] * 2 + ["hang", "sys.exit", "until cancelled"]
        if self.kind != "inline":
            hows += ["interrupt"]
        if self.is_slow:
            hows += ["unpicklable"]
        if self.softens:
            hows += ["save"] * 5
        if self.crashes:
            hows += ["os._exit", "kill", "kill"]
        how = chance.choice(hows)
        seconds = chance.choice([0.0, 0.0, 0.0, self.unit, 3 * self.unit])
        steps: tuple[Step, ...] = ()
        if not self.is_slow and depth < 2 and self.odds(0.15):
            steps = tuple(self.step(depth + 1) for _ in range(chance.choice([1, 1, 2])))
        return Act(how, seconds, steps)

    def target(self) -> str:
        """Return the name of a task, given before or later."""
        return self.chance.choice(self.names[-6:]) if self.names else "t1"

    def step(self, depth: int) -> Step:
        """Return a step; within a task, a callback or a hook if `depth` is not 0."""
        chance = self.chance
        steps = ["submit"] * 10 + ["wait"] * 3 + ["cancel"] * 3 + ["abort"] * 3 + ["resume"] * 2 + ["sleep"] * 2
        steps += ["pause", "resize", "resize", "stats", "results", "queue", "clear", "dequeue", "running"]
        steps += ["abort_all"] if self.odds(0.5) else []
        steps += ["share", "share", "unshare"] if self.shares else []
        steps += ["add"] if depth else ["add"] * 5 + ["execute_all"] * 3 + ["map"] * 2 + ["stream"] * 2
        steps += ["map", "stream"]
        steps += ["result", "result"] if depth else []
        if self.limits:
            steps += ["limit"] * 2
        if self.odds(0.25):
            steps += ["shutdown"]
        if self.alone and depth == 0:
            steps += ["fork"] * 4
        do = chance.choice(steps)
        if self.stages and do in ("submit", "map"):
            do = "add"
        return getattr(self, f"_{do}", self._other)(do, depth)

    def _other(self, do: str, depth: int) -> Step:
        chance = self.chance
        moment = chance.choice([0.0, self.unit, 4 * self.unit])
        return {
            "submit": lambda: Step("submit", (self.plan(depth, "submit"),)),
            "add": lambda: Step("add", (self.plan(depth, "add"),)),
            "wait": lambda: Step("wait", target=self.target(), seconds=10 * self.unit),
            "result": lambda: Step("result", target=self.target()),
            "sleep": lambda: Step("sleep", seconds=moment or self.unit / 10),
            "resize": lambda: Step("resize", number=chance.randint(1, 4)),
            "share": lambda: Step("share", target=chance.choice(["s1", "s2"])),
            "unshare": lambda: Step("unshare", target=chance.choice(["s1", "s2"]), flag=self.odds(0.6)),
            "fork": lambda: Step("fork", target=chance.choice(["submit", "result", "shutdown", "drop", "exit"])),
        }.get(do, lambda: Step(do, target=self.target() if do in ("cancel", "abort") else ""))()

    def _map(self, do: str, depth: int) -> Step:
        chance = self.chance
        count = chance.choice([1, 3, 10]) if depth else chance.choice([1, 3, 8, 20])
        plans = tuple(self.plan(2, "map") for _ in range(min(count, 8) if self.is_slow else count))
        return Step(
            do,
            plans,
            number=chance.choice([0, 0, 1]) and chance.randint(1, count),  # how many are taken; 0: all
            seconds=chance.choice([0.0, 0.0, 0.0, 4 * self.unit, 4 * self.unit if depth else 20.0]),
            spec={
                "chunksize": chance.choice([1, 1, 2, 3]),
                "lazy": self.odds(0.4),
                "buffersize": chance.choice([None, None, 2]),
            },
        )

    def _stream(self, do: str, depth: int) -> Step:
        chance = self.chance
        count = chance.choice([1, 3, 6] if depth or self.is_slow else [1, 3, 10, 20])
        plans = tuple(self.plan(2, "stream") for _ in range(count))
        taken = chance.choice([0, 0, 1, 2]) and chance.randint(1, count)
        return Step(do, plans, number=taken, flag=self.odds(0.4), spec={"window": chance.choice([None, 1, 2, 5])})

    def _execute_all(self, do: str, depth: int) -> Step:
        deadline = self.chance.choice([0.0, 0.0, 0.0, 20.0, 2 * self.unit, 10 * self.unit])
        return Step(do, seconds=deadline, flag=self.odds(0.2), flag2=self.odds(0.3))

    def _shutdown(self, do: str, depth: int) -> Step:
        return Step(do, flag=self.odds(0.5), flag2=self.odds(0.5))

    def _limit(self, do: str, depth: int) -> Step:
        name = self.chance.choice(self.limits)
        return Step(do, target=name, spec=self.chance.choice(_SPECS[name]))
