"""A process that does nothing more: found, told apart from those that wait for it, and ended."""
