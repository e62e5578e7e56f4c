"""Worker processes: each has its own pipes and permits, and one thread in the parent serves them all.

    ProcessBackend                what the user chose                               backend.py
        │ start
        ▼
    ProcessPool                   takes jobs, hands them out, takes them back       pool.py
        ├─► IoLoop                the thread, and the files that it waits for       io_loop.py
        ├─► Supervisor            workers from their start to their end             supervisor.py
        │      └─► Launcher       starts them: in threads,                          launcher.py, spawn.py, start_method.py
        │                         by a fork server that is kept up to date,         fork_server.py, inherited.py
        │                         which has what is tracked read,                   resource_tracker.py
        │                         or by `multiprocessing`                           mp_process.py, semaphore.py
        │                         and says what they have in their environment      environment.py
        ├─► IdleWorkers           which have had nothing to do for too long         idle_workers.py
        ├─► Prefetch              how much is sent ahead, and what is taken back    prefetch.py
        ├─► Assignments           which worker has which job                        assignments.py
        │      └─► WorkerHandle   one worker: its state, its permits, its files     worker_handle.py, worker_files.py
        │                         its process, the calls that it has                worker_process.py, assigned.py
        ├─► Releases              what was shared and is gone: workers forget it    releases.py, ../_contents.py
        ├─► Deaths                what one died of, and where it was                deaths.py, oom.py
        └─► Receiver              what workers say: attempts began and ended        receiver.py
               ▲        │
        frames │        │ batches  calls, pickled, and how all of it is laid out    payload.py, wire.py, segments.py, repeats.py
               │        ▼
    a worker process              a permit, the call, its frame; the next           child/

The threads of the parent, and what each of them does here:

    any caller        pickles the call; sends it to a worker that has nothing to do, if nothing else waits (accept), or wakes
                      the I/O thread; takes back what has not begun, or has a worker killed (stop)
    I/O thread        everything else: one for a pool, started by the first task
    starting threads  one for the fork server, with the first call; one for each worker that is being started, which hands it
                      to the I/O thread through a queue
    clock             a worker's timer: its start, or an attempt, takes too long; has it killed, or kills it if it was asked where
                      it is and has not died of that

A turn of the I/O thread (`ProcessPool._turn`), after which it sleeps until a file is ready or something is due:

    poll journals that are due ─► watch workers that were started ─► retire those that are idle for too long ─► rebalance
        ─► give back what was taken back ─► retire workers beyond the limit ─► take and hand out ─► start workers for what is left

The way of a call, and what proves where it is:

    parent   take ─► serial number, `assigned` ─► one permit ─► batch, task pipe                   frame ─► begin, report
    worker                                   permit acquired ─► journal: runs ─► call ─► journal: frame ─► result pipe

    A permit that the parent gets back proves that the last of `assigned` has not begun and never will: it is taken back when
    another worker is idle, when something of higher priority comes, when a task is cancelled or a worker killed, and when
    the call waits behind one that takes long. Tiny calls go over in batches, so that no worker waits for the parent.
    A call that was granted something of the executor's limits goes alone to a worker that has nothing else to do, so that it
    holds that no longer than it runs; what it has travels with it.
    The journal is memory that both see: it says what runs, since when, and how the calls before it ended, also when the
    worker is silent, or dead. What comes both by it and through the pipe counts once. Behind it a worker that crashes, or is
    killed as its time is up, writes where its threads are (`child/last_words.py`).

    A worker that finds after a call that it has too much memory says so (OUTGROWN), and begins nothing more: the parent takes
    back all that it has, and tells it to end. One that was told to end calls the user's finalizer, and ends.

The states of a worker (`worker_handle.py` says in which of them it is sent tasks):

    STARTING ─► READY ◄─► DRAINING ─► CLOSING ─► DEAD      a process ends from any of them; what it had not begun goes back

Guarantees:
    Workers share nothing: no lock, no queue, no pipe. Killing one touches only the task it was running; what it had
    finished counts, what it had not begun goes back uncharged.

Imports nothing, as a worker imports this package before its own loop.
"""
