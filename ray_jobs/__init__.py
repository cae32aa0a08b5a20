"""Entry points that run on a Ray cluster. Ray is imported only here."""
