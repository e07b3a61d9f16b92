"""The method as pure functions on tensors: no Ray, no files, no MLflow, no randomness of its own."""

TOP_STORED = 10
"""Most likely classes of each supervision that are kept for the next round's local-global check."""
