"""One retryable step each: a policy (retry, time-out, cache key) and one call into a room."""
