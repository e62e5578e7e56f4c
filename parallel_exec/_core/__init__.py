"""The scheduler: how tasks come in, begin, are retried and end."""
