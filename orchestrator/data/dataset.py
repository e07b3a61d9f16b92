"""What a loaded data set is, and who may see which part of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.store import Arrays

SPLIT_CODES = {"student": 0, "validation": 1, "test": 2, "teacher": 3}
"""Codes of the ``split`` array of the `arrays` data set."""


@dataclass(frozen=True)
class Splits:
    """Disjoint row numbers (int64, ascending) of the parts of a data set."""

    teacher: NDArray[np.int64]
    """Rows that train the weak teachers, with their labels."""
    student: NDArray[np.int64]
    """Rows that train the student, without labels."""
    validation: NDArray[np.int64]
    """Rows whose labels may be used to choose between trials."""
    test: NDArray[np.int64]
    """Rows whose labels are used for nothing but reporting."""

    @classmethod
    def from_codes(cls, codes: NDArray[Any]) -> Splits:
        """From one code of `SPLIT_CODES` per row."""
        return cls(**{name: np.flatnonzero(codes == code) for name, code in SPLIT_CODES.items()})

    def counts(self) -> dict[str, int]:
        """Rows per part."""
        return {name: len(getattr(self, name)) for name in SPLIT_CODES}


@dataclass(frozen=True)
class GivenTeacher:
    """A teacher whose probabilities [N, C] come with the data: a ``.npy`` file, or an array in memory."""

    source: Path | NDArray[Any]
    digest: str

    def open(self) -> NDArray[Any]:
        """The probabilities, memory-mapped when they are a file."""
        return np.load(self.source, mmap_mode="r", allow_pickle=False) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class DataInfo:
    """What `describe` finds without loading more than it must."""

    n_classes: int
    n_features: int
    counts: dict[str, int]
    """Rows per split."""
    given_teachers: dict[int, int] = field(default_factory=dict)
    """Level (from 0) -> number of teachers that come with the data."""
    problems: tuple[str, ...] = ()
    """Mistakes in the data, each ``"data.field: rule (got value)"``."""


@dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Only `Evaluation`, the teachers' training and chains with "oracle" or "ceiling" in their name may read
    ``labels``; the student's training gets ``features`` alone.
    """

    name: str
    n_classes: int
    inputs: NDArray[Any]
    """Raw inputs [N, ...]: what the weak teachers see."""
    features: NDArray[np.float32]
    """Frozen strong features [N, D]: what the student sees."""
    labels: NDArray[np.int64]
    """Ground truth [N]."""
    splits: Splits
    digest: str
    """Digest of inputs, features and splits: everything but the ground truth."""
    encoder: Arrays
    """Weights that turn raw inputs into features (see `trainers.backbones.encoder`); empty: they are the same."""
    given_teachers: dict[tuple[int, int], GivenTeacher] = field(default_factory=dict)
    """(level, index), both from 0 -> probabilities that come with the data."""


def seeded_splits(groups: int, fractions: dict[str, float], rng: np.random.Generator) -> NDArray[np.int8]:
    """One split code per group, drawn at random with the given shares (rounded; the rest goes to test).

    Args:
        groups: number of units that must stay together, e.g. source images of augmented samples.
        fractions: share per split name; they sum to 1.
    """
    order = rng.permutation(groups)
    codes = np.full(groups, SPLIT_CODES["test"], dtype=np.int8)
    start = 0
    for name in ("teacher", "student", "validation"):
        stop = start + round(fractions[name] * groups)
        codes[order[start:stop]] = SPLIT_CODES[name]
        start = stop
    return codes
