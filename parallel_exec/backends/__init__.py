"""Where attempts run: threads, processes, the calling thread, any `concurrent.futures.Executor`, a dask cluster."""
