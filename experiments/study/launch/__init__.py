"""Runs side by side: slots, workers, the pool, and the same over Ray."""
