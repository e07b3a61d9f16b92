"""Every number of docs/method.md, from class arrays and ground truth. Accuracies are shares in 0..1; numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]


def accuracy(classes: Ints, labels: Ints) -> float | None:
    """Share of equal entries; None for no samples (never 0 / 0)."""
    return float(np.mean(classes == labels)) if len(labels) else None


def pgr(student: float | None, weak: float | None, ceiling: float | None) -> float | None:
    """Performance gap recovered, ``(student - weak) / (ceiling - weak)`` (Burns et al. 2023, section 3).

    All three on the same test split. None where it is not defined: a part is unknown, or ceiling <= weak.
    """
    if student is None or weak is None or ceiling is None or ceiling <= weak:
        return None
    return (student - weak) / (ceiling - weak)


def inside_outside(classes: Ints, labels: Ints, block: tuple[int, ...]) -> tuple[float | None, float | None]:
    """Accuracy of a teacher on samples of its own block, and on all others."""
    inside = np.isin(labels, block)
    return accuracy(classes[inside], labels[inside]), accuracy(classes[~inside], labels[~inside])


def assignment_matrix(assigned: Ints, labels: Ints, teacher_of_class: Ints, n_teachers: int) -> NDArray[np.int64]:
    """Counts [K, K]: row = the teacher whose block holds the true class, column = the teacher assigned."""
    flat = teacher_of_class[labels] * n_teachers + assigned
    return np.bincount(flat, minlength=n_teachers**2).reshape(n_teachers, n_teachers)


def filter_precision_recall(keep: NDArray[np.bool_], correct: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Precision (kept samples that are labelled correctly) and recall (correctly labelled samples that are kept)."""
    both = int((keep & correct).sum())
    kept, right = int(keep.sum()), int(correct.sum())
    return (both / kept if kept else None), (both / right if right else None)


def confidence_histogram(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = 20) -> Ints:
    """Counts [2, bins] of the supervision's confidence over [0, 1]: row 0 wrong labels, row 1 correct ones."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    # fp16 probabilities may round to just above 1
    clipped = np.clip(confidence, 0.0, 1.0)
    return np.stack([np.histogram(clipped[correct == c], edges)[0] for c in (False, True)])
