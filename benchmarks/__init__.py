"""Measurements against peers and against a plain training pass: `python -m benchmarks --help`."""
