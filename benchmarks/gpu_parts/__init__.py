"""The parts of `benchmarks/gpu.py`; each returns what it measured as a list of dictionaries."""
