"""Student losses, each as the gradient with respect to the logits.

Every loss here is a cross-entropy against a target that does not depend on the weights, so its gradient is
``softmax(z) - target`` (Bishop 2006, eq. 4.109). Closed forms spare the autograd graph, and they serve any head:
``logits.backward(gradient)``. B samples, C classes; gradients are *sums* over the batch, not means.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30


def cross_entropy(logits: Tensor, targets: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hard or soft cross-entropy, ``L = -sum_c t_c log softmax(z)_c``.

    Args:
        logits: float32 [B, C].
        targets: classes int64 [B] (hard), or distributions float [B, C] (soft).
        out: memory for the gradient, float32 [B, C]; fresh memory costs page faults in every batch.

    Returns:
        (gradient float32 [B, C] = softmax(z) - t, loss summed over the batch, float32 scalar).
    """
    if targets.ndim == 1:
        gradient = torch.softmax(logits, dim=1, out=out)
        own = gradient.gather(1, targets[:, None])
        loss = -own.clamp_min(_TINY).log().sum()
        gradient.scatter_add_(1, targets[:, None], own.new_full((1, 1), -1.0).expand(len(own), 1))
        return gradient, loss
    log_probabilities = torch.log_softmax(logits, dim=1, out=out)
    loss = -(log_probabilities * targets).sum()
    # targets of fp16 teachers sum to 1 only nearly: the exact gradient carries their sum, itself not rounded to fp16
    total = targets.sum(dim=1, keepdim=True, dtype=torch.float32)
    return log_probabilities.exp_().mul_(total).sub_(targets), loss


def auxiliary_confidence(
    logits: Tensor, targets: Tensor, weight: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Auxiliary-confidence loss of Burns et al. 2023 (arXiv 2312.09390, section 4.3 and appendix A.4).

    ``L = (1 - a) CE(f(x), teacher) + a CE(f(x), hardened f(x))``. The hardened prediction is the student's argmax:
    the many-class form of their threshold, which balances two classes only. It carries no gradient.

    Args:
        logits: float32 [B, C].
        targets, out: as in `cross_entropy`.
        weight: ``a`` in [0, 1] at this update.

    Returns:
        (gradient float32 [B, C], loss summed over the batch).
    """
    gradient, loss = cross_entropy(logits, targets, out)
    if weight == 0:
        return gradient, loss
    own_gradient, own_loss = cross_entropy(logits, logits.argmax(dim=1))
    return gradient.mul_(1 - weight).add_(own_gradient, alpha=weight), loss * (1 - weight) + own_loss * weight


def confidence_weight(step: int, total: int, alpha: float, warmup: float) -> float:
    """Weight of the student's own prediction: linear from 0 to ``alpha`` over the first ``warmup`` share of updates."""
    ramp = warmup * total
    return alpha if step >= ramp else alpha * step / ramp
