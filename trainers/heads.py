"""Student heads and their flat view: all weights of a head in one vector, all gradients in another.

One vector makes the optimizer step one kernel and the all-reduce one message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def build_head(kind: str, n_features: int, n_classes: int, hidden: int) -> nn.Module:
    """An uninitialised head [B, D] -> logits [B, C]: ``linear``, or ``mlp`` with one hidden ReLU layer."""
    with torch.device("meta"):  # no memory and no random numbers: PyTorch would draw from the global generator
        if kind == "linear":
            head: nn.Module = nn.Linear(n_features, n_classes)
        elif kind == "mlp":
            head = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))
        else:
            raise ValueError(f"unknown head {kind!r}; known: linear, mlp")
    return head.to_empty(device="cpu")


def initialise(head: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default initialisation of linear layers (uniform in +-1/sqrt(fan in)), drawn from ``generator``."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def load_head(kind: str, n_classes: int, hidden: int, state: Mapping[str, Tensor]) -> nn.Module:
    """A head with the given weights; raises RuntimeError when they do not fit."""
    first_layer = state["weight" if kind == "linear" else "0.weight"]
    head = build_head(kind, first_layer.shape[1], n_classes, hidden)
    head.load_state_dict(dict(state))
    return head.eval()


class FlatHead:
    """A head whose parameters and gradients are views of two flat fp32 vectors.

    Args:
        head: the module; its parameters are moved into the flat vector.
        precision: ``fp32``, or ``bf16`` for the matrix products (weights and gradients stay fp32).
    """

    def __init__(self, head: nn.Module, precision: str) -> None:
        parameters = list(head.parameters())
        self.head = head
        self.weights = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradients = torch.zeros_like(self.weights)
        self._bf16 = precision == "bf16"
        start = 0
        for p in parameters:
            stop = start + p.numel()
            p.data = self.weights[start:stop].view_as(p)
            p.grad = self.gradients[start:stop].view_as(p)
            start = stop
        if isinstance(head, nn.Linear):
            self._weight, self._bias = head.weight.detach(), head.bias.detach()
            self._weight_gradient = self.gradients[: self._weight.numel()].view_as(self._weight)
            self._bias_gradient = self.gradients[self._weight.numel() :]
            self._half_weight = self._weight.to(torch.bfloat16) if self._bf16 else None
            self._half_gradient = torch.empty_like(self._weight, dtype=torch.bfloat16) if self._bf16 else None
            self._logits = torch.empty(0, device=self.weights.device)

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype the features should be stored in: converted once, not once a batch."""
        return torch.bfloat16 if self._bf16 else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [B, C]; keeps what `backward` needs."""
        self._x = x
        if not isinstance(self.head, nn.Linear):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bf16):
                self._outputs: Tensor = self.head(x)
            logits: Tensor = self._outputs.detach().float()
            return logits
        if len(self._logits) < len(x):  # the largest batch comes first; its memory serves all others
            self._logits = torch.empty(len(x), len(self._bias), device=x.device)
        logits = self._logits[: len(x)]
        if self._half_weight is None:
            return torch.addmm(self._bias, x, self._weight.t(), out=logits)
        self._half_weight.copy_(self._weight)
        return logits.copy_(x @ self._half_weight.t()).add_(self._bias)

    def backward(self, gradient: Tensor, scale: float) -> None:
        """Overwrite `gradients` with ``scale`` times those of the last `forward`; ``gradient`` is dL/dlogits
        [B, C] and is used up."""
        if not isinstance(self.head, nn.Linear):
            self.gradients.zero_()
            torch.autograd.backward(self._outputs, (gradient * scale).to(self._outputs.dtype))
            return
        gradient.mul_(scale)
        torch.sum(gradient, dim=0, out=self._bias_gradient)
        if self._half_gradient is None:
            torch.mm(gradient.t(), self._x, out=self._weight_gradient)
        else:
            torch.mm(gradient.to(torch.bfloat16).t(), self._x, out=self._half_gradient)
            self._weight_gradient.copy_(self._half_gradient)

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights, fp32 on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.head.named_parameters()}
