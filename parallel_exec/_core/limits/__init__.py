"""Limits: what tasks need beside a worker, and wait for without one.

specs (`parallel_exec/limits.py`) ─► kinds (`kinds.py`, `adaptive.py`): what counts, one of each limit's
Task(needs=) ─► Needs (`needs.py`): what a task needs of which limits
"""
