"""Closed-form gradients against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainers.losses import auxiliary_confidence, confidence_weight, cross_entropy

B, C = 32, 7


def _logits(scale: float = 3.0) -> Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(0)) * scale


def _targets(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "hard":
        return torch.randint(C, (B,), generator=generator)
    soft = torch.softmax(torch.randn(B, C, generator=generator), dim=1)
    return soft if kind == "soft" else (soft * 0.999 if kind == "short" else soft.half())


def _autograd(logits: Tensor, loss: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("kind", ["hard", "soft", "short", "half"])
def test_cross_entropy(kind: str, scale: float) -> None:
    logits, targets = _logits(scale).requires_grad_(), _targets(kind)
    reference = targets if kind == "hard" else targets.float()
    expected = functional.cross_entropy(logits, reference, reduction="none")
    gradient, loss = cross_entropy(logits.detach().clone(), targets)
    if kind == "hard":  # the reported loss of one sample ends where float32 probabilities do
        seen = expected.detach().clamp_max(-math.log(1e-30))
        assert float(loss) == pytest.approx(float(seen.sum()), rel=1e-5)
        expected = expected.sum()
    else:
        expected = expected.sum()
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, _autograd(logits, expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_given_memory_holds_the_gradient(kind: str) -> None:
    memory = torch.full((B, C), float("nan"))
    gradient, _ = cross_entropy(_logits(), _targets(kind), memory)
    assert gradient.data_ptr() == memory.data_ptr()
    expected, _ = cross_entropy(_logits(), _targets(kind))
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_logits_and_targets_are_left_alone(kind: str) -> None:
    logits, targets = _logits(), _targets(kind)
    cross_entropy(logits, targets)
    auxiliary_confidence(logits, targets, 0.3)
    assert torch.equal(logits, _logits())
    assert torch.equal(targets, _targets(kind))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_extreme_logits_stay_finite(kind: str) -> None:
    logits = torch.zeros(B, C)
    logits[:, 0] = 1e4
    gradient, loss = cross_entropy(logits, _targets(kind))
    assert gradient.isfinite().all()
    assert loss.isfinite()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_auxiliary_confidence(kind: str, weight: float) -> None:
    logits, targets = _logits().requires_grad_(), _targets(kind)
    own = logits.detach().argmax(dim=1)
    expected = (1 - weight) * functional.cross_entropy(logits, targets, reduction="sum")
    expected = expected + weight * functional.cross_entropy(logits, own, reduction="sum")
    gradient, loss = auxiliary_confidence(logits.detach().clone(), targets, weight, torch.empty(B, C))
    torch.testing.assert_close(gradient, _autograd(logits, expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "warmup", "expected"),
    [(0, 0.2, 0.0), (10, 0.2, 0.25), (19, 0.2, 0.475), (20, 0.2, 0.5), (99, 0.2, 0.5), (0, 0.0, 0.5), (99, 1.0, 0.495)],
)
def test_confidence_weight(step: int, warmup: float, expected: float) -> None:
    assert confidence_weight(step, 100, 0.5, warmup) == pytest.approx(expected)
