"""Scores, metrics, thresholds and plots."""
