"""The run folder and what is written into it while a run lives."""
