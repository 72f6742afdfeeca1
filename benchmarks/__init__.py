"""Timings; each prints ratios measured in one process and can write them as JSON."""
