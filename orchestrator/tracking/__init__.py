"""Delivery of a run's journal to MLflow: a process of its own, so that no server can stop or slow a run."""
