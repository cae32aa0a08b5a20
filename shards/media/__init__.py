"""Frames out of videos, images, folders and archives, and crops into image bytes."""
