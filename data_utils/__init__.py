"""Text to arrays to scores: task definitions, canonical files, token caches, batches, metrics."""
