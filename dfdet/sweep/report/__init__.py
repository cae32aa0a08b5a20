"""The page that a sweep leaves."""
