"""Files of runs: written whole, with digests, under a lock; what is not as it was written is refused."""
