"""WebDataset tars of others: indexed where they lie, never changed."""
