"""The scheduler: how tasks come in, begin, are retried and end.

    executor ─► Scheduler ─► Admission ─► Completion ─► Monitor      each holds the next; nothing calls up
                    │                         │             ├─ Gate            the executor's state (gate.py has its diagram)
                    │ SchedulerPort           │             ├─ ReadyQueue      jobs by priority; in `limits/` those that wait
                    ▼                         ▼             ├─ IdleConsumers   who waits for a job; one wake-up at a time
               what the runner asks        the Runner       ├─ Registry        unsettled, live, backing off; the counts
               (backends/base.py)          (backends/*)     └─ Callers         what the calling thread may wait for

The way of a task:

    submit ─► Admission.add ─► ReadyQueue ─► take ─► begin ─► (the call) ─► claim ─► settle ─► Completion.finish ─► result()
                                   ▲           │                                       │
                                   │           └─ requeue: taken, and never began      └─ Delay: backing off, in Timers
                                   └───────────────────────────────────────────────────────┘ due again, at its old place

What needs something of a limit is granted that as it is taken, and gives it back as its attempt ends: `limits/__init__.py`.

A run may have a journal (`journaling.py`): what that has from an earlier run ends by `Admission.add_restored`, or by
`Completion.resume` if it was staged, and is never taken.

A job's phase says where it is. It is changed by a method of `Job`, by whoever holds the monitor's lock; but a live attempt is
claimed without the lock, by the one thread whose `set.remove` succeeds, and that thread alone decides what follows.

    phase         where the job is                          who takes it further
    NEW           being added                               Admission.add → QUEUED, or DONE
    QUEUED        in ReadyQueue                             take → HANDED_OUT, begin_next → LIVE, cancel → DONE
    HANDED_OUT    a runner has it, nothing has begun        begin → LIVE, requeue → QUEUED, recall, reject → DONE
    LIVE          an attempt runs; in Registry.live         claim → SETTLING
    SETTLING      one thread says what follows              settle → BACKING_OFF, or DONE
    BACKING_OFF   in Registry.backing_off, with a timer     due → QUEUED, cancel → DONE
    DONE          the outcome is decided: whoever did that  finish: the future settles, the registry counts it
                  settles it

Locks, both re-entrant, as a signal handler or a finalizer may call anything at any point; no user code runs under either:
    `Monitor.lock`     all of the above; a runner may guard its own state by it
    `settling_lock`    the moment in which a future that nobody waits for settles; one that is waited for has a condition

An exception of a signal handler may tear any call apart. The phase is the truth then: `Completion.repair` brings the rest in
order by it, and repeats the wake-up that may be due.
"""
