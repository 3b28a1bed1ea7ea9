"""Adapters on disk: save, load, verify, merge."""
