"""Weak teachers: small models, each trained on the samples of its own block only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.heads import build_head, initialise


@dataclass(frozen=True, kw_only=True)
class WeakSettings:
    """How a weak teacher is trained; see `TeachersConfig`."""

    kind: str
    steps: int
    lr: float
    batch_size: int


def train_weak(
    settings: WeakSettings, inputs: Tensor, labels: Tensor, n_classes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Train one teacher; a specialist gets its block's samples only, but keeps all ``C`` outputs (method.md).

    Args:
        settings: model and schedule.
        inputs: raw inputs of the teacher's block [n, ...]; flattened.
        labels: their true classes int64 [n].
        n_classes: C.
        generator: initial weights and batches.

    Returns:
        The state of a linear layer, ``weight`` [C, P] and ``bias`` [C].
    """
    x = inputs.reshape(len(inputs), -1).float()
    model = build_head(settings.kind, x.shape[1], n_classes, hidden=0)
    initialise(model, generator)
    parameters: list[Tensor] = list(model.parameters())
    mean, square = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    steps = [torch.zeros(()) for _ in parameters]
    for _ in range(settings.steps):
        rows = torch.randint(len(x), (settings.batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[rows]), labels[rows])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(  # as in head_loop: without the 2 s import that torch.optim.Adam costs
                parameters, gradients, mean, square, [], steps, lr=settings.lr,
                beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
    return {name: p.detach() for name, p in model.named_parameters()}


def weak_probabilities(state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Softmax outputs of a trained teacher on raw inputs [n, ...], float16 [n, C]."""
    x = inputs.reshape(len(inputs), -1).float()
    with torch.inference_mode():
        return torch.softmax(torch.addmm(state["bias"], x, state["weight"].t()), dim=1).half()
