"""Benchmarks: commands that print a table, never timed tests. `python -m bench` lists them."""
