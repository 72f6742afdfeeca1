"""A table of runs: its cells, the published numbers beside them, and its formats."""
