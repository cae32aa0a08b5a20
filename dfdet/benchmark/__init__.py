"""Measurements that need no data, no Ray and no pretrained weights: ``python -m dfdet.benchmark step``."""
