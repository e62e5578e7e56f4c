"""The journal of a run: what has ended is recorded in a SQLite file, and is not run again by a later run with that file.

    execute_all(journal=), stream(journal=), map --journal
        │ JournaledRun (run.py): opens the file, holds it, knows which keys are done
        ├── admit(job) ── done already ──► the job ends at once with what the journal has; it never reaches the queue
        │             └── not done ──────► it runs as ever, and carries its key (keys.py)
        ▼
    a job ends: Batch.leave, Window.leave ── note(job): no I/O ──► Recorder (recorder.py): a thread; every 0.2 s
                                                                       │ Codec.record (records.py): job ──► Record
                                                                       ▼
    Journal (../journal.py): results(), failed(), summary() ◄── Database (database.py): SQLite, and who holds the file

Guarantees:
    What was committed never runs again; after a kill at any instant at most the last 0.5 s of finished work runs again (more
    only if tasks end faster than they can be recorded, some 50,000 in a second), and the file can be read.
    One run at a time has the file; a holder that is dead never blocks.
    A journal never loses a result in memory, never hangs a run, and never makes one fail midway.
    Without `journal=` nothing here is imported.
"""
