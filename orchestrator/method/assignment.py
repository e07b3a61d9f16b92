"""The E-step: who teaches which sample. N samples, C classes, K teachers of the level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TeacherProbabilities = Callable[[int], Tensor]
"""Teacher number -> its probabilities on all N samples [N, C]; asked for one teacher at a time."""

_SMALLEST = 1e-7
"""Probabilities travel as fp16, where 0 is common; a log needs a floor."""


def assign_by_student(logits: Tensor, teacher_of_class: Tensor) -> Tensor:
    """Route each sample to the specialist of the student's predicted class.

    ``z_i = k`` with ``argmax_c s_{l-1}(x_i)_c`` in block ``k`` (Liu & Alahi 2024, section 3.2); among equal logits
    the lowest class counts.

    Args:
        logits: student logits [N, C].
        teacher_of_class: int64 [C].

    Returns:
        Teacher per sample, int64 [N].
    """
    return teacher_of_class[logits.max(dim=1).indices]  # 3 x faster than argmax, the same ties


def assign_by_truth(labels: Tensor, teacher_of_class: Tensor) -> Tensor:
    """Oracle: route each sample to the specialist of its *true* class, int64 [N]. An upper bound, not a method."""
    return teacher_of_class[labels]


def responsibilities(logits: Tensor, teacher_of_class: Tensor, n_teachers: int) -> Tensor:
    """Soft assignment: the textbook E-step of a mixture of experts (Jordan & Jacobs 1994).

    ``w_ik = sum over c in block k of softmax(s_{l-1}(x_i))_c``.

    Returns:
        float32 [N, K]; rows sum to 1.
    """
    probabilities = torch.softmax(logits.float(), dim=1)
    weights = torch.zeros(len(logits), n_teachers, dtype=torch.float32, device=logits.device)
    return weights.index_add_(1, teacher_of_class, probabilities)


def mix(weights: Tensor, teacher: TeacherProbabilities) -> Tensor:
    """Weighted mean of the teachers, ``y_i = sum_k w_ik p_k(x_i)``, float32 [N, C]; one teacher in memory at a time."""
    total = weights[:, :1] * teacher(0).float()
    for k in range(1, weights.shape[1]):
        total.addcmul_(weights[:, k : k + 1], teacher(k).float())
    return total


def assign_by_agreement(logits: Tensor, teacher: TeacherProbabilities, n_teachers: int) -> tuple[Tensor, Tensor]:
    """Route each sample to the teacher that agrees best with the student's distribution.

    ``z_i = argmin_k -sum_c softmax(s_{l-1}(x_i))_c log p_k(c | x_i)``; ties go to the lowest teacher. Needs no
    class blocks.

    Returns:
        (teacher per sample int64 [N], that teacher's probabilities [N, C]).
    """
    student = torch.softmax(logits.float(), dim=1)
    best = torch.full((len(logits),), float("inf"), device=logits.device)
    chosen = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    probabilities = torch.empty(0)
    for k in range(n_teachers):
        candidate = teacher(k)
        cost = -(student * candidate.float().clamp_min(_SMALLEST).log()).sum(dim=1)
        better = cost < best
        best = torch.where(better, cost, best)
        chosen[better] = k
        probabilities = candidate.clone() if k == 0 else torch.where(better[:, None], candidate, probabilities)
    return chosen, probabilities


def majority_vote(teacher: TeacherProbabilities, n_teachers: int) -> Tensor:
    """Shares of the teachers' votes, float32 [N, C].

    The argmax is the majority class; among classes with equally many votes the one with the larger mean
    probability wins, added as a term too small to outweigh a vote.
    """
    votes, mean = torch.empty(0), torch.empty(0)
    for k in range(n_teachers):
        probabilities = teacher(k).float()
        if k == 0:
            votes, mean = torch.zeros_like(probabilities), torch.zeros_like(probabilities)
        votes.scatter_add_(1, probabilities.argmax(dim=1, keepdim=True), torch.ones(len(votes), 1, device=votes.device))
        mean += probabilities / n_teachers
    shares = votes / n_teachers + mean * (0.1 / n_teachers)
    return shares / shares.sum(dim=1, keepdim=True)
