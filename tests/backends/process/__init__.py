"""Tests of the process back end, by theme; what they run in the workers is in `work.py` and in `*_tasks.py` here."""
