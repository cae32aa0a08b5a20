"""Runs every fenced command of the README and of docs/ in a fresh clone: ``python -m tests.readme``."""
