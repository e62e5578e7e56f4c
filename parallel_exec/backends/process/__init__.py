"""Worker processes: each has its own pipes and permits, and one thread in the parent serves them all.

    ProcessBackend                what the user chose                               backend.py
        │ start
        ▼
    ProcessPool                   takes jobs, hands them out, takes them back       pool.py
        ├─► IoLoop                the thread, and the files that it waits for       io_loop.py
        ├─► Supervisor            workers from their start to their end             supervisor.py
        │      └─► Launcher       starts them: in threads, by `multiprocessing`     launcher.py, spawn.py, start_method.py
        │                         by way of a fork server that is kept up to date   fork_server.py, preload.py, inherited.py
        ├─► Prefetch              how much is sent ahead, and what is taken back    prefetch.py
        ├─► Assignments           which worker has which job                        assignments.py
        │      └─► WorkerHandle   one worker: its state, its permits, its files     worker_handle.py, worker_files.py
        └─► Receiver              what workers say: attempts began and ended        receiver.py
               ▲        │
        frames │        │ batches  calls, pickled, and how all of it is laid out    payload.py, wire.py, segments.py
               │        ▼
    a worker process              a permit, the call, its frame; the next           child/

Tiny tasks go over in batches, so that a worker need not wait for the parent between two. A worker acquires a permit before
it begins a call, and the parent takes permits back for what has not begun: when another worker is idle, when something of
higher priority comes, when a task is cancelled, or when a batch turns out to be stuck behind a long task.

Guarantees:
    Workers share nothing: no lock, no queue, no pipe. Killing one touches only the task it was running; what it had
    finished counts, what it had not begun goes back uncharged.

Imports nothing, as a worker imports this package before its own loop.
"""
