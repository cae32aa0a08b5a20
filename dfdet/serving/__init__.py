"""Serving an exported bundle over HTTP: reading it, limits, requests, answers, the page; without Ray."""
