"""Numbers, and where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.method import metrics

YES, NO = True, False


@pytest.mark.parametrize(
    ("student", "weak", "ceiling", "expected"),
    [
        (0.7, 0.6, 0.8, 0.5),
        (0.5, 0.6, 0.8, -0.5),
        (0.9, 0.6, 0.8, 1.5),
        (0.0, 0.0, 0.5, 0.0),
        (0.7, 0.8, 0.8, None),
        (0.7, 0.9, 0.8, None),
        (None, 0.6, 0.8, None),
        (0.7, None, 0.8, None),
        (0.7, 0.6, None, None),
    ],
)
def test_pgr(student: float | None, weak: float | None, ceiling: float | None, expected: float | None) -> None:
    found = metrics.pgr(student, weak, ceiling)
    assert found is None if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keep", "correct", "expected"),
    [
        ([YES, YES, NO, NO], [YES, NO, YES, NO], (0.5, 0.5)),
        ([YES, NO, NO, NO], [YES, YES, YES, NO], (1.0, 1 / 3)),
        ([NO, NO, NO, NO], [YES, YES, NO, NO], (None, 0.0)),
        ([YES, YES, NO, NO], [NO, NO, NO, NO], (0.0, None)),
        ([NO, NO, NO, NO], [NO, NO, NO, NO], (None, None)),
        ([], [], (None, None)),
    ],
)
def test_precision_recall(keep: list[bool], correct: list[bool], expected: tuple[float | None, float | None]) -> None:
    assert metrics.filter_precision_recall(np.array(keep, bool), np.array(correct, bool)) == expected


def test_accuracy() -> None:
    assert metrics.accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 0, 0])) == 0.5
    assert metrics.accuracy(np.array([], int), np.array([], int)) is None


def test_inside_outside() -> None:
    classes, labels = np.array([0, 1, 2, 3, 3]), np.array([0, 0, 2, 2, 3])
    assert metrics.inside_outside(classes, labels, (0, 1)) == (0.5, pytest.approx(2 / 3))
    assert metrics.inside_outside(classes, labels, (0, 2, 3)) == (0.6, None)
    assert metrics.inside_outside(classes, labels, (7,)) == (None, 0.6)


def test_assignment_matrix() -> None:
    owner = np.array([0, 0, 1])
    found = metrics.assignment_matrix(np.array([0, 1, 1, 0]), np.array([0, 1, 2, 2]), owner, 2)
    assert found.tolist() == [[1, 1], [1, 1]]
    never = metrics.assignment_matrix(np.array([0, 0]), np.array([0, 1]), owner, 2)
    assert never.tolist() == [[2, 0], [0, 0]]


def test_confidence_histogram() -> None:
    confidence = np.array([0.0, 0.05, 0.99, 1.0, 1.001], np.float32)
    found = metrics.confidence_histogram(confidence, np.array([YES, NO, NO, YES, YES]), bins=10)
    assert found.shape == (2, 10)
    assert found[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
