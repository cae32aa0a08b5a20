"""Self-blended fakes (SBI, arXiv 2204.08376) of a set's real faces."""
