"""Measurements outside the package: run as `python -m benchmarks` (speed) or `python -m benchmarks.<name>`."""
