"""A sweep: what is searched, the study that remembers it, and what came of it."""
