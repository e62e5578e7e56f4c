"""Attempts in the engines of others: any `concurrent.futures.Executor`, a dask cluster."""
