"""Limits: what tasks need beside a slot, and wait for without one.

    limits=, executor.limits ─► specs (`parallel_exec/limits.py`) ─► kinds (`kind.py`, `kinds.py`, `rate.py`, `adaptive.py`)
    Task(needs=) ─► Named (`_needs.py`) ─► Needs (`needs.py`): the same, checked against the limits there are

    ReadyQueue ─► Limits ─► Lines ─┬─► Line   the jobs that need the same of the same limits: a heap
    (tokens)      (limits.py:      ├─► Place  where lines wait for one limit, or one key of it: a heap of lines
     ▲             one change      └─► Limit  its name, its spec, and the kind that counts what is held of it
     └─────────────at a time)
                                       Grant  what one attempt holds (grant.py), on its job until it is given back

The way of a job that needs something:

    ReadyQueue.push ─► its line ─► the first job of it can have what it needs? ─ no ─► the line waits at a place
                                      │ yes                                               │ a release, time, a change
                                      ▼                                                   ▼
                          a token in the heap of what is ready ◄──────────────────────────┘
                                      │ pop: the job is granted all it needs, now, or its line waits again
                                      ▼
                          job.grant ─► the attempt ─► its end: given back (`_core/grants.py` says where)

An executor without limits has none of this, and imports none of it.

Guarantees:
    What is held never exceeds a limit: what a job needs is taken, all or nothing, as it leaves the queue, and is given back once:
    as the attempt ends, before anybody hears of that who could wait for the same; or as it goes back to the queue; or, of an
    attempt that goes on though it was settled, when its call has ended.
    Nothing waits that could run: `lines.py` has the invariant. At one limit the highest priority goes first, equals in the order
    they were added, and nothing overtakes what is first: not even what would fit. What needs nothing never waits there.
    All is guarded by the executor's lock. A signal handler or a finalizer may come in the middle of any change and begin
    another: that is put off until the first is done (`Limits`). An exception of a handler that tears a change apart is
    followed by `ReadyQueue.repair`: what is held is counted anew from the grants of all jobs that have not ended, and all that
    waits is put in anew.
    Time that lets something in has one timer for all limits of an executor; in the caller's thread it is waited for there.
"""
