"""Evaluation, apart from training: the one place where predictions meet the ground truth of the student's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.chains import PlannedRound
from orchestrator.data.dataset import Dataset
from orchestrator.method import metrics
from orchestrator.method.hierarchy import Level
from orchestrator.round_cache import StoredRound

TeacherClasses = dict[tuple[int, int], NDArray[np.int32]]
"""(level, index) -> classes predicted on the test samples."""


@dataclass(frozen=True)
class TeacherAccuracy:
    """One teacher on the test split."""

    level: int
    index: int
    overall: float | None
    inside: float | None
    """Accuracy on test samples of its own classes."""
    outside: float | None
    """Accuracy on all other test samples; None for a generalist."""


@dataclass(frozen=True)
class RoundMetrics:
    """Every number of one round; shares in 0..1, None where not defined."""

    chain: str
    round: int
    """Number of the round from 1."""
    level: int
    """Number of its level from 1; 0 for the ceiling."""
    teachers: int
    assignment: str
    collective_accuracy: float | None
    """Share of training samples whose supervised class is true."""
    assignment_accuracy: float | None
    """Share of training samples whose teacher's block holds the true class; None where all teachers are mixed."""
    consensus_rate: dict[int, float]
    """k -> share of samples whose supervised class is among the previous student's k likeliest; empty in round 1."""
    keep_rate: float
    filter_precision: float | None
    filter_recall: float | None
    student_accuracy: float | None
    """On test, after the last epoch."""
    student_validation_truth_accuracy: float | None
    """On validation, against ground truth held out for selection."""
    student_supervision_agreement: float | None
    """Share of training samples on which the new student agrees with its supervision."""
    pgr: float | None
    epochs: int
    seconds: dict[str, float]
    samples_per_second: float
    """Training samples per second of the training phase."""
    predictions_asked: int
    forward_passes: int
    test_curve: dict[int, float | None]
    """Epoch -> test accuracy; reported, never used."""
    losses: tuple[float, ...]
    assignment_matrix: list[list[int]] | None
    """Counts: true block x assigned teacher."""
    confidence_histogram: list[list[int]]
    """Counts [2][bins] of the supervision's confidence: wrong labels, right labels."""
    cached: bool
    """Whether the round was found finished rather than computed by this run."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


class Evaluation:
    """Holds the ground truth and measures finished rounds.

    Args:
        dataset: the data.
        levels: the hierarchy.
        teacher_classes: every teacher's classes on the test split.
    """

    def __init__(self, dataset: Dataset, levels: Sequence[Level], teacher_classes: TeacherClasses) -> None:
        splits = dataset.splits
        self._train, self._validation = dataset.labels[splits.student], dataset.labels[splits.validation]
        self._test, self._levels = dataset.labels[splits.test], levels
        self.teachers = tuple(self._teacher(*name, classes) for name, classes in sorted(teacher_classes.items()))
        first = [t.overall for t in self.teachers if t.level == 0 and t.overall is not None]
        self.weak = sum(first) / len(first) if first else None
        """Test accuracy of the first level: the generalist (the mean, should it have several teachers)."""
        self.ceiling: float | None = None
        """Test accuracy of the strong ceiling, once its chain is measured."""

    def measure(
        self, chain: str, number: int, planned: PlannedRound, stored: StoredRound, cached: bool
    ) -> RoundMetrics:
        """All numbers of one finished round."""
        arrays, numbers = stored.arrays, stored.numbers
        labels = arrays["top_classes"][:, 0]
        correct = labels == self._train
        precision, recall = metrics.filter_precision_recall(arrays["keep"], correct)
        student = metrics.accuracy(arrays["test_classes"], self._test)
        if chain == "ceiling":
            self.ceiling = student
        matrix = self._matrix(planned, arrays["assigned"])
        training = numbers["seconds"]["training"]
        return RoundMetrics(
            chain=chain,
            round=number,
            level=planned.level + 1,
            teachers=self._levels[planned.level].n_teachers if planned.level >= 0 else 0,
            assignment=planned.assignment,
            collective_accuracy=metrics.accuracy(labels, self._train),
            assignment_accuracy=None if matrix is None else float(np.trace(matrix) / matrix.sum()),
            consensus_rate=dict(enumerate(numbers["consensus"], start=1)),
            keep_rate=float(arrays["keep"].mean()),
            filter_precision=precision,
            filter_recall=recall,
            student_accuracy=student,
            student_validation_truth_accuracy=metrics.accuracy(arrays["validation_classes"], self._validation),
            student_supervision_agreement=metrics.accuracy(arrays["train_classes"], labels),
            pgr=metrics.pgr(student, self.weak, self.ceiling),
            epochs=len(numbers["losses"]),
            seconds=numbers["seconds"],
            samples_per_second=numbers["trained_samples"] / training if training else 0.0,
            predictions_asked=numbers["asked"],
            forward_passes=numbers["forward_passes"],
            test_curve={
                epoch: metrics.accuracy(classes, self._test)
                for epoch, classes in zip(numbers["curve_epochs"], arrays["test_curve"], strict=True)
            },
            losses=tuple(numbers["losses"]),
            assignment_matrix=None if matrix is None else matrix.tolist(),
            confidence_histogram=metrics.confidence_histogram(arrays["teacher_confidence"], correct).tolist(),
            cached=cached,
        )

    def _teacher(self, level: int, index: int, classes: NDArray[np.int32]) -> TeacherAccuracy:
        block = self._levels[level].blocks[index]
        inside, outside = metrics.inside_outside(classes, self._test, block)
        return TeacherAccuracy(level, index, metrics.accuracy(classes, self._test), inside, outside)

    def _matrix(self, planned: PlannedRound, assigned: NDArray[Any]) -> NDArray[np.int64] | None:
        if planned.level < 0 or (assigned < 0).any():
            return None
        level = self._levels[planned.level]
        return metrics.assignment_matrix(assigned, self._train, level.teacher_of_class(), level.n_teachers)
