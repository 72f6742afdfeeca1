"""Tests and intervals on plain numbers, without any notion of a run."""
