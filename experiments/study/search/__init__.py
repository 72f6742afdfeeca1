"""A search over the recipes' grids, and its tables."""
