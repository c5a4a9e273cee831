"""Measurements side by side with other libraries: python -m benchmarks.NAME, see benchmarks/README.md."""
