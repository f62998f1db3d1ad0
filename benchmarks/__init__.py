"""Benchmarks of the pipeline beside the tutorial's script: `python -m benchmarks`."""
