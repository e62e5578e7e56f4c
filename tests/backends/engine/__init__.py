"""Tests of engines: other people's executors and dask clusters; what they run in fresh processes is in `dask_tasks.py`."""
