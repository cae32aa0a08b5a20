"""Pages that reports are made of: one file each, with their pictures, that need no network."""
