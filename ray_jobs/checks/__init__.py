"""What ``ray_jobs.doctor`` looks at: probes that run on nodes, and pure functions that judge their answers.

Probes (``probe_*.py``) travel by value: a node that lacks a package, or this project, can still say so.
"""
