"""Noise reduction: which supervised samples a round keeps. All vectors are global, one entry per sample [N]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_ROWS = 1024
"""Rows handled at a time where all classes are looked at: their temporaries then stay in the processor's cache."""


@dataclass(frozen=True)
class Signals:
    """What the filters may look at. No ground truth is among it."""

    student_loss: Tensor
    """Cross-entropy of the previous student against the supervised class, float32 [N]."""
    student_rank: Tensor
    """Classes the previous student finds likelier than the supervised one, int64 [N]; 0 = its own prediction."""
    student_confidence: Tensor
    """Probability the previous student gives the supervised class, float32 [N]."""
    teacher_confidence: Tensor
    """Probability the supervision gives its own class, float32 [N]."""
    previous_rank: Tensor
    """Rank of the supervised class in the previous level's supervision, int64 [N] (capped at what is stored)."""
    previous_confidence: Tensor
    """Probability the previous level's supervision gave its own class, float32 [N]."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Signals:
        """The same signals, each passed through ``function``."""
        return Signals(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


def class_ranks(scores: Tensor, classes: Tensor) -> Tensor:
    """How many classes score higher than the given one, int64 [N]; among equal scores lower classes come first.

    ``class_ranks(logits, y) < k`` says that ``y`` is among the ``k`` most likely classes.
    """
    own = scores.gather(1, classes[:, None])
    ranks = torch.empty_like(classes)
    numbers = torch.arange(scores.shape[1], device=scores.device)
    compared = torch.empty(min(_ROWS, len(scores)), scores.shape[1], device=scores.device)
    for start in range(0, len(scores), _ROWS):
        part = slice(start, start + _ROWS)
        out = compared[: len(own[part])]
        # comparisons as 0.0 and 1.0: summing floats is 10 x faster than counting booleans, and exact below 2**24
        higher = torch.gt(scores[part], own[part], out=out).sum(dim=1)
        equal = torch.eq(scores[part], own[part], out=out)
        ranks[part] = higher.add_(equal.mul_(numbers < classes[part, None]).sum(dim=1))
    return ranks


def class_losses(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of the student against one class per sample, float32 [N]."""
    losses = torch.empty(len(logits), device=logits.device)
    for start in range(0, len(logits), _ROWS):
        part = slice(start, start + _ROWS)
        losses[part] = torch.nn.functional.cross_entropy(logits[part].float(), classes[part], reduction="none")
    return losses


def consensus_rate(ranks: Tensor, k: int) -> float:
    """Share of samples whose supervised class is among the student's ``k`` most likely ("consensus rate")."""
    return float((ranks < k).sum()) / max(1, len(ranks))


def keep_lowest_loss(losses: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` samples of lowest loss, bool [N]; ties are broken by sample index."""
    keep = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    keep[torch.argsort(losses, stable=True)[:count]] = True
    return keep


def keep_by_topk_rate(ranks: Tensor, losses: Tensor, k: int) -> Tensor:
    """The paper's criterion: the consensus rate of top-``k`` says how many, the lowest losses say which.

    Keep the first ``r * N`` samples by loss, where ``r * N`` is the exact count of consensus samples
    (Liu & Alahi 2024, section 3.3, and the released code).
    """
    return keep_lowest_loss(losses, int((ranks < k).sum()))


def keep_by_threshold(confidence: Tensor, probability: float) -> Tensor:
    """Mask of samples whose supervised class has at least the given probability, bool [N]."""
    return confidence >= probability


def keep_fraction(losses: Tensor, fraction: float) -> Tensor:
    """Mask of the ``round(fraction * N)``, at least 1, samples of lowest loss, bool [N]."""
    return keep_lowest_loss(losses, max(1, round(fraction * len(losses))))


def local_global_agreement(previous_rank: Tensor, k: int) -> Tensor:
    """Mask of samples whose (local) class is within the top-``k`` of the previous (global) supervision, bool [N]."""
    return previous_rank < k


def confidence_not_dropping(confidence: Tensor, previous: Tensor) -> Tensor:
    """Mask of samples whose teacher is at least as confident as the previous level's, bool [N]."""
    return confidence >= previous


def rank_in_top(top_classes: Tensor, classes: Tensor) -> Tensor:
    """Position of a class in a list of most likely classes [N, T], int64 [N]; T where it is not among them."""
    hit = top_classes == classes[:, None]
    return torch.where(hit.any(dim=1), hit.to(torch.uint8).argmax(dim=1), top_classes.shape[1])


def top_classes(probabilities: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes per sample, best first, int64 [N, min(count, C)]; first entry = argmax."""
    count = min(count, probabilities.shape[1])
    order = torch.empty(len(probabilities), count, dtype=torch.int64, device=probabilities.device)
    best = torch.empty(len(probabilities), dtype=torch.int64, device=probabilities.device)
    for start in range(0, len(probabilities), _ROWS):
        part = slice(start, start + _ROWS)
        values = probabilities[part].float()  # half floats have no fast maximum on the CPU
        order[part] = torch.topk(values, count, dim=1).indices
        best[part] = values.max(dim=1).indices
    # topk leaves the order of equal values open; the argmax must lead, whatever it swaps places with
    at = order == best[:, None]
    position = torch.where(at.any(dim=1), at.to(torch.uint8).argmax(dim=1), order.shape[1] - 1)
    order.scatter_(1, position[:, None], order[:, :1].clone())
    order[:, 0] = best
    return order
