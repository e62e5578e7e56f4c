"""Tests of the process engine, by theme; what they run in the workers is in work.py."""
