"""The page and the Markdown that an evaluation leaves."""
