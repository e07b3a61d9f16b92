"""Data sets, their registry, splits and the content-addressed store. Importing this registers the built-in sets."""

from orchestrator.data import arrays, digits
from orchestrator.data.registry import DATASETS

__all__ = ["DATASETS", "arrays", "digits"]
