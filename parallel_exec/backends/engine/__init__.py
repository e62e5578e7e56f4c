"""Attempts in somebody else's engine: any `concurrent.futures.Executor`, a dask cluster.

ExecutorBackend, DaskBackend                 what the user chose (`executor.py`, `dask.py`)
    │ start
    ▼
EngineRunner ── submit, cancel, recall ──► ExecutorEngine, DaskEngine        (`adapter.py`: what differs)
    │  ▲                                        │
    │  │ run_here: in a thread of this process ◄┤
    │  │                                        ▼ in another process
    │  └── it began, it ended ◄──────────── run_call, run_on_worker          (`remote_call.py`, `dask_worker.py`)
    │         StartListener ◄── StartNotifier                                (`start_signal.py`)
    ├─ tiny calls go in groups (`grouping.py`):
    │      CallGroup ──► run_group, and a GroupJournal       (`call_group.py`, `remote_group.py`, `group_journal.py`)
    │      AttemptGroup ──► run_on_worker                                      (`dask_group.py`)
    ├─ Submission: one attempt's state, and the slot that it holds           (`submission.py`)
    ├─ KeptGrants: what abandoned ones hold of the executor's limits         (`kept_grants.py`)
    └─ feeder and settler, two SerialThreads                                 (`serial_thread.py`)
"""
