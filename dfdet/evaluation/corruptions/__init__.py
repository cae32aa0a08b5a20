"""The robustness grid: what is done to crops before a model sees them."""
