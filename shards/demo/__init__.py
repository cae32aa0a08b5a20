"""Procedural talking heads and forgeries of them."""
