"""Programs that print the numbers the documentation claims; each is `python -m benchmarks.NAME`."""
