"""Measurements outside the package: run as `python -m benchmarks.<name>`."""
