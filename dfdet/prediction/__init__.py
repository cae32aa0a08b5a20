"""A checkpoint on a user's own faces: scores, verdicts, where the evidence lies, records and pictures."""
