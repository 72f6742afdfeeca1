"""Tests and intervals on plain numbers; nothing here knows what a run is."""
