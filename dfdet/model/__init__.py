"""The detector: an image tower, what of it is tuned, and a head."""
