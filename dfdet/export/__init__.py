"""A checkpoint as files for serving: weights, graphs, and what goes with them."""
