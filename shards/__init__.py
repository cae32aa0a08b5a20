"""From any dataset of faces to WebDataset shards. Imports nothing of dfdet but schema and errors."""
