"""Files that are copied into bundles as they are; they import nothing of dfdet."""
