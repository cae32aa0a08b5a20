"""Shard sets on the disk: written, read, checked."""
